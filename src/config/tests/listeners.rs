//! Addresses that no single machine has, and places that are taken by another part of the same file.

use super::*;

/// Two sites with two resources each, at ports and addresses of their own; `{}` is put in.
fn two_sites(edit: &[(&str, &str)]) -> Result<Vec<String>, Vec<String>> {
    let node = |id: u8, name: &str, ip: &str| {
        format!(
            "<node><id>{id}</id><hostname>{name}</hostname><ipaddr>{ip}</ipaddr><port>7000</port></node>\n"
        )
    };
    let site = |id: u8, nodes: String| {
        format!("<site><id>{id}</id><mode>share</mode><nodes>\n{nodes}</nodes></site>\n")
    };
    let runsite = |site: u8, ip: &str, port: u16| {
        format!(
            "<runsite><id>{site}</id><ip>{ip}</ip><port>{port}</port><protocol>sync</protocol><disk>/d</disk>\
             <bwr_disk>/b</bwr_disk><runnodes><id>0</id></runnodes></runsite>\n"
        )
    };
    let resource = |id: u8, port: u16| {
        let both = runsite(0, "192.0.2.100", port) + &runsite(1, "198.51.100.100", port);
        format!("<resource><id>{id}</id><name>r{id}</name><runsites>\n{both}</runsites></resource>\n")
    };
    let mut text = format!(
        "<hadm><global><serverip>127.0.0.1</serverip><serverport>9998</serverport><pingtimeout>1</pingtimeout>\
         <maxpingcount>3</maxpingcount></global><sites>\n{}{}</sites><resources>\n{}{}</resources></hadm>",
        site(0, node(0, "n1", "192.0.2.1") + &node(1, "n2", "192.0.2.2")),
        site(1, node(0, "m1", "198.51.100.1")),
        resource(0, 7100),
        resource(1, 7101),
    );
    for (from, to) in edit {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    load(&text).map(|loaded| lines(&loaded.warnings)).map_err(|problems| lines(&problems))
}

#[track_caller]
fn clash(edit: &[(&str, &str)], expected: &[&str]) {
    let found = two_sites(edit).unwrap_err();
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(|(line, part)| line.contains(part)),
        "{edit:?}: {found:#?}"
    );
}

#[test]
fn what_no_single_machine_has_is_no_address_of_one() {
    assert_eq!(two_sites(&[]), Ok(vec![]));
    let cases = [
        ("0.0.0.0", "stands for all of a machine"),
        ("::", "stands for all of a machine"),
        ("::ffff:0.0.0.0", "stands for all of a machine"),
        ("0.1.2.3", "0.0.0.0/8"),
        ("224.0.0.18", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.1", "240.0.0.0/4"),
        ("fe80::1", "link-local"),
    ];
    for (text, what) in cases {
        for element in ["192.0.2.1<", "192.0.2.100<"] {
            let found = two_sites(&[(element, &format!("{text}<"))]).unwrap_err();
            assert!(
                found[0].contains(&format!("is {text:?}: it must be the address of one machine")),
                "{found:?}"
            );
            assert!(found[0].contains(what), "{found:?}");
        }
        let server = two_sites(&[("127.0.0.1<", &format!("{text}<"))]);
        match what.starts_with("stands") {
            true => assert!(server.unwrap()[0].contains("warning: <serverip>"), "{text}"),
            false => assert!(server.unwrap_err()[0].contains(what), "{text}"),
        }
        let place = if text.contains(':') { format!("[{text}]:9464") } else { format!("{text}:9464") };
        let metrics = format!("<metrics>{place}</metrics></global>");
        let found = two_sites(&[("</global>", &metrics)]);
        assert_eq!(found.is_ok(), what.starts_with("stands"), "{metrics}: {found:?}");
    }
    assert_eq!(two_sites(&[("</global>", "<metrics>[fe80::1%2]:9464</metrics></global>")]), Ok(vec![]));
}

#[test]
fn one_machine_does_not_listen_twice_at_one_place() {
    let metrics = |place: &str| [("</global>".to_owned(), format!("<metrics>{place}</metrics></global>"))];
    for place in ["127.0.0.1:9998", "0.0.0.0:9998", "192.0.2.2:7000", "0.0.0.0:7100", "[::]:7101"] {
        let [(from, to)] = metrics(place);
        let found = two_sites(&[(&from, &to)]).unwrap_err();
        assert!(
            found.iter().all(|line| line.contains("of the same machine listens at")),
            "{place}: {found:?}"
        );
    }
    for place in ["127.0.0.1:7000", "127.0.0.1:9464", "192.0.2.1:7100"] {
        let [(from, to)] = metrics(place);
        assert_eq!(two_sites(&[(&from, &to)]), Ok(vec![]), "{place}");
    }
    clash(
        &[("192.0.2.100</ip><port>7100", "192.0.2.1</ip><port>7000")],
        &[
            "<port> is \"7000\": a <node> of the same machine listens at 192.0.2.1:7000 already; give this another port",
        ],
    );
    clash(
        &[("192.0.2.100</ip><port>7100", "127.0.0.1</ip><port>9998"), ("198.51.100.100", "127.0.0.9")],
        &["<serverip> with <serverport> of the same machine listens at 127.0.0.1:9998", "warning: <ip>"],
    );
    clash(
        &[("<ipaddr>192.0.2.1</ipaddr><port>7000", "<ipaddr>127.0.0.1</ipaddr><port>9998")],
        &["warning: <ipaddr>", "<serverip> with <serverport> of the same machine"],
    );
    clash(
        &[("<name>r1</name>", "<name>r1</name><nbd>192.0.2.100:7100</nbd>")],
        &["a <runsite> of the same machine listens at 192.0.2.100:7100"],
    );
    // Another site's machines are others.
    assert_eq!(two_sites(&[("<name>r1</name>", "<name>r1</name><nbd>203.0.113.1:7000</nbd>")]), Ok(vec![]));
}

#[test]
fn a_call_shows_the_resource_that_it_is_for() {
    clash(&[("7101", "7100")], &["resource 0 has the same addresses and port at site 0 and site 1"]);
    // The called site knows a caller by its address, whatever its port is.
    clash(
        &[("192.0.2.100</ip><port>7101", "192.0.2.100</ip><port>7100")],
        &["resource 0 has the same addresses and port at site 0 and site 1"],
    );
    assert_eq!(two_sites(&[("198.51.100.100</ip><port>7101", "198.51.100.100</ip><port>7100")]), Ok(vec![]));
    clash(
        &[("198.51.100.100</ip><port>7100", "192.0.2.100</ip><port>7100")],
        &["site 0 listens at 192.0.2.100:7100 for the same resource; give each site its own"],
    );
}

#[test]
fn addresses_of_this_machine_alone_are_doubted_beside_others() {
    let doubted = |edit: &[(&str, &str)]| {
        let found = two_sites(edit).unwrap();
        assert!(found.iter().all(|line| line.contains("is of this machine alone")), "{found:?}");
        found.len()
    };
    assert_eq!(doubted(&[("<ipaddr>192.0.2.1<", "<ipaddr>127.0.0.1<")]), 1);
    assert_eq!(doubted(&[("<ipaddr>192.0.2.1<", "<ipaddr>debian.example<")]), 1);
    assert_eq!(doubted(&[("192.0.2.100</ip><port>7100", "debian.example</ip><port>7100")]), 1);
    // A trial on one machine.
    assert_eq!(doubted(&[("<ipaddr>192.0.2.1<", "<ipaddr>127.0.0.1<"), ("192.0.2.2<", "127.0.0.2<")]), 0);
}

#[test]
fn a_port_that_the_system_gives_to_calls_is_doubted_where_callers_have_the_address() {
    let ranges = |edit: &[(&str, &str)]| {
        let found = two_sites(edit).unwrap();
        found.iter().filter(|line| line.contains("write a port outside that range")).count()
    };
    let shared = ("<ipaddr>192.0.2.2</ipaddr><port>7000", "<ipaddr>192.0.2.1</ipaddr><port>40000");
    assert_eq!(ranges(&[shared]), 1);
    assert_eq!(
        ranges(&[("<ipaddr>192.0.2.2</ipaddr><port>7000", "<ipaddr>192.0.2.2</ipaddr><port>40000")]),
        0
    );
    assert_eq!(
        ranges(&[("<ipaddr>192.0.2.2</ipaddr><port>7000", "<ipaddr>192.0.2.1</ipaddr><port>7001")]),
        0
    );
}
