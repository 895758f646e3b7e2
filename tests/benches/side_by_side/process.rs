//! The measured processes: how a daemon of any build is started, and what processor time a process has used.

use std::fs;
use std::process::Command;

use crate::Build;
use crate::support::{ConfigFile, Daemon, PATIENCE, Subnet};

/// Starts node `id`'s daemon and waits until it is ready.
pub fn start(build: &Build, net: &Subnet, config: &ConfigFile, id: u8) -> Daemon {
    let mut command = Command::new(&build.path);
    command.arg("-c").arg(&config.path).args(["--hostname", &format!("n{id}"), "--no-kmod-check"]);
    command.args(["--server", &net.server(id).to_string(), "--log", "stderr"]);
    let daemon = Daemon::spawn(&mut command, &build.name);
    daemon.wait_log(" ready:", PATIENCE);
    daemon
}

/// User and system time of all its threads: to the nanosecond where the system tells, else to 10 ms.
pub fn cpu_seconds(process: &Daemon) -> f64 {
    precise(process.pid()).unwrap_or(process.cpu_ticks() as f64 / 100.0)
}

fn precise(pid: u32) -> Option<f64> {
    let mut milliseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = fs::read_to_string(thread.ok()?.path().join("sched")).ok()?;
        let line = text.lines().find(|line| line.starts_with("se.sum_exec_runtime"))?;
        milliseconds += line.rsplit(':').next()?.trim().parse::<f64>().ok()?;
    }
    Some(milliseconds / 1e3)
}
