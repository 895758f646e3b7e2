//! Clients of the primary, wherever it is: each writes, zeroes and reads blocks of its own, many at once, and some that
//! all of them write to at the same time, of which only the copies are compared.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use super::client::{Connection, FLUSH, READ, WRITE, ZEROES};
use super::ledger::{BLOCK, Ledger, content};

/// Requests that a client has under way.
const DEPTH: usize = 12;

/// The same for all clients, and their counts.
pub struct Traffic {
    pub ledger: Ledger,
    pub sockets: Vec<PathBuf>,
    /// The site that is primary, as far as is known.
    pub primary: AtomicUsize,
    pub over: AtomicBool,
    /// Clients are to finish what they have under way, and to wait.
    pub quiet: AtomicBool,
    /// Clients that have nothing under way.
    pub resting: AtomicUsize,
    pub answered: AtomicU64,
    pub connections: AtomicU64,
    /// Errors by number.
    pub errors: Mutex<HashMap<u32, u64>>,
    /// First byte behind all registers: blocks that all clients write to.
    pub hot: u64,
}

/// One client of `of`, until the traffic is over.
pub fn work(traffic: &Traffic, own: usize, of: usize, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed * 64 + own as u64);
    let mut version = 0;
    while !traffic.over.load(SeqCst) {
        if traffic.quiet.load(SeqCst) {
            rest(traffic);
            continue;
        }
        let socket = &traffic.sockets[traffic.primary.load(SeqCst)];
        let Ok(mut connection) = Connection::open(socket) else {
            std::thread::park_timeout(Duration::from_millis(20));
            continue;
        };
        traffic.connections.fetch_add(1, SeqCst);
        while !traffic.over.load(SeqCst) && !traffic.quiet.load(SeqCst) {
            match batch(traffic, &mut connection, own, of, &mut random, &mut version) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    traffic.ledger.violate(format!("M6: client {own} has no answer: {error}"));
                    return;
                }
                Err(_) => break,
            }
        }
    }
}

fn rest(traffic: &Traffic) {
    traffic.resting.fetch_add(1, SeqCst);
    while traffic.quiet.load(SeqCst) && !traffic.over.load(SeqCst) {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    traffic.resting.fetch_sub(1, SeqCst);
}

/// Sends some requests at once and reads all answers.
fn batch(
    traffic: &Traffic,
    connection: &mut Connection,
    own: usize,
    of: usize,
    random: &mut fastrand::Rng,
    version: &mut u64,
) -> io::Result<()> {
    let ledger = &traffic.ledger;
    // The request of each cookie: command, block, version.
    let mut asked: HashMap<u64, (u16, usize, u64)> = HashMap::new();
    let blocks = ledger.len() / of;
    for cookie in 0..random.usize(1..=DEPTH) as u64 {
        let block = random.usize(0..blocks) * of + own;
        let offset = ledger.place(block);
        let is_free = asked.values().all(|(_, other, _)| *other != block);
        match random.u32(0..10) {
            0 => {
                asked.insert(cookie, (FLUSH, usize::MAX, 0));
                connection.ask(FLUSH, cookie, 0, 0, &[])?;
            }
            1 | 2 => {
                asked.insert(cookie, (WRITE, usize::MAX, 0));
                let (len, at) = (random.usize(1..=3 * BLOCK), random.usize(0..4 * BLOCK));
                let data = vec![random.u8(..); len];
                connection.ask(WRITE, cookie, traffic.hot + at as u64, len as u32, &data)?;
            }
            3..=5 if is_free => {
                asked.insert(cookie, (READ, block, 0));
                connection.ask(READ, cookie, offset, BLOCK as u32, &[])?;
            }
            6 if is_free => {
                asked.insert(cookie, (ZEROES, block, 0));
                ledger.ask(block, 0);
                connection.ask(ZEROES, cookie, offset, BLOCK as u32, &[])?;
            }
            _ if is_free => {
                // No two clients have the same.
                *version += 1;
                let number = *version * of as u64 + own as u64;
                asked.insert(cookie, (WRITE, block, number));
                ledger.ask(block, number);
                connection.ask(WRITE, cookie, offset, BLOCK as u32, &content(block, number))?;
            }
            _ => {}
        }
    }
    while !asked.is_empty() {
        let (cookie, error) = connection.reply()?;
        let Some((command, block, number)) = asked.remove(&cookie) else {
            ledger.violate(format!("an answer to nothing: cookie {cookie}, error {error}"));
            return Ok(());
        };
        traffic.answered.fetch_add(1, SeqCst);
        if error != 0 {
            *traffic.errors.lock().unwrap().entry(error).or_default() += 1;
            // EIO, ENOSPC, ESHUTDOWN: a disk that fails or is full, a role that ends.
            if ![5, 28, 108].contains(&error) {
                ledger.violate(format!("M7: error {error} for command {command}"));
            }
        } else if command == READ {
            let bytes = connection.payload(BLOCK)?;
            ledger.check(block, &bytes, &format!("M2: client {own}"));
        } else if block != usize::MAX {
            ledger.answer(block, number);
        }
    }
    Ok(())
}
