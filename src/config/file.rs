//! The whole file: from bytes to text to XML to a [`Config`], or to all its problems.
//!
//! [`parse`] is pure but for the resolver it gets, [`Config::read`] adds the files and the system's resolver.
//! Older files without sites are recognised here and refused with directions, before their parts are judged.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use roxmltree::{Document, ParsingOptions};
use rustix::fs::OFlags;

use super::cluster::Cluster;
use super::element::Element;
use super::keys::KeyFile;
use super::model::Config;
use super::problem::{ConfigError, Notes, Problem, Severity, shorten};
use super::{FILE_MAX, global, limits, listeners, value};

pub use value::Resolver;
use value::stand_in;

/// Most XML elements and texts: as many as the longest file has without white space if it is filled with runsites.
const NODES_MAX: u32 = 200_000;
/// Longest name in bytes that name servers know.
const NAME_MAX: usize = 253;
/// Longest time for the look-ups of one file before the last one begins, if a name server answers for none of
/// several.
const LOOKUPS_LIMIT: Duration = Duration::from_secs(60);
/// Longest part in bytes of the XML parser's message, which may repeat a name of any length.
const SAID_MAX: usize = 300;
/// Longest part in bytes of an element's name in a remedy.
const NAME_SHOWN_MAX: usize = 60;

/// A checked configuration, and warnings for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Parts of the file that have no effect, in the order of the file.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads a file, as the node with this host name, with the key file it names. Blocks while names are resolved.
    pub fn read(path: &Path, hostname: &str) -> Result<Loaded, ConfigError> {
        Self::load(path, hostname, KeyFile::Read)
    }

    /// Checks a file like [`Config::read`], but not necessarily as the daemon's user: a key file that cannot be read
    /// is a warning, and the configuration has no keys then.
    pub fn check(path: &Path, hostname: &str) -> Result<Loaded, ConfigError> {
        Self::load(path, hostname, KeyFile::Checked)
    }

    /// Checks a file like [`Config::check`] for a program that calls no peer: each name without an address gets a
    /// [`stand_in`] of its own.
    pub fn check_without_peers(path: &Path, hostname: &str) -> Result<Loaded, ConfigError> {
        let until = Instant::now() + LOOKUPS_LIMIT;
        let unknown = RefCell::new(Vec::<String>::new());
        let resolve = |name: &str| {
            Ok(system_resolver(name, until).unwrap_or_else(|_| {
                let mut unknown = unknown.borrow_mut();
                let number = unknown.iter().position(|before| before == name).unwrap_or(unknown.len());
                if number == unknown.len() {
                    unknown.push(name.into());
                }
                vec![stand_in(u16::try_from(number).unwrap_or(u16::MAX))]
            }))
        };
        Self::judge(path, &bytes_of(path, KeyFile::Checked)?, hostname, &resolve, KeyFile::Checked)
    }

    fn load(path: &Path, hostname: &str, key_file: KeyFile) -> Result<Loaded, ConfigError> {
        let until = Instant::now() + LOOKUPS_LIMIT;
        let resolve = |name: &str| system_resolver(name, until);
        Self::judge(path, &bytes_of(path, key_file)?, hostname, &resolve, key_file)
    }

    /// Returns the bytes of a file as [`Config::read`] would read it.
    pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
        bytes_of(path, KeyFile::Read)
    }

    /// Does the same as [`Config::read`] with a file's bytes and the given resolver. `path` is for messages.
    pub fn from_bytes(
        path: &Path,
        bytes: &[u8],
        hostname: &str,
        resolve: &Resolver<'_>,
    ) -> Result<Loaded, ConfigError> {
        Self::judge(path, bytes, hostname, resolve, KeyFile::Read)
    }

    fn judge(
        path: &Path,
        bytes: &[u8],
        hostname: &str,
        resolve: &Resolver<'_>,
        key_file: KeyFile,
    ) -> Result<Loaded, ConfigError> {
        let loaded = match std::str::from_utf8(bytes) {
            Ok(text) => parse_with(text, hostname, resolve, key_file),
            Err(error) => Err(not_utf8(bytes.get(..error.valid_up_to()).unwrap_or_default())),
        };
        loaded.map_err(|problems| ConfigError::Refused { file: path.to_owned(), problems })
    }
}

fn bytes_of(path: &Path, key_file: KeyFile) -> Result<Vec<u8>, ConfigError> {
    let file = path.to_owned();
    let mut bytes = Vec::new();
    let read = open(path, key_file).and_then(|open| open.take(FILE_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(ConfigError::Unreadable { file, error }),
        Ok(len) if len as u64 > FILE_MAX => Err(ConfigError::TooLong { file }),
        Ok(_) => Ok(bytes),
    }
}

/// Opens a configuration file. A check may read a pipe; a daemon, which reads any file for a plan, never waits for
/// one.
fn open(path: &Path, key_file: KeyFile) -> io::Result<File> {
    if key_file == KeyFile::Checked {
        return File::open(path);
    }
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_dir() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    }
}

fn system_resolver(name: &str, until: Instant) -> io::Result<Vec<IpAddr>> {
    if name.len() > NAME_MAX {
        return Err(io::Error::other("no name is so long"));
    }
    if Instant::now() >= until {
        return Err(io::Error::other("not looked up: the names before took too long"));
    }
    Ok((name, 0).to_socket_addrs()?.map(|addr| addr.ip()).collect())
}

fn not_utf8(good: &[u8]) -> Vec<Problem> {
    let text = String::from_utf8_lossy(good);
    let notes = Notes::new(&text);
    notes.error(text.len(), || "these bytes are not UTF-8: save the file as UTF-8".to_owned());
    notes.into_problems()
}

/// Reads a configuration from its text, as the node with this host name. The error contains all problems, warnings
/// too, in the order of the text. A key file is not read.
pub fn parse(text: &str, hostname: &str, resolve: &Resolver<'_>) -> Result<Loaded, Vec<Problem>> {
    parse_with(text, hostname, resolve, KeyFile::Unseen)
}

fn parse_with(
    text: &str,
    hostname: &str,
    resolve: &Resolver<'_>,
    key_file: KeyFile,
) -> Result<Loaded, Vec<Problem>> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let notes = Notes::new(text);
    if let Some(excess) = limits::excess(text) {
        notes.error(excess.at, || excess.what);
        return Err(notes.into_problems());
    }
    let config = match Document::parse_with_options(text, options) {
        Ok(document) => {
            let root = document.root_element();
            read_root(Element::new(root, &notes), hostname.trim(), resolve, key_file)
        }
        Err(error) => return Err(vec![syntax_problem(text, &error)]),
    };
    let problems = notes.into_problems();
    match config {
        Some(config) if problems.iter().all(|problem| problem.severity == Severity::Warning) => {
            Ok(Loaded { config, warnings: problems })
        }
        _ => Err(problems),
    }
}

fn read_root(root: Element<'_>, hostname: &str, resolve: &Resolver<'_>, key_file: KeyFile) -> Option<Config> {
    if root.name() != "hadm" {
        root.error(format!("the outermost element is <{}>: it must be <hadm>", root.name()));
        return None;
    }
    if let Some(old) = older_form(root) {
        old.error(OLDER_FORM);
        return None;
    }
    root.holds_only(&["global", "sites", "resources"]);
    let mut places = Vec::new();
    let global = root.required("global").and_then(|el| global::read(el, resolve, key_file, &mut places));
    let mut cluster = Cluster::new(resolve, places);
    let sites_el = root.required("sites")?;
    let sites = cluster.sites(sites_el);
    let local = cluster.local(sites_el, &sites, hostname);
    let resources = root.optional("resources").map(|el| cluster.resources(el)).unwrap_or_default();
    listeners::judge(&cluster.listeners, &resources);

    let (global, (site, node)) = global.zip(local)?;
    Some(Config {
        server: global.server,
        kmod_port: global.kmod_port,
        ping_interval: global.ping_interval,
        max_ping_count: global.max_ping_count,
        max_packet: global.max_packet,
        slow_timeout: global.slow_timeout,
        busy_poll: global.busy_poll,
        zero_copy: global.zero_copy,
        peer_addr: global.peer_addr,
        kernel_user: global.kernel_user,
        keys: global.keys,
        metrics: global.metrics,
        node,
        site,
        sites,
        resources,
    })
}

const OLDER_FORM: &str = "this file has the older form, without sites; `hadmctl convert` with this file prints it in the \
     newer one. By hand: put <nodes> into \
     <sites><site><id>0</id><mode>share</mode>...</site></sites>. In each <resource>, put <runnodes> into \
     <runsites><runsite>...</runsite></runsites>, beside the site's <id>, <ip>, <port>, <protocol>, <disk> and \
     <bwr_disk>, and list in it the ids alone: <id>0</id> for each <runnode>";

/// Returns the element that shows an older file: nodes or servers, or a resource's nodes, without sites.
fn older_form(root: Element<'_>) -> Option<Element<'_>> {
    if root.find("sites").is_some() {
        return None;
    }
    let nodes = root.find("nodes").filter(|nodes| nodes.find("node").is_some()).or(root.find("servers"));
    let run_nodes = || {
        let mut resources = root.find("resources")?.named("resource");
        resources.find_map(|resource| resource.find("runnodes")?.find("runnode"))
    };
    nodes.or_else(run_nodes)
}

/// Returns the XML parser's error as a problem. The parser's own text contains the position, which would be there
/// twice.
fn syntax_problem(text: &str, error: &roxmltree::Error) -> Problem {
    use roxmltree::Error as Xml;
    let pos = error.pos();
    let said = shorten(error.to_string().replace(&format!(" at {pos}"), ""), SAID_MAX);
    let at = |at: usize, message: String| {
        let notes = Notes::new(text);
        notes.error(at, || message);
        notes.into_problems().pop()
    };
    let placed = match error {
        Xml::DtdDetected => at(
            text.find("<!DOCTYPE").unwrap_or_default(),
            "a document type (<!DOCTYPE ...>) is not allowed here: delete it".to_owned(),
        ),
        Xml::NodesLimitReached => {
            at(0, format!("more than {NODES_MAX} XML elements and texts: no configuration has so many"))
        }
        Xml::NoRootNode => at(0, "no XML element in it: a configuration is <hadm>...</hadm>".to_owned()),
        Xml::UnclosedRootNode | Xml::UnexpectedEndOfStream => {
            at(text.len(), format!("not well-formed XML, the text ends early: {said}{}", remedy(error)))
        }
        _ => None,
    };
    placed.unwrap_or_else(|| Problem {
        line: pos.row,
        col: pos.col,
        severity: Severity::Error,
        message: format!("not well-formed XML: {said}{}", remedy(error)),
    })
}

/// Returns what to do about an XML error, as the end of a sentence.
fn remedy(error: &roxmltree::Error) -> String {
    use roxmltree::Error as Xml;
    let remedy = match error {
        Xml::UnexpectedCloseTag(open, ..) => {
            let open = shorten(open.clone(), NAME_SHOWN_MAX);
            return format!(
                "; close <{open}> with </{open}> first, or correct the misspelled one of the two"
            );
        }
        Xml::UnclosedRootNode | Xml::UnexpectedEndOfStream => {
            "; add the missing end, with </hadm> as the last element's"
        }
        Xml::MalformedEntityReference(_) | Xml::UnknownEntityReference(..) => {
            "; write &amp; for & in a value"
        }
        Xml::InvalidComment(_) => "; take the -- out of the comment",
        Xml::UnexpectedDeclaration(_) => "; delete everything before <?xml, or the second <?xml ...?>",
        Xml::NonXmlChar(..) => "; delete that character",
        _ => "; close each <name> with </name>, and write &lt; for < and &amp; for & in a value",
    };
    remedy.into()
}
