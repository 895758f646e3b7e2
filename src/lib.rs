//! A daemon that carries the packets of a disk mirror's kernel module between the nodes of a cluster.
//!
//! ```text
//!                    reader             queue and writer
//!  kernel module ==> kernel ==> route ==> peer's link sender ==net==> peer
//!  kernel module <== kernel's link sender <== route <== peer <==net== peer
//! ```
//!
//! One module for each idea. A module imports only from those in the last column, so that imports run one way; the
//! programs in `bin` may use everything. `tests/tools/architecture.rs` reads this table.
//!
//! | module | its idea | imports from |
//! |---|---|---|
//! | [`probe`] | `hadm-probe`: plays the kernel module | `attach` `wire` |
//! | [`ctl`] | `hadmctl`: requests to a running daemon | `config` `control` `sys` `wire` |
//! | [`daemon`] | the daemon | |
//! | [`daemon::args`] | the command line of `hadmd` | `daemon::kmod` `logging` |
//! | [`daemon::start`] | the part before and after the timer thread: log, signals, files | `attach` `config` `control` `daemon::args` `daemon::kmod` `daemon::pidfile` `daemon::route` `daemon::run` `daemon::server` `logging` `service` `sys` |
//! | [`daemon::run`] | the timer thread: owns the core and the one schedule | `attach` `config` `control` `daemon::connect` `daemon::core` `daemon::kernel` `daemon::kmod` `daemon::link` `daemon::peer` `daemon::queue` `daemon::route` `daemon::server` `logging` `service` `sys` `wire` |
//! | [`daemon::server`] | the control socket, metrics, doctor | `config` `control` `daemon::connect` `logging` `sys` `wire` |
//! | [`daemon::connect`] | the reactor: accepts, calls, handshakes | `config` `control` `daemon::core` `daemon::link` `logging` `sys` `wire` |
//! | [`daemon::route`] | the recipients of each packet | `attach` `daemon::kernel` `daemon::link` `daemon::peer` `daemon::queue` `logging` `sys` `wire` |
//! | [`daemon::kernel`] | the kernel module's links, and its connection states | `attach` `daemon::core` `daemon::link` `daemon::queue` `wire` |
//! | [`daemon::peer`] | a peer's statistics and sessions | `control` `daemon::core` `daemon::link` `daemon::queue` `logging` `sys` `wire` |
//! | [`daemon::link`] | one TCP link: bytes to runs of packets, queue to socket | `daemon::queue` `sys` `wire` |
//! | [`daemon::core`] | all decisions, without input and output | `control` `wire` |
//! | [`daemon::queue`] | the bounds of queues, and the packet counters | `sys` |
//! | [`daemon::kmod`] | the check whether the kernel module is loaded | |
//! | [`daemon::pidfile`] | the PID file | |
//! | [`nbd`] | the mirrored disk | |
//! | [`nbd::args`] | the command line of `hadm-nbd` | `attach` `config` `logging` `nbd::disk` |
//! | [`nbd::run`] | `hadm-nbd run`: threads, sockets and time around the core | `attach` `config` `control` `logging` `nbd::core` `nbd::disk` `nbd::mirror` `nbd::server` `service` `sys` `wire` |
//! | [`nbd::core`] | the state machine of a mirrored disk | `nbd::disk` `nbd::mirror` `nbd::server` `wire` |
//! | [`nbd::disk`] | metadata, bitmap, activity log and data disk | `config` `nbd::server` `sys` `wire` |
//! | [`nbd::server`] | the NBD server | `logging` `sys` |
//! | [`nbd::mirror`] | decisions about the copies | `nbd::disk` `wire` |
//! | [`attach`] | the kernel module's side of a daemon, in its own process or in this one | `wire` |
//! | [`control`] | the control protocol as types | `wire` |
//! | [`config`] | the XML file, and the cluster's key file | `sys` `wire` |
//! | [`service`] | the messages to the service manager | `logging` `sys` |
//! | [`logging`] | the log, its targets and its limits | `sys` |
//! | [`sys`] | the few system calls that std does not have | |
//! | [`wire`] | the bytes | |

// No input may end the program. Cargo.toml denies everything that is named after a panic; modules that take
// numbers from outside deny arithmetic that could overflow, too.
#![deny(clippy::indexing_slicing)]
#![cfg_attr(not(test), deny(clippy::string_slice))]

pub mod attach;
pub mod config;
pub mod control;
pub mod ctl;
pub mod daemon;
pub mod logging;
pub mod nbd;
pub mod probe;
pub mod service;
pub mod sys;
pub mod wire;
