//! One mistake at a time in a valid file: the message, its line and its column.
//!
//! Each row replaces a piece of tests/data/config/valid.xml and lists everything that
//! must be found, and nothing else.

mod listeners;
mod mirror;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::{Config, Loaded, Mode, PeerAddr, Problem, parse};
use crate::wire::Compression;

const VALID: &str = include_str!("../../tests/data/config/valid.xml");

fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    match name {
        "both.example" => Ok(vec!["2001:db8::7".parse().unwrap(), "192.0.2.7".parse().unwrap()]),
        "debian.example" => Ok(vec!["127.0.1.1".parse().unwrap()]),
        "six.example" => Ok(vec!["2001:db8::7".parse().unwrap()]),
        "none.example" => Ok(vec![]),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "unknown name")),
    }
}

fn load(text: &str) -> Result<Loaded, Vec<Problem>> {
    parse(text, "n1", &resolve)
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

/// Returns the valid file with one piece, which is in it once, replaced.
fn edited(from: &str, to: &str) -> String {
    assert_eq!(VALID.matches(from).count(), 1, "{from:?} does not stand once in the valid file");
    VALID.replace(from, to)
}

fn config(from: &str, to: &str) -> Config {
    let loaded = load(&edited(from, to)).map_err(|problems| lines(&problems)).unwrap();
    assert_eq!(lines(&loaded.warnings), [""; 0], "{to:?}");
    loaded.config
}

#[track_caller]
fn refused(from: &str, to: &str, expected: &[&str]) {
    assert_eq!(lines(&load(&edited(from, to)).unwrap_err()), expected, "{from:?} -> {to:?}");
}

#[track_caller]
fn warned(from: &str, to: &str, expected: &[&str]) {
    let loaded = load(&edited(from, to)).map_err(|problems| lines(&problems)).unwrap();
    assert_eq!(lines(&loaded.warnings), expected, "{from:?} -> {to:?}");
    assert_eq!(loaded.config, load(VALID).unwrap().config);
}

/// The key file is not read here. A build without encryption must not run without it unnoticed.
#[test]
fn a_key_file_is_named_by_its_whole_path() {
    let authkey = |path| edited("<maxpingcount>", &format!("<authkey>{path}</authkey>\n    <maxpingcount>"));
    let loaded = load(&authkey("/nowhere/authkey"));
    match cfg!(feature = "authkey") {
        true => assert_eq!(loaded.unwrap().config, load(VALID).unwrap().config),
        false => assert!(lines(&loaded.unwrap_err())[0].contains("without encryption")),
    }
    let relative = lines(&load(&authkey("authkey")).unwrap_err());
    assert!(relative[0].contains("\"authkey\": it must be the whole path of a file"), "{relative:?}");
}

#[test]
fn a_valid_file_is_read_from_the_local_nodes_view() {
    let config = load(VALID).unwrap().config;
    assert_eq!(config.server, "127.0.0.1:9998".parse().unwrap());
    assert_eq!((config.kmod_port, config.max_ping_count, config.max_packet), (9997, 3, 16 << 20));
    assert_eq!(
        (config.ping_interval, config.slow_timeout),
        (Duration::from_secs(1), Duration::from_secs(10))
    );
    assert_eq!((config.peer_addr, config.busy_poll), (PeerAddr::Any, Duration::ZERO));
    assert!(config.zero_copy);
    assert_eq!((config.site.get(), config.node.get()), (0, 7));
    assert_eq!(config.local_node().unwrap().addr, "192.0.2.11:7001".parse().unwrap());
    assert_eq!(config.sites[1].mode, Mode::StandAlone);
    let at = &config.resources[0].runsites[0];
    assert_eq!((at.addr, at.run_nodes[0].get()), ("198.51.100.99:8031".parse().unwrap(), 5));
}

#[test]
fn optional_elements_are_read() {
    let optional = "<maxpacket>65536</maxpacket><slowtimeout>0.1</slowtimeout><busypoll>50</busypoll>\
         <zerocopy>off</zerocopy><peeraddr>strict</peeraddr></global>";
    let config = config("</global>", optional);
    assert_eq!((config.max_packet, config.slow_timeout), (65536, Duration::from_millis(100)));
    assert_eq!((config.busy_poll, config.zero_copy), (Duration::from_micros(50), false));
    assert_eq!(config.peer_addr, PeerAddr::Strict);
}

#[test]
fn a_runsite_may_want_compression() {
    let wants =
        |xml: &str| config("</protocol>", &format!("</protocol>{xml}")).resources[0].runsites[0].compress;
    assert_eq!(wants(""), None);
    assert_eq!(wants("<compress> lz4 </compress>"), Some(Compression::Lz4));
    let wrong = |xml: &str, message| refused("</protocol>", &format!("</protocol>\n{xml}"), &[message]);
    let zstd = r#"36:11: <compress> is "zstd": it must be lz4, or left out for no compression"#;
    wrong("<compress>zstd</compress>", zstd);
    let twice = "36:25: <compress> is given twice in <runsite>: keep one";
    wrong("<compress>lz4</compress><compress>lz4</compress>", twice);
}

#[test]
fn white_space_in_values_and_order_of_elements_do_not_matter() {
    let spaced = edited("127.0.0.1<", "\n 127. 0.0 .1\t<").replace("stand along", " stand\nalone ");
    let spaced = spaced
        .replace("<id>7</id><hostname>n1</hostname>", "<hostname> n 1</hostname><id>&#32;<!-- -->7</id>");
    assert_eq!(load(&spaced).unwrap(), load(VALID).unwrap());
}

#[test]
fn resources_may_be_absent_or_empty() {
    let (before, rest) = VALID.split_once("<resources>").unwrap();
    let (_, after) = rest.split_once("</resources>").unwrap();
    for instead in ["", "<resources/>", "<resources> </resources>"] {
        assert_eq!(load(&format!("{before}{instead}{after}")).unwrap().config.resources, []);
    }
}

#[test]
fn fm32_both_spellings_of_mode_and_heartbeat_load() {
    assert_eq!(config("stand along", "stand alone"), load(VALID).unwrap().config);
    let old = VALID
        .replace("<pingtimeout>1</pingtimeout>", "<ping>1</ping>")
        .replace("maxpingcount", "pingtimeout");
    assert_eq!(load(&old).unwrap().config, load(VALID).unwrap().config);
    refused(
        "stand along",
        "stand alon",
        &[r#"20:13: <mode> is "stand alon": it must be share or stand alone"#],
    );
}

#[test]
fn the_heartbeat_pair_must_be_told_apart() {
    const RIGHT: &str = "write <pingtimeout> (seconds between pings) and <maxpingcount> (unanswered pings that end a \
                         connection), or in the old spelling <ping> (seconds between pings) and <pingtimeout> \
                         (unanswered pings)";
    let both = format!("8:5: both <ping> and <maxpingcount> in <global>: {RIGHT}");
    refused("  </global>", "    <ping>1</ping>\n  </global>", &[&both]);
    let neither = format!("2:3: neither <maxpingcount> nor <ping> in <global>: {RIGHT}");
    refused("    <maxpingcount>3</maxpingcount>\n", "", &[&neither]);
    refused(
        "    <pingtimeout>1</pingtimeout>\n",
        "",
        &["2:3: <global> has no <pingtimeout>: add <pingtimeout>...</pingtimeout>"],
    );
}

#[test]
fn seconds_take_fractions_within_their_range() {
    for (text, millis) in [("0.2", 200), (".01", 10), ("3600", 3_600_000), ("1.", 1000)] {
        let config = config("<pingtimeout>1<", &format!("<pingtimeout>{text}<"));
        assert_eq!(config.ping_interval, Duration::from_millis(millis), "{text}");
    }
    for text in ["0", "0.009", "3600.1", "-1", "1e2", "inf", "NaN", "0,2", "1.2.3", "."] {
        let message = format!(
            "6:18: <pingtimeout> is {text:?}: it must be seconds from 0.01 to 3600, such as 1 or 0.2"
        );
        refused("<pingtimeout>1<", &format!("<pingtimeout>{text}<"), &[&message]);
    }
    refused(
        "</global>",
        "<slowtimeout>0</slowtimeout></global>",
        &[r#"8:16: <slowtimeout> is "0": it must be seconds from 0.1 to 3600, such as 1 or 0.2"#],
    );
}

#[test]
fn numbers_keep_to_their_ranges() {
    for text in ["0", "65536", "70000", "-1", "7e3", "seven", "99999999999999999999"] {
        let message = format!("14:82: <port> is {text:?}: it must be a port from 1 to 65535");
        refused("7000", text, &[&message]);
    }
    for text in ["0", "1023", "1073741825", "16M"] {
        let message =
            format!("8:14: <maxpacket> is {text:?}: it must be a whole number from 1024 to 1073741824");
        refused("</global>", &format!("<maxpacket>{text}</maxpacket></global>"), &[&message]);
    }
    for text in ["-1", "1001", "50us", "1.5"] {
        let message = format!("8:13: <busypoll> is {text:?}: it must be a whole number from 0 to 1000");
        refused("</global>", &format!("<busypoll>{text}</busypoll></global>"), &[&message]);
    }
    refused(
        "</global>",
        "<zerocopy>no</zerocopy></global>",
        &["8:13: <zerocopy> is \"no\": it must be on or off"],
    );
    refused(
        "<maxpingcount>3<",
        "<maxpingcount>0<",
        &[r#"7:19: <maxpingcount> is "0": it must be a whole number from 1 to 1000000"#],
    );
    for wrong in ["9464", "localhost:9464", "127.0.0.1:0", "::1:9464"] {
        let wanted = "it must be an address and a port, such as 127.0.0.1:9464 or [::1]:9464";
        let element = format!("<metrics>{wrong}</metrics></global>");
        refused("</global>", &element, &[&format!("8:12: <metrics> is \"{wrong}\": {wanted}")]);
    }
    refused("9997", "0", &[r#"5:15: <kmodport> is "0": it must be a port from 1 to 65535"#]);
}

#[test]
fn words_are_among_those_known() {
    refused(
        "</global>",
        "<peeraddr>loose</peeraddr></global>",
        &[r#"8:13: <peeraddr> is "loose": it must be strict or any"#],
    );
    refused(">sync<", ">synchronous<", &[r#"35:21: <protocol> is "synchronous": it must be async or sync"#]);
}

#[test]
fn fm29_ids_of_32_and_more_are_refused() {
    refused("<id>7</id>", "<id>32</id>", &[r#"15:19: <id> is "32": it must be an id from 0 to 31"#]);
    refused(
        "<id>0</id>\n      <mode>",
        "<id>32</id>\n      <mode>",
        &[r#"11:11: <id> is "32": it must be an id from 0 to 31"#],
    );
    refused("<id>254</id>", "<id>255</id>", &[r#"28:11: <id> is "255": it must be an id from 0 to 254"#]);
    let node = |id: u32| {
        format!(
            "<node><id>{id}</id><hostname>x{id}</hostname><ipaddr>10.0.0.{id}</ipaddr><port>1</port></node>\n"
        )
    };
    let many: String = (1..=31).filter(|id| *id != 7).map(node).collect();
    let full = format!("{many}<node><id>7</id>");
    assert_eq!(config("<node><id>7</id>", &full).local_nodes().len(), 32);
    refused(
        "<node><id>7</id>",
        &format!("{}{full}", node(32)),
        &[
            r#"15:19: <id> is "32": it must be an id from 0 to 31"#,
            "46:1: <nodes> has 33 <node>: 32 is the most there can be",
        ],
    );
}

#[test]
fn fm31_ids_are_ids_and_never_positions() {
    let config = load(VALID).unwrap().config;
    assert_eq!(config.sites[1].id.get(), 31);
    refused(
        "<id>31</id>\n          <ip>",
        "<id>1</id>\n          <ip>",
        &[r#"32:15: <id> is "1": no site has this id; write the id of a <site>"#],
    );
    refused(
        "<runnodes><id>5</id>",
        "<runnodes><id>0</id>",
        &[r#"38:25: <id> is "0": site 31 has no node of this id; write the id of a <node> of that site"#],
    );
}

#[test]
fn one_slip_in_an_id_is_one_error() {
    refused(
        "<id>5</id><hostname>",
        "<id>x</id><hostname>",
        &[r#"22:19: <id> is "x": it must be an id from 0 to 31"#],
    );
}

#[test]
fn ids_names_and_addresses_are_given_once() {
    let twice = |place: &str, what: &str, owner: &str| {
        format!("{place}: {what}: {owner} has it already; give each its own")
    };
    refused("<id>7</id>", "<id>0</id>", &[&twice("15:19", r#"<id> is "0""#, "another node of this site")]);
    let site = "<id>31</id>\n      <mode>";
    let lines = [
        twice("19:11", r#"<id> is "0""#, "another site"),
        r#"32:15: <id> is "31": no site has this id; write the id of a <site>"#.to_owned(),
    ];
    refused(site, &site.replace("31", "0"), &lines.each_ref().map(String::as_str));
    refused(
        "<hostname>n10</hostname>",
        "<hostname>N1</hostname>",
        &[&twice("15:35", r#"<hostname> is "n1""#, "another node of this site")],
    );
    refused(
        "192.0.2.11</ipaddr><port>7001",
        "192.0.2.10</ipaddr><port>7000",
        &["15:9: <node> listens at 192.0.2.10:7000, as another node of this site does; give each its own"],
    );
    refused(
        "<id>5</id></runnodes>",
        "<id>5</id><id>5</id></runnodes>",
        &[&twice("38:35", r#"<id> is "5""#, "another runnode of this runsite")],
    );
    let (start, end) = (VALID.find("<runsite>").unwrap(), VALID.find("</runsites>").unwrap());
    let runsite = &VALID[start..end];
    refused(
        "</runsites>",
        &format!("{runsite}</runsites>"),
        &[&twice("41:15", r#"<id> is "31""#, "another runsite of this resource")],
    );
    let (start, end) = (VALID.find("<resource>").unwrap(), VALID.find("</resources>").unwrap());
    let resource = &VALID[start..end];
    refused(
        "</resources>",
        &format!("{resource}</resources>"),
        &[&twice("43:11", r#"<id> is "254""#, "another resource")],
    );
}

#[test]
fn fm28_empty_elements_and_long_values_are_no_trouble() {
    refused(
        "<hostname>m5</hostname>",
        "<hostname> </hostname>",
        &["22:25: <hostname> is empty: write a value"],
    );
    refused("<disk>/dev/sdb</disk>", "<disk/>", &["36:11: <disk> is empty: write a value"]);
    let long = "x".repeat(100_000);
    assert_eq!(config("/dev/sdb", &long).resources[0].runsites[0].disk, long);
    let message = format!("14:82: <port> is {:?}...: it must be a port from 1 to 65535", "x".repeat(60));
    refused("7000", &long, &[&message]);
}

#[test]
fn missing_and_repeated_elements_are_named() {
    let missing = |place: &str, parent: &str, name: &str| {
        format!("{place}: <{parent}> has no <{name}>: add <{name}>...</{name}>")
    };
    refused("<serverip>127.0.0.1</serverip>", "", &[&missing("2:3", "global", "serverip")]);
    refused("<mode>share</mode>", "", &[&missing("10:5", "site", "mode")]);
    refused("<port>7005</port>", "", &[&missing("22:9", "node", "port")]);
    refused("<name>r254</name>", "", &[&missing("27:5", "resource", "name")]);
    refused("<runnodes><id>5</id></runnodes>", "", &[&missing("31:9", "runsite", "runnodes")]);
    refused("<id>5</id></runnodes>", "</runnodes>", &["38:11: <runnodes> has no <id>: add at least one"]);
    refused(
        "<name>r254</name>",
        "<name>r254</name><name>r</name>",
        &["29:24: <name> is given twice in <resource>: keep one"],
    );
    let empty = "<hadm><global/><sites/></hadm>";
    let found = lines(&load(empty).unwrap_err());
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(found[3], "1:16: <sites> has no <site>: add at least one");
    assert_eq!(
        lines(&load("<hadm/>").unwrap_err()),
        [missing("1:1", "hadm", "global"), missing("1:1", "hadm", "sites")]
    );
}

#[test]
fn addresses_are_addresses_or_resolvable_names() {
    let resolved = config("198.51.100.5<", "both.example<");
    assert_eq!(resolved.sites[1].nodes[0].addr, "192.0.2.7:7005".parse().unwrap());
    let resolved = config("198.51.100.5<", "six.example<");
    assert_eq!(resolved.sites[1].nodes[0].addr, "[2001:db8::7]:7005".parse().unwrap());
    let mapped = config("198.51.100.5<", "::ffff:198.51.100.5<");
    assert_eq!(mapped, load(VALID).unwrap().config);
    for (name, why) in [("gone.example", "unknown name"), ("none.example", "the name has no address")] {
        let message = format!(
            "22:56: <ipaddr> is {name:?}: it must be an address, or a host name that can be resolved ({why})"
        );
        refused("198.51.100.5<", &format!("{name}<"), &[&message]);
    }
    let cases = [
        ("10.1", ""),
        ("010.0.0.1", ""),
        ("1.2.3.400", ""),
        ("7", ""),
        ("0x7f000001", ""),
        ("2001:db8::1::2", ""),
        ("fe80::1%eth0", "; one with an interface is not supported, use another one of that machine"),
        ("192.0.2.1:7000", "; write 192.0.2.1, and the port in an element of its own"),
        ("192.0.2.1/24", "; write 192.0.2.1, without its prefix"),
        ("[2001:db8::1]", "; write 2001:db8::1, without brackets"),
        (
            "[2001:db8::1]:7000",
            "; write 2001:db8::1, without brackets, and the port in an element of its own",
        ),
    ];
    for (text, remedy) in cases {
        let message = format!("33:15: <ip> is {text:?}: it must be an address, such as 192.0.2.1{remedy}");
        refused("198.51.100.99", text, &[&message]);
    }
}

#[test]
fn fm30_the_local_node_goes_by_its_whole_name() {
    let local = |hostname: &str| parse(VALID, hostname, &resolve).map(|loaded| loaded.config.node.get());
    assert_eq!(local("n1"), Ok(7));
    assert_eq!(local("N10"), Ok(0));
    assert_eq!(local("m5\n"), Ok(5));
    assert_eq!(
        lines(&local("n").unwrap_err()),
        [
            r#"9:3: no node has this machine's host name "n" (there are: n10, n1, m5); correct a <hostname>, or give the name to use with --hostname"#
        ]
    );
    refused(
        ">m5<",
        ">N1<",
        &[
            r#"9:3: nodes of two sites have this machine's host name "n1"; give each its own, and the one to use with --hostname"#,
        ],
    );
    assert!(parse(&edited(">m5<", ">n10<"), "n1", &resolve).is_ok());
}

#[test]
fn unknown_parts_are_warned_of() {
    let slip = "<kmodprt>1</kmodprt></global>";
    warned("</global>", slip, &["8:3: warning: unknown element <kmodprt>, did you mean <kmodport>?"]);
    warned(
        "<mode>share",
        "<colour/><mode>share",
        &[
            "12:7: warning: unknown element <colour>, it is ignored; <site> holds <id>, <mode>, <ipaddr>, <port>, <nodes>",
        ],
    );
    warned(
        "<name>r254",
        "<name>r254<b/>",
        &["29:17: warning: unknown element <b>, it is ignored; <name> holds a value"],
    );
    warned(
        "<global>",
        "<global a='1'>",
        &["2:11: warning: unknown attribute a of <global>, it is ignored: values are elements here"],
    );
    warned(
        "  </sites>",
        "  stray </sites>",
        &["25:3: warning: text in <sites>, it is ignored: here only elements count"],
    );
    warned("<mode>share", "<ipaddr>1</ipaddr><port/><mode>share", &[]);
    refused(
        "<pingtimeout>1</pingtimeout>",
        "<pingtimout>1</pingtimout>",
        &[
            "2:3: <global> has no <pingtimeout>: add <pingtimeout>...</pingtimeout>",
            "6:5: warning: unknown element <pingtimout>, did you mean <pingtimeout>?",
        ],
    );
}

#[test]
fn every_error_is_found_in_one_run() {
    let text =
        edited("9998", "0").replace(">7000<", ">x<").replace("<id>7<", "<id>99<").replace(">sync<", "><");
    let found = lines(&load(&text).unwrap_err());
    let places: Vec<_> = found.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(places, ["4:17:", "14:82:", "15:19:", "35:11:"], "{found:?}");
}

#[test]
fn the_digest_is_of_the_cluster_and_not_of_the_file_or_the_node() {
    let config = load(VALID).unwrap().config;
    // Nodes of other versions compute the same: this value only changes with the format of the digest.
    assert_eq!(config.digest(), [39, 142, 40, 248, 252, 33, 129, 28]);
    let mut elsewhere = parse(VALID, "m5", &resolve).unwrap().config;
    (elsewhere.max_packet, elsewhere.kmod_port, elsewhere.peer_addr) = (65536, 1, PeerAddr::Strict);
    elsewhere.busy_poll = Duration::from_micros(50);
    elsewhere.zero_copy = false;
    (elsewhere.slow_timeout, elsewhere.server) = (Duration::from_secs(1), "127.0.0.9:1".parse().unwrap());
    assert_eq!(elsewhere.digest(), config.digest());
    assert_eq!(self::config(">m5<", ">M5<").digest(), config.digest());
    let changes = [
        ("<pingtimeout>1<", "<pingtimeout>1.5<"),
        ("<maxpingcount>3<", "<maxpingcount>4<"),
        ("stand along", "share"),
        (">m5<", ">m6<"),
        ("7005", "7006"),
        ("<id>0</id><hostname>", "<id>1</id><hostname>"),
        (">254<", ">253<"),
        ("r254", "r"),
        ("8031", "8032"),
        (">sync<", ">async<"),
        (">sync</protocol>", ">sync</protocol><compress>lz4</compress>"),
        ("/dev/sdb", "/dev/sdz"),
        ("/dev/sdc", "/dev/sdz"),
    ];
    for (from, to) in changes {
        assert_ne!(self::config(from, to).digest(), config.digest(), "{from} -> {to}");
    }
}
