//! The choices that may be configured about a split brain, each with its name and its number in the record.
//!
//! Every default is to disconnect. Must decide nothing: `policy` and the handshake do, by the choices made here. Called
//! by the configuration and by the record.

use crate::wire::SiteId;

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $code:literal, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$item_doc])* $item,)* }

        impl Default for $name {
            fn default() -> Self {
                Self::Disconnect
            }
        }

        impl $name {
            /// All choices.
            pub const ALL: &'static [Self] = &[$(Self::$item),*];

            /// Returns the choice's name in the configuration.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$item => $word),* }
            }

            /// Returns the choice's number in the record of the handshake.
            pub const fn code(self) -> u8 {
                match self { $(Self::$item => $code),* }
            }

            /// Returns the choice of that number.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$item),)* _ => None }
            }

            /// Returns the choice of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|choice| choice.name() == name)
            }
        }
    };
}

choices! {
    /// A split brain of which no site is primary now.
    ZeroPrimaries {
        /// Stay apart.
        Disconnect = 0, "disconnect";
        /// The site that became primary later gives its changes up.
        DiscardYounger = 1, "discard-younger-primary";
        /// The site that had been primary before the sites parted gives its changes up.
        DiscardOlder = 2, "discard-older-primary";
        /// If exactly one site changed nothing, it takes the other's changes.
        DiscardZeroChanges = 3, "discard-zero-changes";
        /// The site with fewer bytes changed gives them up.
        DiscardLeastChanges = 4, "discard-least-changes";
    }
}

choices! {
    /// A split brain of which one site is primary now.
    OnePrimary {
        /// Stay apart.
        Disconnect = 0, "disconnect";
        /// The choice for no primary, if the site that gives its changes up is the secondary.
        Consensus = 1, "consensus";
        /// The secondary gives its changes up.
        DiscardSecondary = 2, "discard-secondary";
        /// The choice for no primary, even if a running primary has to leave the role for it.
        Violently = 3, "violently-as-0-primaries";
        /// The choice for no primary; where it hits the primary, a program there is called that may end its role.
        CallHelper = 4, "call-helper";
    }
}

choices! {
    /// A split brain with two primaries.
    TwoPrimaries {
        /// Stay apart.
        Disconnect = 0, "disconnect";
        /// The choice for no primary, even though a running primary has to leave the role for it.
        Violently = 1, "violently-as-0-primaries";
        /// A program is called at the primary that the choice for no primary hits, and may end its role.
        CallHelper = 2, "call-helper";
    }
}

choices! {
    /// A primary with good data of its own whose peer has newer data.
    RoleConflict {
        /// Stay apart.
        Disconnect = 0, "disconnect";
        /// The primary leaves the role and takes the newer data.
        Violently = 1, "violently";
    }
}

/// The choices that are configured at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Without a primary.
    pub zero: ZeroPrimaries,
    /// The site that gives its changes up, before the policy without a primary applies.
    pub discard_site: Option<SiteId>,
    /// With one primary.
    pub one: OnePrimary,
    /// With two primaries.
    pub two: TwoPrimaries,
    /// A primary that would have to take newer data.
    pub conflict: RoleConflict,
}
