//! `hadmctl convert`: a configuration of the older form, without sites, in the form that hadmd reads.
//!
//! Elements without a place in the newer form are left out, and each is named; elements that the older form does not have are
//! chosen so that the file can be used, and named, too. Writes no file and needs no daemon.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use roxmltree::{Document, Node, NodeType};

use crate::config::{FILE_MAX, GLOBAL_ELEMENTS, Severity, parse};

/// Port of the first resource at its site; the next ones follow.
const PORT: u32 = 7100;

/// The result of a conversion.
#[derive(Debug)]
pub(super) struct Converted {
    /// The file in the newer form.
    pub text: String,
    /// Notes of elements that were left out or chosen, a line each, with its line and column in the older file.
    pub notes: Vec<String>,
    /// Errors that remain in the new text, a line each.
    pub problems: Vec<String>,
}

/// Reads a configuration file as text; bytes that are no UTF-8 are replaced.
///
/// # Errors
/// The system's error, or that the file is too large.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(0..=FILE_MAX) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Err(io::Error::other("it is too large for a configuration")),
    }
}

/// Converts a file.
///
/// # Errors
/// It cannot be read, is no XML, or is not of the older form: a sentence that names it.
pub(super) fn convert(path: &Path) -> Result<Converted, String> {
    let name = path.display();
    let text = read(path).map_err(|error| format!("{name}: {error}"))?;
    let document = Document::parse(&text).map_err(|error| format!("{name}: not well-formed XML: {error}"))?;
    convert_document(&document).map_err(|why| format!("{name}: {why}"))
}

fn convert_document(document: &Document) -> Result<Converted, String> {
    let root = document.root_element();
    if root.tag_name().name() != "hadm" {
        return Err(format!("the outermost element is <{}>, not <hadm>", root.tag_name().name()));
    }
    let nodes = child(root, "nodes").or_else(|| child(root, "servers"));
    let Some(nodes) = nodes.filter(|_| child(root, "sites").is_none()) else {
        return Err(
            "this is not the older form, which has <nodes> or <servers> in <hadm>, and no <sites>".into()
        );
    };
    let mut work = Work { document, out: String::new(), notes: Vec::new(), names: Vec::new() };
    work.comments(root);
    work.out += "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<hadm>\n  <global>\n";
    match child(root, "global") {
        Some(global) => work.global(global),
        None => work.note(root, "there is no <global>: serverip and serverport have to be added"),
    }
    work.out +=
        "  </global>\n  <sites>\n    <site>\n      <id>0</id>\n      <mode>share</mode>\n      <nodes>\n";
    let found = work.nodes(nodes);
    work.out += "      </nodes>\n    </site>\n  </sites>\n  <resources>\n";
    if let Some(resources) = child(root, "resources") {
        for resource in elements(resources) {
            match resource.tag_name().name() {
                "resource" => work.resource(resource, &found),
                _ => work.left_out(resource),
            }
        }
    }
    work.out += "  </resources>\n</hadm>\n";
    for other in elements(root) {
        let known = ["global", "resources"].contains(&other.tag_name().name());
        if !known && other != nodes {
            work.left_out(other);
        }
    }
    let hostname = work.names.first().cloned().unwrap_or_default();
    // Names get a placeholder, as at the start of a machine without a name server.
    let checked = parse(&work.out, &hostname, &|_| Ok(Vec::new()));
    let problems = checked.err().unwrap_or_default();
    let problems = problems.into_iter().filter(|problem| problem.severity == Severity::Error);
    Ok(Converted {
        problems: problems.map(|problem| problem.to_string()).collect(),
        text: work.out,
        notes: work.notes,
    })
}

/// A node of the older file.
struct Found {
    id: String,
    address: String,
}

struct Work<'a> {
    document: &'a Document<'a>,
    out: String,
    notes: Vec<String>,
    /// Host names, in the order of the file.
    names: Vec<String>,
}

fn elements<'a>(node: Node<'a, 'a>) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children().filter(Node::is_element)
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    elements(node).find(|child| child.tag_name().name() == name)
}

/// The first child that has one of these names.
fn one_of<'a>(node: Node<'a, 'a>, names: &[&str]) -> Option<Node<'a, 'a>> {
    names.iter().find_map(|name| child(node, name))
}

/// A value without white space, which never counted.
fn value(node: Option<Node<'_, '_>>) -> String {
    let texts = node.into_iter().flat_map(|node| node.children()).filter_map(|part| part.text());
    texts.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
}

impl<'a> Work<'a> {
    fn note(&mut self, at: Node<'a, 'a>, what: &str) {
        let pos = self.document.text_pos_at(at.range().start);
        self.notes.push(format!("{}:{}: {what}", pos.row, pos.col));
    }

    fn left_out(&mut self, node: Node<'a, 'a>) {
        self.note(
            node,
            &format!("<{}> is left out: it has no place in the newer form", node.tag_name().name()),
        );
    }

    fn comments(&mut self, root: Node<'a, 'a>) {
        let all = root.document().descendants().filter(|node| node.node_type() == NodeType::Comment);
        if let Some(first) = all.clone().next() {
            self.note(first, &format!("{} comments are left out", all.count()));
        }
    }

    fn element(&mut self, indent: usize, name: &str, value: &str) {
        let value = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(self.out, "{:indent$}<{name}>{value}</{name}>", "");
    }

    fn global(&mut self, global: Node<'a, 'a>) {
        // `ping` shows that `pingtimeout` has its older meaning.
        let is_old = child(global, "ping").is_some();
        for element in elements(global) {
            let (name, value) = (element.tag_name().name(), value(Some(element)));
            match name {
                "ping" => self.element(4, "pingtimeout", &value),
                "pingtimeout" if is_old => self.element(4, "maxpingcount", &value),
                "pingtimeout" | "maxpingcount" => self.element(4, name, &value),
                known if GLOBAL_ELEMENTS.contains(&known) => self.element(4, known, &value),
                _ => self.left_out(element),
            }
        }
    }

    fn nodes(&mut self, nodes: Node<'a, 'a>) -> Vec<Found> {
        let mut found = Vec::new();
        for node in elements(nodes) {
            if !["node", "server"].contains(&node.tag_name().name()) {
                self.left_out(node);
                continue;
            }
            let fields: [(&str, &[&str]); 4] = [
                ("id", &["id"]),
                ("hostname", &["hostname", "name"]),
                ("ipaddr", &["ipaddr", "ip", "serverip"]),
                ("port", &["port", "serverport"]),
            ];
            self.out += "        <node>\n";
            for (name, names) in fields {
                match one_of(node, names) {
                    Some(field) => self.element(10, name, &value(Some(field))),
                    None => self.note(node, &format!("this node has no <{name}>: it has to be added")),
                }
            }
            self.out += "        </node>\n";
            self.names.push(value(one_of(node, &["hostname", "name"])));
            let address = value(one_of(node, &["ipaddr", "ip", "serverip"]));
            found.push(Found { id: value(child(node, "id")), address });
            let known: Vec<&str> = fields.iter().flat_map(|(_, names)| names.iter().copied()).collect();
            for field in elements(node).filter(|field| !known.contains(&field.tag_name().name())) {
                self.left_out(field);
            }
        }
        found
    }

    fn resource(&mut self, resource: Node<'a, 'a>, nodes: &[Found]) {
        let id = value(child(resource, "id"));
        self.out += "    <resource>\n";
        self.element(6, "id", &id);
        self.element(6, "name", &value(child(resource, "name")));
        self.out += "      <runsites>\n        <runsite>\n          <id>0</id>\n";
        let list = child(resource, "runnodes");
        let runnodes: Vec<_> = list.into_iter().flat_map(elements).collect();
        let node_id = |runnode: Node<'a, 'a>| match child(runnode, "id") {
            Some(id) => value(Some(id)),
            None => value(Some(runnode)),
        };
        let first = runnodes.first().map(|runnode| node_id(*runnode)).unwrap_or_default();
        self.address(resource, &id, nodes.iter().find(|node| node.id == first));
        let protocol = value(child(resource, "protocol"));
        match protocol.as_str() {
            "sync" | "async" => self.element(10, "protocol", &protocol),
            _ => {
                self.note(
                    resource,
                    "<protocol> sync is chosen: a write waits for the other sites, once there are some",
                );
                self.element(10, "protocol", "sync");
            }
        }
        for name in ["disk", "bwr_disk"] {
            let own: Vec<_> = runnodes.iter().filter_map(|runnode| child(*runnode, name)).collect();
            let kept = child(resource, name).or(own.first().copied());
            for other in own.iter().filter(|other| value(Some(**other)) != value(kept)) {
                let text = format!(
                    "<{name}> {} is left out: all nodes of a site name the disk alike, here {}",
                    value(Some(*other)),
                    value(kept)
                );
                self.note(*other, &text);
            }
            match kept {
                Some(kept) => self.element(10, name, &value(Some(kept))),
                None => self.note(resource, &format!("this resource has no <{name}>: it has to be added")),
            }
        }
        self.out += "          <runnodes>\n";
        for runnode in &runnodes {
            self.element(12, "id", &node_id(*runnode));
            let known = ["id", "disk", "bwr_disk"];
            for field in elements(*runnode).filter(|field| !known.contains(&field.tag_name().name())) {
                self.left_out(field);
            }
        }
        self.out += "          </runnodes>\n        </runsite>\n      </runsites>\n    </resource>\n";
        let known = ["id", "name", "ip", "ipaddr", "port", "protocol", "disk", "bwr_disk", "runnodes"];
        for field in elements(resource).filter(|field| !known.contains(&field.tag_name().name())) {
            self.left_out(field);
        }
    }

    /// Writes the address and port at which the resource's log owner listens, which the older form may not have.
    fn address(&mut self, resource: Node<'a, 'a>, id: &str, node: Option<&Found>) {
        match (one_of(resource, &["ip", "ipaddr"]), node) {
            (Some(ip), _) => self.element(10, "ip", &value(Some(ip))),
            (None, Some(node)) => {
                let has_form = node.address.parse::<IpAddr>().is_ok();
                let shown = if has_form { node.address.clone() } else { format!("of {}", node.address) };
                let text = format!(
                    "<ip> is node {}'s address {shown}: write the resource's floating address before there is a second site",
                    node.id
                );
                self.note(resource, &text);
                self.element(10, "ip", &node.address);
            }
            (None, None) => self.note(resource, "this resource has no <ip> and no node: it has to be added"),
        }
        match child(resource, "port") {
            Some(port) => self.element(10, "port", &value(Some(port))),
            None => {
                let port = PORT.saturating_add(id.parse().unwrap_or(0)).min(65_535);
                self.note(resource, &format!("<port> {port} is chosen: no other site calls it yet"));
                self.element(10, "port", &port.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert_text(text: &str) -> Result<Converted, String> {
        convert_document(&Document::parse(text).unwrap())
    }

    #[test]
    fn an_older_file_becomes_one_that_is_read() {
        let done = convert_text(include_str!("../../tests/data/config/older.xml")).unwrap();
        assert!(done.problems.is_empty(), "{done:?}");
        let loaded = parse(&done.text, "n1", &|_| Ok(Vec::new())).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_eq!(loaded.config.max_ping_count, 3);
        assert_eq!(loaded.config.ping_interval.as_secs(), 1);
        let at = &loaded.config.resources[0].runsites[0];
        assert_eq!((at.disk.as_str(), at.bwr_disk.as_str()), ("/dev/sdb", "/dev/sdc"));
        assert_eq!(at.addr.to_string(), "192.0.2.10:7100");
        let notes = done.notes.join("\n");
        assert!(
            notes.contains("13:5: <ip> is node 0's address") && notes.contains("<protocol> sync is chosen"),
            "{notes}"
        );
    }

    #[test]
    fn what_has_no_place_is_named_with_its_own() {
        let text = "<hadm><!-- a --><global><serverip>127.0.0.1</serverip><serverport>9 998</serverport>\
            <ping>1</ping><pingtimeout>3</pingtimeout><colour>red</colour></global>\n<servers>\
            <server><id>0</id><name>a&amp;b</name><ip>192.0.2.1</ip><port>7000</port><rack>5</rack></server>\
            <server><id>1</id><name>b</name><ip>192.0.2.2</ip><port>7000</port></server></servers>\n\
            <resources><resource><id>3</id><name>r</name><runnodes><runnode><id>0</id><disk>/dev/a</disk>\
            <bwr_disk>/dev/b</bwr_disk></runnode><runnode><id>1</id><disk>/dev/c</disk><bwr_disk>/dev/b</bwr_disk>\
            </runnode></runnodes></resource></resources><extra/></hadm>";
        let done = convert_text(text).unwrap();
        assert!(done.problems.is_empty(), "{done:?}");
        assert!(
            done.text.contains("<hostname>a&amp;b</hostname>") && done.text.contains("<port>7103</port>")
        );
        assert!(done.text.contains("<serverport>9998</serverport>"), "{}", done.text);
        let notes = done.notes.join("\n");
        for part in ["1 comments", "<colour>", "2:", "<rack>", "<disk> /dev/c is left out", "<extra>"] {
            assert!(notes.contains(part), "{part} in {notes}");
        }
        assert!(!done.text.contains("/dev/c"));
    }

    #[test]
    fn other_files_are_refused() {
        for (text, part) in [
            ("<hadm><sites/></hadm>", "not the older form"),
            ("<hadm><nodes/><sites/></hadm>", "not the older form"),
            ("<other/>", "not <hadm>"),
        ] {
            assert!(convert_text(text).unwrap_err().contains(part), "{text}");
        }
        let done = convert_text("<hadm><nodes><node><id>0</id></node></nodes></hadm>").unwrap();
        assert!(!done.problems.is_empty() && done.notes.join(" ").contains("no <hostname>"), "{done:?}");
    }
}
