//! `--watch`: looks again each second, on one screen, and goes on when the daemon was restarted.
//!
//! On a terminal a picture fills the screen and no more; keys scroll it. Elsewhere, also on a terminal without cursor
//! movement, one picture follows the other. Must leave the terminal as it found it. Used by `status` and `disk status`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::Failure;
use super::daemon::Daemon;
use super::show::coloured;
use crate::control::Carried;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// The size of a terminal that does not know its own.
const USUAL: (usize, usize) = (24, 80);

/// Returns true if the terminal wants colours: it is one, it can, and `NO_COLOR` is not set.
pub(super) fn has_colour(out: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    out.is_terminal() && !is_set("NO_COLOR") && !is_dumb()
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// The picture: lines that stay, and lines that scroll.
#[derive(Default)]
pub(super) struct Picture {
    pub head: Vec<String>,
    pub rows: Vec<String>,
}

/// Questions to a program that may be restarted between two of them.
pub(super) struct Questions {
    program: &'static str,
    path: PathBuf,
    timeout: Duration,
    daemon: Option<Daemon>,
}

impl Questions {
    pub fn new(program: &'static str, path: &Path, timeout: Duration) -> Self {
        Questions { program, path: path.into(), timeout, daemon: None }
    }

    /// Asks; over a new connection where the old one has ended.
    pub fn ask(&mut self, line: &str) -> Result<Carried, Failure> {
        if let Some(mut daemon) = self.daemon.take() {
            if let Ok(answer) = daemon.ask_line(line) {
                self.daemon = Some(daemon);
                return Ok(answer);
            }
        }
        let mut daemon = Daemon::connect_to(self.program, &self.path, self.timeout)?;
        let answer = daemon.ask_line(line)?;
        self.daemon = Some(daemon);
        Ok(answer)
    }
}

/// Looks and shows until it is interrupted. `draw` makes the picture of an answer; true: with colours.
pub(super) fn watch(
    questions: &mut Questions,
    line: &str,
    json: bool,
    out: &mut StdoutLock,
    mut draw: impl FnMut(&Carried, bool) -> Result<Picture, Failure>,
) -> Result<(), Failure> {
    let colour = has_colour(out);
    // Only a daemon that was there once is waited for.
    let mut answer = Ok(questions.ask(line)?);
    let mut screen = (!json && out.is_terminal() && !is_dumb()).then(Screen::new);
    let (mut picture, mut trouble) = (Picture::default(), None);
    loop {
        match answer {
            Ok(answer) => {
                trouble = None;
                match json {
                    true => writeln!(out, "{answer}")?,
                    false => picture = draw(&answer, colour)?,
                }
            }
            Err(Failure::Unread) => return Err(Failure::Unread),
            Err(failure) => {
                let why = failure.to_string();
                // If lines stay, one for each trouble is enough.
                if screen.is_none() && trouble.as_ref() != Some(&why) {
                    let _ = writeln!(io::stderr(), "hadmctl: {why}; trying again");
                }
                trouble = Some(why);
            }
        }
        let until = Instant::now() + PERIOD;
        match &mut screen {
            Some(screen) => {
                let mut all = Picture { head: picture.head.clone(), rows: picture.rows.clone() };
                if let Some(why) = &trouble {
                    all.head.insert(0, coloured(&format!("NOT NOW: {why}"), "31", colour));
                }
                if !screen.show_until(&all, until, out)? {
                    return Ok(());
                }
            }
            None => {
                if !json && trouble.is_none() {
                    let lines = picture.head.iter().chain(&picture.rows);
                    let text: String = lines.map(|line| format!("{line}\n")).collect();
                    out.write_all(format!("{text}\n").as_bytes())?;
                }
                out.flush()?;
                // A look a second is what was asked for; there is nothing to wait for.
                std::thread::park_timeout(PERIOD);
            }
        }
        answer = questions.ask(line);
    }
}

/// A terminal that can move its cursor.
struct Screen {
    /// The terminal's settings before, if keys are read.
    before: Option<Termios>,
    /// The number of a signal that came.
    signal: Arc<AtomicUsize>,
    /// The first row that is shown.
    top: usize,
}

impl Screen {
    fn new() -> Self {
        let before = is_foreground().then(|| tcgetattr(io::stdin()).ok()).flatten();
        let signal = Arc::new(AtomicUsize::new(0));
        if let Some(before) = &before {
            // The terminal has to be put right before the program ends.
            for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
                let number_in = usize::try_from(number).unwrap_or_default();
                let _ = signal_hook::flag::register_usize(number, Arc::clone(&signal), number_in);
            }
            let mut keys = before.clone();
            keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &keys);
        }
        Screen { before, signal, top: 0 }
    }

    /// Shows the picture, and again with every key, until the time has come. False: it is enough.
    fn show_until(
        &mut self,
        picture: &Picture,
        until: Instant,
        out: &mut StdoutLock,
    ) -> Result<bool, Failure> {
        loop {
            let size = size(out);
            out.write_all(draw(picture, &mut self.top, size).as_bytes())?;
            out.flush()?;
            let Some(keys) = self.keys(until) else { return Ok(true) };
            let signal = self.signal.load(Ordering::Relaxed);
            if signal != 0 {
                out.write_all(b"\r\n")?;
                out.flush()?;
                self.restore();
                let _ = signal_hook::low_level::emulate_default_handler(signal.try_into().unwrap_or(SIGTERM));
                return Ok(false);
            }
            let page = size.0.saturating_sub(picture.head.len() + 1).max(1);
            match moved(&keys, self.top, page) {
                Some(top) => self.top = top,
                None => {
                    out.write_all(b"\r\n")?;
                    return Ok(false);
                }
            }
        }
    }

    /// The keys that are pressed before the time has come, or a signal that comes; `None`: nothing of it.
    fn keys(&mut self, until: Instant) -> Option<Vec<u8>> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        if self.before.is_none() {
            std::thread::park_timeout(left);
            return None;
        }
        let stdin = io::stdin();
        // To read in the background would stop the program.
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let fds = if is_foreground() { &mut fds[..] } else { &mut [] };
        // A signal interrupts it, and is looked for by the caller.
        let ready = Timespec::try_from(left).is_ok_and(|left| poll(fds, Some(&left)) == Ok(1));
        if !ready {
            return (self.signal.load(Ordering::Relaxed) != 0).then(Vec::new);
        }
        let mut keys = [0; 64];
        match rustix::io::read(&stdin, &mut keys) {
            Ok(n) if n > 0 => Some(keys.get(..n).unwrap_or_default().into()),
            // The terminal is gone, and would say so without end.
            _ => {
                self.restore();
                None
            }
        }
    }

    fn restore(&mut self) {
        if let Some(before) = self.before.take().filter(|_| is_foreground()) {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Returns true if nothing keeps this program from the terminal's keys. In the background (`timeout 9 hadmctl ...` in a script) a
/// change of the terminal's settings would stop the program, again and again, whatever signal is to end it.
fn is_foreground() -> bool {
    // A terminal of another session has no say, and does not answer.
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

/// Rows and columns of the terminal.
fn size(out: &StdoutLock) -> (usize, usize) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let own = tcgetwinsize(out).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    let own = own.map(|size| (size.ws_row.into(), size.ws_col.into()));
    own.unwrap_or_else(|| (number("LINES").unwrap_or(USUAL.0), number("COLUMNS").unwrap_or(USUAL.1)))
}

/// Returns the first row after these keys; `None`: the end was asked for. A row too far down is corrected by the
/// drawing.
fn moved(keys: &[u8], mut top: usize, page: usize) -> Option<usize> {
    let mut rest = keys;
    loop {
        // The bytes of a key, in both modes of the cursor keys.
        let known: [(&[&[u8]], usize); 6] = [
            (&[b"\x1b[A", b"\x1bOA", b"k"], top.saturating_sub(1)),
            (&[b"\x1b[B", b"\x1bOB", b"j", b"\r", b"\n"], top.saturating_add(1)),
            (&[b"\x1b[5~", b"b"], top.saturating_sub(page)),
            (&[b"\x1b[6~", b" ", b"f"], top.saturating_add(page)),
            (&[b"\x1b[H", b"\x1bOH", b"\x1b[1~", b"g"], 0),
            (&[b"\x1b[F", b"\x1bOF", b"\x1b[4~", b"G"], usize::MAX),
        ];
        let found = known.iter().find_map(|(names, to)| {
            names.iter().find_map(|name| rest.strip_prefix(*name)).map(|rest| (*to, rest))
        });
        rest = match (found, rest) {
            (Some((to, after)), _) => {
                top = to;
                after
            }
            (None, [b'q' | b'Q', ..]) => return None,
            (None, [_, after @ ..]) => after,
            (None, []) => return Some(top),
        };
    }
}

/// The bytes that draw a picture over the last one. `top` is kept within what there is.
fn draw(picture: &Picture, top: &mut usize, (height, width): (usize, usize)) -> String {
    let Picture { head, rows } = picture;
    let mut lines: Vec<&str> = head.iter().map(String::as_str).take(height.saturating_sub(3)).collect();
    let room = height.saturating_sub(lines.len());
    let footer;
    if rows.len() <= room {
        *top = 0;
        lines.extend(rows.iter().map(String::as_str));
    } else {
        let room = room.saturating_sub(1);
        *top = (*top).min(rows.len().saturating_sub(room));
        lines.extend(rows.iter().skip(*top).take(room).map(String::as_str));
        let last = top.saturating_add(room).min(rows.len());
        footer = format!(
            "{} to {last} of {}; arrow and page keys scroll, q ends",
            top.saturating_add(1),
            rows.len()
        );
        lines.push(&footer);
    }
    let mut bytes = String::from("\x1b[H");
    for (at, line) in lines.iter().enumerate() {
        // Not after the last line: that would scroll. Cleared first: a full line leaves the cursor upon its end.
        let _ = write!(bytes, "{}\x1b[K{}", if at > 0 { "\r\n" } else { "" }, cut(line, width));
    }
    bytes + "\x1b[J"
}

/// The part of a line that has this many columns; control characters other than colours become visible.
fn cut(line: &str, width: usize) -> String {
    let (mut out, mut used, mut colour) = (String::new(), 0_usize, false);
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            let code: String = rest.by_ref().take_while(|c| *c != 'm').collect();
            colour = code != "[0";
            let _ = write!(out, "\x1b{code}m");
        } else if used < width {
            used = used.saturating_add(1);
            out.push(if c.is_control() { '?' } else { c });
        }
    }
    if colour {
        out += "\x1b[0m";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_what_is_seen_of_it() {
        assert_eq!(cut("abcdef", 3), "abc");
        assert_eq!(cut("a\x1b[31mbcdef\x1b[0mg", 3), "a\x1b[31mbc\x1b[0m");
        assert_eq!(cut("a\tb\x07", 9), "a?b?");
        assert_eq!(cut("\x1b[31mopen", 2), "\x1b[31mop\x1b[0m");
    }

    #[test]
    fn keys_move_within_the_rows() {
        assert_eq!(moved(b"\x1b[B\x1b[B", 0, 5), Some(2));
        assert_eq!(moved(b"\x1b[6~k", 0, 5), Some(4));
        assert_eq!(moved(b"b", 3, 5), Some(0));
        assert_eq!(moved(b"\x1b[31~x", 3, 5), Some(3));
        assert_eq!(moved(b"jq", 3, 5), None);
        assert_eq!(moved(b"G", 0, 5), Some(usize::MAX));
    }

    #[test]
    fn a_picture_never_is_higher_than_the_screen() {
        let picture =
            Picture { head: vec!["head".into(); 3], rows: (0..31).map(|n| format!("row {n}")).collect() };
        for height in 1..40 {
            let mut top = usize::MAX;
            let drawn = draw(&picture, &mut top, (height, 80));
            assert!(drawn.matches("\r\n").count() < height, "{height}: {drawn:?}");
            assert!(height < 5 || drawn.contains("row 30"), "{height}: {drawn:?}");
        }
    }
}
