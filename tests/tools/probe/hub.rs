//! A scripted stand-in for a cluster of daemons: one listener a seat, and packets carried between the probes
//! that are attached. What happens to a packet on its way is up to the test.
//!
//! It must never be cleverer than a daemon: it forwards bytes and tells who is there.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use hadmd::wire::{Device, HEADER_LEN, Header, Mask, PacketType, Scope};

/// The place of a daemon in the cluster.
#[derive(Clone)]
pub struct Seat {
    pub site: u8,
    pub node: u8,
    /// The resources that have a runsite here, whose log owner this is.
    pub owns: &'static [u8],
}

/// The fate of one packet for one seat.
pub enum Fate {
    Deliver,
    Drop,
    /// These bytes first, then the packet.
    After(Vec<u8>),
    /// From now on everybody hears that this seat is gone; this packet and all later ones of it are dropped.
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
    lost: Vec<u8>,
    serial: u64,
}

struct Inner {
    plan: Vec<Seat>,
    seats: Mutex<Seats>,
    script: Mutex<Box<Script>>,
    stalled: Condvar,
}

/// The cluster.
pub struct Hub {
    /// A daemon for each seat.
    pub servers: Vec<SocketAddr>,
    inner: Arc<Inner>,
}

impl Hub {
    /// This many nodes of one site.
    pub fn new(nodes: u8) -> Hub {
        Hub::scripted(nodes, |_, _, _| Fate::Deliver)
    }

    /// Likewise, with a script.
    pub fn scripted(nodes: u8, script: impl FnMut(u8, u8, &mut Vec<u8>) -> Fate + Send + 'static) -> Hub {
        Hub::planned((0..nodes).map(|node| Seat { site: 0, node, owns: &[] }).collect(), script)
    }

    /// `script` sees each data packet for each of its receivers: the seats it goes from and to, the bytes
    /// (which it may change).
    pub fn planned(
        plan: Vec<Seat>,
        script: impl FnMut(u8, u8, &mut Vec<u8>) -> Fate + Send + 'static,
    ) -> Hub {
        let mut seats = Seats::default();
        seats.attached.resize_with(plan.len(), || None);
        seats.halves.resize_with(plan.len(), Default::default);
        let servers = 0..plan.len() as u8;
        let inner = Arc::new(Inner {
            plan,
            seats: Mutex::new(seats),
            script: Mutex::new(Box::new(script)),
            stalled: Condvar::new(),
        });
        let servers = servers
            .map(|at| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let server = listener.local_addr().unwrap();
                let inner = Arc::clone(&inner);
                thread::spawn(move || {
                    for link in listener.incoming() {
                        inner.seat(at, link.unwrap());
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

    /// Writes packets to the meta link of a seat's probe in one piece.
    pub fn announce(&self, at: u8, packets: &[Header]) {
        let seats = self.inner.seats.lock().unwrap();
        let mut meta = &seats.attached[usize::from(at)].as_ref().unwrap().meta;
        meta.write_all(&packets.iter().flat_map(Header::encode).collect::<Vec<u8>>()).unwrap();
    }

    /// Closes both links of a seat's probe, as a daemon does that ends.
    pub fn hang_up(&self, at: u8) {
        if let Some(seat) = &self.inner.seats.lock().unwrap().attached[usize::from(at)] {
            seat.meta.shutdown(Shutdown::Both).unwrap();
        }
    }
}

impl Inner {
    fn seat(self: &Arc<Self>, seat: u8, mut link: TcpStream) {
        let Some(hello) = packet(&mut link) else { return };
        let at = usize::from(seat);
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
        if class == 0 {
            // A probe connects its data link first: a meta link that waits here is of a try that failed.
            seats.halves[at] = [None, None];
        }
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
                inner.carry(seat, packet);
            }
            inner.leave(seat, serial);
        });
        thread::spawn(move || {
            while packet(&mut meta).is_some() {}
            other.leave(seat, serial);
        });
    }

    fn leave(&self, at: u8, serial: u64) {
        let mut seats = self.seats.lock().unwrap();
        if let Some(seat) = seats.attached[usize::from(at)].take_if(|seat| seat.serial == serial) {
            let _ = seat.data.shutdown(Shutdown::Both);
            let _ = seat.meta.shutdown(Shutdown::Both);
            self.tell(&seats);
        }
    }

    /// The seats that a seat is linked with, and their ids there.
    fn linked(&self, from: u8, scope: Scope, dev: u8) -> impl Iterator<Item = (u8, u8)> {
        let here = &self.plan[usize::from(from)];
        (0u8..).zip(&self.plan).filter(move |(at, _)| *at != from).filter_map(
            move |(at, there)| match scope {
                Scope::Node => (there.site == here.site).then_some((at, there.node)),
                Scope::Site => {
                    (here.owns.contains(&dev) && there.owns.contains(&dev)).then_some((at, there.site))
                }
            },
        )
    }

    /// Sends everybody the connection states, in one piece.
    fn tell(&self, seats: &Seats) {
        let here = |at: &u8| seats.attached[usize::from(*at)].is_some() && !seats.lost.contains(at);
        for (at, seat) in (0u8..).zip(&seats.attached) {
            let Some(seat) = seat else { continue };
            let Seat { site, node, owns } = &self.plan[usize::from(at)];
            let state = |kind, scope, dev, own: u8| {
                let up = self.linked(at, scope, dev).filter(|(at, _)| here(at));
                let up = up.fold(Mask(0), |all, (_, id)| all | Mask::of(id));
                Header { device: dev.into(), node_from: own.into(), node_to: up, ..Header::new(kind) }
                    .encode()
            };
            let mut states =
                state(PacketType::NC_CONN_STATE, Scope::Node, u8::from(Device::All), *node).to_vec();
            for dev in *owns {
                states.extend(state(PacketType::SC_CONN_STATE, Scope::Site, *dev, *site));
            }
            let _ = (&seat.meta).write_all(&states);
        }
    }

    fn carry(&self, from: u8, packet: Vec<u8>) {
        let header = Header::decode(packet[..HEADER_LEN].try_into().unwrap());
        let (_, scope) = header.kind.relayed().unwrap();
        let Seat { site, node, .. } = self.plan[usize::from(from)];
        assert_eq!(header.node_from, u32::from(if scope == Scope::Node { node } else { site }));
        for (to, id) in self.linked(from, scope, header.device.into()) {
            if !header.node_to.contains(id) {
                continue;
            }
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
                Fate::Lose(seat) => {
                    seats.lost.push(seat);
                    self.tell(&seats);
                }
                Fate::Stall => loop {
                    seats = self.stalled.wait(seats).unwrap();
                },
            }
            if seats.lost.contains(&from) || seats.lost.contains(&to) {
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
