//! The resources whose logs this node owns: those whose floating address it holds.
//!
//! A node is the log owner of a resource while this machine has the floating address of the resource's local runsite,
//! and can bind it. Knows no interface: the machine's addresses come as an event. Used by the core alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::types::Action;
use crate::wire::ResourceId;

/// The owned resources, and the addresses that they follow from.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    held: Vec<IpAddr>,
    pub owned: BTreeSet<ResourceId>,
}

impl Ownership {
    /// Takes the addresses that the machine has now.
    pub fn hold(&mut self, held: Vec<IpAddr>) {
        self.held = held;
    }

    /// Judges anew; returns the action that follows if anything has changed.
    pub fn judge(&mut self, resources: &[(ResourceId, IpAddr)]) -> Option<Action> {
        let held = resources.iter().filter(|(_, addr)| self.held.contains(addr));
        // Not collected: that would sort, with some KiB of code for each type.
        let mut owned = BTreeSet::new();
        owned.extend(held.map(|(resource, _)| *resource));
        let before = std::mem::replace(&mut self.owned, owned.clone());
        let changes = resources.iter().filter_map(|(resource, _)| {
            let is = owned.contains(resource);
            (is != before.contains(resource)).then_some((*resource, is))
        });
        (owned != before)
            .then(|| Action::OwnershipChanged { changes: changes.collect(), owned: owned.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(id: u32) -> ResourceId {
        ResourceId::try_from(id).unwrap()
    }

    fn addr(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn changed(changes: &[(u32, bool)], owned: &[u32]) -> Option<Action> {
        let changes = changes.iter().map(|&(id, is)| (resource(id), is)).collect();
        let owned = owned.iter().map(|&id| resource(id)).collect();
        Some(Action::OwnershipChanged { changes, owned })
    }

    #[test]
    fn a_log_is_owned_while_its_floating_address_is_held() {
        let resources = [(resource(0), addr(1)), (resource(1), addr(2)), (resource(2), addr(2))];
        let mut ownership = Ownership::default();
        assert_eq!(ownership.judge(&resources), None, "nothing is owned before the first look");
        ownership.hold([addr(2), addr(9)].into());
        assert_eq!(ownership.judge(&resources), changed(&[(1, true), (2, true)], &[1, 2]));
        assert_eq!(ownership.judge(&resources), None, "no news the second time");
        ownership.hold([addr(1)].into());
        assert_eq!(ownership.judge(&resources), changed(&[(0, true), (1, false), (2, false)], &[0]));
        ownership.hold(Vec::new());
        assert_eq!(ownership.judge(&resources), changed(&[(0, false)], &[]));
    }

    #[test]
    fn another_configuration_is_judged_by_the_addresses_seen_last() {
        let mut ownership = Ownership::default();
        ownership.hold([addr(1)].into());
        assert_eq!(ownership.judge(&[(resource(0), addr(1))]), changed(&[(0, true)], &[0]));
        assert_eq!(ownership.judge(&[(resource(0), addr(2))]), changed(&[(0, false)], &[]));
        assert_eq!(ownership.judge(&[(resource(0), addr(1))]), changed(&[(0, true)], &[0]));
        // A resource that is no longer configured is owned no longer, and nothing is reported of it.
        assert_eq!(ownership.judge(&[]), changed(&[], &[]));
    }
}
