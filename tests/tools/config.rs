//! The configuration file from outside: the samples, files that cannot be read, and text of every kind.
//!
//! The effect of one mistake is tested beside the reader. Here a renderer of its own writes configurations in every
//! allowed form, so that nothing the reader believes of the format is taken on trust.

// Clippy's leave for tests does not reach their helpers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hadmd::config::mirror::Mirror;
use hadmd::config::{
    Config, ConfigError, FILE_MAX, Mode, Node, PeerAddr, Problem, Protocol, Resource, RunSite, Severity,
    Site, parse,
};
use hadmd::wire::Compression;
use proptest::prelude::*;

const VALID: &str = include_str!("../data/config/valid.xml");
const OLDER: &str = include_str!("../data/config/older.xml");

fn no_names(_: &str) -> io::Result<Vec<IpAddr>> {
    Err(io::ErrorKind::NotFound.into())
}

fn place(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn refused(text: &str) -> Vec<String> {
    lines(&parse(text, "n1", &no_names).unwrap_err())
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

/// A file of this test process alone.
fn scratch(name: &str, content: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::write(&path, content).unwrap();
    path
}

fn refusal(name: &str, content: &[u8]) -> String {
    let path = scratch(name, content);
    let message = Config::read(&path, "n1").unwrap_err().to_string();
    fs::remove_file(&path).unwrap();
    message.replace(path.to_str().unwrap(), "FILE")
}

/// The guide has its reader open the comments with the witness.
#[test]
fn the_sample_of_a_mirror_loads_with_its_witness() {
    let text = fs::read_to_string(place("etc/mirror.xml")).unwrap();
    let mut opened = String::new();
    let mut is_open = false;
    for line in text.lines() {
        is_open |= line.contains("<!-- witness:");
        let is_end = is_open && line.contains("-->");
        if !(is_open && (line.contains("<!--") || is_end)) {
            opened += line;
            opened += "\n";
        }
        is_open &= !is_end;
    }
    let path = scratch("witness", opened.as_bytes());
    for hostname in ["left", "right", "third"] {
        let loaded = Config::read(&path, hostname).unwrap();
        assert_eq!(lines(&loaded.warnings), [""; 0]);
        let witness = loaded.config.resources[0].witness().map(|site| site.get());
        assert_eq!(witness, Some(2));
    }
    fs::remove_file(&path).unwrap();
}

#[test]
fn every_sample_loads_without_a_warning_for_every_node_in_it() {
    let mut seen = 0;
    for entry in fs::read_dir(place("etc")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text: String = text.split("<!--").map(|part| part.rsplit("-->").next().unwrap()).collect();
        for hostname in text.split("<hostname>").skip(1).filter_map(|rest| rest.split('<').next()) {
            let loaded = Config::read(&path, hostname).unwrap();
            assert_eq!(lines(&loaded.warnings), [""; 0], "{}", path.display());
            assert_eq!(loaded.config.local_node().unwrap().hostname, hostname);
            assert_eq!(loaded.config.peer_addr, PeerAddr::Strict);
            seen += 1;
        }
    }
    assert_eq!(seen, 2 + 3 + 4);
}

#[test]
fn the_one_site_sample_is_the_demo() {
    let config = Config::read(&place("etc/one-site.xml"), "node2").unwrap().config;
    assert_eq!(config.server, "127.0.0.1:9998".parse().unwrap());
    let addrs: Vec<_> = config.local_nodes().iter().map(|node| node.addr.to_string()).collect();
    assert_eq!(addrs, ["127.0.0.10:7000", "127.0.0.11:7000", "127.0.0.12:7000"]);
    assert_eq!((config.ping_interval.as_millis(), config.max_ping_count), (1000, 3));
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_remedy() {
    for path in [place("etc/no-such-file.xml"), place("etc")] {
        let error = Config::read(&path, "n1").unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }));
        let message = error.to_string();
        assert!(message.starts_with(&format!("{}: cannot be read (", path.display())), "{message}");
        assert!(message.contains("-c FILE") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_file_of_more_than_a_mebibyte_is_refused() {
    let room = FILE_MAX as usize - VALID.len();
    let largest = scratch("largest", format!("{VALID}{}", " ".repeat(room)).as_bytes());
    assert!(Config::read(&largest, "n1").is_ok());
    fs::remove_file(&largest).unwrap();
    let message = refusal("longer", format!("{VALID}{}", " ".repeat(room + 1)).as_bytes());
    assert_eq!(
        message,
        "FILE: longer than 1048576 bytes, so this is no configuration file; give the right one with -c FILE"
    );
}

#[test]
fn every_line_of_a_refusal_has_its_place() {
    let slips = VALID.replace("<port>7000<", "<port>0<").replace("kmodport>", "kmodprt>");
    assert_eq!(
        refusal("slips", slips.as_bytes()),
        "FILE:5:5: warning: unknown element <kmodprt>, did you mean <kmodport>?\n\
         FILE:14:82: <port> is \"0\": it must be a port from 1 to 65535"
    );
    assert_eq!(
        refusal("latin1", b"<hadm>\n  <!-- \xfcber -->\n</hadm>"),
        "FILE:2:8: these bytes are not UTF-8: save the file as UTF-8"
    );
}

#[test]
fn an_older_file_is_refused_with_directions() {
    let found = refused(OLDER);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("9:3: this file has the older form, without sites; `hadmctl convert`"));
    assert!(found[0].contains("By hand: put <nodes> into <sites>"), "{found:?}");
    let servers = OLDER.replace("<nodes>", "<servers>").replace("</nodes>", "</servers>");
    assert!(refused(&servers)[0].starts_with("9:3: this file has the older form"), "{servers}");
    let (before, rest) = OLDER.split_once("<nodes>").unwrap();
    let (_, after) = rest.split_once("</nodes>").unwrap();
    assert!(refused(&format!("{before}{after}"))[0].starts_with("15:9: this file has the older form"));
}

#[test]
fn xml_errors_have_their_place() {
    let not_xml = |text: &str| refused(text).join("\n");
    assert_eq!(not_xml(""), "1:1: no XML element in it: a configuration is <hadm>...</hadm>");
    assert_eq!(
        not_xml("<hadm>\n</hamd>"),
        "2:1: not well-formed XML: expected 'hadm' tag, not 'hamd'; close <hadm> with </hadm> first, or correct the \
         misspelled one of the two"
    );
    let remedies = [
        ("<hadm><a>x & y</a></hadm>", "write &amp; for & in a value"),
        ("<hadm><a>&b;</a></hadm>", "write &amp; for & in a value"),
        ("<hadm><a>x < y</a></hadm>", "write &lt; for <"),
        ("<hadm><!-- a -- b --></hadm>", "take the -- out of the comment"),
        ("\n<?xml version='1.0'?><hadm/>", "delete everything before <?xml"),
        ("<hadm><1/></hadm>", "close each <name> with </name>"),
    ];
    for (text, remedy) in remedies {
        assert!(not_xml(text).contains(remedy), "{text}: {}", not_xml(text));
    }
    assert_eq!(
        not_xml("<hadm>\n <a>"),
        "2:5: not well-formed XML, the text ends early: the root node was opened but never closed; add the missing end, with \
         </hadm> as the last element's"
    );
    assert_eq!(
        not_xml("<?xml version='1.0'?>\n <!DOCTYPE a [<!ENTITY b 'c'>]>\n<hadm/>"),
        "2:2: a document type (<!DOCTYPE ...>) is not allowed here: delete it"
    );
    assert_eq!(not_xml("<!-- é --><adm/>"), "1:11: the outermost element is <adm>: it must be <hadm>");
}

#[test]
fn a_tower_of_elements_and_a_host_of_problems_are_survived() {
    let tower = "<a>".repeat(200_000) + &"</a>".repeat(200_000);
    assert_eq!(parse(&tower, "n1", &no_names).unwrap_err().len(), 1);
    let host = |n| VALID.replace("<sites>", &format!("<sites>{}", "<x/>\n".repeat(n)));
    let warnings = parse(&host(50_000), "n1", &no_names).unwrap().warnings;
    // The first 100, and how many there are beside them.
    assert_eq!(warnings.len(), 101);
    assert!(warnings[100].message.contains("49900"), "{}", warnings[100].message);
    let errors = parse(&host(150_000), "n1", &no_names).unwrap_err();
    assert!(errors[0].message.contains("more than 200000 XML elements"), "{}", errors[0].message);
}

/// The forms of a file that do not change its meaning.
#[derive(Clone, Copy, Debug)]
struct Style {
    old_heartbeat: bool,
    old_mode: bool,
    reversed: bool,
    spaced: bool,
}

impl Style {
    fn put(self, name: &str, value: impl ToString) -> String {
        let value = value.to_string();
        if !self.spaced {
            return format!("<{name}>{value}</{name}>");
        }
        let spaced: String = value.chars().flat_map(|c| [c, ' ']).collect();
        format!("<{name}>\n\t{spaced}<!-- {name} --> </{name}>\n")
    }

    fn join(self, name: &str, mut parts: Vec<String>) -> String {
        if self.reversed {
            parts.reverse();
        }
        format!("<{name}>{}</{name}>", parts.concat())
    }

    fn render(self, config: &Config) -> String {
        let seconds = config.ping_interval.as_secs_f64();
        let (interval, count) =
            if self.old_heartbeat { ("ping", "pingtimeout") } else { ("pingtimeout", "maxpingcount") };
        let peer_addr = if config.peer_addr == PeerAddr::Strict { "strict" } else { "any" };
        let mut global = vec![
            self.put("serverip", config.server.ip()),
            self.put("serverport", config.server.port()),
            self.put(interval, seconds),
            self.put(count, config.max_ping_count),
            self.put("maxpacket", config.max_packet),
            self.put("slowtimeout", config.slow_timeout.as_secs_f64()),
            self.put("busypoll", config.busy_poll.as_micros()),
            self.put("zerocopy", if config.zero_copy { "on" } else { "off" }),
            self.put("peeraddr", peer_addr),
        ];
        global.extend(config.metrics.map(|at| self.put("metrics", at)));
        if config.kmod_port != 0 {
            global.push(self.put("kmodport", config.kmod_port));
        }
        let sites = config.sites.iter().map(|site| {
            let nodes = site.nodes.iter().map(|node| {
                let parts = vec![
                    self.put("id", node.id.get()),
                    self.put("hostname", &node.hostname),
                    self.put("ipaddr", node.addr.ip()),
                    self.put("port", node.addr.port()),
                ];
                self.join("node", parts)
            });
            let mode = match site.mode {
                Mode::Share => "share",
                Mode::StandAlone if self.old_mode => "stand along",
                Mode::StandAlone => "stand alone",
            };
            let nodes = self.join("nodes", nodes.collect());
            self.join("site", vec![self.put("id", site.id.get()), self.put("mode", mode), nodes])
        });
        let resources = config.resources.iter().map(|resource| {
            let runsites = resource.runsites.iter().map(|at| {
                let protocol = if at.protocol == Protocol::Sync { "sync" } else { "async" };
                let nodes = at.run_nodes.iter().map(|node| self.put("id", node.get())).collect();
                let mut parts = vec![
                    self.put("id", at.site.get()),
                    self.put("ip", at.addr.ip()),
                    self.put("port", at.addr.port()),
                    self.put("protocol", protocol),
                    self.put("disk", &at.disk),
                    self.put("bwr_disk", &at.bwr_disk),
                    self.join("runnodes", nodes),
                ];
                parts.extend(at.compress.map(|compress| self.put("compress", compress.name())));
                self.join("runsite", parts)
            });
            let runsites = self.join("runsites", runsites.collect());
            let parts = vec![self.put("id", resource.id.get()), self.put("name", &resource.name), runsites];
            self.join("resource", parts)
        });
        let sites = self.join("sites", sites.collect());
        let resources = self.join("resources", resources.collect());
        self.join("hadm", vec![self.join("global", global), sites, resources])
    }
}

fn style() -> impl Strategy<Value = Style> {
    any::<(bool, bool, bool, bool)>().prop_map(|(old_heartbeat, old_mode, reversed, spaced)| Style {
        old_heartbeat,
        old_mode,
        reversed,
        spaced,
    })
}

/// An address that a machine can have, and that is not for itself alone.
fn ip() -> impl Strategy<Value = IpAddr> {
    let v4 = (128..=223u8, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d]));
    let v6 = any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits >> 3 | 1 << 125)));
    prop_oneof![3 => v4, 1 => v6]
}

/// Returns the address with the site's id as its end: each site has its own.
fn at_site(addr: SocketAddr, site: u8) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !0xff | u32::from(site)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !0xff | u128::from(site)).into(),
    };
    SocketAddr::new(ip, addr.port())
}

fn id<I: TryFrom<u32, Error: std::fmt::Debug>>(n: u32) -> I {
    I::try_from(n).unwrap()
}

fn site() -> impl Strategy<Value = (bool, Vec<(u32, IpAddr)>)> {
    (any::<bool>(), prop::collection::btree_map(0..32u32, ip(), 1..5).prop_map(Vec::from_iter))
}

/// Picks of a list by the bits of a mask, at least one.
fn picked<T: Copy>(list: &[T], mask: u8) -> Vec<T> {
    let some: Vec<_> =
        (0..).zip(list).filter(|(i, _)| mask >> (i % 8) & 1 == 1).map(|(_, item)| *item).collect();
    if some.is_empty() { list[..1].to_vec() } else { some }
}

prop_compose! {
    fn resource()(
        name in "[^<&>\\s\\p{C}]{1,9}",
        disk in "/dev/[a-z0-9/_-]{1,30}",
        ip in ip(),
        port in 1..=u16::MAX,
        masks in any::<(u8, u8)>(),
        sync in any::<bool>(),
    ) -> (String, String, SocketAddr, (u8, u8), Protocol) {
        (name, disk, SocketAddr::new(ip, port), masks, if sync { Protocol::Sync } else { Protocol::Async })
    }
}

prop_compose! {
    fn config()(
        server in (ip(), 1..=u16::MAX),
        kmod_port in any::<u16>(),
        ping_millis in 10..=3_600_000u64,
        max_ping_count in 1..=1_000_000u32,
        max_packet in 1024..=1_073_741_824u32,
        slow_millis in 100..=3_600_000u64,
        busy_micros in 0..=1000u64,
        zero_copy in any::<bool>(),
        strict in any::<bool>(),
        metrics in prop::option::of((ip(), 1..=u16::MAX)),
        sites in prop::collection::btree_map(0..32u32, site(), 1..4),
        resources in prop::collection::btree_map(0..255u32, resource(), 0..4),
        local in any::<prop::sample::Index>(),
    ) -> Config {
        let sites: Vec<_> = sites.into_iter().map(|(site, (share, nodes))| {
            let node = |(n, ip): &(u32, IpAddr)| Node {
                id: id(*n),
                hostname: format!("Site{site}-Node{n}.example"),
                addr: SocketAddr::new(*ip, 1 + *n as u16),
            };
            let mode = if share { Mode::Share } else { Mode::StandAlone };
            Site { id: id(site), mode, nodes: nodes.iter().map(node).collect() }
        }).collect();
        let resources = resources.into_iter().map(|(n, (name, disk, addr, masks, protocol))| {
            let at = |site: &&Site| {
                let nodes: Vec<_> = site.nodes.iter().map(|node| node.id).collect();
                let bwr_disk = format!("{disk}-bwr");
                let compress = (masks.1 % 2 == 1).then_some(Compression::Lz4);
                RunSite { site: site.id, addr: at_site(addr, site.id.get()), protocol, compress, disk: disk.clone(), bwr_disk, witness: None, mirror: Mirror::default(), run_nodes: picked(&nodes, masks.1) }
            };
            let at_sites = picked(&sites.iter().collect::<Vec<_>>(), masks.0);
            Resource { id: id(n), name, runsites: at_sites.iter().map(at).collect() }
        }).collect();
        let here = local.get(&sites);
        Config {
            server: server.into(),
            kmod_port,
            ping_interval: Duration::from_millis(ping_millis),
            max_ping_count,
            max_packet,
            slow_timeout: Duration::from_millis(slow_millis),
            busy_poll: Duration::from_micros(busy_micros),
            zero_copy,
            kernel_user: Default::default(),
            peer_addr: if strict { PeerAddr::Strict } else { PeerAddr::Any },
            keys: None,
            metrics: metrics.map(SocketAddr::from),
            node: local.get(&here.nodes).id,
            site: here.id,
            sites,
            resources,
        }
    }
}

/// A place in a text, and the change there: take out this many characters and put in one of the pieces.
type Edit = (prop::sample::Index, usize, &'static str);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    const PIECES: &str = "|<|>|/|</|<!--|&|&#0;|&#x20;|<![CDATA[7]]>|<id>|</id>|<id>0</id>|<ping>1</ping>|\
        <nodes><node/></nodes>|<sites/>| x=''|\u{fffd}|\u{a0}|-1|99999999999|\r\n|\0";
    let pieces: Vec<_> = PIECES.split('|').collect();
    prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, prop::sample::select(pieces)), 1..6)
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, out, piece) in edits {
        let at = at.index(chars.len() + 1);
        let end = chars.len().min(at + out);
        chars.splice(at..end, piece.chars());
    }
    chars.into_iter().collect()
}

/// For any text, the answer is a configuration or a sorted list of problems that lie in the text.
fn check_answer(text: &str) {
    let answer = parse(text, "n1", &no_names);
    let problems = match &answer {
        Ok(loaded) => &loaded.warnings,
        Err(problems) => problems,
    };
    assert_eq!(answer.is_err(), problems.iter().any(|problem| problem.severity == Severity::Error));
    assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.col)));
    let lengths: Vec<_> = text.split('\n').map(|line| line.chars().count()).collect();
    for Problem { line, col, .. } in problems {
        let length = lengths[*line as usize - 1];
        assert!((1..=length + 1).contains(&(*col as usize)), "{line}:{col} in {text:?}");
    }
}

proptest! {
    #[test]
    fn what_is_rendered_comes_back(config in config(), style in style()) {
        let hostname = config.local_node().unwrap().hostname.to_uppercase();
        let loaded = parse(&style.render(&config), &hostname, &no_names).map_err(|problems| lines(&problems)).unwrap();
        prop_assert_eq!(lines(&loaded.warnings), [""; 0]);
        prop_assert_eq!(loaded.config.digest(), config.digest());
        prop_assert_eq!(loaded.config, config);
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        check_answer(&text);
    }

    #[test]
    fn damaged_files_are_answered(edits in edits()) {
        check_answer(&apply(VALID, &edits));
    }

    #[test]
    fn damaged_renderings_are_answered(config in config(), style in style(), edits in edits()) {
        check_answer(&apply(&style.render(&config), &edits));
    }
}

#[test]
fn any_bytes_in_a_file_are_answered() {
    let path = scratch("bytes", b"");
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let config = ProptestConfig::with_cases(64);
    let run = proptest::test_runner::TestRunner::new(config).run(&bytes, |bytes| {
        fs::write(&path, bytes)?;
        prop_assert!(Config::read(&path, "n1").is_err());
        Ok(())
    });
    fs::remove_file(&path).unwrap();
    run.unwrap();
}
