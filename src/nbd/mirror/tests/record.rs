//! Tests of the handshake's bytes: a record that was sent is read back, and nothing else is accepted.

use proptest::prelude::*;

use super::super::record::{C_SUPERBLOCK, RECORD_MAX, RecordError, decode, encode};
use super::*;

fn sent() -> (Facts, Vec<u8>) {
    let mut facts = facts(1, 3);
    facts.history = vec![generation(4), generation(3)];
    facts.of(2).generation = generation(3).noting(true);
    facts.of(2).out_of_sync = 77;
    let bytes = encode(&facts);
    (facts, bytes)
}

fn read(bytes: &[u8]) -> Result<Facts, RecordError> {
    decode(bytes, site(1), ResourceId::try_from(3).unwrap())
}

#[test]
fn a_record_comes_in_as_it_went_out() {
    let (facts, bytes) = sent();
    let back = read(&bytes).unwrap();
    assert_eq!(back, facts);
    assert!(back.bitmap_of(site(2)).was_primary());
}

#[test]
fn the_c_module_reads_a_superblock_without_primary() {
    let (_, bytes) = sent();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), 0x3e95_3ac1_6a42_27b9);
    assert_eq!((bytes[8], bytes[328], bytes[384]), (3, 255, 255));
    assert_eq!((number(336), number(344), number(392), number(400)), (0, 0, 0, 0));
    assert_eq!(&bytes[440..448], b"HADMDSK1");
}

#[test]
fn a_c_module_is_recognised_and_told_apart_from_garbage() {
    let (_, bytes) = sent();
    assert_eq!(read(&[0; C_SUPERBLOCK]), Err(RecordError::CModule));
    assert!(RecordError::CModule.to_string().contains("hadm_kmod"));
    assert_eq!(read(&[]), Err(RecordError::Length(0)));
    assert_eq!(read(&bytes[..439]), Err(RecordError::Length(439)));
    assert_eq!(read(&vec![0; 441]), Err(RecordError::Head));
    assert_eq!(read(&vec![0; RECORD_MAX + 1]), Err(RecordError::Length(RECORD_MAX + 1)));
}

#[test]
fn an_unknown_entry_is_skipped_and_an_unknown_critical_feature_refused_by_name() {
    let (facts, mut bytes) = sent();
    bytes.extend_from_slice(&[0x39, 0x30, 3, 0, 1, 2, 3]);
    assert_eq!(read(&bytes).unwrap(), facts);
    bytes[452 + 3] = 0x80;
    let error = read(&bytes).unwrap_err();
    assert_eq!(error, RecordError::Features(1 << 31));
    assert!(error.to_string().contains("bit 31; upgrade"), "{error}");
    bytes[452 + 3] = 0;
    bytes[448] = 2;
    bytes[450] = 9;
    assert_eq!(read(&bytes), Err(RecordError::Version(2, 9)));
    bytes[448] = 1;
    assert_eq!(read(&bytes).unwrap(), facts);
}

#[test]
fn a_record_of_a_program_without_abilities_is_read() {
    let (mut facts, bytes) = sent();
    let entry = [[7, 0, 16, 0], 1_u32.to_le_bytes(), [0; 4]].concat();
    let at = bytes.windows(entry.len()).position(|part| part == entry).unwrap();
    let older = [&bytes[..at], &bytes[at + 20..]].concat();
    (facts.abilities, facts.log_room) = (0, 0);
    assert_eq!(read(&older).unwrap(), facts);
}

#[test]
fn every_cut_of_a_record_is_refused() {
    let (_, bytes) = sent();
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn what_an_entry_cannot_say_is_refused() {
    let (facts, bytes) = sent();
    let other = decode(&bytes, site(0), facts.resource);
    assert_eq!(other, Err(RecordError::Sender));
    let broken = |change: fn(&mut Facts)| {
        let mut facts = facts.clone();
        change(&mut facts);
        read(&encode(&facts)).unwrap_err()
    };
    assert_eq!(broken(|facts| facts.chunk_shift = 30), RecordError::Entry("the disk"));
    assert_eq!(broken(|facts| facts.members = Mask(1)), RecordError::Entry("the disk"));
    assert_eq!(broken(|facts| facts.of(2).site = site(0)), RecordError::Entry("the other sites"));
    assert_eq!(broken(|facts| facts.of(2).site = site(1)), RecordError::Entry("the other sites"));
    assert_eq!(broken(|facts| facts.history[0] = Generation::NONE), RecordError::Entry("former generations"));
    assert_eq!(broken(|facts| facts.software = "\u{1b}[2J".into()), RecordError::Entry("the software"));
    assert_eq!(broken(|facts| facts.follows = Some(site(1))), RecordError::Entry("the site"));
    let mut twice = bytes.clone();
    twice.extend_from_slice(&[6, 0, 0, 0]);
    assert_eq!(read(&twice), Err(RecordError::Count("the software")));
}

#[test]
fn ends_with_different_records_or_results_do_not_replicate() {
    let (mut a, b) = (facts(0, 2), facts(1, 2));
    a.current = Generation::JUST_CREATED;
    let (one, other) = (encode(&a), encode(&b));
    let nonce = session((a.site, &one), (b.site, &other));
    assert_eq!(nonce, session((b.site, &other), (a.site, &one)));
    let mine = Statement::new(b.nonce, nonce, &decide(&a, &b));
    let theirs = Statement::new(a.nonce, nonce, &decide(&b, &a));
    assert_eq!(mine.check(&theirs.encode(), a.nonce), Ok(()));
    assert_eq!(theirs.check(&mine.encode(), b.nonce), Ok(()));

    assert_eq!(mine.check(&theirs.encode(), a.nonce + 1), Err(Disagreement::Stale));
    let mut changed = other.clone();
    *changed.last_mut().unwrap() ^= 1;
    let elsewhere = session((a.site, &one), (b.site, &changed));
    assert_ne!(elsewhere, nonce);
    let theirs = Statement::new(a.nonce, elsewhere, &decide(&b, &a));
    assert_eq!(mine.check(&theirs.encode(), a.nonce), Err(Disagreement::Records));
    a.current = b.current;
    let theirs = Statement::new(a.nonce, nonce, &decide(&b, &a));
    assert_eq!(mine.check(&theirs.encode(), a.nonce), Err(Disagreement::Decision));
    assert_eq!(mine.check(b"HADMDSA1", a.nonce), Err(Disagreement::Form));
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_is_read_is_written_back(at in 440usize..900, byte: u8, cut in 0usize..900) {
        let (_, mut bytes) = sent();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.truncate(cut.max(441));
        if let Ok(facts) = read(&bytes) {
            prop_assert_eq!(read(&encode(&facts)), Ok(facts));
        }
    }
}
