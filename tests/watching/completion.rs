//! Completion of peers and disks in bash, zsh and fish, from daemons that run.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;

use crate::support::*;
use crate::{skip, two_sites};

const CTL: &str = env!("CARGO_BIN_EXE_hadmctl");

/// The candidates that a shell offers for the last of the words; `None` where there is no such shell.
fn offered(shell: &str, words: &[&str]) -> Option<BTreeSet<String>> {
    let last = words.len() - 1;
    let quoted = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let script = match shell {
        "bash" => format!(
            "source etc/completion/hadmd; COMP_WORDS=({quoted}); COMP_CWORD={last}; \
             _hadmd \"${{COMP_WORDS[0]}}\" \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{last}-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        ),
        // The shell's own function is only there while a person completes.
        "zsh" => format!(
            "compadd() {{ print -rl -- ${{(M)found:#$words[CURRENT]*}} }}; _files() {{ print FILES }}; \
             words=({quoted}); CURRENT=$#words; source etc/completion/_hadmctl"
        ),
        _ => {
            let line = words.join(" ");
            format!(
                "source etc/completion/hadmctl.fish; complete -C '{line}' | string replace -r '\\t.*' ''; true"
            )
        }
    };
    let mut command = Command::new(shell);
    if shell == "zsh" {
        command.arg("-f");
    }
    let directory = Path::new(CTL).parent().unwrap().to_str().unwrap();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
    let home = TempDir::new();
    command.env("PATH", path).env("HOME", &home.path);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", &script]).output().ok()?;
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Answers for two disks as `hadm-nbd` would.
fn disks(path: &Path) {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let answer = r#"{"v":1,"ok":true,"data":{"attached":false,"server":"127.0.0.1:9998","resources":[{"name":"mail","sentence":"primary"},{"name":"files","sentence":"secondary: x"}]}}"#;
            let _ = writeln!(&stream, "{answer}");
        }
    });
}

#[test]
fn shells_offer_peers_disks_and_commands() {
    let net = Subnet::claim();
    let config = two_sites(&net, (net.ip(20), 9464).into());
    let daemon = Daemon::start(&net, &config, 0);
    let control = config.control(0);
    let control = control.to_str().unwrap();
    let nbd = config.dir.path.join("disks");
    disks(&nbd);
    let nbd = nbd.to_str().unwrap();
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    for shell in ["bash", "zsh", "fish"] {
        if offered(shell, &["hadmctl", "x"]).is_none() {
            skip("shells_offer_peers_disks_and_commands", &format!("{shell} is not installed"));
            continue;
        }
        let of = |words: &[&str]| offered(shell, words).unwrap();
        for command in ["why", "connect", "disconnect", "doctor"] {
            let found = of(&["hadmctl", "--control", control, command, ""]);
            assert_eq!(found, set(&["1", "n1", "0:1"]), "{shell} {command}");
        }
        let found = of(&["hadmctl", "--control", control, "wait", "--for", "3", ""]);
        assert_eq!(found, set(&["1", "n1", "0:1", "all"]), "{shell} wait");
        assert_eq!(
            of(&["hadmctl", "--control", control, "trace", "--peer", ""]),
            set(&["1", "n1", "0:1"]),
            "{shell}"
        );
        assert_eq!(
            of(&["hadmctl", "--control", nbd, "disk", "primary", ""]),
            set(&["mail", "files"]),
            "{shell}"
        );
        assert_eq!(of(&["hadmctl", "disk", "pri"]), set(&["primary"]), "{shell}");
        assert_eq!(of(&["hadmctl", "ev"]), set(&["events"]), "{shell}");
        assert_eq!(of(&["hadmctl", "--control", control, "wh"]), set(&["why"]), "{shell}");
        assert_eq!(of(&["hadmctl", "loglevel", "de"]), set(&["debug"]), "{shell}");
        assert_eq!(of(&["hadmctl", "status", "--w"]), set(&["--watch"]), "{shell}");
        assert_eq!(of(&["hadmctl", "--control", "/nonexistent", "why", ""]), set(&[]), "{shell}: no daemon");
        let files = of(&["hadmctl", "check", "etc/one"]);
        assert!(files.contains("etc/one-site.xml") || files.contains("FILES"), "{shell}: {files:?}");
    }
    daemon.stop();
}
