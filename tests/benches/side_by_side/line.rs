//! Two sites with a slow line between them, with and without compression: what the blocks of a real file system's
//! image take to get across. The line is a relay that lets this many bits a second through in each direction. Must
//! never send what is easier to compress than what a mirror sends: blocks that were never written are left out.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::Build;
use crate::ends::Kernel;
use crate::figures::Figures;
use crate::process;
use crate::support::{ConfigFile, Daemon, HEADER, PATIENCE, Packet, Subnet, TempDir, bit, kind, ms};

const BYTES_PER_SECOND: f64 = 100e6 / 8.0;
/// Bytes of the relay's buffers: a line that holds much would hide how fast it is.
const BUFFER: usize = 64 * 1024;
const BLOCK: usize = 4096;
/// Bytes of files of each kind in the image, and the largest file taken.
const OF_EACH: u64 = 8 << 20;
const FILE_MAX: u64 = 1 << 20;
/// Bytes of the image beyond its files: inodes, journal, directories.
const ROOM: u64 = 24 << 20;

pub fn sites(build: &Build, rounds: usize, figures: &mut Figures) {
    let Some(blocks) = image() else {
        return println!(
            "no file system image can be made: the slow line is left out (apt-get install e2fsprogs)"
        );
    };
    let mut pairs = [(false, build.name.clone()), (true, format!("{}, compress lz4", build.name))]
        .map(|(compress, name)| (Pair::start(build, compress), name));
    for round in 0..rounds {
        eprintln!("round {} of {rounds}: sites over 100 Mbit/s", round + 1);
        // Nobody is always first.
        pairs.rotate_left(1);
        for (pair, name) in &pairs {
            let seconds = pair.carry(&blocks);
            let bytes = (blocks.len() * (HEADER + BLOCK)) as f64;
            figures.add("file system image over 100 Mbit/s, MB/s", "4 KiB", name, bytes / 1e6 / seconds);
        }
    }
}

/// The blocks of an ext4 image with documentation, libraries and programs of this machine, but not those that are
/// all zero.
fn image() -> Option<Vec<Vec<u8>>> {
    let dir = TempDir::new();
    let (root, image) = (dir.path.join("root"), dir.path.join("image"));
    let mut size = ROOM;
    for from in ["/usr/share/doc", "/usr/lib", "/usr/bin"] {
        let mut taken = 0;
        for file in files(Path::new(from)) {
            let to = root.join(file.strip_prefix("/").ok()?);
            fs::create_dir_all(to.parent()?).ok()?;
            taken += fs::copy(&file, &to).unwrap_or(0).next_multiple_of(BLOCK as u64);
            if taken >= OF_EACH {
                break;
            }
        }
        size += taken;
    }
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-b", "4096", "-d"]).arg(&root).arg(&image).arg(format!("{}k", size / 1024));
    let path = std::env::var("PATH").unwrap_or_default() + ":/sbin:/usr/sbin";
    let made = make.env("PATH", path).stdout(Stdio::null()).status();
    made.is_ok_and(|status| status.success()).then_some(())?;
    let bytes = fs::read(&image).ok()?;
    let used = bytes.chunks_exact(BLOCK).filter(|block| block.iter().any(|&byte| byte != 0));
    Some(used.map(<[u8]>::to_vec).collect())
}

/// Plain files below a directory, spread over all of it, the same each time.
fn files(dir: &Path) -> Vec<PathBuf> {
    let (mut dirs, mut found) = (vec![dir.to_path_buf()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => dirs.push(entry.path()),
                Ok(meta) if meta.is_file() && (1..=FILE_MAX).contains(&meta.len()) => {
                    found.push(entry.path())
                }
                _ => {}
            }
        }
    }
    found.sort();
    fastrand::Rng::with_seed(1).shuffle(&mut found);
    found
}

/// A daemon each at sites 0 and 1, their kernel modules, and the line.
struct Pair {
    kernels: [Kernel; 2],
    _daemons: [Daemon; 2],
    _net: Subnet,
    _dir: TempDir,
}

impl Pair {
    fn start(build: &Build, compress: bool) -> Self {
        let (net, dir) = (Subnet::claim(), TempDir::new());
        let ports = [free_port(), free_port()];
        let line = relay((Ipv4Addr::LOCALHOST, ports[0]).into());
        // Each has its own port where it listens, and site 1 calls the other end of the line.
        let daemons = [0, 1].map(|id| {
            let there = if id == 0 { [ports[0], ports[1]] } else { [line.port(), ports[1]] };
            let path = dir.path.join(format!("{id}.xml"));
            fs::write(&path, xml(&net, there, compress)).unwrap();
            // The directory is this pair's.
            let config = ConfigFile { dir: TempDir::new(), path };
            process::start(build, &net, &config, id)
        });
        let kernels = [0, 1].map(|id| Kernel::attach(&net, id));
        kernels[0].wait_state(kind::SC_CONN_STATE, bit(1), PATIENCE);
        kernels[1].wait_state(kind::SC_CONN_STATE, bit(0), PATIENCE);
        Pair { kernels, _daemons: daemons, _net: net, _dir: dir }
    }

    /// Sends every block from site 1 to site 0; the seconds from the first byte sent to the last one there.
    fn carry(&self, blocks: &[Vec<u8>]) -> f64 {
        let packet = |(seq, block): (usize, &Vec<u8>)| {
            let head = Packet::filled(kind::SD_DATA, seq as u64, 0).with_dev(0).with_to(bit(0));
            [&head.with_len(BLOCK as u32).head[..], block].concat()
        };
        let [mut to, mut from] = self.kernels.each_ref().map(|kernel| &kernel.data);
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut got = vec![0; HEADER + BLOCK];
                for (seq, sent) in blocks.iter().enumerate().map(|block| (block.0, packet(block))) {
                    to.read_exact(&mut got).unwrap();
                    assert!(got == sent, "packet {seq} was changed on the way");
                }
            });
            blocks.iter().enumerate().for_each(|block| from.write_all(&packet(block)).unwrap());
        });
        begin.elapsed().as_secs_f64()
    }
}

/// A port that nobody has: listeners for sites take the wildcard address.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

fn xml(net: &Subnet, ports: [u16; 2], compress: bool) -> String {
    let site = |id: u8| {
        format!(
            "<site><id>{id}</id><mode>share</mode><nodes><node><id>0</id><hostname>n{id}</hostname>\
             <ipaddr>{}</ipaddr><port>7000</port></node></nodes></site>",
            net.ip(id)
        )
    };
    let compress = if compress { "<compress>lz4</compress>" } else { "" };
    let runsite = |id: usize| {
        format!(
            "<runsite><id>{id}</id><ip>127.0.0.1</ip><port>{}</port><protocol>async</protocol>{compress}\
             <disk>/dev/sdb</disk><bwr_disk>/dev/sdc</bwr_disk><runnodes><id>0</id></runnodes></runsite>",
            ports[id]
        )
    };
    format!(
        "<hadm><global><serverip>127.0.0.1</serverip><serverport>9998</serverport><pingtimeout>1</pingtimeout>\
         <maxpingcount>30</maxpingcount></global><sites>{}{}</sites><resources><resource><id>0</id><name>r</name>\
         <runsites>{}{}</runsites></resource></resources></hadm>",
        site(0),
        site(1),
        runsite(0),
        runsite(1)
    )
}

/// Takes connections and passes their bytes on to `to` and back, all of one direction together at the line's rate.
fn relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    SockRef::from(&listener).set_recv_buffer_size(BUFFER).unwrap();
    let here = listener.local_addr().unwrap();
    let free_at = [0, 1].map(|_| Arc::new(Mutex::new(Instant::now())));
    thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let Ok(callee) = TcpStream::connect(to) else { continue };
            for stream in [&caller, &callee] {
                stream.set_nodelay(true).unwrap();
                SockRef::from(stream).set_send_buffer_size(BUFFER).unwrap();
                SockRef::from(stream).set_recv_buffer_size(BUFFER).unwrap();
            }
            let ways = [(caller.try_clone(), callee.try_clone()), (Ok(callee), Ok(caller))];
            for ((from, to), free_at) in ways.into_iter().zip(free_at.clone()) {
                let (from, to) = (from.unwrap(), to.unwrap());
                thread::spawn(move || pass(&from, &to, &free_at));
            }
        }
    });
    here
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, free_at: &Mutex<Instant>) {
    let mut buf = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        let through = {
            let mut free_at = free_at.lock().unwrap();
            // Bytes that the line did not carry while nothing came are lost, but for a thread that woke late.
            *free_at =
                (*free_at).max(Instant::now() - ms(5)) + Duration::from_secs_f64(n as f64 / BYTES_PER_SECOND);
            *free_at
        };
        thread::sleep(through.saturating_duration_since(Instant::now()));
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}
