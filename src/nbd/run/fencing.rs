//! The fencing handler: a program of the operator's that keeps a lost site from going on, and reports by its exit status
//! whether it did.
//!
//! Must never wait for it without end: a primary's writes may wait for its result. Called by the mirror.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::wire::{ResourceId, SiteId};

/// The result of a handler that could not be run, or did not end in time.
pub(super) const FAILED: i32 = -1;

/// Longest time of a handler: power switches take seconds, and a machine that is reset perhaps half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The environment of a call.
pub(super) struct Call<'a> {
    pub resource: &'a str,
    pub id: ResourceId,
    pub own: SiteId,
    pub lost: SiteId,
}

/// Calls the handler and returns its exit status, or [`FAILED`].
pub(super) fn call(handler: &Path, call: &Call<'_>) -> i32 {
    let (name, lost) = (call.resource, call.lost);
    info!("{name}: {lost}: calling the fencing handler {}", handler.display());
    let status = run(handler, call).unwrap_or_else(|error| {
        warn!("{name}: {lost}: the fencing handler {} failed: {error}", handler.display());
        FAILED
    });
    info!("{name}: {lost}: the fencing handler ended with {status}");
    status
}

fn run(handler: &Path, call: &Call<'_>) -> std::io::Result<i32> {
    let mut child = Command::new(handler)
        .env("HADM_RESOURCE", call.resource)
        .env("HADM_RESOURCE_ID", call.id.get().to_string())
        .env("HADM_SITE", call.own.get().to_string())
        .env("HADM_LOST_SITE", call.lost.get().to_string())
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
        let of = |path: &str| call(Path::new(path), &Call { resource: "data", id, own: site, lost: site });
        assert_eq!((of("/nowhere/fence"), of("/bin/false")), (FAILED, 1));
    }
}
