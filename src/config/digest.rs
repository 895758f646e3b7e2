//! A short digest of the cluster-wide part of a configuration, for peers to compare.
//!
//! Nodes send it in the hello's extension: unequal digests mean unequal files. It must never depend on the node's own
//! settings, nor on the form of the file. Changing the text below makes nodes of different versions differ.

use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use super::model::{Config, Mode, Protocol};

impl Config {
    /// Returns the first 8 bytes of a SHA-256 over heartbeat pair, sites, nodes and resources.
    pub fn digest(&self) -> [u8; 8] {
        let mut hash = Hash(Sha256::new());
        // Writing to a hash cannot fail.
        _ = self.write_canonical(&mut hash);
        let mut digest = [0; 8];
        for (to, from) in digest.iter_mut().zip(hash.0.finalize()) {
            *to = from;
        }
        digest
    }

    /// Writes one line for each item. Values hold no white space, so that no two configurations give the same text.
    fn write_canonical(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(out, "ping {} {}", self.ping_interval.as_nanos(), self.max_ping_count)?;
        for site in &self.sites {
            let mode = match site.mode {
                Mode::Share => "share",
                Mode::StandAlone => "alone",
            };
            writeln!(out, "{} {mode}", site.id)?;
            for node in &site.nodes {
                writeln!(out, "{} {} {}", node.id, node.hostname.to_ascii_lowercase(), node.addr)?;
            }
        }
        for resource in &self.resources {
            writeln!(out, "{} {}", resource.id, resource.name)?;
            for at in &resource.runsites {
                let protocol = match at.protocol {
                    Protocol::Async => "async",
                    Protocol::Sync => "sync",
                };
                writeln!(out, "run at {} {} {protocol} {} {}", at.site, at.addr, at.disk, at.bwr_disk)?;
                // Files without the element keep the digest that older versions give them.
                if let Some(compress) = at.compress {
                    writeln!(out, "compress {}", compress.name())?;
                }
                at.run_nodes.iter().try_for_each(|node| writeln!(out, "run on {node}"))?;
            }
        }
        Ok(())
    }
}

struct Hash(Sha256);

impl Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}
