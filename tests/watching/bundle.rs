//! `hadmctl bundle` and `hadmctl convert`: the archive as `tar` reads it, without a key in it; and the older form of
//! configurations.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::*;

fn hadmctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hadmctl")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The names of an archive, in order.
fn names(archive: &[u8]) -> Vec<String> {
    let mut tar = Command::new("tar").arg("-t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(archive).unwrap();
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success());
    text(&output.stdout).lines().map(|line| line.split_once('/').unwrap().1.to_owned()).collect()
}

#[test]
fn a_bundle_has_everything_but_the_keys() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let key_file = config.dir.path.join("authkey");
    assert!(hadmctl(&["keygen", key_file.to_str().unwrap()]).status.success());
    let lines = fs::read_to_string(&key_file).unwrap();
    let key = lines.lines().find(|line| line.len() == 64 && !line.contains(' ')).unwrap().to_owned();
    // Somebody kept an older one in a comment, and one in another form.
    let old = "00112233445566778899AABBCCDDEEFFfedcba98765432100123456789abcdef";
    let other = "q83vEjRWeJq83vASNFZ4mrzeAHw0VniavN4BI0VneJo=";
    let xml = ConfigBuilder::new(&net, 3).set("authkey", key_file.display()).render();
    fs::write(&config.path, format!("{xml}<!-- {old} {other} {key} -->\n")).unwrap();
    let daemon = Daemon::start(&net, &config, 0);
    let archive = config.dir.path.join("bundle.tar");
    let (control, file) = (config.control(0), archive.to_str().unwrap());
    let args =
        ["--control", control.to_str().unwrap(), "bundle", file, "--config", config.path.to_str().unwrap()];
    let done = hadmctl(&args);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(&archive).unwrap();
    let listed = names(&bytes);
    assert_eq!(listed[0], "CONTENTS");
    for name in [
        "hadm.xml",
        "check.txt",
        "status.json",
        "status.txt",
        "metrics.txt",
        "why-node-1.txt",
        "why-node-2.txt",
        "mesh.txt",
        "doctor.txt",
        "versions.txt",
        "limits.txt",
        "addresses.txt",
    ] {
        assert!(listed.iter().any(|there| there == name), "{name} in {listed:?}");
        assert!(text(&done.stdout).contains(name), "{name} is listed: {}", text(&done.stdout));
    }
    assert!(!text(&done.stdout).contains("not available"), "{}", text(&done.stdout));
    let all = text(&bytes);
    for secret in [key.as_str(), old, other] {
        for part in [secret, &secret[..24], &secret[secret.len() - 24..]] {
            assert!(!all.to_lowercase().contains(&part.to_lowercase()), "{part} is in the bundle");
        }
    }
    for part in [
        "[left out] [left out] [left out]",
        "<hostname>n2</hostname>",
        "\"uptime_s\"",
        "WRONG",
        "Max open files",
        "lo 127.0.0.1",
    ] {
        assert!(all.contains(part), "{part}");
    }
    // A file that is there stays as it is.
    let again = hadmctl(&args);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("bundle.tar") && text(&again.stderr).contains("name another file"));
    assert_eq!(fs::read(&archive).unwrap(), bytes);
    daemon.stop();
    // Of a node whose daemon does not run, there is what there is.
    let without = hadmctl(&["--control", control.to_str().unwrap(), "bundle", "-"]);
    assert!(without.status.success(), "{}", text(&without.stderr));
    assert_eq!(names(&without.stdout)[0], "CONTENTS");
    assert!(text(&without.stderr).contains("(not available)"), "{}", text(&without.stderr));
    assert!(text(&without.stdout).contains("not available: cannot reach the daemon"));
}

#[test]
fn an_older_configuration_is_converted_and_then_valid() {
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/config/older.xml");
    let done = hadmctl(&["convert", old.to_str().unwrap()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let told = text(&done.stderr);
    assert!(told.contains("older.xml:13:5: <ip> is node 0's address 192.0.2.10"), "{told}");
    let scratch = TempDir::new();
    let new = scratch.path.join("new.xml");
    fs::write(&new, &done.stdout).unwrap();
    let checked = hadmctl(&["check", new.to_str().unwrap(), "--hostname", "n1"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    // One of the newer form is none of the older.
    let again = hadmctl(&["convert", new.to_str().unwrap()]);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(2), 0));
    assert!(text(&again.stderr).contains("not the older form"), "{}", text(&again.stderr));
    // A device without an end is read up to the length of a configuration.
    let endless = hadmctl(&["convert", "/dev/zero"]);
    assert!(text(&endless.stderr).contains("/dev/zero: it is too large"), "{}", text(&endless.stderr));
}
