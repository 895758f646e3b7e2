//! The record of the handshake between disk programs, of any bytes, beside a plain reading of it.
//!
//! Used by the fuzzed functions of `targets.rs`.

use hadmd::nbd::mirror::{decide, record};
use hadmd::wire::{ResourceId, SiteId};

/// Bytes that the C module reads as its superblock.
const HEAD: usize = 440;

/// The entries of a record, if they fill it exactly, each of the six known types is there once.
fn is_split(mut bytes: &[u8]) -> bool {
    let mut count = [0; 7];
    while !bytes.is_empty() {
        let [a, b, c, d, ..] = *bytes else { return false };
        let (kind, len) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
        let Some(rest) = bytes[4..].get(len..) else { return false };
        if let Some(n) = count.get_mut(usize::from(kind)) {
            *n += 1;
        }
        bytes = rest;
    }
    count[1..] == [1; 6]
}

/// Checks a payload of SC_HS: what is believed opens with the harmless head, is whole, is written as it was read, and can be
/// decided upon. The first byte says whether the head is made right first, so that the entries are reached.
pub fn check(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let (sender, resource) =
        (SiteId::try_from(u32::from(how >> 4)), ResourceId::try_from(u32::from(how & 7)));
    let (Ok(sender), Ok(resource)) = (sender, resource) else { return };
    let mut payload = rest.to_vec();
    if how & 8 != 0 {
        let mut head = vec![0; HEAD];
        head[..8].copy_from_slice(&hadmd::wire::MAGIC.to_le_bytes());
        (head[8], head[320], head[328], head[384]) = (resource.get(), 1, 255, 255);
        // Version 1 to 1, no feature.
        payload = [&head[..], b"HADMDSK1", &[1, 0, 1, 0, 0, 0, 0, 0], rest].concat();
    }
    let read = record::decode(&payload, sender, resource);
    if payload.len() == HEAD {
        assert_eq!(read, Err(record::RecordError::CModule));
    }
    let Ok(facts) = read else { return };
    assert!(payload.len() <= record::RECORD_MAX && payload[HEAD..HEAD + 8] == *b"HADMDSK1");
    assert!(payload[320] == 1 && payload[328] == 255 && payload[384] == 255, "the C module would act on it");
    assert!(is_split(&payload[HEAD + 16..]), "believed a record that is none");
    assert!(facts.site == sender && facts.resource == resource && facts.members.contains(sender.get()));
    let again = record::encode(&facts);
    assert_eq!(record::decode(&again, sender, resource).as_ref(), Ok(&facts));
    // Both ends decide alike, whatever the facts; with itself, too.
    let mut other = facts.clone();
    other.site = SiteId::try_from((u32::from(sender.get()) + 1) % 32).unwrap();
    other.slots.retain(|slot| slot.site != other.site);
    other.nonce ^= 1;
    for (a, b) in [(&facts, &other), (&other, &facts)] {
        let decision = decide(a, b);
        assert!(!decision.sentence(a, b).is_empty());
        assert_eq!(decision, decide(a, b));
    }
    assert_eq!(decide(&facts, &other), decide(&other, &facts), "the two ends decide differently");
}
