//! The states that primaries' disks have had: the content that each began with, and its writes in their order.
//!
//! A copy that may be behind has to be one of them. Used by the world alone.

use super::disk::Values;

struct History {
    /// The primary; `None`: nothing is written to it.
    site: Option<usize>,
    base: Vec<u64>,
    writes: Vec<Values>,
}

pub struct Histories(Vec<History>);

/// A state of a primary's disk, and all later ones.
#[derive(Clone, Copy, Default)]
pub struct Since {
    history: usize,
    writes: usize,
}

impl Histories {
    /// The disks as they are made.
    pub fn new(blocks: usize) -> Self {
        Histories(vec![History { site: None, base: vec![0; blocks], writes: Vec::new() }])
    }

    /// A primary's mirror becomes larger: from here on its disk has the content that was behind the end, too.
    pub fn grow(&mut self, site: usize, disk: &[u64]) {
        let Some(history) = self.0.iter_mut().rfind(|history| history.site == Some(site)) else { return };
        history.site = None;
        let mut base = history.after(history.writes.len());
        base.extend_from_slice(&disk[base.len()..]);
        self.0.push(History { site: Some(site), base, writes: Vec::new() });
    }

    /// A site becomes primary with this content.
    pub fn begin(&mut self, site: usize, base: &[u64]) {
        self.0
            .iter_mut()
            .filter(|history| history.site == Some(site))
            .for_each(|history| history.site = None);
        self.0.push(History { site: Some(site), base: base.to_vec(), writes: Vec::new() });
    }

    /// This content counts.
    pub fn add(&mut self, base: &[u64]) {
        self.0.push(History { site: None, base: base.to_vec(), writes: Vec::new() });
    }

    /// A primary writes.
    pub fn write(&mut self, site: usize, values: Values) {
        let of_site = self.0.iter_mut().filter(|history| history.site == Some(site));
        of_site.for_each(|history| history.writes.push(values.clone()));
    }

    /// Returns the present state of a primary's disk.
    pub fn now(&self, site: usize) -> Since {
        let history = self.0.iter().rposition(|history| history.site == Some(site)).unwrap_or_default();
        Since { history, writes: self.0[history].writes.len() }
    }

    /// Returns what comes nearest, if no history had this content since then.
    pub fn check(&self, content: &[u64], since: Since) -> Result<(), String> {
        let mut best = (usize::MAX, String::from("nothing was written since"));
        for (n, history) in self.0.iter().enumerate().skip(since.history).rev() {
            let from = if n == since.history { since.writes } else { 0 };
            match history.check(content, from) {
                Ok(()) => return Ok(()),
                Err((n, why)) if n < best.0 => best = (n, why),
                Err(_) => {}
            }
        }
        Err(best.1)
    }
}

impl History {
    /// The content after some writes.
    fn after(&self, writes: usize) -> Vec<u64> {
        let mut content = self.base.clone();
        for (first, values) in &self.writes[..writes] {
            content[*first as usize..*first as usize + values.len()].copy_from_slice(values);
        }
        content
    }

    fn check(&self, content: &[u64], from: usize) -> Result<(), (usize, String)> {
        if content.len() != self.base.len() {
            let (n, size) = (content.len(), self.base.len());
            return Err((usize::MAX - 1, format!("{n} blocks are mirrored, and {size} were")));
        }
        // The number of blocks that fit after each number of writes, as differences from the number before.
        let mut fits = vec![0_i64; self.writes.len() + 2];
        let mut now = self.base.clone();
        let mut since = vec![0; now.len()];
        let span = |fits: &mut Vec<i64>, from: usize, to: usize| {
            fits[from] += 1;
            fits[to] -= 1;
        };
        for (n, (first, values)) in self.writes.iter().enumerate() {
            for (block, value) in (*first as usize..).zip(values) {
                if now[block] == content[block] {
                    span(&mut fits, since[block], n + 1);
                }
                (now[block], since[block]) = (*value, n + 1);
            }
        }
        for block in 0..now.len() {
            if now[block] == content[block] {
                span(&mut fits, since[block], self.writes.len() + 1);
            }
        }
        let (mut sum, mut best, mut at) = (0, 0, 0);
        for (n, change) in fits.iter().take(self.writes.len() + 1).enumerate() {
            sum += change;
            if sum > best && n >= from {
                (best, at) = (sum, n);
            }
        }
        let differ = content.len() - best as usize;
        if differ == 0 {
            return Ok(());
        }
        let then = self.after(at);
        let blocks: Vec<_> =
            (0..then.len()).filter(|block| then[*block] != content[*block]).take(8).collect();
        let pairs: Vec<_> = blocks.iter().map(|block| (block, content[*block], then[*block])).collect();
        Err((
            differ,
            format!(
                "{differ} blocks differ from the state after {at} of {} writes of {:?}: (block, found, expected) {pairs:?}",
                self.writes.len(),
                self.site
            ),
        ))
    }
}
