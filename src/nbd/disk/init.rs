//! `hadm-nbd init`: makes the metadata of a resource's disk at this site, and refuses to where data might be lost.
//!
//! Writes to the metadata disk only, the label last, so that a crash leaves either no metadata or all of it. The
//! data disk is read, and changed by `--adopt` alone, which puts the kernel module's last writes into it. To ask nobody
//! (`--force`) and to cut off a file system (`--cut-off`) are different permissions. Called by the command line.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

use super::adopt::{self, Plan};
use super::content::{self, Found};
use super::data::{DataDisk, UNIT};
use super::device::{Access, Device, Part};
use super::format::{
    ACTIVITY_BLOCKS, ACTIVITY_START, BITMAP_BYTES, BLOCK, BitmapBlock, DEFAULT_CHUNK_SHIFT, DiskFlags,
    Generation, LABEL_BLOCKS, Label, Layout, LayoutError, SLOTS, SUPERBLOCK_BLOCKS, Slot, SlotFlags,
    Superblock, tag_of,
};
use super::store::Store;
use super::{witness, words};
use crate::config::{Resource, RunSite};
use crate::wire::{Mask, SiteId};

/// Number of other sites for which there are bitmaps by default: a third site can join without new metadata.
const SPARE_SLOTS: usize = 3;

/// Bytes in each read of the search of a disk for anything but zeroes.
const AT_ONCE: u64 = 1 << 20;

/// The options of `hadm-nbd init`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Overwrites content that looks like data, and a disk that the system says is in use.
    pub force: bool,
    /// Offers less than the content of the data disk takes.
    pub cut_off: bool,
    /// The data disk reads as zeroes, which is checked: no initial copy is needed if the others are made so, too.
    pub clean: bool,
    /// Takes over a stopped site of the kernel module.
    pub adopt: bool,
    /// Binary logarithm of the bytes of a chunk.
    pub chunk_shift: u8,
    /// Bytes of the ordered log, 0 for none; rounded up to whole blocks.
    pub log_size: u64,
    /// Bytes to offer; `None`: all that the disk has.
    pub size: Option<u64>,
    /// Number of bitmaps for other sites; `None`: one for each there is, at least 3.
    pub slots: Option<u8>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            force: false,
            cut_off: false,
            clean: false,
            adopt: false,
            chunk_shift: DEFAULT_CHUNK_SHIFT,
            log_size: 0,
            size: None,
            slots: None,
        }
    }
}

/// Makes the metadata of a resource's disk at this site, and returns a report of a few lines.
///
/// # Errors
/// The reason for which nothing was done: a sentence that names the disk, and the remedy.
pub fn init(resource: &Resource, site: SiteId, options: &Options) -> Result<String, String> {
    let at = runsite(resource, site)?;
    if let Some(path) = &at.witness {
        return witness::init(path, resource, site, options.force);
    }
    let (disk, bwr_disk) = (Path::new(&at.disk), Path::new(&at.bwr_disk));
    let access = if options.force { Access::Seize } else { Access::Own };
    let device = Device::open(disk, Part::Data, access)?;
    let mut told = Vec::new();
    let data = DataDisk::new(device, None)?;
    let old = match std::fs::symlink_metadata(bwr_disk) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !options.adopt => None,
        _ => Some(Device::open(bwr_disk, Part::Metadata, access)?),
    };
    if old.as_ref().is_some_and(|old| old.is_same(data.device())) {
        return Err(format!(
            "<disk> and <bwr_disk> of {} are one and the same, {}: give the metadata a file or device of its own",
            resource.id,
            disk.display()
        ));
    }
    let plan = match (&old, options.adopt) {
        (Some(old), true) => Some(adopt::plan(old, &data, resource.id, site)?),
        _ => None,
    };
    if let Some(plan) = plan.as_ref().filter(|plan| !plan.superblock.is_consistent && !options.force) {
        return Err(format!(
            "bwr_disk {} says that {} is inconsistent: a copy to it had not ended{}. Adopt another site's disk, or give \
             --force to go on with data that may never have been so",
            bwr_disk.display(),
            disk.display(),
            if plan.was_primary { ", or it failed" } else { "" }
        ));
    }
    let mirrored = plan.as_ref().map(|plan| plan.superblock.disk_size).filter(|size| *size > 0);
    let layout = layout(resource, site, &data, mirrored, options)?;
    if let Some(rest) = data.device().size.checked_sub(layout.data_size).filter(|rest| *rest > 0) {
        told.push(format!("The last {} of {} are not offered.", words::bytes(rest), disk.display()));
    }
    look(&data, old.as_ref(), &layout, options)?;
    if options.clean {
        if let Some(at) = first_not_zero(data.device(), layout.data_size, Some(&data))? {
            return Err(format!(
                "--clean is for a disk that reads as zeroes, and {} does not from byte {at} on; leave it out, or make \
                 the disk anew",
                disk.display()
            ));
        }
    }

    let label = label(resource, site, &layout, data.device(), old.as_ref())?;
    let fail = |error: io::Error| format!("bwr_disk {} cannot be written: {error}", bwr_disk.display());
    let made = old.is_none();
    let device = match old {
        Some(old) => old,
        None => create(bwr_disk)?,
    };
    let begun = device.reserve(layout.blocks().saturating_mul(BLOCK as u64)).and_then(|()| match &plan {
        Some(plan) => plan.replay(&device, &data, site).map_err(|error| {
            format!(
                "the kernel module's last writes cannot be put into {}: {error}; try again",
                disk.display()
            )
        }),
        None => Ok(()),
    });
    let first = superblock(resource, site, options, plan.as_ref());
    let done = begun.and_then(|()| write(&device, &label, &first, plan.is_some()).map_err(fail));
    if let Err(why) = done {
        if made {
            _ = std::fs::remove_file(bwr_disk);
        }
        return Err(why);
    }
    sync_folder(bwr_disk).map_err(fail)?;
    told.insert(0, made_line(resource, site, &label, bwr_disk));
    told.extend(plan.as_ref().map(|plan| adopted_line(plan, disk)));
    told.push(next_line(resource, options, plan.as_ref(), disk));
    Ok(told.join("\n"))
}

/// Returns the resource's part of the configuration at this site.
///
/// # Errors
/// The resource does not run at this site.
pub fn runsite(resource: &Resource, site: SiteId) -> Result<&RunSite, String> {
    resource.runsite(site).ok_or_else(|| {
        format!(
            "{} ({}) has no <runsite> for {site}, where this node is; add one, or run this at another site",
            resource.id, resource.name
        )
    })
}

fn layout(
    resource: &Resource,
    site: SiteId,
    data: &DataDisk,
    mirrored: Option<u64>,
    options: &Options,
) -> Result<Layout, String> {
    let others = resource.others(site).count();
    let slots = match options.slots {
        Some(slots) if usize::from(slots) < others => {
            return Err(format!("--slots {slots} is too few: {} has {others} other sites", resource.id));
        }
        Some(slots) => slots,
        // At most SLOTS.
        None => others.clamp(SPARE_SLOTS, SLOTS) as u8,
    };
    if let Some(size) = options.size.filter(|size| *size > data.size() || *size % UNIT != 0) {
        return Err(format!(
            "--size {size} is no multiple of {UNIT} up to the {} bytes of disk {}",
            data.size(),
            data.device().path.display()
        ));
    }
    let size = mirrored.or(options.size).unwrap_or(data.size());
    let log_blocks = options.log_size.div_ceil(BLOCK as u64);
    Layout::new(size, options.chunk_shift, slots, log_blocks).map_err(|error| match error {
        LayoutError::DataSize(_) => {
            format!("disk {} cannot be mirrored: {error}", data.device().path.display())
        }
        LayoutError::Chunks(_) => format!("{error}: give --chunk 1M, or as much as it takes"),
        other => other.to_string(),
    })
}

/// Refuses disks that hold any content.
fn look(data: &DataDisk, old: Option<&Device>, layout: &Layout, options: &Options) -> Result<(), String> {
    let see = |device: &Device, part: Part| {
        content::recognise(device)
            .map_err(|error| format!("{} {} cannot be read: {error}", part.element(), device.path.display()))
    };
    let on_data = see(data.device(), Part::Data)?;
    if let Some(Found { what, end: Some(end), .. }) = &on_data {
        if *end > layout.data_size && !options.cut_off {
            return Err(format!(
                "disk {} holds {what} of {end} bytes, of which only {} would be offered: it would be cut off. Make it \
                 smaller, or the disk larger; --cut-off goes on all the same",
                data.device().path.display(),
                layout.data_size
            ));
        }
    }
    if options.force || options.adopt {
        return Ok(());
    }
    let mut found = Vec::new();
    if let Some(Found { what, at, .. }) = on_data {
        let place = data.device().path.display();
        found.push(format!(
            "disk {place} holds {what} (byte {at}): init keeps it, a copy from another site does not"
        ));
    }
    if let Some(old) = old {
        let place = old.path.display();
        let area = layout.blocks().saturating_mul(BLOCK as u64);
        if let Some(Found { what, at, .. }) = see(old, Part::Metadata)? {
            found.push(format!("bwr_disk {place} holds {what} (byte {at}), which would be overwritten"));
        } else if let Some(at) = first_not_zero(old, area, None)? {
            found.push(format!(
                "bwr_disk {place} holds data of unknown kind (byte {at}), which would be overwritten"
            ));
        }
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(format!("{}. Nothing was changed; --force goes on all the same", found.join("; "))),
    }
}

/// Returns the first byte that is not zero, up to a size. On a disk that reports its holes, only the rest is read.
///
/// # Errors
/// The disk cannot be read: a sentence that names it.
pub fn first_not_zero(device: &Device, size: u64, holes: Option<&DataDisk>) -> Result<Option<u64>, String> {
    let fail = |error: io::Error| format!("{} cannot be read: {error}", device.path.display());
    let mut buf = vec![0; AT_ONCE as usize];
    let (mut at, size) = (0, size.min(device.size));
    while at < size {
        if let Some(disk) = holes {
            let extent = disk.status(at, size.saturating_sub(at), 1).map_err(fail)?.into_iter().next();
            if let Some(extent) = extent.filter(|extent| extent.zero && extent.len > 0) {
                at = at.saturating_add(extent.len);
                continue;
            }
        }
        let len = size.saturating_sub(at).min(AT_ONCE);
        let part = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)).unwrap_or_default();
        device.file.read_exact_at(part, at).map_err(fail)?;
        if let Some(i) = part.iter().position(|byte| *byte != 0) {
            return Ok(Some(at.saturating_add(i as u64)));
        }
        at = at.saturating_add(len);
    }
    Ok(None)
}

fn label(
    resource: &Resource,
    site: SiteId,
    layout: &Layout,
    data: &Device,
    old: Option<&Device>,
) -> Result<Label, String> {
    // Blocks of earlier metadata must not pass for ones of the new.
    let old_tags: Vec<u32> = old.into_iter().flat_map(tags).collect();
    let mut uuid = [0; 16];
    loop {
        let n = getrandom(&mut uuid, GetRandomFlags::empty())
            .map_err(|error| format!("the system has no random numbers: {error}"))?;
        if n == uuid.len() && !old_tags.contains(&tag_of(&uuid)) {
            break;
        }
    }
    Ok(Label {
        sequence: 1,
        uuid,
        resource: resource.id,
        name: Label::cut_name(&resource.name).to_owned(),
        site,
        disk_size: data.size,
        created: seconds(),
        layout: *layout,
    })
}

/// Seconds since the year 1970, by this machine's clock.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn tags(device: &Device) -> Vec<u32> {
    let label = |number: u64| {
        let mut block = [0; BLOCK];
        device.file.read_exact_at(&mut block, number.saturating_mul(BLOCK as u64)).ok()?;
        Label::decode(&block, number).ok()
    };
    LABEL_BLOCKS.into_iter().filter_map(label).map(|label| label.tag()).collect()
}

fn superblock(resource: &Resource, site: SiteId, options: &Options, plan: Option<&Plan>) -> Superblock {
    let adopted = plan.filter(|plan| plan.was_primary);
    let mut flags = DiskFlags::default();
    flags.set(DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE | DiskFlags::ZEROED, options.clean);
    flags.set(
        DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE,
        options.clean || adopted.is_some_and(|plan| plan.superblock.is_consistent),
    );
    let current = match adopted {
        Some(_) => Generation::draw(random(), false),
        None => Generation::JUST_CREATED,
    };
    // Above the count of an older disk in this place, which goes up by one in minutes: the others remember that, and would
    // take this disk for a restored snapshot of it.
    let write_counter = seconds();
    let mut superblock = Superblock { sequence: 1, flags, current, write_counter, ..Superblock::default() };
    for (slot, other) in superblock.slots.iter_mut().zip(resource.others(site)) {
        let mut flags = SlotFlags::default();
        flags.set(SlotFlags::FULL_SYNC_DUE, !options.clean);
        *slot = Slot { site: Some(other), flags, ..Slot::default() };
    }
    let sites = resource.others(site).map(|other| Mask::of(other.get()));
    superblock.members = sites.fold(Mask::of(site.get()), |all, site| all | site);
    superblock
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // The system has given random numbers a moment ago.
    _ = getrandom(&mut bytes, GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}

fn create(path: &Path) -> Result<Device, String> {
    let place = path.display();
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        format!("bwr_disk {place} cannot be made: {error}; make its folder, or correct <bwr_disk> in the configuration")
    })?;
    Device::open(path, Part::Metadata, Access::Own)
}

/// Writes all blocks, the label last. In its place the kernel module's superblock, if any, stays until then.
fn write(device: &Device, label: &Label, first: &Superblock, adopted: bool) -> io::Result<()> {
    let (layout, tag) = (&label.layout, label.tag());
    let put =
        |number: u64, block: &[u8]| device.file.write_all_at(block, number.saturating_mul(BLOCK as u64));
    if !adopted {
        LABEL_BLOCKS.into_iter().try_for_each(|number| put(number, &[0; BLOCK]))?;
        device.file.sync_data()?;
    }
    for number in SUPERBLOCK_BLOCKS {
        put(number, &first.encode(number, tag))?;
    }
    for i in 0..ACTIVITY_BLOCKS {
        put(ACTIVITY_START.saturating_add(i), &[0; BLOCK])?;
    }
    if layout.log_blocks > 0 {
        put(layout.log_start, &[0; BLOCK])?;
    }
    let mut blocks = Vec::with_capacity(AT_ONCE as usize);
    let mut from = layout.bitmap_start;
    for number in layout.bitmap_start..layout.blocks() {
        blocks.extend_from_slice(&BitmapBlock::encode_bits(1, &[0; BITMAP_BYTES], number, tag));
        if blocks.len() as u64 >= AT_ONCE {
            put(from, &blocks)?;
            blocks.clear();
            from = number.saturating_add(1);
        }
    }
    put(from, &blocks)?;
    device.file.sync_data()?;
    for number in LABEL_BLOCKS {
        put(number, &label.encode(number))?;
        device.file.sync_data()?;
    }
    Ok(())
}

/// Syncs a folder: a file that was made is there after a crash only if its folder was synced.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn made_line(resource: &Resource, site: SiteId, label: &Label, path: &Path) -> String {
    let layout = &label.layout;
    format!(
        "Metadata of {} ({}) at {site} made on {}: {} of data in chunks of {}, slots for {} other sites, {} of metadata.",
        resource.id,
        resource.name,
        path.display(),
        words::bytes(layout.data_size),
        words::bytes(layout.chunk()),
        layout.slots,
        words::bytes(layout.blocks().saturating_mul(BLOCK as u64))
    )
}

fn adopted_line(plan: &Plan, disk: &Path) -> String {
    match plan.was_primary {
        true => format!(
            "Adopted from the kernel module: this site was primary; {} pages of its ring were written to {}.",
            plan.pages(),
            disk.display()
        ),
        false => format!(
            "Adopted from the kernel module: this site was secondary; {} is kept, and what differs is copied from the \
             site that was primary.",
            disk.display()
        ),
    }
}

fn next_line(resource: &Resource, options: &Options, plan: Option<&Plan>, disk: &Path) -> String {
    let name = &resource.name;
    match plan.filter(|plan| plan.was_primary && plan.superblock.is_consistent) {
        Some(_) => {
            "Make the other sites' metadata anew, with --adopt or without: they take this site's data."
                .to_owned()
        }
        None if options.clean => format!(
            "{} reads as zeroes: with the other sites made with --clean, too, nothing has to be copied.",
            disk.display()
        ),
        None => format!(
            "When hadm-nbd runs at all sites, `hadmctl disk primary --force {name}` at one of them says whose data the \
             others take."
        ),
    }
}

/// Opens the metadata of a resource at this site and checks their owner.
///
/// # Errors
/// They are not there, or another's: a sentence with the remedy.
pub fn open_store(resource: &Resource, site: SiteId, access: Access) -> Result<Store, String> {
    let at = runsite(resource, site)?;
    let store = Store::open(Path::new(&at.bwr_disk), access)?;
    store.check_owner(resource.id, site)?;
    Ok(store)
}
