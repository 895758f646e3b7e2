//! A relay between two daemons: carries the bytes of each to the other, keeps a copy of all, and changes messages
//! on request. It knows the frames of an encrypted link, and no key.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{DATA, HELLO, connect_from};

/// The change of the next message with content on the data link from the caller to the acceptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// One bit is another.
    Flip,
    /// It comes after the one behind it.
    Reorder,
    /// It comes twice.
    Repeat,
    /// It never comes.
    Drop,
    /// It comes on the meta link instead.
    Splice,
    /// Its first half comes, and then the end of the connection.
    Truncate,
}

#[derive(Default)]
struct State {
    attack: Option<Attack>,
    /// Everything the caller said, from the hello on, for each connection.
    calls: Vec<Vec<u8>>,
    /// Everything, of both sides.
    seen: Vec<u8>,
    /// The target of the data link's message.
    to_meta: Option<TcpStream>,
}

/// The relay; it ends with the test's process.
#[derive(Clone)]
pub struct Relay(Arc<Mutex<State>>);

impl Relay {
    /// Listens at `at` and calls `to` from `source` for each caller.
    pub fn start(at: SocketAddr, to: SocketAddr, source: Ipv4Addr) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        let relay = Relay(Arc::default());
        let state = relay.clone();
        thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                let Ok(acceptor) = connect_from(source, to, None) else { continue };
                acceptor.set_read_timeout(None).unwrap();
                let (back, caller_back) = (acceptor.try_clone().unwrap(), caller.try_clone().unwrap());
                let (there, here) = (state.clone(), state.clone());
                thread::spawn(move || there.carry(caller, acceptor));
                thread::spawn(move || here.carry_back(back, caller_back));
            }
        });
        relay
    }

    /// Does this once.
    pub fn attack(&self, attack: Attack) {
        self.0.lock().unwrap().attack = Some(attack);
    }

    /// Returns true if the change was made.
    pub fn is_done(&self) -> bool {
        self.0.lock().unwrap().attack.is_none()
    }

    /// Returns the caller's bytes on each connection so far.
    pub fn calls(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().calls.clone()
    }

    /// Returns true if these bytes went by, in either direction.
    pub fn saw(&self, bytes: &[u8]) -> bool {
        self.0.lock().unwrap().seen.windows(bytes.len()).any(|part| part == bytes)
    }

    /// Returns the number of bytes that went by.
    pub fn seen(&self) -> usize {
        self.0.lock().unwrap().seen.len()
    }

    fn carry(self, mut from: TcpStream, to: TcpStream) {
        // An error is the end of one side, which is the end of the other.
        let _ = self.carry_frames(&mut from, &to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn carry_frames(&self, from: &mut TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut hello = [0; HELLO];
        from.read_exact(&mut hello)?;
        let kind = hello[1];
        let call = {
            let mut state = self.0.lock().unwrap();
            state.calls.push(Vec::new());
            if kind != DATA {
                state.to_meta = Some(to.try_clone()?);
            }
            state.calls.len() - 1
        };
        self.keep(call, &hello);
        to.write_all(&hello)?;
        let mut held = None;
        for number in 0.. {
            let frame = read_frame(from)?;
            self.keep(call, &frame);
            // Neither the two of the agreement: without them there is no session to be attacked.
            let attack = (kind == DATA && number > 1).then(|| self.0.lock().unwrap().attack).flatten();
            if attack != Some(Attack::Reorder) || held.is_some() {
                self.done(attack);
            }
            let Some(attack) = attack else {
                to.write_all(&frame)?;
                continue;
            };
            let mut changed = frame.clone();
            match attack {
                Attack::Flip => changed[frame.len() / 2] ^= 4,
                Attack::Reorder => match held.take() {
                    None => {
                        held = Some(frame);
                        continue;
                    }
                    Some(first) => changed.extend_from_slice(&first),
                },
                Attack::Repeat => changed.extend_from_slice(&frame),
                Attack::Drop => continue,
                Attack::Splice => {
                    let meta = self.0.lock().unwrap().to_meta.take();
                    meta.unwrap().write_all(&frame)?;
                    continue;
                }
                Attack::Truncate => {
                    to.write_all(&frame[..frame.len() / 2])?;
                    to.shutdown(Shutdown::Write)?;
                    // The caller is not to know before the acceptor does.
                    io::copy(from, &mut io::sink())?;
                    return Ok(());
                }
            }
            to.write_all(&changed)?;
        }
        Ok(())
    }

    fn carry_back(self, mut from: TcpStream, mut to: TcpStream) {
        let mut part = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut part) {
            self.0.lock().unwrap().seen.extend_from_slice(&part[..n]);
            if to.write_all(&part[..n]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn keep(&self, call: usize, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap();
        state.seen.extend_from_slice(bytes);
        state.calls[call].extend_from_slice(bytes);
    }

    fn done(&self, attack: Option<Attack>) {
        if attack.is_some() {
            self.0.lock().unwrap().attack = None;
        }
    }
}

/// A message with its length.
pub fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut frame = vec![0; 2 + usize::from(u16::from_le_bytes(len))];
    frame[..2].copy_from_slice(&len);
    stream.read_exact(&mut frame[2..])?;
    Ok(frame)
}
