//! The thread that looks: it asks the daemon and the program of the disks each second, and puts the sections up.
//!
//! Asks only what changes nothing, in one connection to each. One that is not there is asked again with the next look.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::board::Board;
use super::sections::sections;
use super::state::{Disks, State};
use crate::control::{Json, Request, Transition};
use crate::ctl::Failure;
use crate::ctl::watch::Questions;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks for ever.
pub(super) fn look(control: PathBuf, disks: PathBuf, timeout: Duration, board: &Arc<Board>) {
    let mut daemon = Questions::new("hadmd", &control, timeout);
    let mut nbd = Questions::new("hadm-nbd", &disks, timeout);
    let mut state = State::new(Instant::now());
    loop {
        let began = Instant::now();
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        if let Err(failure) = ask(&mut daemon, &mut state, &time) {
            state.miss(failure.to_string(), Instant::now(), &time);
        }
        state.disks = match disks.exists() {
            false => Disks::None,
            true => match nbd.ask(r#"{"v":1,"cmd":"status"}"#) {
                Ok(answer) => Disks::Known(answer.value().clone()),
                Err(failure) => Disks::Trouble(failure.to_string()),
            },
        };
        board.put(sections(&state));
        std::thread::park_timeout(PERIOD.saturating_sub(began.elapsed()));
    }
}

fn ask(daemon: &mut Questions, state: &mut State, time: &str) -> Result<(), Failure> {
    let status = answer(daemon, &Request::Status)?;
    for peer in state.take(status, Instant::now(), time) {
        state.add(&answer::<Vec<Transition>>(daemon, &Request::Why(peer))?);
    }
    // A daemon that starts has none.
    state.mesh = answer(daemon, &Request::Mesh).ok();
    Ok(())
}

fn answer<T: Json>(daemon: &mut Questions, request: &Request) -> Result<T, Failure> {
    daemon.ask(&request.line())?.read().map_err(Failure::NoAnswer)
}
