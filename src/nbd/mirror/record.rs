//! The record of the handshake: the payload of SC_HS.
//!
//! It opens with 440 bytes that the C module reads as a superblock without a primary, so that it refuses and does
//! nothing. Behind them: a mark, versions, critical features, and entries of type, length and value. Strict about lengths:
//! an entry that is not known must be refused by name or skipped as a whole, never guessed. Called at every connect.

use std::fmt;

use super::Generation;
use super::choices::{OnePrimary, Policies, RoleConflict, TwoPrimaries, ZeroPrimaries};
use super::facts::{Facts, PeerSlot, Role};
use crate::nbd::disk::format::{DiskFlags, HISTORY, MAX_CHUNK_SHIFT, MIN_CHUNK_SHIFT, SLOTS, SlotFlags};
use crate::wire::{MAGIC, Mask, ResourceId, SiteId};

/// Bytes of the C module's superblock, which is the whole payload of its SC_HS.
pub const C_SUPERBLOCK: usize = 440;

/// Longest payload of SC_HS that is read, in bytes; the longest in use has under 2 KiB.
pub const RECORD_MAX: usize = 8192;

/// The bytes that open the record proper.
const MARK: [u8; 8] = *b"HADMDSK1";

/// Versions of the mirror's packets that this program speaks, first and last.
pub const VERSIONS: [u16; 2] = [1, 1];

/// Critical features that this program has; there are none yet.
pub const FEATURES: u32 = 0;

/// Bytes of a slot's entry.
const SLOT_LEN: usize = 32;

/// Longest text about the software, in bytes.
const SOFTWARE_MAX: usize = 64;

const T_IDENTITY: u16 = 1;
const T_DISK: u16 = 2;
const T_HISTORY: u16 = 3;
const T_SLOTS: u16 = 4;
const T_POLICIES: u16 = 5;
const T_SOFTWARE: u16 = 6;
/// Optional.
const T_ABILITIES: u16 = 7;

/// The id that stands for no site.
const NO_SITE: u8 = 255;

/// The reason for which a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// It is the superblock of the C module.
    CModule,
    /// It has this many bytes: too few, or too many.
    Length(usize),
    /// Its first bytes are not those that keep the C module from acting, or the mark is missing.
    Head,
    /// The peer speaks only these versions.
    Version(u16, u16),
    /// The peer insists on features that this program does not have.
    Features(u32),
    /// An entry reaches over the end.
    Truncated,
    /// This entry has a length or a content that its type cannot have.
    Entry(&'static str),
    /// This entry is missing, or there twice.
    Count(&'static str),
    /// It names another site or resource than the packet's header.
    Sender,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, last] = VERSIONS;
        match self {
            RecordError::CModule => f.write_str(
                "it runs hadm_kmod: cannot mirror with it; see hadm-nbd init --adopt for the way from one to the other",
            ),
            RecordError::Length(len) => write!(f, "handshake record of {len} bytes, at most {RECORD_MAX} are taken"),
            RecordError::Head => f.write_str("handshake record does not open as it must"),
            RecordError::Version(low, high) => write!(
                f,
                "it speaks versions {low} to {high} of the mirror's packets, this program {first} to {last}: \
                 upgrade the older one"
            ),
            RecordError::Features(bits) => {
                f.write_str("it needs features that this program does not have: bit")?;
                Mask(*bits).ids().try_for_each(|bit| write!(f, " {bit}"))?;
                f.write_str("; upgrade this site")
            }
            RecordError::Truncated => f.write_str("handshake record with an entry beyond its end"),
            RecordError::Entry(name) => write!(f, "handshake record with a wrong entry for {name}"),
            RecordError::Count(name) => write!(f, "handshake record without exactly one entry for {name}"),
            RecordError::Sender => f.write_str("handshake record of another site or resource than its packet's"),
        }
    }
}

impl std::error::Error for RecordError {}

/// Reads little-endian fields from the front of some bytes.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    /// Takes the next `N` bytes.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn site(&mut self) -> Option<SiteId> {
        self.u8().and_then(|site| SiteId::try_from(u32::from(site)).ok())
    }

    /// Takes a site or none; `None` for bytes that are neither.
    fn maybe_site(&mut self) -> Option<Option<SiteId>> {
        match self.u8()? {
            NO_SITE => Some(None),
            site => SiteId::try_from(u32::from(site)).ok().map(Some),
        }
    }

    /// Returns `value` if nothing is left.
    pub(super) fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Returns the superblock that keeps the C module from acting: no primary, never synced.
fn c_head(resource: ResourceId) -> [u8; C_SUPERBLOCK] {
    let mut head = [0; C_SUPERBLOCK];
    head[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    head[8] = resource.get();
    // Inconsistent, and the ids of the last primary and of its own time as primary say that there is none.
    (head[320], head[328], head[384]) = (1, NO_SITE, NO_SITE);
    head
}

/// Returns the payload of SC_HS.
pub fn encode(facts: &Facts) -> Vec<u8> {
    let mut to = c_head(facts.resource).to_vec();
    to.extend_from_slice(&MARK);
    VERSIONS.iter().for_each(|version| to.extend_from_slice(&version.to_le_bytes()));
    to.extend_from_slice(&FEATURES.to_le_bytes());
    let site = |site: Option<SiteId>| site.map_or(NO_SITE, SiteId::get);
    let mut entry = |kind: u16, parts: &[&[u8]]| {
        let value = parts.concat();
        to.extend_from_slice(&kind.to_le_bytes());
        // History, slots and text are each bounded well below 64 KiB.
        to.extend_from_slice(&(value.len() as u16).to_le_bytes());
        to.extend_from_slice(&value);
    };
    let role = [
        facts.site.get(),
        facts.resource.get(),
        u8::from(facts.is_primary()),
        u8::from(facts.asynchronous),
        site(facts.follows),
        0,
        0,
        0,
    ];
    entry(T_IDENTITY, &[&role, &facts.device, &facts.nonce.to_le_bytes(), &facts.last_session.to_le_bytes()]);
    entry(
        T_DISK,
        &[
            &facts.flags.bits().to_le_bytes(),
            &facts.members.0.to_le_bytes(),
            &facts.current.bits().to_le_bytes(),
            &facts.size.to_le_bytes(),
            &facts.agreed_size.to_le_bytes(),
            &facts.write_counter.to_le_bytes(),
            &[facts.chunk_shift, 0, 0, 0, 0, 0, 0, 0],
        ],
    );
    let history: Vec<_> =
        facts.history.iter().take(HISTORY).map(|former| former.bits().to_le_bytes()).collect();
    entry(T_HISTORY, &[history.as_flattened()]);
    let slots: Vec<_> = facts.slots.iter().take(SLOTS).map(encode_slot).collect();
    entry(T_SLOTS, &[slots.as_flattened()]);
    let Policies { zero, discard_site, one, two, conflict } = facts.policies;
    entry(T_POLICIES, &[&[zero.code(), site(discard_site), one.code(), two.code(), conflict.code()]]);
    entry(T_ABILITIES, &[&facts.abilities.to_le_bytes(), &[0; 4], &facts.log_room.to_le_bytes()]);
    let mut cut = facts.software.len().min(SOFTWARE_MAX);
    while !facts.software.is_char_boundary(cut) {
        cut = cut.saturating_sub(1);
    }
    entry(T_SOFTWARE, &[facts.software.get(..cut).unwrap_or_default().as_bytes()]);
    to
}

fn encode_slot(slot: &PeerSlot) -> [u8; SLOT_LEN] {
    let mut to = [0; SLOT_LEN];
    to[0] = slot.site.get();
    to[4..8].copy_from_slice(&slot.flags.bits().to_le_bytes());
    to[8..16].copy_from_slice(&slot.generation.bits().to_le_bytes());
    to[16..24].copy_from_slice(&slot.stable.to_le_bytes());
    to[24..32].copy_from_slice(&slot.out_of_sync.to_le_bytes());
    to
}

/// Reads the payload of a packet SC_HS from `sender` about `resource`.
///
/// # Errors
/// The reason for which it is refused; [`RecordError::CModule`] for the C module's.
pub fn decode(payload: &[u8], sender: SiteId, resource: ResourceId) -> Result<Facts, RecordError> {
    if payload.len() == C_SUPERBLOCK {
        return Err(RecordError::CModule);
    }
    let (head, record) =
        payload.split_first_chunk::<C_SUPERBLOCK>().ok_or(RecordError::Length(payload.len()))?;
    if payload.len() > RECORD_MAX {
        return Err(RecordError::Length(payload.len()));
    }
    let record = record.strip_prefix(&MARK).ok_or(RecordError::Head)?;
    // The part that the C module reads must be harmless for any resource.
    if head[9..] != c_head(resource)[9..] || head[..8] != MAGIC.to_le_bytes() {
        return Err(RecordError::Head);
    }
    let mut cursor = Cursor(record);
    let (first, last, features) = (|| Some((cursor.u16()?, cursor.u16()?, cursor.u32()?)))()
        .ok_or(RecordError::Length(payload.len()))?;
    if first > last || first > VERSIONS[1] || last < VERSIONS[0] {
        return Err(RecordError::Version(first, last));
    }
    if features & !FEATURES != 0 {
        return Err(RecordError::Features(features & !FEATURES));
    }
    let entries = Entries::split(cursor.0)?;
    let mut facts = entries.read(T_IDENTITY, "the site", read_identity)?;
    if facts.site != sender || facts.resource != resource || head[8] != resource.get() {
        return Err(RecordError::Sender);
    }
    entries.read(T_DISK, "the disk", |cursor| read_disk(cursor, &mut facts))?;
    facts.history = entries.read(T_HISTORY, "former generations", read_history)?;
    let own = facts.site;
    facts.slots = entries.read(T_SLOTS, "the other sites", |cursor| read_slots(cursor, own))?;
    facts.policies = entries.read(T_POLICIES, "policies", read_policies)?;
    facts.software = entries.read(T_SOFTWARE, "the software", read_software)?;
    if entries.has(T_ABILITIES) {
        (facts.abilities, facts.log_room) = entries.read(T_ABILITIES, "abilities", read_abilities)?;
    }
    Ok(facts)
}

/// The entries of a record, split but not decoded.
struct Entries<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Entries<'a> {
    fn split(record: &'a [u8]) -> Result<Self, RecordError> {
        let mut entries = Vec::new();
        let mut cursor = Cursor(record);
        while !cursor.0.is_empty() {
            let (kind, len) = (|| Some((cursor.u16()?, cursor.u16()?)))().ok_or(RecordError::Truncated)?;
            let (value, rest) = cursor.0.split_at_checked(len.into()).ok_or(RecordError::Truncated)?;
            cursor.0 = rest;
            entries.push((kind, value));
        }
        Ok(Entries(entries))
    }

    fn has(&self, kind: u16) -> bool {
        self.0.iter().any(|entry| entry.0 == kind)
    }

    /// Reads the one entry of this type to its end.
    fn read<T>(
        &self,
        kind: u16,
        name: &'static str,
        read: impl FnOnce(&mut Cursor<'a>) -> Option<T>,
    ) -> Result<T, RecordError> {
        let mut found = self.0.iter().filter(|entry| entry.0 == kind);
        let (Some((_, value)), None) = (found.next(), found.next()) else {
            return Err(RecordError::Count(name));
        };
        let mut cursor = Cursor(value);
        read(&mut cursor).and_then(|read| cursor.end(read)).ok_or(RecordError::Entry(name))
    }
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn read_identity(from: &mut Cursor<'_>) -> Option<Facts> {
    let site = from.site()?;
    let resource = ResourceId::try_from(u32::from(from.u8()?)).ok()?;
    let role = if flag(from.u8()?)? { Role::Primary } else { Role::Secondary };
    let asynchronous = flag(from.u8()?)?;
    let follows = from.maybe_site()?;
    let [_, _, _] = from.take()?;
    let (device, nonce, last_session) = (from.take()?, from.u64()?, from.u64()?);
    // A site that serves the disk follows no other.
    let fits = follows.is_none() || (role == Role::Secondary && follows != Some(site));
    fits.then(|| Facts {
        site,
        resource,
        device,
        nonce,
        last_session,
        role,
        follows,
        asynchronous,
        flags: DiskFlags::default(),
        members: Mask::default(),
        current: Generation::NONE,
        history: Vec::new(),
        slots: Vec::new(),
        size: 0,
        agreed_size: 0,
        chunk_shift: 0,
        write_counter: 0,
        policies: Policies::default(),
        software: String::new(),
        abilities: 0,
        log_room: 0,
    })
}

fn read_disk(from: &mut Cursor<'_>, to: &mut Facts) -> Option<()> {
    to.flags = DiskFlags::from_bits(from.u32()?)?;
    to.members = Mask(from.u32()?);
    to.current = Generation::from_bits(from.u64()?);
    (to.size, to.agreed_size, to.write_counter) = (from.u64()?, from.u64()?, from.u64()?);
    let [shift, _, _, _, _, _, _, _] = from.take()?;
    to.chunk_shift = shift;
    let fits = to.members.contains(to.site.get()) && (MIN_CHUNK_SHIFT..=MAX_CHUNK_SHIFT).contains(&shift);
    fits.then_some(())
}

fn read_history(from: &mut Cursor<'_>) -> Option<Vec<Generation>> {
    let mut history = Vec::new();
    while !from.0.is_empty() {
        let former = Generation::from_bits(from.u64()?);
        if !former.is_some() || history.len() == HISTORY {
            return None;
        }
        history.push(former);
    }
    Some(history)
}

fn read_slots(from: &mut Cursor<'_>, own: SiteId) -> Option<Vec<PeerSlot>> {
    let mut slots: Vec<PeerSlot> = Vec::new();
    while !from.0.is_empty() {
        let site = from.site()?;
        let [_, _, _] = from.take()?;
        let flags = SlotFlags::from_bits(from.u32()?)?;
        let generation = Generation::from_bits(from.u64()?);
        let slot = PeerSlot { site, flags, generation, stable: from.u64()?, out_of_sync: from.u64()? };
        if site == own || slots.iter().any(|other| other.site == site) {
            return None;
        }
        slots.push(slot);
    }
    // Each names another site, so there are no more than those.
    Some(slots)
}

fn read_policies(from: &mut Cursor<'_>) -> Option<Policies> {
    Some(Policies {
        zero: ZeroPrimaries::from_code(from.u8()?)?,
        discard_site: from.maybe_site()?,
        one: OnePrimary::from_code(from.u8()?)?,
        two: TwoPrimaries::from_code(from.u8()?)?,
        conflict: RoleConflict::from_code(from.u8()?)?,
    })
}

fn read_software(from: &mut Cursor<'_>) -> Option<String> {
    let text = std::str::from_utf8(std::mem::take(&mut from.0)).ok()?;
    // It is shown on terminals.
    let fits = text.len() <= SOFTWARE_MAX && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

fn read_abilities(from: &mut Cursor<'_>) -> Option<(u32, u64)> {
    let abilities = from.u32()?;
    let [_, _, _, _] = from.take()?;
    Some((abilities, from.u64()?))
}
