//! Callers at a site port that are no log owners, hellos of C daemons, heartbeats with sites, and packets of the
//! kernel module that have nowhere to go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::namespaces::*;
use crate::support::*;

/// The port of resource 1, whose log a0 does not own.
const OTHER_PORT: u16 = 7101;

fn resources() -> [Resource; 2] {
    let other = [0, 1].map(|site| SocketAddr::from((floating(site, 1), OTHER_PORT)));
    [resource(0), (1, other)]
}

/// Site 1 calling site 0 for resource 0, as a C daemon.
fn caller() -> SiteCaller {
    SiteCaller {
        id: 1,
        to: 0,
        source: floating(1, 0),
        text: floating(1, 0).to_string(),
        target: (floating(0, 0), SITE_PORT).into(),
        answers: true,
    }
}

/// a0's daemon, the owner of resource 0 but not of 1, and b0 with the address of site 1, but no daemon.
fn lone_owner(global: &[(&str, &str)]) -> Option<(Seat, Network, ConfigFile)> {
    let net = Network::new()?;
    net.add(A0, floating(0, 0));
    net.add(B0, floating(1, 0));
    net.add(B0, floating(1, 1));
    let config = config(&resources(), global);
    let seat = Seat::start(&net, &config, A0);
    seat.daemon.wait_log("log owner now", PATIENCE);
    Some((seat, net, config))
}

/// Carries a data and a meta packet each way between a kernel module and a scripted site.
#[track_caller]
fn assert_carries(kernel: &SiteKernel, peer: &SitePeer, peer_site: u8, seq: u64) {
    let (out, back) = (bit(peer_site), bit(1 - peer_site));
    kernel.data.send(&site_data(seq, 0, out, 100));
    kernel.meta.send(&site_meta(seq, 0, out));
    assert_eq!(peer.data.recv(), site_data(seq, 0, out, 100));
    assert_eq!(not_ping(peer), site_meta(seq, 0, out));
    peer.data.send(&site_data(seq, 0, back, 100));
    peer.meta.send(&site_meta(seq, 0, back));
    assert_eq!(kernel.data.recv(), site_data(seq, 0, back, 100));
    assert_eq!(kernel.meta.recv(), site_meta(seq, 0, back));
}

fn not_ping(peer: &SitePeer) -> Packet {
    loop {
        let packet = peer.meta.recv();
        if packet.kind() != kind::SC_PING {
            return packet;
        }
    }
}

/// Failure modes 19 and 31: who calls as a site is checked, id, address, port, source, direction. Each one that
/// is wrong costs that connection alone, without an answer, and gives one log line.
#[test]
fn fm19_fm31_wrong_callers_are_refused() {
    let Some((seat, net, _config)) = lone_owner(&[]) else { return };
    let good = caller().call(&net.machines[B0]).unwrap();
    seat.kernel.wait_state(Whom::Sites(0), bit(1));
    let site = |change: fn(&mut SiteCaller)| {
        let mut caller = caller();
        change(&mut caller);
        let hello = caller.hello(META);
        (caller, hello)
    };
    let node_hello = |id| hello(id, DATA, 0, &own_ip(B0).to_string(), false);
    let wrong: [(_, &str); 9] = [
        (site(|c| c.text = "10.77.1.99".into()), "claims to be site 1 at 10.77.1.99, but no resource"),
        // Addresses are compared whole.
        (site(|c| c.text = "10.77.1.10".into()), "claims to be site 1 at 10.77.1.10, but no resource"),
        (site(|c| c.text = "10.77.1.1000".into()), "claims to be site 1, but does not name its runsite"),
        (site(|c| c.source = own_ip(B0)), "claims to be site 1 of resource 0, whose address is 10.77.1.100"),
        // The address of another resource's runsite belongs to another listener.
        (site(|c| c.text = floating(1, 1).to_string()), "site 1 at 10.77.1.101, but no resource"),
        (site(|c| c.id = 0), "claims id 0, which is this side's own"),
        (site(|c| c.id = 7), "claims id 7, which is not configured"),
        ((caller(), node_hello(1)), "at the site port: a hello for a site at the port for nodes, or"),
        (
            site(|c| c.target = (own_ip(A0), 7000).into()),
            "at the node port: a hello for a site at the port for nodes, or",
        ),
    ];
    for (seq, ((caller, hello), line)) in wrong.into_iter().enumerate() {
        let refused = seat.daemon.log_count("refused a call");
        let mut link = caller.say(&net.machines[B0], hello);
        assert_ends(&mut link, &format!("closed without an answer: {line}"));
        seat.daemon.wait_log(line, PATIENCE);
        assert_eq!(seat.daemon.log_count("refused a call"), refused + 1, "{line}");
        assert_carries(&seat.kernel, &good, 1, seq as u64);
    }
    // Nobody listens for a resource whose log another node owns.
    let target = SocketAddr::from((floating(0, 0), OTHER_PORT));
    let call = net.machines[B0].inside(|| connect_from(floating(1, 1), target, None));
    assert_eq!(call.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(seat.kernel.masks(Whom::Sites(0)).last(), Some(&bit(1)));
    assert_eq!(seat.kernel.masks(Whom::Sites(1)), [0]);
    assert!(seat.kernel.masks(Whom::Nodes).iter().all(|&mask| mask == 0));
    let log = seat.daemon;
    log.term();
    log.wait_log("refused calls: unknown id 6, wrong address 1, wrong direction 2", PATIENCE);
    log.stop();
}

/// A site with a smaller id that calls is called instead: from the runsite's address, which is in the hello, too.
#[test]
fn a_site_calls_smaller_ids_from_its_runsites_address() {
    let Some(net) = Network::new() else { return };
    let config = config(&[resource(0)], &[]);
    net.add(B0, floating(1, 0));
    net.add(A0, floating(0, 0));
    let listener = listen(&net);
    let seat = Seat::start(&net, &config, B0);
    let (peer, calls) = accept(&listener, 0, true);
    for (source, text) in calls {
        assert_eq!((source, text), (floating(1, 0).into(), floating(1, 0).to_string()));
    }
    seat.kernel.wait_state(Whom::Sites(0), bit(0));
    assert_carries(&seat.kernel, &peer, 0, 1);
    let mut caller = SiteCaller { id: 0, to: 1, source: floating(0, 0), ..caller() };
    (caller.text, caller.target) = (caller.source.to_string(), (floating(1, 0), SITE_PORT).into());
    let mut link = caller.say(&net.machines[A0], caller.hello(DATA));
    assert_ends(&mut link, "no answer");
    seat.daemon.wait_log("site 0 of resource 0 called from 10.77.0.100", PATIENCE);
    assert_eq!(seat.daemon.log_count("called from 10.77.0.100"), 1);
    assert_carries(&seat.kernel, &peer, 0, 2);
    // But it shows that the site is there: one that went and calls is called at once.
    drop(peer);
    seat.kernel.wait_state(Whom::Sites(0), 0);
    drop(caller.say(&net.machines[A0], caller.hello(DATA)));
    let (peer, _) = accept(&listener, 0, true);
    seat.kernel.wait_state(Whom::Sites(0), bit(0));
    assert_carries(&seat.kernel, &peer, 0, 3);
    seat.daemon.stop();
}

fn listen(net: &Network) -> TcpListener {
    let listener = net.machines[A0].inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, SITE_PORT))).unwrap();
    SockRef::from(&listener).set_read_timeout(Some(ms(1000))).unwrap();
    listener
}

/// With peeraddr `any`, C daemons may call from another of their addresses: accepted, with one warning a session;
/// the runsite's address in the hello still has to be right.
#[test]
fn fm19_another_source_is_accepted_with_a_warning_where_any_is_configured() {
    let Some((seat, net, _config)) = lone_owner(&[("peeraddr", "any")]) else { return };
    let elsewhere = SiteCaller { source: own_ip(B0), ..caller() };
    let peer = elsewhere.call(&net.machines[B0]).unwrap();
    seat.kernel.wait_state(Whom::Sites(0), bit(1));
    assert_carries(&seat.kernel, &peer, 1, 1);
    let line = "site 1 of resource 0 calls from 10.77.1.10,";
    let warning = seat.daemon.wait_log(line, PATIENCE);
    assert!(warning.contains("its configured address is 10.77.1.100: accepted"), "{warning}");
    assert_eq!(seat.daemon.log_count(line), 1);
    let wrong = SiteCaller { text: "10.77.1.10".into(), ..elsewhere };
    let mut link = wrong.say(&net.machines[B0], wrong.hello(DATA));
    assert_ends(&mut link, "no answer");
    assert_carries(&seat.kernel, &peer, 1, 2);
    seat.daemon.stop();
}

/// Failure mode 22: site packets before any site is linked, and for resources that this node does not own or does
/// not know, are dropped, counted and logged, not too often; the daemon lives.
#[test]
fn fm22_site_packets_with_nowhere_to_go_are_dropped_and_counted() {
    let Some((seat, net, config)) = lone_owner(&[]) else { return };
    let witness = Seat::start(&net, &config, A1);
    seat.kernel.wait_state(Whom::Nodes, bit(1));
    let start = Instant::now();
    for seq in 0..300 {
        for resource in [0, 1, 77] {
            seat.kernel.data.send(&site_data(seq, resource, bit(1), 10));
            seat.kernel.meta.send(&site_meta(seq, resource, bit(1)));
        }
    }
    // The packets behind them on each link are there: they were looked at while no site was linked.
    seat.kernel.data.send(&Packet::data(1, bit(1), 10));
    seat.kernel.meta.send(&Packet::meta(1, bit(1)));
    assert_eq!(witness.kernel.data.recv(), Packet::data(1, bit(1), 10));
    assert_eq!(witness.kernel.meta.recv(), Packet::meta(1, bit(1)));
    let peer = caller().call(&net.machines[B0]).unwrap();
    seat.kernel.wait_state(Whom::Sites(0), bit(1));
    assert_carries(&seat.kernel, &peer, 1, 1000);
    let seconds = start.elapsed().as_secs() as usize;
    for resource in [1, 77] {
        let line = format!("resource {resource} is not configured here, or this node does not own its log");
        seat.daemon.wait_log(&line, PATIENCE);
        // One a second, and one more before each line of another cause, of which there are few.
        assert!(seat.daemon.log_count(&line) <= 8 + seconds, "{:?}", seat.daemon.log());
    }
    let log = seat.daemon;
    log.term();
    log.wait_log("packets that went nowhere: unknown resource 1200", PATIENCE);
    let counters = log.stop();
    for class in ["data", "meta"] {
        let name = format!("site 1 of resource 0 {class} out");
        let line = counters.0.iter().find(|entry| entry.name == name).unwrap();
        assert_eq!((line.received, line.forwarded, line.dropped), (301, 1, 300), "{line:?}");
    }
    witness.daemon.stop();
}

/// Failure mode 22 with a configuration that has no resources at all.
#[test]
fn fm22_site_packets_without_any_resource_are_dropped_and_counted() {
    let Some(net) = Network::new() else { return };
    let config = config(&[], &[]);
    let seats = [A0, A1].map(|at| Seat::start(&net, &config, at));
    seats[0].kernel.wait_state(Whom::Nodes, bit(1));
    for resource in [0, 1, 254, 255] {
        seats[0].kernel.data.send(&site_data(1, resource, u32::MAX, 10));
    }
    seats[0].kernel.data.send(&Packet::data(2, bit(1), 10));
    assert_eq!(seats[1].kernel.data.recv(), Packet::data(2, bit(1), 10));
    let [a0, a1] = seats;
    a0.daemon.term();
    a0.daemon.wait_log("went nowhere: unknown resource 4", PATIENCE);
    a0.daemon.stop();
    a1.daemon.stop();
}

/// Heartbeats on a site link carry site ids; the ACK's node_type is 0 as the C daemon's; a site that falls
/// silent is given up.
#[track_caller]
fn assert_heartbeats(seat: &Seat, peer: &SitePeer, here: u8, there: u8) {
    let ping = peer.meta.recv();
    let fields = |packet: &Packet| (packet.node_type(), packet.from(), packet.to(), packet.len());
    assert_eq!((ping.kind(), fields(&ping)), (kind::SC_PING, (1, here.into(), bit(there), 0)));
    // Not even half of what a C daemon sends is needed for the answer.
    peer.meta.send(&Packet::new(kind::SC_PING));
    let ack = not_ping(peer);
    assert_eq!((ack.kind(), fields(&ack)), (kind::SC_PING_ACK, (0, here.into(), bit(there), 0)));
    // Answered, the session outlives the count.
    for _ in 0..5 {
        while peer.meta.recv().kind() != kind::SC_PING {}
    }
    assert_carries(&seat.kernel, peer, there, 1);
}

/// The session with a silent site ends after as many pings as configured.
#[track_caller]
fn assert_given_up(seat: &Seat, peer: &SitePeer, since: Instant) {
    let end = peer.meta.wait_closed(PATIENCE).max(peer.data.wait_closed(PATIENCE));
    let told = seat.kernel.wait_since(Whom::Sites(0), since, 0);
    let took = end.max(told) - since;
    assert!(took > ms(600) && took < ms(2500), "given up after {took:?}");
    seat.daemon.wait_log("session ended", PATIENCE);
}

const HEARTBEAT: [(&str, &str); 2] = [("pingtimeout", "0.2"), ("maxpingcount", "3")];

#[test]
fn heartbeats_with_a_site_that_calls() {
    let Some((seat, net, _config)) = lone_owner(&HEARTBEAT) else { return };
    let peer = caller().call(&net.machines[B0]).unwrap();
    seat.kernel.wait_state(Whom::Sites(0), bit(1));
    assert_heartbeats(&seat, &peer, 0, 1);
    let since = Instant::now();
    let silent = SiteCaller { answers: false, ..caller() }.call(&net.machines[B0]).unwrap();
    // The new hello has replaced the old session.
    peer.meta.wait_closed(PATIENCE);
    seat.kernel.wait_since(Whom::Sites(0), since, bit(1));
    let since = Instant::now();
    assert_given_up(&seat, &silent, since);
    seat.daemon.stop();
}

#[test]
fn heartbeats_with_a_site_that_is_called() {
    let Some(net) = Network::new() else { return };
    let config = config(&[resource(0)], &HEARTBEAT);
    net.add(B0, floating(1, 0));
    net.add(A0, floating(0, 0));
    let listener = listen(&net);
    let seat = Seat::start(&net, &config, B0);
    let (peer, _) = accept(&listener, 0, true);
    seat.kernel.wait_state(Whom::Sites(0), bit(0));
    assert_heartbeats(&seat, &peer, 1, 0);
    drop(peer);
    seat.kernel.wait_state(Whom::Sites(0), 0);
    let (silent, _) = accept(&listener, 0, false);
    seat.kernel.wait_state(Whom::Sites(0), bit(0));
    assert_given_up(&seat, &silent, Instant::now());
    seat.daemon.stop();
}

/// A runsite's address that follows in the record behind the hello is checked no less.
#[test]
fn fm19_a_wrong_address_in_the_record_is_refused() {
    let Some((seat, net, _config)) = lone_owner(&[]) else { return };
    let good = caller().call(&net.machines[B0]).unwrap();
    seat.kernel.wait_state(Whom::Sites(0), bit(1));
    for (seq, (entry, line)) in [
        ("fd77::1:999", "claims to be site 1 at fd77::1:999, but no resource"),
        ("", "claims to be site 1, but does not name its runsite's address"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut link = caller().say(&net.machines[B0], hello(1, DATA, 1, "", true));
        let mut answer = [0; HELLO];
        link.read_exact(&mut answer).unwrap();
        assert_eq!(answer, hello(0, DATA + 1, 0, "", true));
        let entry = match entry.len() {
            0 => Vec::new(),
            len => [&[5, len as u8], entry.as_bytes()].concat(),
        };
        link.write_all(&[&(entry.len() as u16).to_le_bytes(), &entry[..]].concat()).unwrap();
        assert_ends(&mut link, &format!("closed without a record: {line}"));
        seat.daemon.wait_log(line, PATIENCE);
        assert_carries(&seat.kernel, &good, 1, seq as u64);
    }
    assert_eq!(seat.kernel.masks(Whom::Sites(0)).last(), Some(&bit(1)));
    seat.daemon.stop();
}

/// Half-said hellos at a site port cost nobody else anything, and are closed in time.
#[test]
fn a_half_hello_at_a_site_port_is_closed_in_time() {
    let Some((seat, net, _config)) = lone_owner(&[]) else { return };
    let half = caller();
    let mut links: Vec<_> = (0..20).map(|n| half.say(&net.machines[B0], &half.hello(DATA)[..n])).collect();
    let start = Instant::now();
    let peer = half.call(&net.machines[B0]).unwrap();
    seat.kernel.wait_state(Whom::Sites(0), bit(1));
    assert_carries(&seat.kernel, &peer, 1, 1);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for link in &mut links {
        assert_ends(link, "closed");
    }
    assert_carries(&seat.kernel, &peer, 1, 2);
    seat.daemon.stop();
}
