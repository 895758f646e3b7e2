//! `hadmctl bundle`: one archive with what a support request needs.
//!
//! Asks, and changes nothing. No key gets into it: secrets are taken from every part, also where somebody wrote one into a
//! comment of the configuration. What cannot be had stands there with the reason, so that a bundle is made of a broken node, too.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::{Failure, convert, disk, show, tables};
use crate::config::Config;
use crate::control::{Carried, Examination, Json, Mesh, Request, Status, Transition, metrics};

/// The configuration unless another is named.
pub const CONFIG: &str = "/etc/hadm/hadm.xml";
/// Text in the place of a secret.
const LEFT_OUT: &str = "[left out]";
/// The shortest run of hexadecimal digits that is taken for a secret: digests and ids of keys have 16.
const SECRET_MIN: usize = 32;
/// The same of letters, digits and the signs of base64, which holds such a secret in 22 of them; paths have a dot, a dash or words.
const BASE64_MIN: usize = 40;
/// Block of an archive in bytes.
const BLOCK: usize = 512;

/// The options of the command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path of the archive; `None`: a file with the host's name and the time, here. `-`: standard output.
    pub file: Option<PathBuf>,
    /// The configuration.
    pub config: PathBuf,
    /// The control socket of `hadm-nbd`, if it is not the usual one.
    pub disks: Option<PathBuf>,
}

/// A file of the archive.
struct Member {
    name: String,
    about: &'static str,
    text: String,
}

impl Member {
    fn is_available(&self) -> bool {
        !self.text.starts_with("not available: ")
    }

    fn json(&self) -> Value {
        let Member { name, about, text } = self;
        json!({ "name": name, "about": about, "bytes": text.len(), "available": self.is_available() })
    }
}

/// Makes the archive.
///
/// # Errors
/// The file is there already, or cannot be written.
pub(super) fn bundle(
    settings: &Settings,
    control: &Path,
    timeout: Duration,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let now = SystemTime::now();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let name = format!("hadm-bundle-{host}-{}", time.replace(':', "").trim_end_matches('Z'));
    let mut members = collect(settings, control, timeout);
    let list = contents(&members, &host, &time);
    members.insert(0, Member { name: "CONTENTS".into(), about: "", text: list.clone() });
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let archive = archive(&name, &members, seconds);
    let path = settings.file.clone().unwrap_or_else(|| format!("{name}.tar").into());
    if path == Path::new("-") {
        let _ = io::stderr().write_all(list.as_bytes());
        return Ok(out.write_all(&archive)?);
    }
    if !json {
        out.write_all(list.as_bytes())?;
    }
    let fail = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AlreadyExists => "; name another file, or remove it",
            _ => "",
        };
        Failure::Said(format!("cannot write {}: {error}{remedy}", path.display()))
    };
    // Addresses and names of a cluster are nobody else's business.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fail)?;
    file.write_all(&archive).and_then(|()| file.sync_all()).map_err(fail)?;
    if json {
        let members: Vec<Value> = members.iter().map(Member::json).collect();
        let bundle = json!({ "file": path.display().to_string(), "members": members });
        return Ok(writeln!(out, "{bundle}")?);
    }
    Ok(writeln!(out, "\nwritten to {}", path.display())?)
}

/// Everything, without secrets.
fn collect(settings: &Settings, control: &Path, timeout: Duration) -> Vec<Member> {
    let mut members = Vec::new();
    let mut add = |name: &str, about: &'static str, text: Result<String, String>| {
        let text = text.unwrap_or_else(|why| format!("not available: {why}\n"));
        members.push(Member { name: name.into(), about, text });
    };
    let config = convert::read(&settings.config);
    let secrets = config.as_deref().map(secrets).unwrap_or_default();
    let config = config.map_err(|error| format!("{}: {error}", settings.config.display()));
    add("hadm.xml", "the configuration, without keys and with comments", config);
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    add(
        "check.txt",
        "what hadmctl check says of it",
        Ok(match Config::check(&settings.config, &hostname) {
            Ok(loaded) => {
                loaded.warnings.iter().fold("valid\n".into(), |text, warning| format!("{text}{warning}\n"))
            }
            Err(error) => format!("{error}\n"),
        }),
    );
    let mut daemon = Asked { control: control.to_owned(), timeout };
    let status = daemon.ask(&Request::Status);
    let known = status.as_ref().ok().and_then(|status| status.read::<Status>().ok());
    add(
        "status.json",
        "all that the daemon tells",
        status.as_ref().map(|all| format!("{all}\n")).map_err(Clone::clone),
    );
    add("status.txt", "the same for people", of(&status, |status: &Status| show::status(status, false)));
    add("metrics.txt", "counters and states", of(&status, metrics::render));
    for peer in known.iter().flat_map(|status| &status.peers) {
        let why = daemon.ask(&Request::Why(peer.peer));
        let text = of(&why, |all: &Vec<Transition>| show::transitions(all));
        let name = format!("why-{}.txt", peer.peer.to_string().replace(' ', "-"));
        add(&name, "the last transitions of the peer", text);
    }
    add("mesh.txt", "who sees whom", of(&daemon.ask(&Request::Mesh), |mesh: &Mesh| tables::mesh(mesh)));
    let found = daemon.ask(&Request::Doctor(None));
    add(
        "doctor.txt",
        "what is wrong, and what helps",
        of(&found, |found: &Examination| tables::doctor(found, false)),
    );
    let disks = Path::new(disk::SOCKET);
    let mut nbd = Asked { control: settings.disks.clone().unwrap_or_else(|| disks.into()), timeout };
    if nbd.control.exists() {
        let status = nbd.ask_line(r#"{"v":1,"cmd":"status"}"#).map(|answer| format!("{answer}\n"));
        add("disks.json", "the mirrored disks", status);
    }
    let pid = known.as_ref().map(|status| status.pid);
    add(
        "versions.txt",
        "programs, kernel, distribution and kernel module",
        Ok(versions(known.as_ref(), pid)),
    );
    add("limits.txt", "what the daemon and the machine may use, and do use", Ok(limits(pid)));
    add("addresses.txt", "addresses, routes and sockets of this machine", Ok(addresses()));
    for member in &mut members {
        member.text = without_secrets(&member.text, &secrets);
    }
    members
}

/// Questions to the daemon, each over a connection of its own: one that fails spoils no other.
struct Asked {
    control: PathBuf,
    timeout: Duration,
}

impl Asked {
    fn ask(&mut self, request: &Request) -> Result<Carried, String> {
        self.ask_line(&request.line())
    }

    fn ask_line(&mut self, line: &str) -> Result<Carried, String> {
        let daemon = Daemon::connect(&self.control, self.timeout);
        daemon.and_then(|mut daemon| daemon.ask_line_patiently(line)).map_err(|failure| failure.to_string())
    }
}

fn of<T: Json>(answer: &Result<Carried, String>, show: impl Fn(&T) -> String) -> Result<String, String> {
    answer.as_ref().map_err(Clone::clone)?.read().map(|value| show(&value))
}

/// Files one after the other, each under its name.
fn files(text: &mut String, names: &[&str]) {
    for name in names {
        let found = fs::read(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let found = found.unwrap_or_else(|error| format!("{error}\n"));
        let _ = writeln!(text, "== {name}\n{found}");
    }
}

fn versions(status: Option<&Status>, pid: Option<u32>) -> String {
    let daemon = status.map_or("not running, or not asked", |status| status.version.as_str());
    let mut text = format!("hadmctl {}\nhadmd {daemon}\n", env!("CARGO_PKG_VERSION"));
    if let Some(pid) = pid {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let _ = writeln!(text, "command line: {line}");
    }
    let module = fs::read_to_string("/proc/modules").unwrap_or_default();
    let module = module.lines().find(|line| line.starts_with("hadm_kmod ")).unwrap_or("not loaded");
    let _ = writeln!(text, "hadm_kmod: {module}");
    files(&mut text, &["/proc/version", "/etc/os-release", "/sys/module/hadm_kmod/version"]);
    text
}

fn limits(pid: Option<u32>) -> String {
    let mut text = String::new();
    for file in
        pid.iter().flat_map(|pid| ["limits", "status", "cgroup"].map(|file| format!("/proc/{pid}/{file}")))
    {
        files(&mut text, &[&file]);
    }
    let machine = [
        "/proc/loadavg",
        "/proc/uptime",
        "/proc/meminfo",
        "/proc/net/sockstat",
        "/proc/sys/net/core/rmem_max",
        "/proc/sys/net/core/wmem_max",
        "/proc/sys/net/core/somaxconn",
        "/proc/sys/net/ipv4/tcp_rmem",
        "/proc/sys/net/ipv4/tcp_wmem",
        "/proc/sys/net/ipv4/tcp_mem",
        "/proc/sys/net/ipv4/tcp_retries2",
        "/proc/sys/net/ipv4/ip_local_port_range",
    ];
    files(&mut text, &machine);
    text
}

fn addresses() -> String {
    let mut text = String::new();
    match if_addrs::get_if_addrs() {
        Ok(all) => all.iter().for_each(|one| {
            let _ = writeln!(text, "{} {}", one.name, one.ip());
        }),
        Err(error) => text = format!("{error}\n"),
    }
    files(
        &mut text,
        // Not the routes of IPv6: their addresses are written as a key would be.
        &["/proc/net/dev", "/proc/net/route", "/proc/net/tcp", "/etc/hosts"],
    );
    text
}

/// The secrets of the key files that a configuration names, as they stand there.
fn secrets(config: &str) -> Vec<String> {
    let parts = config.split("<authkey>").skip(1).filter_map(|rest| rest.split('<').next());
    // It is read only to be left out, also where it belongs to another user; one that cannot be read gives nothing away either.
    let texts = parts.filter_map(|path| convert::read(Path::new(path.trim())).ok());
    let words = |text: String| -> Vec<String> {
        let words = text.split_whitespace().filter(|word| word.len() >= 16);
        words.map(str::to_owned).collect()
    };
    texts.flat_map(words).collect()
}

/// The text without these secrets, and without whatever looks like one.
fn without_secrets(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret.as_str(), LEFT_OUT);
    }
    // The element names a file; who wrote the key itself into it must not have it sent.
    let mut parts = text.split("<authkey>");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (value, rest) = part.split_once('<').unwrap_or((part, ""));
        let value = if value.trim_start().starts_with('/') { value } else { LEFT_OUT };
        let _ = write!(out, "<authkey>{value}<{rest}");
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_');
    let (mut clean, mut rest) = (String::with_capacity(out.len()), out.as_str());
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_part(c) != is_part(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        clean += if is_part(first) && is_secret(run) { LEFT_OUT } else { run };
        rest = after;
    }
    clean
}

/// Returns true if a word looks like a key: a long run of hexadecimal digits, or one of base64 with letters of both cases and
/// digits. Zeros and the like, as in tables of the system, are none.
fn is_secret(word: &str) -> bool {
    let mut kinds: Vec<char> = word.chars().collect();
    kinds.sort_unstable();
    kinds.dedup();
    let hex = word.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= SECRET_MIN);
    let has = |of: fn(&char) -> bool| kinds.iter().any(of);
    let mixed = has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase) && has(char::is_ascii_digit);
    kinds.len() >= 8 && (hex || word.len() >= BASE64_MIN && mixed)
}

fn contents(members: &[Member], host: &str, time: &str) -> String {
    let mut text = format!("Of {host} at {time}, by hadmctl {}:\n", env!("CARGO_PKG_VERSION"));
    for member in members {
        let Member { name, about, text: inside } = member;
        let missing = if member.is_available() { "" } else { "  (not available)" };
        let _ = writeln!(text, "  {name:<24} {:>8} bytes  {about}{missing}", inside.len());
    }
    text += "Keys and whatever looks like one are left out. Addresses, host names and comments of the configuration are in it.\n";
    text
}

/// The archive, in the form that every tar reads (ustar).
fn archive(folder: &str, members: &[Member], seconds: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let bytes = member.text.as_bytes();
        let mut head = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| {
            head.iter_mut().skip(at).zip(text.bytes()).for_each(|(to, from)| *to = from);
        };
        let name: String = format!("{folder}/{}", member.name).chars().take(99).collect();
        put(0, &name);
        put(100, "0000600\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", bytes.len()));
        put(136, &format!("{seconds:011o}\0"));
        // The checksum is taken with blanks in its own place.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        put(265, "root");
        put(297, "root");
        let sum: u64 = head.iter().copied().map(u64::from).sum();
        head.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()).for_each(|(to, from)| *to = from);
        out.extend_from_slice(&head);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len().saturating_add(2 * BLOCK), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_left_out_wherever_they_stand() {
        let hex = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef";
        let base64 = "q83vEjRWeJq83vASNFZ4mrzeAHw0VniavN4BI0VneJo=";
        let odd = "correct-horse-battery-staple";
        let text = format!(
            "<!-- {hex} --><authkey>{odd}</authkey><authkey> /etc/hadm/authkey </authkey> x={base64} k:{hex}. {odd}"
        );
        let clean = without_secrets(&text, &[odd.to_owned()]);
        for secret in [hex, base64, odd] {
            assert!(!clean.contains(secret), "{clean}");
        }
        assert!(clean.contains("<authkey> /etc/hadm/authkey </authkey>"), "{clean}");
        assert!(without_secrets("<authkey>short</authkey>", &[]).contains("<authkey>[left out]</authkey>"));
    }

    #[test]
    fn what_is_no_key_stays() {
        for text in [
            "configuration 6a0aab5e04e90c6f",
            "/usr/share/doc/hadmd/examples/two-sites-with-a-long-name.xml",
            "00000000000000000000000000000000 00 fe80000000000000",
            "0A0200C0:1B58 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345",
            "ä→ü",
        ] {
            assert_eq!(without_secrets(text, &[]), text);
        }
    }
}
