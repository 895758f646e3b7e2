//! The reference: the content that a block may have, from the answers to clients.
//!
//! A block may hold any write that no other one surely came after. Surely: it was answered, and either flushed or still
//! held by a site that has not lost its power. Used by the world alone.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Write {
    value: u64,
    issued: u64,
    /// When it was answered, or its primary was gone: it can change nothing after that.
    ended: Option<u64>,
    answered: bool,
    flushed: bool,
    /// Sites that had it when it was answered, and had no power cut since.
    holders: u32,
    /// Sites that had it then, and had one.
    lost: u32,
    /// Sites that had it when they were killed together with the primary, and have it still: another one's content may come
    /// to count, but if theirs does, it has to be there.
    doubtful: u32,
}

impl Write {
    /// Returns true if it has to be in what this site serves.
    fn is_kept(&self, site: usize) -> bool {
        self.answered && (self.flushed || self.holders != 0 || self.doubtful >> site & 1 == 1)
    }
}

#[derive(Default)]
pub struct Model {
    blocks: BTreeMap<u64, Vec<Write>>,
    /// Counts what happens.
    time: u64,
    requests: BTreeMap<u64, (Vec<u64>, u64)>,
}

impl Model {
    pub fn issue(&mut self, request: u64, first: u64, values: &[u64]) {
        self.time += 1;
        let write = |value: u64| Write {
            value,
            issued: self.time,
            ended: None,
            answered: false,
            flushed: false,
            holders: 0,
            lost: 0,
            doubtful: 0,
        };
        for (block, value) in (first..).zip(values) {
            self.blocks.entry(block).or_default().push(write(*value));
        }
        self.requests.insert(request, ((first..first + values.len() as u64).collect(), self.time));
    }

    /// The moment of a flush, for [`Model::flushed`].
    pub fn mark(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    pub fn answered(&mut self, request: u64, good: bool, holders: u32, fua: bool) {
        self.time += 1;
        let Some((blocks, issued)) = self.requests.remove(&request) else { return };
        for block in blocks {
            let writes = self.blocks.get_mut(&block).unwrap();
            for write in writes.iter_mut().filter(|write| write.issued == issued) {
                (write.ended, write.answered, write.flushed) = (Some(self.time), good, fua && good);
                write.holders = if good { holders } else { 0 };
                if !good {
                    // It may come or not, but only until the mirror is settled again.
                    write.ended = Some(u64::MAX);
                }
            }
            prune(writes);
        }
    }

    /// A flush that began at `mark` was answered.
    pub fn flushed(&mut self, mark: u64) {
        for writes in self.blocks.values_mut() {
            for write in
                writes.iter_mut().filter(|write| write.answered && write.ended.unwrap_or(u64::MAX) < mark)
            {
                write.flushed = true;
            }
            prune(writes);
        }
    }

    /// A site's cache is lost.
    pub fn cut(&mut self, site: usize) {
        for write in self.blocks.values_mut().flatten() {
            write.lost |= write.holders & 1 << site;
            write.holders &= !(1 << site);
            write.doubtful &= !(1 << site);
        }
    }

    /// A site is killed, and its primary is gone, too.
    pub fn doubt(&mut self, site: usize) {
        for write in self.blocks.values_mut().flatten() {
            write.doubtful |= write.holders & 1 << site;
            write.holders &= !(1 << site);
        }
    }

    /// The source's content comes over this site's: until the end of the resync what both had is safe at the source alone.
    /// With `is_gone` the source lost its power before anything was copied.
    pub fn overwritten(&mut self, source: usize, is_gone: bool, site: usize) {
        for write in self.blocks.values_mut().flatten() {
            write.doubtful &= !(1 << site);
            let had = write.holders | if is_gone { write.lost } else { 0 };
            if had >> source & 1 == 1 {
                write.holders &= !(1 << site);
            }
        }
    }

    /// A resync has ended, and the source's metadata say so: what it has counts as the target's, too, as far as it is in this
    /// content of the target's disk. What it lost when its power went the target lacks, too.
    pub fn resynced(&mut self, source: usize, target: usize, content: &[u64]) {
        for (block, writes) in &mut self.blocks {
            for write in writes.iter_mut().filter(|write| write.holders >> target & 1 == 0) {
                write.lost |= (write.lost >> source & 1) << target;
            }
            let is_there = |write: &&mut Write| content.get(*block as usize) == Some(&write.value);
            for write in writes.iter_mut().filter(is_there).filter(|write| write.holders >> source & 1 == 1) {
                write.holders |= 1 << target;
                write.lost &= !(1 << target);
            }
        }
    }

    /// These requests will not be answered: what they were to write was written by now, or never will be.
    pub fn end<'a>(&mut self, requests: impl Iterator<Item = &'a u64>) {
        self.time += 1;
        let gone: Vec<_> = requests.filter_map(|request| self.requests.remove(request)).collect();
        for (blocks, issued) in gone {
            for block in blocks {
                let writes = self.blocks.get_mut(&block).into_iter().flatten();
                writes.filter(|write| write.issued == issued).for_each(|write| write.ended = Some(self.time));
            }
        }
    }

    /// The primary is gone: what it did not answer was written by now, or never will be.
    pub fn primary_gone(&mut self) {
        self.time += 1;
        self.requests.clear();
        for write in self.blocks.values_mut().flatten() {
            if write.ended.is_none_or(|ended| ended == u64::MAX) {
                write.ended = Some(self.time);
            }
        }
    }

    /// Returns the reason why a block that a site serves may not hold this, if there is one.
    pub fn check(&self, site: usize, block: u64, value: u64) -> Result<(), String> {
        let writes = self.blocks.get(&block).map_or(&[][..], Vec::as_slice);
        let kept_after = |ended: u64| writes.iter().find(|write| write.is_kept(site) && ended < write.issued);
        if value == 0 && writes.iter().all(|write| !write.is_kept(site)) {
            return Ok(());
        }
        let fits =
            |write: &&Write| write.value == value && kept_after(write.ended.unwrap_or(u64::MAX)).is_none();
        match writes.iter().find(fits) {
            Some(_) => Ok(()),
            None => Err(format!("block {block} holds {value}; writes: {writes:?}")),
        }
    }

    /// A primary that served this content, and synced it before, has answered: of what was written before `since` that is
    /// what counts from now on.
    pub fn settle(&mut self, block: u64, value: u64, since: u64) {
        let Some(writes) = self.blocks.get_mut(&block) else { return };
        let (before, after): (Vec<_>, _) = writes.drain(..).partition(|write| write.issued <= since);
        let found = before.into_iter().rev().find(|write| write.value == value);
        let counts = |write| Write { answered: true, flushed: true, ended: Some(since), ..write };
        *writes = found.into_iter().map(counts).chain(after).collect();
    }

    /// A site is promoted that lost its power since it had writes, and no other site runs that has them: two sites are lost,
    /// and M1 keeps only what was flushed.
    pub fn excuse(&mut self, site: usize, running: u32) {
        for write in self.blocks.values_mut().flatten() {
            if write.lost >> site & 1 == 1 && write.holders & running == 0 {
                write.holders = 0;
            }
        }
    }

    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().copied()
    }
}

/// Forgets what a flushed write surely came after.
fn prune(writes: &mut Vec<Write>) {
    let Some(newest) = writes.iter().filter(|write| write.flushed).map(|write| write.issued).max() else {
        return;
    };
    writes.retain(|write| write.ended.is_none_or(|ended| ended >= newest));
}
