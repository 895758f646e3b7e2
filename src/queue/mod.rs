//! What bounds the queues and keeps the books.
//!
//! Whoever wants to queue something first gets a [`Hold`] from the [`Account`] that pays for it: the account
//! has a ceiling in bytes, the hold gives its share back when it is dropped. The same hold tells the
//! [`Books`] whether its packets were forwarded or dropped, so that no packet can leave them unnoticed.
//! This room knows nobody, not even packets.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod account;
mod books;

pub use account::{Account, Hold, Load, Refusal};
pub use books::{Books, Counter, DropCause, Tally};
