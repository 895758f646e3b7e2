//! The values of elements: from characters without white space to a value.
//!
//! Each function here returns a parser, which on failure returns the remedy, to follow "it must be". They know
//! nothing of XML; `element` calls them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Turns a host name into its addresses, as the system's resolver does.
pub type Resolver<'a> = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + 'a;

/// Returns the placeholder address of a name that no name server has answered for yet. Nothing is ever sent there:
/// 100::/64 is the discard prefix of RFC 6666.
pub fn stand_in(number: u16) -> IpAddr {
    IpAddr::from([0x100, 0, 0, 0, 0, 0, 1, number])
}

/// Returns true if the address is a [`stand_in`].
pub fn is_stand_in(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.segments().starts_with(&[0x100, 0, 0, 0, 0, 0, 1]))
}

/// The remedy, to follow "it must be".
pub(super) type Wanted = String;

pub(super) fn text(value: &str) -> Result<String, Wanted> {
    Ok(value.to_owned())
}

/// Parses the path of a file. It has to be absolute, since the daemon's working directory is not fixed.
pub(super) fn absolute(value: &str) -> Result<PathBuf, Wanted> {
    match value.starts_with('/') {
        true => Ok(value.into()),
        false => Err("the whole path of a file, such as /etc/hadm/authkey".to_owned()),
    }
}

pub(super) fn whole(range: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, Wanted> {
    move |value| match value.parse() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
    }
}

pub(super) fn port(value: &str) -> Result<u16, Wanted> {
    let wanted = |_| "a port from 1 to 65535".to_owned();
    value.parse().map(std::num::NonZeroU16::get).map_err(wanted)
}

/// Parses a numeric address and a port, at which this machine is to listen.
pub(super) fn place(value: &str) -> Result<SocketAddr, Wanted> {
    let place = value.parse().ok().filter(|place: &SocketAddr| place.port() > 0);
    let place =
        place.ok_or_else(|| "an address and a port, such as 127.0.0.1:9464 or [::1]:9464".to_owned())?;
    let scope = if let SocketAddr::V6(v6) = place { v6.scope_id() } else { 0 };
    match kind(place.ip()) {
        Some(what) if !place.ip().is_unspecified() && scope == 0 => {
            Err(format!("an address of this machine; {} is {what}", place.ip()))
        }
        _ => Ok(place),
    }
}

/// Returns the kind of an address at which no single machine can be called.
fn kind(ip: IpAddr) -> Option<&'static str> {
    let known = [
        (ip.is_unspecified(), "no address, but stands for all of a machine"),
        (ip.is_multicast(), "a multicast address"),
    ];
    let more = match ip {
        IpAddr::V4(v4) => [
            (v4.is_broadcast(), "the broadcast address"),
            (v4.octets().first() == Some(&0), "an address of 0.0.0.0/8, which no machine has"),
            (v4.octets().first() >= Some(&240), "an address of 240.0.0.0/4, which is reserved"),
        ],
        IpAddr::V6(v6) => [
            (v6.is_unicast_link_local(), "a link-local address, which needs an interface; use another one"),
            (false, ""),
            (false, ""),
        ],
    };
    known.into_iter().chain(more).find(|(is, _)| *is).map(|(_, what)| what)
}

pub(super) fn id<I: TryFrom<u32>>(last: u8) -> impl Fn(&str) -> Result<I, Wanted> {
    let wanted = move || format!("an id from 0 to {last}");
    move |value| value.parse().ok().and_then(|n: u32| I::try_from(n).ok()).ok_or_else(wanted)
}

/// Parses seconds, with or without a fraction. The ends of the range are given in the same way.
pub(super) fn seconds(least: &'static str, most: &'static str) -> impl Fn(&str) -> Result<Duration, Wanted> {
    move |value| {
        let time = decimal(value).filter(|time| (decimal(least)..=decimal(most)).contains(&Some(*time)));
        time.ok_or_else(|| format!("seconds from {least} to {most}, such as 1 or 0.2"))
    }
}

/// Returns a time that is written in seconds with or without a fraction; digits below the nanosecond are ignored.
/// Not by way of a floating-point number: to read one takes 16 KiB of code.
fn decimal(value: &str) -> Option<Duration> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let nanos = format!("{fraction:0<9.9}").parse().ok().filter(|_| digits(whole) && digits(fraction))?;
    Some(Duration::new(format!("0{whole}").parse().ok()?, nanos))
}

/// Parses one of a few words. The words are given as they are compared: without white space.
pub(super) fn choice<T: Copy, const N: usize>(
    words: [(&'static str, T); N],
    wanted: &'static str,
) -> impl Fn(&str) -> Result<T, Wanted> {
    move |value| {
        let found = words.iter().find(|(word, _)| *word == value);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| wanted.to_owned())
    }
}

/// Parses the address of one machine, or a name that has one. An IPv4 address has precedence, since C daemons know no
/// other.
pub(super) fn address(resolve: &Resolver<'_>) -> impl Fn(&str) -> Result<IpAddr, Wanted> {
    let any = any_address(resolve);
    move |value| {
        let ip = any(value)?;
        match kind(ip) {
            Some(what) if is_number(value) => Err(format!("the address of one machine; this is {what}")),
            Some(what) => Err(format!("the address of one machine; the name has {ip}, which is {what}")),
            None => Ok(ip),
        }
    }
}

/// Parses an address at which this machine listens, all of its addresses together among them.
pub(super) fn own_address(resolve: &Resolver<'_>) -> impl Fn(&str) -> Result<IpAddr, Wanted> {
    let (any, one) = (any_address(resolve), address(resolve));
    move |value| any(value).and_then(|ip| if ip.is_unspecified() { Ok(ip) } else { one(value) })
}

/// Returns true if the value is an address and no name.
pub(super) fn is_number(value: &str) -> bool {
    value.parse::<IpAddr>().is_ok()
}

fn any_address(resolve: &Resolver<'_>) -> impl Fn(&str) -> Result<IpAddr, Wanted> {
    move |value| {
        if let Ok(ip) = value.parse::<IpAddr>() {
            return Ok(ip.to_canonical());
        }
        // Resolvers read "10.1" and "010.0.0.1" as other addresses than people do.
        let last = value.rsplit('.').next().unwrap_or_default();
        let marks = [':', '[', ']', '%', '/'];
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || value.contains(marks) {
            return Err(format!("an address, such as 192.0.2.1{}", hint(value)));
        }
        let wanted = |why: &str| format!("an address, or a host name that can be resolved ({why})");
        let found = resolve(value).map_err(|error| wanted(&error.to_string()))?;
        let first = found.iter().find(|ip| ip.is_ipv4()).or(found.first());
        first.copied().ok_or_else(|| wanted("the name has no address"))
    }
}

/// Returns the remedy for what is nearly an address.
fn hint(value: &str) -> String {
    let inside = value.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    if let Some((ip, after)) = inside.filter(|(ip, _)| is_number(ip)) {
        let more = if after.is_empty() { "" } else { ", and the port in an element of its own" };
        return format!("; write {ip}, without brackets{more}");
    }
    let before = |mark: char| value.rsplit_once(mark).map(|(ip, _)| ip).filter(|ip| is_number(ip));
    if before('%').is_some() {
        return "; one with an interface is not supported, use another one of that machine".into();
    }
    match (before('/'), before(':').filter(|ip| ip.contains('.'))) {
        (Some(ip), _) => format!("; write {ip}, without its prefix"),
        (_, Some(ip)) => format!("; write {ip}, and the port in an element of its own"),
        _ => String::new(),
    }
}
