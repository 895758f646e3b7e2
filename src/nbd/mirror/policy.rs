//! The policy for a split brain without a person: nothing is done, unless it was configured.
//!
//! Both sites have to be configured alike. A policy must never decide by what only one of the two knows, and where
//! it gives no clear answer the answer is to disconnect. Called by the decision of the handshake.

use super::choices::{OnePrimary, TwoPrimaries, ZeroPrimaries};
use super::facts::Facts;
use crate::wire::SiteId;

/// The site that gives its changes up by policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The site that gives its changes up.
    pub site: SiteId,
    /// True if it is primary now and is to be demoted.
    pub demote: bool,
}

/// The site whose changes go; `None`: a person has to say.
pub fn resolve(a: &Facts, b: &Facts) -> Option<Victim> {
    let policies = a.policies;
    let by_zero = by_zero_primaries(a, b);
    let is_primary = |site| if site == a.site { a.is_primary() } else { b.is_primary() };
    let (site, may_demote) = match (a.is_primary(), b.is_primary()) {
        (false, false) => (by_zero, false),
        (true, true) => match policies.two {
            TwoPrimaries::Disconnect | TwoPrimaries::CallHelper => return None,
            TwoPrimaries::Violently => (by_zero, true),
        },
        (a_is_primary, _) => match policies.one {
            OnePrimary::Disconnect => return None,
            OnePrimary::Consensus | OnePrimary::CallHelper => (by_zero, false),
            OnePrimary::DiscardSecondary => (Some(if a_is_primary { b.site } else { a.site }), false),
            OnePrimary::Violently => (by_zero, true),
        },
    };
    let site = site?;
    let demote = is_primary(site);
    (may_demote || !demote).then_some(Victim { site, demote })
}

/// The primary whose changes would go if it were none, where a program is to be called there.
pub fn primary_to_help(a: &Facts, b: &Facts) -> Option<SiteId> {
    let calls = match (a.is_primary(), b.is_primary()) {
        (false, false) => false,
        (true, true) => a.policies.two == TwoPrimaries::CallHelper,
        _ => a.policies.one == OnePrimary::CallHelper,
    };
    let hit = by_zero_primaries(a, b).filter(|_| calls)?;
    [a, b].into_iter().find(|at| at.site == hit && at.is_primary()).map(|at| at.site)
}

fn by_zero_primaries(a: &Facts, b: &Facts) -> Option<SiteId> {
    if let Some(site) = a.policies.discard_site.filter(|site| *site == a.site || *site == b.site) {
        return Some(site);
    }
    // The slot notes the role in which a site parted from the other.
    let (a_was, b_was) = (a.bitmap_of(b.site).was_primary(), b.bitmap_of(a.site).was_primary());
    let (a_changed, b_changed) = (a.out_of_sync(b.site), b.out_of_sync(a.site));
    let only = |a_alone: bool, b_alone: bool| match (a_alone, b_alone) {
        (true, false) => Some(a.site),
        (false, true) => Some(b.site),
        _ => None,
    };
    match a.policies.zero {
        ZeroPrimaries::Disconnect => None,
        ZeroPrimaries::DiscardYounger => only(b_was, a_was),
        ZeroPrimaries::DiscardOlder => only(a_was, b_was),
        ZeroPrimaries::DiscardZeroChanges => only(a_changed == 0, b_changed == 0),
        ZeroPrimaries::DiscardLeastChanges => only(a_changed < b_changed, b_changed < a_changed),
    }
}
