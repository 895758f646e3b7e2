//! The mirrored disk in user space: the kernel module's work, served over NBD.
//!
//! | module | its job |
//! |---|---|
//! | [`args`] | the command line |
//! | [`core`] | the state machine of a mirrored disk |
//! | [`disk`] | metadata on `bwr_disk`, and the data disk |
//! | [`mirror`] | decisions without input and output: the newer data, and the resulting actions |
//! | [`run`] | `hadm-nbd run`: threads, the attachment to the daemon, the control socket |
//! | [`server`] | NBD: clients, their requests, and the limits of both |

pub mod args;
#[allow(dead_code, reason = "the simulator uses more of it than the program")]
pub mod core;
pub mod disk;
pub mod mirror;
pub mod run;
pub mod server;
