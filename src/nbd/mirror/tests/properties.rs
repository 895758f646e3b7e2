//! Properties that hold for any facts, however unlikely.

use proptest::prelude::*;

use super::*;

prop_compose! {
    fn any_slot()(flags in 0u32..64, number in 0u64..6, stable in 8u64..12, out_of_sync in 0u64..3)
        -> (SlotFlags, Generation, u64, u64)
    {
        let generation = if number == 0 { Generation::NONE } else { generation(number) };
        (SlotFlags::from_bits(flags).unwrap(), generation, stable, out_of_sync << 16)
    }
}

prop_compose! {
    fn any_facts(id: u32)(
        flags in 0u32..1024,
        current in 0u64..7,
        history in proptest::collection::vec(1u64..6, 0..3),
        slots in [any_slot(), any_slot()],
        primary: bool,
        last_session in 0u64..2,
        follows in 0u32..6,
        writes in 9u64..11,
    ) -> Facts {
        let mut facts = facts(id, 3);
        facts.flags = DiskFlags::from_bits(flags).unwrap();
        facts.current = match current {
            0 => Generation::NONE,
            6 => Generation::JUST_CREATED,
            number => generation(number),
        };
        facts.history = history.into_iter().map(generation).collect();
        for (slot, (flags, generation, stable, out_of_sync)) in facts.slots.iter_mut().zip(slots) {
            (slot.flags, slot.generation, slot.stable, slot.out_of_sync) = (flags, generation, stable, out_of_sync);
        }
        facts.role = if primary { Role::Primary } else { Role::Secondary };
        facts.follows = (!primary && follows == 2).then(|| site(2));
        (facts.last_session, facts.write_counter) = (last_session, writes);
        facts
    }
}

/// Returns true if the disk is fit to be copied from: whole, and not known to be old.
fn is_good(facts: &Facts) -> bool {
    facts.is_usable() && !facts.is_outdated() && facts.current.has_data()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn both_ends_decide_alike(a in any_facts(0), b in any_facts(1)) {
        let decision = decide(&a, &b);
        prop_assert_eq!(decision, decide(&b, &a));
        prop_assert_eq!(decision.sentence(&a, &b), decision.sentence(&b, &a));
    }

    #[test]
    fn no_bad_disk_is_the_source_for_a_good_one(a in any_facts(0), b in any_facts(1)) {
        if let Outcome::Sync { source, .. } = decide(&a, &b).outcome {
            let (source, target) = if source == a.site { (&a, &b) } else { (&b, &a) };
            prop_assert!(source.is_usable() && source.current.has_data());
            prop_assert!(is_good(source) || !is_good(target));
            prop_assert!(!source.is_rolled_back(target));
        }
    }

    #[test]
    fn merged_histories_are_never_accepted_without_a_word(a in any_facts(0), b in any_facts(1)) {
        let decision = decide(&a, &b);
        let told = a.flags.contains(DiskFlags::DISCARD) || b.flags.contains(DiskFlags::DISCARD);
        let is_known = |older: &Facts, newer: &Facts| {
            older.current.is_just_created()
                || !older.current.is_some()
                || older.current == newer.current
                || older.answered() == Some(newer.current)
                || newer.ancestors().any(|former| former == older.current || older.answered() == Some(former))
        };
        if let Outcome::Sync { source, .. } = decision.outcome {
            let (source, target) = if source == a.site { (&a, &b) } else { (&b, &a) };
            prop_assert!(told || is_known(target, source));
            prop_assert!(!(a.is_primary() && b.is_primary() && decision.demote.is_none()));
            // No site is overwritten while it serves good data; it leaves the role first if it answers nothing.
            let gives_way = decision.demote == Some(target.site) && target.flags.contains(DiskFlags::LOST_QUORUM);
            prop_assert!(!(target.is_primary() && target.is_usable()) || gives_way);
        }
    }

    #[test]
    fn equal_is_said_only_of_equal_generations_without_marks(a in any_facts(0), b in any_facts(1)) {
        let decision = decide(&a, &b);
        if decision.outcome == Outcome::NoSync {
            prop_assert_eq!(a.current, b.current);
            prop_assert!(a.is_usable() && b.is_usable());
            let unmarked = |facts: &Facts, peer| facts.out_of_sync(peer) == 0 && !facts.bitmap_of(peer).is_some();
            prop_assert!(decision.row == Row::BothZeroed || (unmarked(&a, b.site) && unmarked(&b, a.site)));
            prop_assert!(!a.is_crashed_primary() && !b.is_crashed_primary() || decision.row == Row::BothZeroed);
        }
    }
}
