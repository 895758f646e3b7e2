//! A scripted stand-in for a cluster of daemons: one listener a node, and packets carried between the probes
//! that are attached. What happens to a packet on its way is up to the test.
//!
//! It must never be cleverer than a daemon: it forwards bytes and tells who is there.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use hadmd::wire::{ALL_DEVICES, HEADER_LEN, Header, Mask, PacketType};

/// What becomes of one packet for one node.
pub enum Fate {
    Deliver,
    Drop,
    /// These bytes first, then the packet.
    After(Vec<u8>),
    /// From now on everybody is told that this node is gone; this packet and all later ones of it are dropped.
    Lose(u8),
    /// Nothing more is read from the sender.
    Stall,
}

type Script = dyn FnMut(u8, u8, &mut Vec<u8>) -> Fate + Send;

struct Attached {
    /// Tells this probe from the next one at the same seat.
    serial: u64,
    data: TcpStream,
    meta: TcpStream,
    /// The data link again, for one writer at a time.
    out: Arc<Mutex<TcpStream>>,
}

#[derive(Default)]
struct Seats {
    attached: Vec<Option<Attached>>,
    /// Half attached: the data link alone, or the meta link alone.
    halves: Vec<[Option<TcpStream>; 2]>,
    lost: Mask,
    serial: u64,
}

struct Inner {
    seats: Mutex<Seats>,
    script: Mutex<Box<Script>>,
    stalled: Condvar,
}

/// The cluster.
pub struct Hub {
    pub servers: Vec<SocketAddr>,
    inner: Arc<Inner>,
}

impl Hub {
    pub fn new(nodes: u8) -> Hub {
        Hub::scripted(nodes, |_, _, _| Fate::Deliver)
    }

    /// `script` sees each data packet for each of its receivers: from, to, the bytes (which it may change).
    pub fn scripted(nodes: u8, script: impl FnMut(u8, u8, &mut Vec<u8>) -> Fate + Send + 'static) -> Hub {
        let mut seats = Seats::default();
        seats.attached.resize_with(nodes.into(), || None);
        seats.halves.resize_with(nodes.into(), Default::default);
        let inner = Arc::new(Inner {
            seats: Mutex::new(seats),
            script: Mutex::new(Box::new(script)),
            stalled: Condvar::new(),
        });
        let servers = (0..nodes)
            .map(|node| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let server = listener.local_addr().unwrap();
                let inner = Arc::clone(&inner);
                thread::spawn(move || {
                    for link in listener.incoming() {
                        inner.seat(node, link.unwrap());
                    }
                });
                server
            })
            .collect();
        Hub { servers, inner }
    }

    /// Tells everybody the state again, as a daemon does on each connect tick.
    pub fn repeat(&self) {
        self.inner.tell(&self.inner.seats.lock().unwrap());
    }

    /// Closes both links of a node's probe, as a daemon does that ends.
    pub fn hang_up(&self, node: u8) {
        if let Some(seat) = &self.inner.seats.lock().unwrap().attached[usize::from(node)] {
            seat.meta.shutdown(Shutdown::Both).unwrap();
        }
    }
}

impl Inner {
    fn seat(self: &Arc<Self>, node: u8, mut link: TcpStream) {
        let Some(hello) = packet(&mut link) else { return };
        let at = usize::from(node);
        let (class, ack) = match PacketType(hello[12]) {
            PacketType::KERN_HANDSHAKE_D => (0, PacketType::KERN_HANDSHAKE_D_ACK),
            PacketType::KERN_HANDSHAKE_M => (1, PacketType::KERN_HANDSHAKE_M_ACK),
            other => panic!("{other} instead of a handshake"),
        };
        assert_eq!(hello[..12], [0; 12], "a handshake has no magic and no payload");
        let mut seats = self.seats.lock().unwrap();
        if seats.attached[at].is_some() {
            return;
        }
        link.write_all(&Header::new(ack).encode()).unwrap();
        seats.halves[at][class] = Some(link);
        let [Some(data), Some(meta)] = &seats.halves[at] else { return };
        let (mut data, mut meta) = (data.try_clone().unwrap(), meta.try_clone().unwrap());
        seats.halves[at] = [None, None];
        seats.serial += 1;
        let serial = seats.serial;
        seats.attached[at] = Some(Attached {
            serial,
            data: data.try_clone().unwrap(),
            meta: meta.try_clone().unwrap(),
            out: Arc::new(Mutex::new(data.try_clone().unwrap())),
        });
        self.tell(&seats);
        let (inner, other) = (Arc::clone(self), Arc::clone(self));
        thread::spawn(move || {
            while let Some(packet) = packet(&mut data) {
                inner.carry(node, packet);
            }
            inner.leave(node, serial);
        });
        thread::spawn(move || {
            while packet(&mut meta).is_some() {}
            other.leave(node, serial);
        });
    }

    fn leave(&self, node: u8, serial: u64) {
        let mut seats = self.seats.lock().unwrap();
        if let Some(seat) = seats.attached[usize::from(node)].take_if(|seat| seat.serial == serial) {
            let _ = seat.data.shutdown(Shutdown::Both);
            let _ = seat.meta.shutdown(Shutdown::Both);
            self.tell(&seats);
        }
    }

    /// Sends everybody the connection state.
    fn tell(&self, seats: &Seats) {
        let here =
            (0u8..).zip(&seats.attached).filter(|(id, seat)| seat.is_some() && !seats.lost.contains(*id));
        let here = here.fold(Mask(0), |all, (id, _)| all | Mask::of(id));
        for (id, seat) in (0u8..).zip(&seats.attached) {
            if let Some(seat) = seat {
                let state = Header {
                    dev_id: ALL_DEVICES,
                    node_from: id.into(),
                    node_to: Mask(here.0 & !Mask::of(id).0),
                    ..Header::new(PacketType::NC_CONN_STATE)
                };
                let _ = (&seat.meta).write_all(&state.encode());
            }
        }
    }

    fn carry(&self, from: u8, packet: Vec<u8>) {
        let header = Header::decode(packet[..HEADER_LEN].try_into().unwrap());
        assert_eq!(header.node_from, u32::from(from));
        for to in header.node_to.ids() {
            let mut copy = packet.clone();
            let fate = (self.script.lock().unwrap())(from, to, &mut copy);
            let mut seats = self.seats.lock().unwrap();
            match fate {
                Fate::Drop => continue,
                Fate::Deliver => {}
                Fate::After(mut bytes) => {
                    bytes.append(&mut copy);
                    copy = bytes;
                }
                Fate::Lose(node) => {
                    seats.lost = seats.lost | Mask::of(node);
                    self.tell(&seats);
                }
                Fate::Stall => loop {
                    seats = self.stalled.wait(seats).unwrap();
                },
            }
            if seats.lost.contains(from) || seats.lost.contains(to) {
                continue;
            }
            let out = seats.attached[usize::from(to)].as_ref().map(|seat| Arc::clone(&seat.out));
            drop(seats);
            if let Some(out) = out {
                let _ = out.lock().unwrap().write_all(&copy);
            }
        }
    }
}

/// One packet; `None` when the link is closed.
fn packet(link: &mut TcpStream) -> Option<Vec<u8>> {
    let mut packet = vec![0; HEADER_LEN];
    link.read_exact(&mut packet).ok()?;
    let len = Header::decode(packet[..].try_into().ok()?).len as usize;
    packet.resize(HEADER_LEN + len, 0);
    link.read_exact(&mut packet[HEADER_LEN..]).ok()?;
    Some(packet)
}
