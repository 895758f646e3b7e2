//! The bytes: packet header, packet types and the hello of a peer link.
//!
//! Everything here is a pure function of bytes. Nothing in this module knows sockets, threads or
//! configuration. All integers are little-endian on the wire, on every CPU. The numbers are fixed by the
//! kernel module and by the C daemons that may share a cluster with this one: none of them can change.
//!
//! # Between two hadmd
//!
//! Two hadmd that both speak the hello's extension exchange a record behind hello and ACK, the caller first: a length
//! (u16), then entries of type (u8), length (u8) and value. All numbers are little-endian; a receiver skips types that
//! it does not know.
//!
//! | type | value |
//! |---|---|
//! | 1 | first and last protocol version, a byte each |
//! | 2 | software version, text |
//! | 3 | digest of the cluster-wide part of the configuration, 8 bytes |
//! | 4 | number that the caller draws for each call, 8 bytes |
//! | 5 | address of the runsite that calls, text, where it does not fit into the hello |
//! | 6 | wanted compression of the rest, a byte for each: 1 is LZ4. Both sides have to want it |
//! | 7 | packets that the sender takes, 4 bytes: bit 0 for HD_VIEW, bit 1 for HD_END, bit 2 for HD_VIEW of version 2. Other bits are zero, and are ignored |
//! | 8 | digests of the configuration's parts, 6 bytes each: kind (1 `<pingtimeout>`, 2 `<maxpingcount>`, 3 a site, 4 a resource), id, the first 4 bytes of a SHA-256; several entries where one is too short, none for more than 120 parts |
//! | 9 | the resources whose logs the sender owns, a byte each; only behind a view |
//!
//! HD_VIEW, type 200, is a packet between daemons on the meta link: the sender's connections. It goes only to peers
//! whose record has bit 0 in entry 7, with every change and every 5 s, and ends there: no kernel module sees it, no
//! daemon passes it on. Its header has the sender in `node_from`, the receiver's bit in `node_to`, and in `dev_id`
//! the resource, or 255 on a node link. The payload has 12 bytes: version 1 (u8), three bytes of zero, the ids (u32,
//! a bit each: nodes, or the sites of that resource), and the milliseconds since they last changed (u32; the largest
//! number stands for all above). To peers with bit 2 goes version 2: behind these 12 bytes the entries 3, 8 and 9 as above, as
//! they are now. Any other length or version, or an HD_VIEW from a peer with which it was not agreed,
//! ends the session as every refused packet does.
//!
//! HD_END, type 201, is a header without payload, and the last packet of a data or meta link: the sender's kernel module
//! has come or gone, and the session ends for no fault of the receiver's. It goes only to peers whose record has bit 1 in
//! entry 7. One with a payload, or from a peer with which it was not agreed, ends the session as a refused packet.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod extension;
mod header;
mod hello;
mod id;
mod mirror_fields;
mod part;
mod peer_key;
mod types;
mod view;

pub use extension::{
    Compression, EXTENSION_MAX, Extension, ExtensionError, FEATURE_ENDS, FEATURE_RECORDS, FEATURE_VIEWS,
};
pub use header::{HEADER_LEN, Header, MAGIC, Refusal};
pub use hello::{HELLO_LEN, Hello, HelloError, KEYS_MAX, KeyId, KeyOffer, Mark};
pub use id::{Device, IdOutOfRange, MAX_IDS, Mask, NodeId, ResourceId, SiteId};
pub use mirror_fields::{MirrorFields, Roles};
pub use part::{ConfigPart, PartDigest};
pub use peer_key::PeerKey;
pub use types::{Class, PacketType, Scope};
pub use view::PeerView;
