//! The settings of `hadm-nbd` for a resource, at all its sites or at one: the daemon checks them and uses none.
//!
//! Every element may be in `resource`, for all its runsites, and in `runsite`, which has precedence. Only the
//! settings are here; the mirror acts on them. Called by `cluster`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::element::Element;
use super::value::{Wanted, absolute, choice, place, whole};
use crate::wire::SiteId;

/// The elements of this file.
pub(super) const NAMES: [&str; 16] = [
    "nbd",
    "nbdclients",
    "nbdmemory",
    "flush",
    "onloss",
    "quorum",
    "onerror",
    "resyncrate",
    "resyncmin",
    "activeextents",
    "splitbrain0",
    "splitbrain1",
    "splitbrain2",
    "splitbrainhelper",
    "fencing",
    "fencepeer",
];

/// The handler where `fencing` asks for one and `fencepeer` names none.
const FENCE_PEER: &str = "/etc/hadm/fence-peer";

/// The most connections, and the default: enough for 16 clients of 4 connections each.
const CLIENTS: u32 = 64;
/// Default number of bytes in flight: two of the longest requests there are.
const MEMORY: u64 = 64 << 20;
/// Allowed numbers of bytes in flight: one of the longest requests has to fit, or it could never be served.
const MEMORY_RANGE: RangeInclusive<u64> = 32 << 20..=64 << 30;
/// Default lowest rate of a resync, in bytes a second: 1 TiB ends in 12 days at worst.
const RESYNC_MIN: u64 = 1 << 20;
/// Allowed rates in bytes a second: less would never end, and no disk does more than 64 GiB a second.
const RATE_RANGE: RangeInclusive<u64> = 4096..=64 << 30;
/// Allowed numbers of active extents: a request reaches into two, and a record of the activity log takes 1000.
const ACTIVE_EXTENTS: RangeInclusive<u32> = 4..=1000;

/// The settings of a mirror at one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The address at which NBD clients may connect over TCP beside the Unix socket (`nbd`).
    pub nbd: Option<SocketAddr>,
    /// Most connections of NBD clients at once, 1 to 64 (`nbdclients`).
    pub nbd_clients: u32,
    /// Most bytes of requests in flight, at least 32 MiB (`nbdmemory`, default 64 MiB).
    pub nbd_memory: u64,
    /// The disks that a flush covers (`flush`).
    pub flush: Flush,
    /// The reaction of a primary that loses a site (`onloss`).
    pub on_loss: OnLoss,
    /// The say of a majority among three sites and more (`quorum`).
    pub quorum: Quorum,
    /// The reaction to a disk that fails (`onerror`).
    pub on_error: OnError,
    /// Most bytes a second of a resync; `None`: as fast as the foreground permits (`resyncrate`).
    pub resync_rate: Option<u64>,
    /// Rate in bytes a second below which a resync yields no further (`resyncmin`, default 1 MiB).
    pub resync_min: u64,
    /// Most extents of 4 MiB that writes may be under way in while this site is primary, 4 to 1000: what is looked at after a
    /// crash (`activeextents`, default 1000).
    pub active_extents: u32,
    /// The policies for a split brain (`splitbrain0`, `splitbrain1`, `splitbrain2`).
    pub split_brain: SplitBrain,
    /// The program that is called when a policy says so (`splitbrainhelper`).
    pub helper: Option<PathBuf>,
    /// The way to exclude a lost site before a primary goes on, or a site becomes primary (`fencing`).
    pub fencing: Fencing,
    /// The program that stops a lost site, and reports whether it did (`fencepeer`, default `/etc/hadm/fence-peer`).
    pub fence_peer: PathBuf,
}

/// Element `fencing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fencing {
    /// Nothing.
    #[default]
    None,
    /// The handler is called; a primary goes on when it has ended, as `onloss` says if it has failed.
    ResourceOnly,
    /// The handler is called; a primary goes on only when it has succeeded.
    ResourceAndStonith,
}

/// Element `flush`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// Answered when the data is on stable storage at every connected site with `sync`.
    #[default]
    All,
    /// Answered when it is on this site's.
    Local,
}

/// Element `onloss`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLoss {
    /// The primary goes on alone.
    #[default]
    Continue,
    /// It answers no write until the site is back or fenced.
    Freeze,
}

/// Element `quorum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quorum {
    /// Each primary goes on, and a site becomes primary only if the others are known not to be.
    #[default]
    Off,
    /// A majority of the sites in sync: a primary without it answers no read or write, a site with it may become primary.
    Majority,
}

/// Element `onerror`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The disk is given up, and another site's used instead.
    #[default]
    Detach,
    /// The resource stops.
    Stop,
}

/// The policies for a split brain, by the number of sites that are primary when they connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitBrain {
    /// None is primary.
    pub zero: NoPrimary,
    /// One is.
    pub one: OnePrimary,
    /// Both are.
    pub two: TwoPrimaries,
}

/// Element `splitbrain0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoPrimary {
    /// Wait for a person.
    #[default]
    Disconnect,
    /// Give up the changes of the site that became primary last.
    DiscardYounger,
    /// Give up those of the site that became primary first.
    DiscardOlder,
    /// If one site has no changes, it takes the other's.
    DiscardZeroChanges,
    /// Give up the smaller number of changes.
    DiscardLeastChanges,
    /// Give up this site's.
    DiscardSite(SiteId),
}

/// Element `splitbrain1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnePrimary {
    /// Wait for a person.
    #[default]
    Disconnect,
    /// As `splitbrain0` says, if that gives up the secondary's changes.
    Consensus,
    /// Give up the secondary's changes.
    DiscardSecondary,
    /// As `splitbrain0` says; if that hits the primary, the helper is called first.
    CallHelper,
    /// As `splitbrain0` says, even if the primary loses its data while it is in use.
    Violently,
}

/// Element `splitbrain2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TwoPrimaries {
    /// Wait for a person.
    #[default]
    Disconnect,
    /// As `splitbrain0` says, after the helper was called at the loser.
    CallHelper,
    /// As `splitbrain0` says, even if a primary loses its data while it is in use.
    Violently,
}

impl Default for Mirror {
    fn default() -> Self {
        Mirror {
            nbd: None,
            nbd_clients: CLIENTS,
            nbd_memory: MEMORY,
            flush: Flush::All,
            on_loss: OnLoss::Continue,
            quorum: Quorum::Off,
            on_error: OnError::Detach,
            resync_rate: None,
            resync_min: RESYNC_MIN,
            active_extents: *ACTIVE_EXTENTS.end(),
            split_brain: SplitBrain::default(),
            helper: None,
            fencing: Fencing::None,
            fence_peer: FENCE_PEER.into(),
        }
    }
}

impl Mirror {
    /// Returns the fencing handler, if one is to be called.
    pub fn fencing_handler(&self) -> Option<&Path> {
        (self.fencing != Fencing::None).then_some(&self.fence_peer)
    }

    /// Returns true if a primary that lost a site waits for it, unless the fencing handler excluded it.
    pub fn freezes(&self) -> bool {
        self.on_loss == OnLoss::Freeze || self.fencing == Fencing::ResourceAndStonith
    }
}

/// Reads the elements in this one; absent ones are as in `outer`.
pub(super) fn read(el: Element<'_>, outer: &Mirror) -> Option<Mirror> {
    let nbd = el.get_or("nbd", outer.nbd, |value| listener(value).map(Some));
    let nbd_clients = el.get_or("nbdclients", outer.nbd_clients, whole(1..=CLIENTS));
    let nbd_memory = el.get_or("nbdmemory", outer.nbd_memory, size(MEMORY_RANGE));
    let words = [("all", Flush::All), ("local", Flush::Local)];
    let flush = el.get_or("flush", outer.flush, choice(words, "all or local"));
    let words = [("continue", OnLoss::Continue), ("freeze", OnLoss::Freeze)];
    let on_loss = el.get_or("onloss", outer.on_loss, choice(words, "continue or freeze"));
    let words = [("off", Quorum::Off), ("majority", Quorum::Majority)];
    let quorum = el.get_or("quorum", outer.quorum, choice(words, "off or majority"));
    let words = [("detach", OnError::Detach), ("stop", OnError::Stop)];
    let on_error = el.get_or("onerror", outer.on_error, choice(words, "detach or stop"));
    let rate = size(RATE_RANGE);
    let resync_rate = el.get_or("resyncrate", outer.resync_rate, |value| rate(value).map(Some));
    let resync_min = el.get_or("resyncmin", outer.resync_min, &rate);
    if let (Some(Some(rate)), Some(min)) = (resync_rate, resync_min) {
        if let Some(at) = el.find("resyncmin").or(el.find("resyncrate")).filter(|_| min > rate) {
            at.refuse(&format!(
                "<resyncmin> is {min} bytes a second and <resyncrate> {rate}: the least must not be more than the most"
            ));
        }
    }
    let active_extents = el.get_or("activeextents", outer.active_extents, whole(ACTIVE_EXTENTS));
    let policies = &outer.split_brain;
    let zero = el.get_or("splitbrain0", policies.zero, no_primary);
    let one = el.get_or("splitbrain1", policies.one, one_primary());
    let two = el.get_or("splitbrain2", policies.two, two_primaries());
    let helper = el.get_or("splitbrainhelper", outer.helper.clone(), |value| program(value).map(Some));
    let fence_peer = el.get_or("fencepeer", outer.fence_peer.clone(), program);
    let (fencing, named) = el.get_or("fencing", (outer.fencing, None), fencing)?;
    if let Some(None) = helper {
        let calls = [
            el.find("splitbrain1").filter(|_| one == Some(OnePrimary::CallHelper)),
            el.find("splitbrain2").filter(|_| two == Some(TwoPrimaries::CallHelper)),
        ];
        for call in calls.into_iter().flatten() {
            call.refuse("there is no <splitbrainhelper> to call; add one with the whole path of a program");
        }
    }
    Some(Mirror {
        nbd: nbd?,
        nbd_clients: nbd_clients?,
        nbd_memory: nbd_memory?,
        flush: flush?,
        on_loss: on_loss?,
        quorum: quorum?,
        on_error: on_error?,
        resync_rate: resync_rate?,
        resync_min: resync_min?,
        active_extents: active_extents?,
        split_brain: SplitBrain { zero: zero?, one: one?, two: two? },
        helper: helper?,
        fencing,
        fence_peer: named.or(fence_peer)?,
    })
}

/// Parses a port of the loopback address, or an address and a port.
fn listener(value: &str) -> Result<SocketAddr, Wanted> {
    match value.parse() {
        Ok(0) | Err(_) => place(value).map_err(|_| {
            "a port of 127.0.0.1, such as 10809, or an address and a port, such as [::1]:10809".into()
        }),
        Ok(port) => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
    }
}

/// Parses the path of a program, without arguments.
fn program(value: &str) -> Result<PathBuf, Wanted> {
    absolute(value).map_err(|_| "the whole path of a program, such as /etc/hadm/fence".into())
}

/// Parses the way to exclude a lost site. The path of a program stands for `resource-only` with that handler.
fn fencing(value: &str) -> Result<(Fencing, Option<PathBuf>), Wanted> {
    if let Ok(handler) = program(value) {
        return Ok((Fencing::ResourceOnly, Some(handler)));
    }
    let words = [
        ("none", Fencing::None),
        ("resource-only", Fencing::ResourceOnly),
        ("resource-and-stonith", Fencing::ResourceAndStonith),
    ];
    let wanted =
        "none, resource-only, resource-and-stonith, or the whole path of a program, such as /etc/hadm/fence";
    Ok((choice(words, wanted)(value)?, None))
}

/// Parses bytes, or KiB, MiB or GiB with their letter.
fn size(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, Wanted> {
    move |value| {
        let shift = match value.bytes().next_back() {
            Some(b'K' | b'k') => 10,
            Some(b'M' | b'm') => 20,
            Some(b'G' | b'g') => 30,
            _ => 0,
        };
        let digits = if shift > 0 { value.get(..value.len().saturating_sub(1)) } else { Some(value) };
        let plain = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let bytes =
            plain.and_then(|digits| digits.parse::<u64>().ok()).and_then(|n| n.checked_mul(1 << shift));
        bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            format!("bytes from {least} to {most}, or with K, M or G, such as 100M")
        })
    }
}

fn no_primary(value: &str) -> Result<NoPrimary, Wanted> {
    let words = [
        ("disconnect", NoPrimary::Disconnect),
        ("discard-younger-primary", NoPrimary::DiscardYounger),
        ("discard-older-primary", NoPrimary::DiscardOlder),
        ("discard-zero-changes", NoPrimary::DiscardZeroChanges),
        ("discard-least-changes", NoPrimary::DiscardLeastChanges),
    ];
    let site = value.strip_prefix("discard-site-").and_then(|id| id.parse().ok());
    if let Some(site) = site.and_then(|id: u32| SiteId::try_from(id).ok()) {
        return Ok(NoPrimary::DiscardSite(site));
    }
    let wanted = "disconnect, discard-younger-primary, discard-older-primary, discard-zero-changes, \
                  discard-least-changes or, with the id of a site, discard-site-0";
    choice(words, wanted)(value)
}

fn one_primary() -> impl Fn(&str) -> Result<OnePrimary, Wanted> {
    let words = [
        ("disconnect", OnePrimary::Disconnect),
        ("consensus", OnePrimary::Consensus),
        ("discard-secondary", OnePrimary::DiscardSecondary),
        ("call-helper", OnePrimary::CallHelper),
        ("violently", OnePrimary::Violently),
    ];
    choice(words, "disconnect, consensus, discard-secondary, call-helper or violently")
}

fn two_primaries() -> impl Fn(&str) -> Result<TwoPrimaries, Wanted> {
    let words = [
        ("disconnect", TwoPrimaries::Disconnect),
        ("call-helper", TwoPrimaries::CallHelper),
        ("violently", TwoPrimaries::Violently),
    ];
    choice(words, "disconnect, call-helper or violently")
}
