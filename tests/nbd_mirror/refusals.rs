//! Refusals, and their sentences.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::sites::{PATIENCE, SIZE, Sites, output};

#[test]
fn the_control_socket_answers_every_line() {
    let Some(pair) = Sites::start("") else { return };
    let ask = |line: &str| {
        let mut client = UnixStream::connect(pair.path("control", 0)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let deep = format!("{}\n", "[".repeat(4000));
    let long = format!("{{\"v\":1,\"cmd\":\"{}\"}}\n", "x".repeat(5000));
    for (line, part) in [
        ("\n", "not JSON"),
        (&*deep, "nested too deep"),
        (&*long, "a request is a line of at most 4096 bytes"),
        ("{\"v\":2,\"cmd\":\"status\"}\n", "protocol version 2"),
        ("{\"v\":1}\n", "\"cmd\" is missing"),
        ("{\"v\":1,\"cmd\":\"burn\"}\n", "unknown command"),
        ("{\"v\":1,\"cmd\":\"grow\",\"resource\":\"data\"}\n", "cannot grow while it is in use"),
        ("{\"v\":1,\"cmd\":\"why\",\"resource\":\"no\"}\n", "there are: data (0)"),
        ("{\"v\":1,\"cmd\":\"primary\"}\n", "\"resource\" is missing"),
        (
            "{\"v\":1,\"cmd\":\"verify\",\"resource\":\"data\",\"site\":7}\n",
            "has no mirror of it; the others are: site 1",
        ),
        ("{\"v\":1,\"cmd\":\"verify\",\"resource\":\"0\"}\n", "this one is not primary"),
    ] {
        let answer = ask(line);
        assert_eq!(answer["ok"], false, "{line}");
        assert!(answer["error"].as_str().unwrap().contains(part), "{line}: {answer}");
    }
    assert_eq!(ask("{\"v\":1,\"cmd\":\"status\"}\n")["data"]["resources"][0]["name"], "data");
    pair.stop();
}

#[test]
fn what_cannot_be_served_is_refused_with_the_remedy() {
    let Some(mut pair) = Sites::start("") else { return };
    let refused = |pair: &Sites, site: usize| {
        let done = pair.run(site).output().unwrap();
        assert!(!done.status.success());
        output(&done)
    };
    let twice = refused(&pair, 0);
    assert!(twice.contains("is in use by another hadm-nbd"), "{twice}");
    let mut program = pair.mirrors[0].take().unwrap();
    program.term();
    program.wait_exit(PATIENCE);
    fs::File::options().write(true).open(pair.disk(0)).unwrap().set_len(SIZE - 4096).unwrap();
    let cut = refused(&pair, 0);
    assert!(cut.contains("it was cut, or is another one"), "{cut}");
    fs::rename(pair.path("meta", 1), pair.path("moved", 1)).unwrap();
    fs::copy(pair.path("moved", 1), pair.path("meta", 0)).unwrap();
    let twin = refused(&pair, 0);
    assert!(twin.contains("belongs to") && twin.contains("is it a copy of another site's disk?"), "{twin}");
    fs::remove_file(pair.path("meta", 0)).unwrap();
    let missing = refused(&pair, 0);
    assert!(missing.contains("hadm-nbd init"), "{missing}");
}
