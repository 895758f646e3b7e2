//! The counters that a daemon logs when it ends: per peer, class and direction, received = forwarded + queued +
//! dropped, and dropped is the sum of its causes.

/// One line of the counters.
#[derive(Debug)]
pub struct Entry {
    /// `node 1 data out`, as logged.
    pub name: String,
    pub received: u64,
    pub forwarded: u64,
    pub queued: u64,
    pub dropped: u64,
    /// Causes of drops with their counts.
    pub causes: Vec<(String, u64)>,
}

/// Every line.
#[derive(Debug)]
pub struct PacketCounters(pub Vec<Entry>);

fn parse(line: &str) -> Option<Entry> {
    let (name, rest) = line.split_once(": received ")?;
    let (received, rest) = rest.split_once(" = forwarded ")?;
    let (forwarded, rest) = rest.split_once(" + queued ")?;
    let (queued, rest) = rest.split_once(" + dropped ")?;
    let (dropped, causes) = rest.split_once(' ').unwrap_or((rest, ""));
    let causes = match causes {
        "" => Vec::new(),
        list => {
            let list = list.strip_prefix('(')?.strip_suffix(')')?.split(", ");
            let cause =
                |text: &str| text.rsplit_once(' ').map(|(name, n)| Some((name.to_string(), n.parse().ok()?)));
            list.map(|text| cause(text)?).collect::<Option<_>>()?
        }
    };
    Some(Entry {
        name: name.into(),
        received: received.parse().ok()?,
        forwarded: forwarded.parse().ok()?,
        queued: queued.parse().ok()?,
        dropped: dropped.parse().ok()?,
        causes,
    })
}

impl PacketCounters {
    /// Reads the counters off a whole log and checks every sum. Lines without any packet may be missing.
    #[track_caller]
    pub fn assert_balance(log: &[String]) -> Self {
        let lines = log.iter().filter_map(|line| line.split_once("books: "));
        let entries =
            lines.map(|(_, line)| parse(line).unwrap_or_else(|| panic!("not a line of books: {line}")));
        let counters = PacketCounters(entries.collect());
        for entry in &counters.0 {
            let out = entry.forwarded + entry.queued + entry.dropped;
            assert_eq!(entry.received, out, "books do not balance: {entry:?}");
            let causes: u64 = entry.causes.iter().map(|(_, n)| n).sum();
            assert_eq!(entry.dropped, causes, "drops without a cause: {entry:?}");
        }
        counters
    }

    /// The line of a peer, class (`data` or `meta`) and direction (`in` or `out`).
    #[track_caller]
    pub fn line(&self, node: u8, class: &str, direction: &str) -> &Entry {
        let name = format!("node {node} {class} {direction}");
        let line = self.0.iter().find(|entry| entry.name == name);
        line.unwrap_or_else(|| panic!("no books of {name} among {:?}", self.0))
    }
}
