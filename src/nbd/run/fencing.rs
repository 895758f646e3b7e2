//! The fencing handler: a program of the operator's that keeps a lost site from going on, and reports by its exit status
//! whether it did.
//!
//! Must never wait for it without end: a primary's writes may wait for its result. Called by the mirror.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::config::{Config, Resource, RunSite};
use crate::nbd::mirror::Generation;
use crate::wire::{ResourceId, SiteId};

/// The result of a handler that could not be run, or did not end in time.
pub(super) const FAILED: i32 = -1;

/// Longest time of a handler: power switches take seconds, and a machine that is reset perhaps half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The fencing handler of a resource at this site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handler {
    program: PathBuf,
    /// The host names of the nodes that may run the resource, by site.
    hosts: Vec<(SiteId, String)>,
}

impl Handler {
    /// The handler as it is configured, if one is.
    pub fn new(config: &Config, resource: &Resource, here: &RunSite) -> Option<Self> {
        let program = here.mirror.fencing_handler()?.to_owned();
        let hosts = resource.runsites.iter().map(|at| {
            let site = config.sites.iter().find(|site| site.id == at.site);
            let nodes = site.into_iter().flat_map(|site| &site.nodes);
            let nodes = nodes.filter(|node| at.run_nodes.contains(&node.id));
            (at.site, nodes.map(|node| node.hostname.as_str()).collect::<Vec<_>>().join(" "))
        });
        Some(Handler { program, hosts: hosts.collect() })
    }

    /// Returns true if its program is there and may be run.
    pub fn is_there(&self) -> bool {
        self.program.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    }

    /// Warns of a handler that cannot be called, before it is needed.
    pub fn look(&self, resource: &str) {
        if !self.is_there() {
            warn!(
                "resource {resource:?}: the fencing handler {} is no program that can be run: a lost site cannot be \
                 excluded; install it, or name it in <fencepeer>",
                self.program.display()
            );
        }
    }
}

/// The environment of a call.
pub(super) struct Call<'a> {
    pub resource: &'a str,
    pub id: ResourceId,
    pub own: SiteId,
    pub lost: SiteId,
    /// That of the data here.
    pub generation: Generation,
}

/// Calls the handler and returns its exit status, or [`FAILED`].
pub(super) fn call(handler: &Handler, call: &Call<'_>) -> i32 {
    let (name, lost) = (call.resource, call.lost);
    info!("{name}: {lost}: calling the fencing handler {}", handler.program.display());
    let status = run(handler, call).unwrap_or_else(|error| {
        warn!("{name}: {lost}: the fencing handler {} failed: {error}", handler.program.display());
        FAILED
    });
    info!("{name}: {lost}: the fencing handler ended with {status}");
    status
}

fn run(handler: &Handler, call: &Call<'_>) -> std::io::Result<i32> {
    let hosts = handler.hosts.iter().find(|(site, _)| *site == call.lost).map_or("", |(_, hosts)| hosts);
    let mut child = Command::new(&handler.program)
        .env("HADM_RESOURCE", call.resource)
        .env("HADM_RESOURCE_ID", call.id.get().to_string())
        .env("HADM_SITE", call.own.get().to_string())
        .env("HADM_LOST_SITE", call.lost.get().to_string())
        .env("HADM_LOST_HOSTS", hosts)
        .env("HADM_GENERATION", call.generation.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            if let Some(signal) = status.signal() {
                return Err(std::io::Error::other(format!("it was ended by signal {signal}")));
            }
            return Ok(status.code().unwrap_or(FAILED));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::other(format!("it has not ended in {} s", PATIENCE.as_secs())));
        }
        std::thread::park_timeout(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_cannot_be_run_has_failed() {
        let id = ResourceId::try_from(0).unwrap();
        let site = SiteId::try_from(1).unwrap();
        let of = |path: &str| {
            let handler = Handler { program: path.into(), hosts: Vec::new() };
            let call =
                Call { resource: "data", id, own: site, lost: site, generation: Generation::default() };
            (handler.is_there(), super::call(&handler, &call))
        };
        assert_eq!((of("/nowhere/fence"), of("/bin/false")), ((false, FAILED), (true, 1)));
        assert_eq!(of("/etc"), (false, FAILED));
    }
}
