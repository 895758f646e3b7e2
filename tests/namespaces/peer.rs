//! A scripted log owner of another site, as a C daemon plays it: no extension, the runsite's address as text in the
//! hello, nothing but id and type in the answer.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use super::net::Machine;
use crate::support::{
    DATA, Filter, HELLO, Link, META, PATIENCE, Packet, bit, connect_from, hello, kind, redial,
};

/// A connected site: both links past their hellos. Pings are in its meta link's packets; it answers those
/// unless it is silent.
pub struct SitePeer {
    pub data: Link,
    pub meta: Link,
}

/// The calls of a site.
#[derive(Clone)]
pub struct SiteCaller {
    pub id: u8,
    /// The site it calls.
    pub to: u8,
    pub source: Ipv4Addr,
    /// The runsite's address in its hello.
    pub text: String,
    pub target: SocketAddr,
    pub answers: bool,
}

impl SiteCaller {
    /// Opens one link, as soon as the site listens, and says hello: any hello, or a part of one.
    pub fn say(&self, machine: &Machine, hello: impl AsRef<[u8]>) -> TcpStream {
        let dial = || match connect_from(self.source, self.target, None) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
            dialled => Some(dialled.unwrap()),
        };
        let mut stream = machine.inside(|| redial("the site's listener", PATIENCE, dial));
        stream.write_all(hello.as_ref()).unwrap();
        stream
    }

    /// This caller's hello for one link.
    pub fn hello(&self, kind: u8) -> [u8; HELLO] {
        hello(self.id, kind, 1, &self.text, false)
    }

    /// Connects both links.
    pub fn call(&self, machine: &Machine) -> io::Result<SitePeer> {
        let mut links = [DATA, META].map(|kind| self.say(machine, self.hello(kind)));
        for (stream, kind) in links.iter_mut().zip([DATA, META]) {
            let mut answer = [0; HELLO];
            stream.read_exact(&mut answer)?;
            assert_eq!(answer, hello(self.to, kind + 1, 0, "", false), "id and type alone");
        }
        Ok(SitePeer::start(self.id, self.to, links, self.answers))
    }
}

/// Takes both links of one call; gives the peer, and from where and with which text the call came.
#[track_caller]
pub fn accept(listener: &TcpListener, id: u8, answers: bool) -> (SitePeer, [(IpAddr, String); 2]) {
    let mut links = [None, None];
    let end = Instant::now() + PATIENCE;
    while let [None, _] | [_, None] = links {
        assert!(Instant::now() < end, "no call within {PATIENCE:?}");
        let Ok((mut stream, from)) = listener.accept() else { continue };
        let mut said = [0; HELLO];
        if stream.read_exact(&mut said).is_ok() {
            assert_eq!((said[0], said[2]), (1, 1), "site 1 calls as a site: {said:?}");
            let text = said[3..19].split(|&byte| byte == 0).next().unwrap();
            let call = (from.ip(), String::from_utf8(text.to_vec()).unwrap());
            links[usize::from(said[1] / 2)] = Some((stream, call));
        }
    }
    let links = links.map(Option::unwrap);
    let calls = links.each_ref().map(|(_, call)| call.clone());
    let mut streams = links.map(|(stream, _)| stream);
    for (stream, kind) in streams.iter_mut().zip([DATA, META]) {
        stream.write_all(&hello(id, kind + 1, 0, "", false)).unwrap();
    }
    (SitePeer::start(id, 1, streams, answers), calls)
}

impl SitePeer {
    fn start(id: u8, to: u8, links: [TcpStream; 2], answers: bool) -> Self {
        let [data, meta] = links;
        SitePeer {
            data: Link::start(format!("site{id}:data"), data, Box::new(|_, _, _| Ok(true))),
            meta: Link::start(format!("site{id}:meta"), meta, answering(id, to, answers)),
        }
    }
}

fn answering(id: u8, to: u8, answers: bool) -> Filter {
    Box::new(move |_, packet, writer| {
        if packet.kind() == kind::SC_PING && answers {
            let ack = Packet::new(kind::SC_PING_ACK).with_from(id.into()).with_to(bit(to));
            // The daemon may have closed the session meanwhile.
            let _ = writer.write(&ack.bytes());
        }
        Ok(true)
    })
}
