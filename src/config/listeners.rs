//! The places where a machine listens because of one file, compared with each other.
//!
//! Two programs, or two parts of one, cannot listen at the same place, and a call has to show which resource it is for.
//! Nothing is opened here. Called by `file`, once everything is read.

use std::fs::read_to_string;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::element::Element;
use super::model::{Resource, RunSite};
use super::value::is_stand_in;
use crate::wire::{ResourceId, SiteId};

/// Ports from which the system takes those of outgoing connections, where it does not say which.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// A place of the file where some machine listens.
pub(super) struct Listener<'a> {
    pub(super) addr: SocketAddr,
    pub(super) what: What,
    /// The element with its address.
    pub(super) ip: Element<'a>,
    /// The element with its port: the same one where it has both.
    pub(super) port: Element<'a>,
}

/// The purpose of a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The kernel module, on every machine.
    Server,
    /// Metrics, on every machine.
    Metrics,
    /// A node of this site.
    Node(SiteId),
    /// A resource at this site, on the machine that owns its log.
    RunSite(ResourceId, SiteId),
    /// NBD clients of a resource at this site.
    Nbd(SiteId),
}

impl What {
    /// Returns the site whose machines listen; `None`: those of all.
    fn site(self) -> Option<SiteId> {
        match self {
            What::Server | What::Metrics => None,
            What::Node(site) | What::RunSite(_, site) | What::Nbd(site) => Some(site),
        }
    }

    fn name(self) -> &'static str {
        match self {
            What::Server => "<serverip> with <serverport>",
            What::Metrics => "<metrics>",
            What::Node(_) => "a <node>",
            What::RunSite(..) => "a <runsite>",
            What::Nbd(_) => "<nbd>",
        }
    }

    /// Returns true if this pair is judged elsewhere: nodes and NBD servers by `cluster`, runsites by
    /// [`ambiguous`].
    fn is_judged_with(self, other: What) -> bool {
        matches!(
            (self, other),
            (What::Node(_), What::Node(_))
                | (What::Nbd(_), What::Nbd(_))
                | (What::RunSite(..), What::RunSite(..))
        )
    }
}

/// Refuses listeners that take a place from another one, and warns of those that others probably cannot reach, or that
/// cannot be opened at times.
pub(super) fn judge(listeners: &[Listener<'_>], resources: &[Resource]) {
    for (i, later) in listeners.iter().enumerate() {
        let meets = |other: &&Listener<'_>| {
            let sites = later.what.site().zip(other.what.site());
            sites.is_none_or(|(a, b)| a == b) && !later.what.is_judged_with(other.what)
        };
        let mut earlier = listeners.iter().take(i).filter(meets);
        let Some(other) = earlier.find(|other| overlap(later.addr, other.addr)) else { continue };
        let (name, addr) = (other.what.name(), other.addr);
        let why = format!("{name} of the same machine listens at {addr} already; give this another port");
        match is_opened(later.what, resources) && is_opened(other.what, resources) {
            true => later.port.refuse(&why),
            false => later.port.doubt(&why),
        }
    }
    ambiguous(listeners, resources);
    let loopback = |listener: &Listener<'_>| listener.addr.ip().is_loopback();
    let ports = ephemeral();
    for listener in listeners {
        let is_called = matches!(listener.what, What::Node(_) | What::RunSite(..));
        let others = || {
            let others = listeners.iter().filter(|other| is_peer(listener.what, other.what));
            others.filter(|other| other.addr != listener.addr && !is_stand_in(other.addr.ip()))
        };
        let unreachable = listener.ip.holds_other_name() || others().any(|other| !loopback(other));
        if is_called && loopback(listener) && unreachable {
            listener.ip.doubt(&format!(
                "its address {} is of this machine alone, so that others cannot reach it; write the address that \
                 others call, or correct the name's line in /etc/hosts",
                listener.addr.ip()
            ));
        }
        let mut shared = others().filter(|other| other.addr.ip() == listener.addr.ip());
        if ports.contains(&listener.addr.port()) && shared.next().is_some() {
            listener.port.doubt(&format!(
                "others have the same address, and the system may give this port to one of their calls ({} to {}), so \
                 that nothing can listen there for a time; write a port outside that range",
                ports.start(),
                ports.end()
            ));
        }
    }
}

/// Returns true if something listens there: a resource at one site alone is not called.
fn is_opened(what: What, resources: &[Resource]) -> bool {
    let What::RunSite(id, _) = what else { return true };
    resources.iter().any(|resource| resource.id == id && resource.runsites.len() > 1)
}

/// Returns true if the two call each other.
fn is_peer(one: What, other: What) -> bool {
    match (one, other) {
        (What::Node(a), What::Node(b)) => a == b,
        (What::RunSite(a, here), What::RunSite(b, there)) => a == b && here != there,
        _ => false,
    }
}

/// Returns true if not both can be listened at on one machine.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // The daemon listens at `::` for both families.
    let covers =
        |all: SocketAddr, other: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4());
    one.port() == other.port() && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
}

/// Refuses runsites that are one place, or whose calls do not show which resource they are for: the called site knows a
/// caller by the address alone.
fn ambiguous(listeners: &[Listener<'_>], resources: &[Resource]) {
    let refuse = |of: ResourceId, site: SiteId, why: &str| {
        let found = listeners.iter().find(|listener| listener.what == What::RunSite(of, site));
        found.inspect(|listener| listener.port.refuse(why));
    };
    for (i, resource) in resources.iter().enumerate() {
        // By site: the larger id calls.
        for (here, there) in pairs(resource) {
            if here.addr == there.addr {
                let other = here.site;
                let why =
                    format!("{other} listens at {} for the same resource; give each site its own", here.addr);
                refuse(resource.id, there.site, &why);
            }
            let same = |other: &&Resource| {
                pairs(other).any(|(a, b)| {
                    (a.site, b.site, a.addr, b.addr.ip())
                        == (here.site, there.site, here.addr, there.addr.ip())
                })
            };
            if let Some(other) = resources.iter().take(i).find(same) {
                let why = format!(
                    "{} has the same addresses and port at {} and {}, so that calls do not show which of the two they \
                     are for; give each its own port",
                    other.id, here.site, there.site
                );
                refuse(resource.id, here.site, &why);
            }
        }
    }
}

/// Returns each pair of runsites of a resource, the smaller site first.
fn pairs(resource: &Resource) -> impl Iterator<Item = (&RunSite, &RunSite)> {
    let all = || resource.runsites.iter();
    all().flat_map(move |here| {
        all().filter(move |there| here.site < there.site).map(move |there| (here, there))
    })
}

/// Returns the ports that outgoing connections get.
fn ephemeral() -> RangeInclusive<u16> {
    let range = read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => EPHEMERAL,
    }
}
