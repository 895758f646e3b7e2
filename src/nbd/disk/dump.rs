//! `hadm-nbd dump`: a disk's metadata as text, for people and for bug reports.
//!
//! Must change nothing and takes no lock, so that it may run on a disk in use: a block that is being written meanwhile
//! may be shown as damaged. Called by the command line.

use std::fmt::{self, Write};

use super::bitmap::Bitmap;
use super::format::{BLOCK, Label, Slot, Superblock};
use super::store::{Damage, Loaded, Store};
use super::words;

/// Longest list of runs of bits for each bitmap: a screenful shows where they are.
const RUNS: usize = 20;

/// Extents in a line of the text.
const IN_LINE: usize = 12;

/// Returns the metadata as text.
///
/// # Errors
/// The disk cannot be read.
pub fn dump(store: &Store) -> Result<String, String> {
    let place = store.device().path.display();
    let loaded = store.load().map_err(|error| format!("bwr_disk {place} cannot be read: {error}"))?;
    let mut out = String::new();
    // Writing to a string cannot fail.
    _ = write_label(&mut out, store).and_then(|()| write_state(&mut out, store, &loaded));
    Ok(out)
}

fn write_label(out: &mut String, store: &Store) -> fmt::Result {
    let Label { uuid, resource, name, site, disk_size, created, layout, sequence } = store.label();
    writeln!(out, "metadata {}", store.device().path.display())?;
    let uuid: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(
        out,
        "  label        {sequence}, {} of metadata",
        bytes(layout.blocks().saturating_mul(BLOCK as u64))
    )?;
    writeln!(out, "  device       {uuid}, tag {:08x}", store.tag())?;
    writeln!(out, "  resource     {} ({name})", resource.get())?;
    writeln!(out, "  site         {}", site.get())?;
    let created = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(*created));
    if let Some(created) = created.filter(|created| *created > std::time::UNIX_EPOCH) {
        writeln!(out, "  made         {}", humantime::format_rfc3339_seconds(created))?;
    }
    writeln!(out, "  data         {} of a disk of {disk_size} bytes", bytes(layout.data_size))?;
    writeln!(out, "  chunk        {}, {} of them", words::bytes(layout.chunk()), layout.chunks())?;
    let (log, bitmaps) = (layout.log_blocks.saturating_mul(BLOCK as u64), layout.bitmap_blocks());
    writeln!(out, "  ordered log  {} from block {}", words::bytes(log), layout.log_start)?;
    writeln!(
        out,
        "  bitmaps      {}, of {bitmaps} blocks each, from block {}",
        layout.slots, layout.bitmap_start
    )
}

fn bytes(n: u64) -> String {
    format!("{n} bytes ({})", words::bytes(n))
}

fn write_state(out: &mut String, store: &Store, loaded: &Loaded) -> fmt::Result {
    match &loaded.superblock {
        Some(superblock) => write_superblock(out, superblock, loaded.copy)?,
        None => {
            writeln!(out, "superblock   none is valid: the disk may only become the target of a full resync")?
        }
    }
    for batch in &loaded.batches {
        writeln!(out, "ordered log  batch {}, {} writes", batch.number, batch.writes.len())?;
    }
    match &loaded.activity {
        Some(record) => {
            writeln!(
                out,
                "activity log {}, active extents of 4 MiB: {}",
                record.sequence(),
                record.extents().len()
            )?;
            let mut extents = record.extents().to_vec();
            extents.sort_unstable();
            for line in extents.chunks(IN_LINE) {
                let line: Vec<_> = line.iter().map(u32::to_string).collect();
                writeln!(out, "  {}", line.join(" "))?;
            }
        }
        None => writeln!(out, "activity log empty")?,
    }
    let slots = loaded.superblock.as_ref().map(|superblock| superblock.slots).unwrap_or_default();
    for (i, (bitmap, slot)) in loaded.bitmaps.iter().zip(slots).enumerate() {
        if slot.site.is_some() || bitmap.count() > 0 || loaded.superblock.is_none() {
            write_slot(out, i, &slot, bitmap, store)?;
        }
    }
    for Damage { number, error } in &loaded.damaged {
        writeln!(out, "damaged      block {number}: {error}")?;
    }
    Ok(())
}

fn write_superblock(out: &mut String, superblock: &Superblock, copy: usize) -> fmt::Result {
    writeln!(out, "superblock   {}, copy {}", superblock.sequence, if copy == 0 { "A" } else { "B" })?;
    writeln!(out, "  flags        {}", superblock.flags)?;
    writeln!(out, "  current      {:?}", superblock.current)?;
    for former in superblock.history.iter().filter(|former| former.is_some()) {
        writeln!(out, "  history      {former:?}")?;
    }
    let members: Vec<_> = superblock.members.ids().map(|id| id.to_string()).collect();
    writeln!(out, "  members      sites {}", members.join(", "))?;
    match superblock.agreed_size {
        0 => writeln!(out, "  agreed size  none yet")?,
        size => writeln!(out, "  agreed size  {}", bytes(size))?,
    }
    writeln!(out, "  write count  {}", superblock.write_counter)?;
    match superblock.verify_cursor {
        0 => Ok(()),
        at => writeln!(out, "  verified     up to byte {at}"),
    }
}

fn write_slot(out: &mut String, i: usize, slot: &Slot, bitmap: &Bitmap, store: &Store) -> fmt::Result {
    match slot.site {
        Some(site) => writeln!(out, "slot {i}       {site}, flags {}", slot.flags)?,
        None => writeln!(out, "slot {i}       free")?,
    }
    if slot.site.is_some() {
        writeln!(out, "  generation   {:?}", slot.generation)?;
        writeln!(out, "  stable up to {}", slot.stable)?;
    }
    let shift = store.layout().chunk_shift;
    let size = bitmap.count().checked_shl(shift.into()).unwrap_or(u64::MAX);
    writeln!(out, "  bits         {} of {} ({})", bitmap.count(), bitmap.len(), words::bytes(size))?;
    let (mut at, mut left) = (0, bitmap.count());
    for _ in 0..RUNS {
        let Some(run) = bitmap.next_run(at, u64::MAX) else { break };
        let (from, to) = (run.start << shift, (run.end << shift).min(store.layout().data_size));
        writeln!(
            out,
            "    chunks {} to {} (bytes {from} to {})",
            run.start,
            run.end.saturating_sub(1),
            to.saturating_sub(1)
        )?;
        left = left.saturating_sub(run.end.saturating_sub(run.start));
        at = run.end;
    }
    if left > 0 {
        writeln!(out, "    and {left} more bits")?;
    }
    Ok(())
}
