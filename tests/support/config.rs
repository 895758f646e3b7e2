//! Renders hadm.xml files.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::daemon::TempDir;
use super::subnet::NODE_PORT;
use super::{Subnet, daemon};

/// The values of a hadm.xml with one site and no resources.
#[derive(Clone)]
pub struct ConfigBuilder {
    global: Vec<(&'static str, String)>,
    /// id, host name, address, port.
    pub nodes: Vec<(String, String, String, String)>,
}

/// A hadm.xml on disk, in a directory that goes when the value goes.
pub struct ConfigFile {
    pub dir: TempDir,
    pub path: PathBuf,
}

impl ConfigFile {
    /// The control socket of node `id`'s daemon.
    pub fn control(&self, id: u8) -> PathBuf {
        self.path.with_file_name(format!("control{id}"))
    }
}

impl ConfigBuilder {
    /// `nodes` nodes n0, n1, ... on the subnet's node addresses, callers checked by address, heartbeats
    /// so slow that a busy machine ends no session.
    pub fn new(net: &Subnet, nodes: u8) -> Self {
        let global = vec![
            ("serverip", net.ip(0).to_string()),
            ("serverport", super::subnet::SERVER_PORT.to_string()),
            ("kmodport", "9999".into()),
            ("pingtimeout", "2".into()),
            ("maxpingcount", "5".into()),
            ("peeraddr", "strict".into()),
        ];
        let mut builder = ConfigBuilder { global, nodes: Vec::new() };
        for id in 0..nodes {
            builder = builder.node(id, &net.ip(id).to_string());
        }
        builder
    }

    /// Adds node `id` with host name n`id` at `ip`.
    pub fn node(mut self, id: u8, ip: &str) -> Self {
        self.nodes.push((id.to_string(), format!("n{id}"), ip.into(), NODE_PORT.to_string()));
        self
    }

    /// Sets an element of `global`: `pingtimeout`, `maxpingcount`, `slowtimeout`, `maxpacket`, `peeraddr`, ...
    pub fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.global.retain(|(old, _)| *old != name);
        self.global.push((name, value.to_string()));
        self
    }

    /// Heartbeat interval in seconds and unanswered pings that end a session.
    pub fn heartbeat(self, seconds: f64, count: u32) -> Self {
        self.set("pingtimeout", seconds).set("maxpingcount", count)
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\"?>\n<hadm>\n <global>\n");
        for (name, value) in &self.global {
            writeln!(xml, "  <{name}>{value}</{name}>").unwrap();
        }
        xml += " </global>\n <sites>\n  <site>\n   <id>0</id>\n   <mode>share</mode>\n   <nodes>\n";
        for (id, host, ip, port) in &self.nodes {
            writeln!(
                xml,
                "    <node><id>{id}</id><hostname>{host}</hostname><ipaddr>{ip}</ipaddr><port>{port}</port></node>"
            )
            .unwrap();
        }
        xml + "   </nodes>\n  </site>\n </sites>\n <resources>\n </resources>\n</hadm>\n"
    }

    /// Writes the file.
    pub fn build(&self) -> ConfigFile {
        let dir = daemon::TempDir::new();
        let path = dir.path.join("hadm.xml");
        std::fs::write(&path, self.render()).unwrap();
        ConfigFile { dir, path }
    }
}
