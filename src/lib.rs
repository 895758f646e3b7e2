//! A daemon that carries the packets of a disk mirror's kernel module between the nodes of a cluster.
//!
//! ```text
//!                    reader             queue and writer
//!  kernel module ==> device ==> route ==> peer's outlet ==net==> peer
//!  kernel module <== device's outlet <== route <== peer <==net== peer
//! ```
//!
//! One room an idea; whoever stands higher may use whoever stands lower, never the other way round:
//!
//! | room | its idea |
//! |---|---|
//! | [`timer`] | owns the core and the one schedule; carries out what the core decides |
//! | [`control`] | the control socket: who asks, what may be asked |
//! | [`connect`] | the reactor: accepts, calls, handshakes |
//! | [`route`] | who gets a packet |
//! | [`device`], [`peer`] | the two kinds of ends: the kernel module, and everyone else |
//! | [`link`] | one TCP link: bytes to runs of packets, queue to socket |
//! | [`core`] | what is decided, without input and output |
//! | [`config`] | the XML file |
//! | [`keys`] | the cluster's key file |
//! | [`kmod`] | whether the kernel module is loaded |
//! | [`log`] | where log lines go, and how many |
//! | [`queue`] | what bounds the queues and keeps the books |
//! | [`sys`] | the few calls std has no word for |
//! | [`wire`] | the bytes |
//!
//! Two more programs live here: [`probe`] plays the kernel module and shares nothing but `wire`; [`ctl`] asks a
//! running daemon over its control socket.

// What comes in must not be able to end the program. Cargo.toml denies what says panic by name; rooms that take
// numbers from outside deny arithmetic that could go over an end, too.
#![deny(clippy::indexing_slicing)]
#![cfg_attr(not(test), deny(clippy::string_slice))]

pub mod config;
pub mod connect;
pub mod control;
pub mod core;
pub mod ctl;
pub mod device;
pub mod keys;
pub mod kmod;
pub mod link;
pub mod log;
pub mod peer;
pub mod probe;
pub mod queue;
pub mod route;
pub mod sys;
pub mod timer;
pub mod wire;
