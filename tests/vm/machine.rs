//! A virtual machine: a stock kernel under emulation, to which commands go over a virtual serial port. Its network card is
//! one end of a wire whose other end is the other machine's. It ends when it is dropped, when the run dies, and at
//! the latest after [`LIFE`]; every wait has a deadline.

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// After this many seconds the emulator is ended, in any state of the run.
const LIFE: &str = "600";
/// A boot or a command that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(180);
/// The kernel's words when something in it went wrong.
const COMPLAINTS: [&str; 6] =
    ["BUG:", "Oops", "WARNING:", "Call Trace", "blocked for more than", "Kernel panic"];

/// The files that `prepare.sh` made, and the place of this run's sockets.
pub struct Prepared {
    pub made: PathBuf,
    pub run: PathBuf,
}

pub struct Machine {
    emulator: Child,
    console: PathBuf,
    port: UnixStream,
    pub node: usize,
}

impl Machine {
    /// Starts the emulator; [`Machine::wait_booted`] comes next.
    pub fn start(prepared: &Prepared, node: usize) -> Self {
        let run = prepared.run.display();
        let console = prepared.run.join(format!("console{node}"));
        let port = prepared.run.join(format!("port{node}"));
        let other = 1 - node;
        let emulator = Command::new("timeout")
            .args(["-k", "5", LIFE])
            .arg(prepared.made.join("qemu"))
            .args("-M pc -accel tcg -m 256 -nodefaults -no-reboot -display none".split(' '))
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", &format!("socket,id=port,path={},server=on,wait=off", port.display())])
            .args("-device virtio-serial-pci -device virtserialport,chardev=port -netdev".split(' '))
            .arg(format!(
                "dgram,id=wire,local.type=unix,local.path={run}/wire{node},remote.type=unix,remote.path={run}/wire{other}"
            ))
            .args(["-device", &format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{node},romfile=")])
            .arg("-kernel")
            .arg(prepared.made.join("vmlinuz"))
            .arg("-initrd")
            .arg(prepared.run.join("initramfs"))
            .args(["-append", &format!("console=ttyS0 quiet oops=panic panic=-1 node={node}")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let port = loop {
            match UnixStream::connect(&port) {
                Ok(port) => break port,
                Err(error) => assert!(Instant::now() < end, "the emulator does not start: {error}"),
            }
            thread::park_timeout(Duration::from_millis(20));
        };
        Machine { emulator, console, port, node }
    }

    /// Until the init script takes commands.
    #[track_caller]
    pub fn wait_booted(&self) {
        let (_, status) = self.answer("boot");
        assert_eq!(status, "ready");
    }

    /// The text up to the next mark, and the rest behind the mark.
    #[track_caller]
    fn answer(&self, command: &str) -> (String, String) {
        let end = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while said.last() != Some(&b'\n') || !said.contains(&0o36) {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.port.set_read_timeout(Some(left)).unwrap();
            match (&self.port).read(&mut buffer) {
                Ok(n) if n > 0 => said.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                end => panic!("machine {}: {command}: {end:?}\n{}", self.node, self.console()),
            }
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        let (output, status) = said.rsplit_once('\u{1e}').unwrap();
        (output.to_owned(), status.trim().to_owned())
    }

    /// Runs a line of shell; gives what it said and its exit status.
    #[track_caller]
    pub fn run(&self, command: &str) -> (String, i32) {
        (&self.port).write_all(format!("{command}\n").as_bytes()).unwrap();
        let (output, status) = self.answer(command);
        (output, status.parse().unwrap())
    }

    /// The same where nothing but success will do.
    #[track_caller]
    pub fn must(&self, command: &str) -> String {
        let (output, status) = self.run(command);
        assert_eq!(status, 0, "machine {}: {command}: {output}\n{}", self.node, self.console());
        output
    }

    /// The counts of the test module.
    #[track_caller]
    pub fn kernel(&self) -> Kernel {
        let text = self.must("cat /proc/hadm_test");
        Kernel(
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(key, values)| (key.to_owned(), values.split(' ').map(number).collect()))
                .collect(),
        )
    }

    /// The kernel's messages.
    pub fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// # Panics
    /// When the kernel complained of anything.
    #[track_caller]
    pub fn assert_sound(&self) {
        let console = self.console();
        let found = COMPLAINTS.iter().find(|complaint| console.contains(*complaint));
        assert_eq!(found, None, "machine {}: {console}", self.node);
    }

    /// Turns it off.
    #[track_caller]
    pub fn power_off(mut self) {
        (&self.port).write_all(b"poweroff -f\n").unwrap();
        let end = Instant::now() + PATIENCE;
        while self.emulator.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "machine {} does not turn off", self.node);
            thread::park_timeout(Duration::from_millis(20));
        }
        self.assert_sound();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The emulator's parent passes it on, where a kill would leave it alone.
        let pid = self.emulator.id().to_string();
        let _ = Command::new("kill").arg(pid).stderr(Stdio::null()).status();
        let _ = self.emulator.wait();
    }
}

fn number(text: &str) -> i64 {
    match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

/// `/proc/hadm_test`.
pub struct Kernel(HashMap<String, Vec<i64>>);

impl Kernel {
    /// The values of a line; none if it is not there.
    pub fn values(&self, key: &str) -> &[i64] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// The last value of a line; 0 if it is not there.
    pub fn get(&self, key: &str) -> i64 {
        self.values(key).last().copied().unwrap_or(0)
    }

    /// Everything that came in and should not have.
    pub fn bad(&self) -> Vec<(&str, i64)> {
        let bad = self.0.iter().filter(|(key, values)| key.starts_with("bad_") && values[0] != 0);
        bad.map(|(key, values)| (key.as_str(), values[0])).collect()
    }
}

/// Runs `prepare.sh`; nothing, if this computer cannot do what it takes.
pub fn prepare(made: &Path, run: &Path, programs: &[&str]) -> Option<Prepared> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/prepare.sh");
    let status =
        Command::new(script).arg(made).arg(run.join("initramfs")).args(programs).status().unwrap().code();
    if status == Some(77) {
        return None;
    }
    assert_eq!(status, Some(0), "prepare.sh");
    Some(Prepared { made: made.to_owned(), run: run.to_owned() })
}
