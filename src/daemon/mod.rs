//! The daemon: the parts of `hadmd` beside the wire, the configuration and the log.

pub mod args;
pub mod connect;
pub mod core;
pub mod kernel;
pub mod kmod;
pub mod link;
pub mod peer;
pub mod pidfile;
pub mod queue;
pub mod route;
pub mod run;
pub mod server;
pub mod start;
