//! Programs of the operator's: the fencing handler, which keeps a lost site from going on and reports by its exit status
//! whether it did, and the helper of a split brain, which may end the role of a primary whose changes are to go.
//!
//! Must never wait for one without end: a primary's writes may wait for its result. Called from threads of the mirror's.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::config::mirror::{OnePrimary, TwoPrimaries};
use crate::config::{Config, Resource, RunSite};
use crate::nbd::mirror::Generation;
use crate::wire::{ResourceId, SiteId};

/// The result of a handler that could not be run, or did not end in time.
pub(super) const FAILED: i32 = -1;

/// Longest time of a handler: power switches take seconds, and a machine that is reset perhaps half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The programs of a resource at this site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Handlers {
    pub fencing: Option<Handler>,
    pub helper: Option<Handler>,
    /// The host names of the nodes that may run the resource, by site.
    pub hosts: Vec<(SiteId, String)>,
}

impl Handlers {
    /// The programs as they are configured, each if it may be called.
    pub fn new(config: &Config, resource: &Resource, here: &RunSite) -> Self {
        let hosts = resource.runsites.iter().map(|at| {
            let site = config.sites.iter().find(|site| site.id == at.site);
            let nodes = site.into_iter().flat_map(|site| &site.nodes);
            let nodes = nodes.filter(|node| at.run_nodes.contains(&node.id));
            (at.site, nodes.map(|node| node.hostname.as_str()).collect::<Vec<_>>().join(" "))
        });
        let policies = &here.mirror.split_brain;
        let is_called = policies.one == OnePrimary::CallHelper || policies.two == TwoPrimaries::CallHelper;
        let helper = here.mirror.helper.as_deref().filter(|_| is_called);
        Handlers {
            fencing: here.mirror.fencing_handler().map(|program| Handler::new(Task::Fencing, program)),
            helper: helper.map(|program| Handler::new(Task::SplitBrain, program)),
            hosts: hosts.collect(),
        }
    }

    /// Warns of a program that cannot be called, before it is needed.
    pub fn look(&self, resource: &str) {
        for handler in self.fencing.iter().chain(&self.helper).filter(|handler| !handler.is_there()) {
            let (without, element) = match handler.task {
                Task::Fencing => ("a lost site cannot be excluded", "fencepeer"),
                Task::SplitBrain => ("a split brain has to wait for a person", "splitbrainhelper"),
            };
            warn!(
                "resource {resource:?}: the {} {} is no program that can be run: {without}; install it, or name it in \
                 <{element}>",
                handler.task.words(),
                handler.program.display()
            );
        }
    }
}

/// The reason for which a program is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Fencing,
    SplitBrain,
}

impl Task {
    fn words(self) -> &'static str {
        match self {
            Task::Fencing => "fencing handler",
            Task::SplitBrain => "split-brain helper",
        }
    }

    /// The variables that name the other site, and its hosts.
    fn variables(self) -> [&'static str; 2] {
        match self {
            Task::Fencing => ["HADM_LOST_SITE", "HADM_LOST_HOSTS"],
            Task::SplitBrain => ["HADM_PEER_SITE", "HADM_PEER_HOSTS"],
        }
    }
}

/// One program, and the reason for which it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handler {
    task: Task,
    program: PathBuf,
}

/// The environment of a call.
pub(super) struct Call<'a> {
    pub resource: &'a str,
    pub id: ResourceId,
    pub own: SiteId,
    pub other: SiteId,
    /// The other site's host names.
    pub hosts: &'a str,
    /// That of the data here.
    pub generation: Generation,
}

impl Handler {
    fn new(task: Task, program: &Path) -> Self {
        Handler { task, program: program.to_owned() }
    }

    fn is_there(&self) -> bool {
        self.program.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    }

    /// Calls the program and returns its exit status, or [`FAILED`].
    pub fn call(&self, call: &Call<'_>) -> i32 {
        let (name, site, what) = (call.resource, call.other, self.task.words());
        info!("{name}: {site}: calling the {what} {}", self.program.display());
        let status = self.run(call).unwrap_or_else(|error| {
            warn!("{name}: {site}: the {what} {} failed: {error}", self.program.display());
            FAILED
        });
        info!("{name}: {site}: the {what} ended with {status}");
        status
    }

    fn run(&self, call: &Call<'_>) -> std::io::Result<i32> {
        let [site, hosts] = self.task.variables();
        let mut child = Command::new(&self.program)
            .env("HADM_RESOURCE", call.resource)
            .env("HADM_RESOURCE_ID", call.id.get().to_string())
            .env("HADM_SITE", call.own.get().to_string())
            .env(site, call.other.get().to_string())
            .env(hosts, call.hosts)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_cannot_be_run_has_failed() {
        let id = ResourceId::try_from(0).unwrap();
        let site = SiteId::try_from(1).unwrap();
        let of = |path: &str| {
            let handler = Handler::new(Task::Fencing, path.as_ref());
            let call = Call {
                resource: "data",
                id,
                own: site,
                other: site,
                hosts: "",
                generation: Generation::default(),
            };
            (handler.is_there(), handler.call(&call))
        };
        assert_eq!((of("/nowhere/fence"), of("/bin/false")), ((false, FAILED), (true, 1)));
        assert_eq!(of("/etc"), (false, FAILED));
    }
}
