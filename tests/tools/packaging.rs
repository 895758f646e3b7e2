//! The installed files beside the programs: `make install` and its undoing, and that the manual pages, the README
//! and the completions know the same options, commands and elements as the programs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HADMD: &str = env!("CARGO_BIN_EXE_hadmd");
const CTL: &str = env!("CARGO_BIN_EXE_hadmctl");
const PROBE: &str = env!("CARGO_BIN_EXE_hadm-probe");
const NBD: &str = env!("CARGO_BIN_EXE_hadm-nbd");

type Names = BTreeSet<String>;

fn source(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn help(program: &str) -> String {
    let output = Command::new(program).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn is_option(word: &str) -> bool {
    word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic()) && word.starts_with('-')
}

/// The options a help text names.
fn options_of(help: &str) -> Names {
    let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| is_option(word)).map(str::to_owned).collect()
}

/// The options a manual page names: what follows the macro `Fl`, which writes the first dash.
fn options_in_page(page: &str) -> Names {
    let mut options = Names::new();
    for line in page.lines().filter(|line| line.starts_with('.')) {
        let words: Vec<_> = line.trim_start_matches('.').split_whitespace().collect();
        options.extend(words.windows(2).filter(|pair| pair[0] == "Fl").map(|pair| format!("-{}", pair[1])));
    }
    options
}

/// The words that entries `.It Cm` begin with, by the last part of the `.Ss` or `.Sh` they stand under.
fn entries(page: &str) -> BTreeMap<String, Names> {
    let mut found = BTreeMap::<_, Names>::new();
    let mut heading = "";
    for line in page.lines() {
        if let Some(title) = line.strip_prefix(".Ss ").or_else(|| line.strip_prefix(".Sh ")) {
            heading = title.rsplit('/').next().unwrap();
        } else if let Some(words) = line.strip_prefix(".It Cm ") {
            let words = words.split(" , ").map(|words| words.split(' ').next().unwrap().to_owned());
            found.entry(heading.to_owned()).or_default().extend(words);
        }
    }
    found
}

#[test]
fn manual_pages_have_the_options_of_help_and_no_others() {
    let pages = [
        (HADMD, "etc/man/hadmd.8"),
        (CTL, "etc/man/hadmctl.8"),
        (PROBE, "etc/man/hadm-probe.8"),
        (NBD, "etc/man/hadm-nbd.8"),
    ];
    for (program, page) in pages {
        let options = options_of(&help(program));
        assert!(options.len() > 5, "{options:?}");
        assert_eq!(options_in_page(&source(page)), options, "{page}");
    }
}

/// The commands a help text names.
fn commands_of(help: &str) -> Names {
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands")).skip(1);
    let commands = commands.take_while(|line| !line.is_empty()).filter_map(|line| {
        let line = line.strip_prefix("  ")?;
        line.starts_with(|c: char| !c.is_whitespace()).then(|| line.split(' ').next().unwrap().to_owned())
    });
    commands.collect()
}

#[test]
fn manual_pages_have_the_commands_of_help_and_no_others() {
    for (program, page) in
        [(CTL, "etc/man/hadmctl.8"), (PROBE, "etc/man/hadm-probe.8"), (NBD, "etc/man/hadm-nbd.8")]
    {
        let commands = commands_of(&help(program));
        assert!(commands.len() > 2, "{commands:?}");
        assert_eq!(entries(&source(page))["DESCRIPTION"], commands, "{page}");
    }
}

/// Which elements each element may hold, as the reader of the configuration says itself, in its warning of an
/// element that is like none it knows.
fn elements() -> BTreeMap<String, Names> {
    let mut text = source("etc/two-sites.xml");
    let closing = "hadm global sites site nodes node resources resource runsites runsite runnodes";
    for name in closing.split(' ') {
        text = text.replace(&format!("</{name}>"), &format!("<x0000/></{name}>"));
    }
    let resolve = |_: &str| Ok(Vec::new());
    let loaded = hadmd::config::parse(&text, "north-a", &resolve).unwrap();
    let mut found = BTreeMap::new();
    for warning in loaded.warnings {
        // <global> holds <serverip>, <serverport>, ...
        let (_, holds) = warning.message.split_once("it is ignored; <").expect(&warning.message);
        let (parent, children) = holds.split_once("> holds <").expect(holds);
        let children = children.trim_end_matches('>').split(">, <").map(str::to_owned).collect();
        found.insert(parent.to_owned(), children);
    }
    assert_eq!(found.len(), closing.split(' ').count(), "{found:?}");
    found
}

#[test]
fn hadm_xml_5_has_the_elements_of_the_configuration_and_no_others() {
    assert_eq!(entries(&source("etc/man/hadm.xml.5")), elements());
}

/// Files of the documentation that others name, in Markdown and in the manual pages.
#[test]
fn every_file_that_the_documentation_names_is_there() {
    let pages = [
        "README.md",
        "etc/doc/ARCHITECTURE.md",
        "etc/doc/CONTRIBUTING.md",
        "etc/doc/FAILURE-MODES.md",
        "etc/doc/SECURITY.md",
    ];
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for page in pages {
        for code in source(page).split('`').skip(1).step_by(2) {
            let is_path = code.starts_with("etc/") || code.starts_with("src/") || code.starts_with("tests/");
            let is_source =
                code.starts_with("daemon/") || code.starts_with("ctl/") || code.starts_with("config/");
            if code.contains(char::is_whitespace) || !(is_path || is_source) {
                continue;
            }
            let path = if is_source { top.join("src").join(code) } else { top.join(code) };
            // Made by a run of the fuzzer.
            assert!(
                path.exists() || code == "tests/fuzz/artifacts",
                "{page} names {code}, which is not there"
            );
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
}

/// The list of failure modes names a test for every number that has one, and for no other.
#[test]
fn the_list_of_failure_modes_agrees_with_the_tests() {
    fn tests(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                tests(&entry.path(), found);
            } else if entry.path().extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(entry.path()).unwrap();
                let names = text.split("fn fm").skip(1).filter_map(|rest| rest.split_once('_'));
                let numbers = names.filter(|(number, _)| number.parse::<u8>().is_ok());
                found.extend(numbers.map(|(number, _)| format!("fm{number}_")));
            }
        }
    }
    let mut found = BTreeSet::new();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests(&top.join("src"), &mut found);
    tests(&top.join("tests"), &mut found);
    let page = source("etc/doc/FAILURE-MODES.md");
    let listed: BTreeSet<String> = page
        .split("| `fm")
        .skip(1)
        .filter_map(|rest| Some(format!("fm{}", rest.split_once('`')?.0)))
        .collect();
    assert!(listed.len() > 30, "{listed:?}");
    assert_eq!(listed, found);
}

#[test]
fn the_readme_is_short() {
    assert!(source("README.md").len() <= 12 * 1024);
}

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hadmd-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// The entries that are no directories, in order.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![self.0.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push(format!("/{}", path.strip_prefix(&self.0).unwrap().display()));
                }
            }
        }
        found.sort();
        found
    }

    fn make(&self, target: &str, more: &[&str]) {
        let programs = Path::new(HADMD).parent().unwrap().display();
        let output = Command::new("make")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            // Those of a `make test` around this.
            .env_remove("MAKEFLAGS")
            .args([target, &format!("bin={programs}"), &format!("DESTDIR={}", self.0.display())])
            .args(more)
            .output();
        let Output { status, stdout, stderr } = output.unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "make {target}: {stdout}{stderr}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn uninstall_leaves_the_configuration_and_nothing_else() {
    let root = Scratch::new("install");
    root.make("install", &[]);
    let installed = root.files();
    for file in [
        "/etc/init.d/hadm-nbd",
        "/etc/init.d/hadmd",
        "/usr/local/bin/hadm-probe",
        "/usr/local/lib/systemd/system/hadm-nbd.service",
        "/usr/local/lib/systemd/system/hadmd.service",
        "/usr/local/sbin/hadm-nbd",
        "/usr/local/bin/hadmctl",
        "/usr/local/sbin/hadmctl",
        "/usr/local/lib/ocf/resource.d/hadm/hadm-disk",
        "/usr/local/lib/ocf/resource.d/hadm/hadmd",
        "/usr/local/lib/hadm/fencing/pacemaker",
        "/usr/local/share/doc/hadmd/pacemaker/mirror.xml",
        "/usr/local/share/doc/hadmd/two-nodes.md",
        "/usr/local/share/doc/hadmd/wan.md",
        "/usr/local/share/doc/hadmd/from-drbd.md",
        "/usr/local/share/doc/hadmd/from-module.md",
        "/usr/local/share/doc/hadmd/openrc/hadmd",
        "/usr/local/share/doc/hadmd/keepalived/hadm-disk",
        "/usr/local/share/doc/hadmd/keepalived/mirror.conf",
        "/usr/local/sbin/hadmd",
        "/usr/local/share/bash-completion/completions/hadmctl",
        "/usr/local/share/doc/hadmd/grafana/hadmd.json",
        "/usr/local/share/doc/hadmd/schema/hadmctl.json",
        "/usr/local/share/man/man7/hadm-json.7",
        "/usr/local/share/doc/hadmd/prometheus/alerts.yml",
        "/usr/local/share/fish/vendor_completions.d/hadmctl.fish",
        "/usr/local/share/man/man5/hadm.xml.5",
        "/usr/local/share/man/man8/hadm-nbd.8",
        "/usr/local/share/man/man8/hadmctl.8",
        "/usr/local/share/zsh/site-functions/_hadmctl",
    ] {
        assert!(installed.iter().any(|there| there == file), "no {file} in {installed:?}");
    }
    let configuration = ["/etc/default/hadmd", "/etc/hadm/hadm.xml"];
    for file in configuration {
        fs::write(root.0.join(&file[1..]), "ours").unwrap();
    }
    root.make("install", &[]);
    assert_eq!(root.files(), installed);
    root.make("uninstall", &[]);
    assert_eq!(root.files(), configuration);
    for file in configuration {
        assert_eq!(fs::read_to_string(root.0.join(&file[1..])).unwrap(), "ours", "{file} was overwritten");
    }
}

/// The configuration may be a link to another disk, which is not there yet.
#[test]
fn install_leaves_a_link_alone_that_points_to_nothing() {
    let root = Scratch::new("link");
    let files = ["etc/hadm/hadm.xml", "etc/default/hadmd"];
    for file in files {
        let link = root.0.join(file);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/data/is/not/mounted", &link).unwrap();
    }
    root.make("install", &[]);
    for file in files {
        let link = root.0.join(file);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/data/is/not/mounted"), "{file}");
    }
}

/// Users look for it in bin; in sbin was its old place.
#[test]
fn hadmctl_is_in_bin_and_found_in_sbin() {
    let root = Scratch::new("bin");
    root.make("install", &[]);
    let place = |folder: &str| root.0.join("usr/local").join(folder).join("hadmctl");
    assert!(fs::symlink_metadata(place("bin")).unwrap().is_file());
    assert_eq!(fs::canonicalize(place("sbin")).unwrap(), fs::canonicalize(place("bin")).unwrap());
    let unit = fs::read_to_string(root.0.join("usr/local/lib/systemd/system/hadmd.service")).unwrap();
    assert!(unit.contains("ExecReload=/usr/local/bin/hadmctl reload\n"), "{unit}");
}

#[test]
fn installed_files_name_the_places_of_the_installation() {
    let root = Scratch::new("places");
    root.make("install", &["PREFIX=/opt/hadm", "SYSCONFDIR=/opt/etc"]);
    let read = |file: &str| fs::read_to_string(root.0.join(file)).unwrap();
    let unit = read("opt/hadm/lib/systemd/system/hadmd.service");
    assert!(unit.contains("ExecStart=/opt/hadm/sbin/hadmd -c /opt/etc/hadm/hadm.xml "), "{unit}");
    assert!(unit.contains("EnvironmentFile=-/opt/etc/default/hadmd"), "{unit}");
    let script = read("opt/etc/init.d/hadmd");
    assert!(script.contains("DAEMON=/opt/hadm/sbin/hadmd\nCONFIG=/opt/etc/hadm/hadm.xml\n"), "{script}");
    assert!(root.files().iter().all(|file| file.starts_with("/opt/")), "{:?}", root.files());
    root.make("uninstall", &["PREFIX=/opt/hadm", "SYSCONFDIR=/opt/etc"]);
    assert_eq!(root.files(), ["/opt/etc/default/hadmd", "/opt/etc/hadm/hadm.xml"]);
}

/// The words that bash would offer for the last one.
fn offered(words: &[&str]) -> Names {
    let script = format!(
        "source etc/completion/hadmd; COMP_WORDS=({0}); COMP_CWORD={1}; \
         _hadmd \"${{COMP_WORDS[0]}}\" \"${{COMP_WORDS[{1}]}}\" \"${{COMP_WORDS[{1}-1]}}\"; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words.len() - 1,
    );
    let output = Command::new("bash").current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", &script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn completion_offers_options_and_commands() {
    for program in [HADMD, CTL, PROBE] {
        assert_eq!(offered(&[program, "-"]), options_of(&help(program)));
    }
    assert_eq!(offered(&[HADMD, "--log", "s"]), ["stderr", "syslog"].map(str::to_owned).into());
    for program in [CTL, PROBE] {
        assert_eq!(offered(&[program, ""]), commands_of(&help(program)));
    }
    assert_eq!(offered(&[CTL, "loglevel", "de"]), ["debug".to_owned()].into());
    assert_eq!(offered(&[CTL, "plan", "etc/one"]), ["etc/one-site.xml".to_owned()].into());
    assert!(offered(&[CTL, "doctor", ""]).iter().all(String::is_empty));
    assert!(offered(&[CTL, "why", ""]).iter().all(String::is_empty));
    assert_eq!(offered(&[PROBE, "la"]), ["latency".to_owned()].into());
    assert_eq!(offered(&[PROBE, "send", "Cargo.t"]), ["Cargo.toml".to_owned()].into());
    assert_eq!(offered(&[HADMD, "-c", "etc/one"]), ["etc/one-site.xml".to_owned()].into());
    assert!(offered(&[HADMD, "--server", ""]).iter().all(String::is_empty));
}
