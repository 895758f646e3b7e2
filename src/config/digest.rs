//! A short digest of the cluster-wide part of a configuration, for peers to compare.
//!
//! Nodes send it in the hello's extension: unequal digests mean unequal files. It must never depend on the node's own
//! settings, nor on the form of the file. Changing the text below makes nodes of different versions differ.

use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use super::model::{Config, Mode, Protocol, Resource, Site};
use crate::wire::{ConfigPart, PartDigest};

impl Config {
    /// Returns the first 8 bytes of a SHA-256 over heartbeat pair, sites, nodes and resources.
    pub fn digest(&self) -> [u8; 8] {
        digest_of(&|out| {
            writeln!(out, "ping {} {}", self.ping_interval.as_nanos(), self.max_ping_count)?;
            self.sites.iter().try_for_each(|site| write_site(site, out))?;
            self.resources.iter().try_for_each(|resource| write_resource(resource, out))
        })
    }

    /// Returns a digest of each part of which [`Config::digest`] is made, in the order of the parts.
    pub fn part_digests(&self) -> Vec<PartDigest> {
        let ping = [
            (ConfigPart::PingTimeout, digest_of(&|out| write!(out, "{}", self.ping_interval.as_nanos()))),
            (ConfigPart::MaxPingCount, digest_of(&|out| write!(out, "{}", self.max_ping_count))),
        ];
        let sites = self
            .sites
            .iter()
            .map(|site| (ConfigPart::Site(site.id), digest_of(&|out| write_site(site, out))));
        let resources = self.resources.iter().map(|resource| {
            (ConfigPart::Resource(resource.id), digest_of(&|out| write_resource(resource, out)))
        });
        ping.into_iter().chain(sites).chain(resources).collect()
    }
}

/// Returns the first bytes of a SHA-256 over what is written.
fn digest_of<const N: usize>(write: &dyn Fn(&mut Hash) -> fmt::Result) -> [u8; N] {
    let mut hash = Hash(Sha256::new());
    // Writing to a hash cannot fail.
    _ = write(&mut hash);
    let mut digest = [0; N];
    for (to, from) in digest.iter_mut().zip(hash.0.finalize()) {
        *to = from;
    }
    digest
}

// One line for each item. Values hold no white space, so that no two configurations give the same text.

fn write_site(site: &Site, out: &mut Hash) -> fmt::Result {
    let mode = match site.mode {
        Mode::Share => "share",
        Mode::StandAlone => "alone",
    };
    writeln!(out, "{} {mode}", site.id)?;
    for node in &site.nodes {
        writeln!(out, "{} {} {}", node.id, node.hostname.to_ascii_lowercase(), node.addr)?;
    }
    Ok(())
}

fn write_resource(resource: &Resource, out: &mut Hash) -> fmt::Result {
    writeln!(out, "{} {}", resource.id, resource.name)?;
    for at in &resource.runsites {
        let protocol = match at.protocol {
            Protocol::Async => "async",
            Protocol::Sync => "sync",
        };
        writeln!(out, "run at {} {} {protocol} {} {}", at.site, at.addr, at.disk, at.bwr_disk)?;
        if let Some(witness) = &at.witness {
            writeln!(out, "witness {}", witness.display())?;
        }
        // Files without the element keep the digest that older versions give them.
        if let Some(compress) = at.compress {
            writeln!(out, "compress {}", compress.name())?;
        }
        at.run_nodes.iter().try_for_each(|node| writeln!(out, "run on {node}"))?;
    }
    Ok(())
}

struct Hash(Sha256);

impl Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}
