//! The bytes: packet header, packet types and the hello of a peer link.
//!
//! Everything here is a pure function of bytes. Nothing in this room knows sockets, threads or
//! configuration. All integers are little-endian on the wire, on every CPU. The numbers are fixed by the
//! kernel module and by the C daemons that may share a cluster with this one: none of them can change.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod extension;
mod header;
mod hello;
mod id;
mod types;
mod view;

pub use extension::{Compression, EXTENSION_MAX, Extension, ExtensionError, FEATURE_VIEWS};
pub use header::{HEADER_LEN, Header, MAGIC, Refusal};
pub use hello::{HELLO_LEN, Hello, HelloError, KEYS_MAX, KeyId, Mark, Seal};
pub use id::{ALL_DEVICES, IdOutOfRange, MAX_IDS, Mask, NodeId, ResourceId, SiteId};
pub use types::{Class, PacketType, Scope};
pub use view::{PeerView, VIEW_LEN};
