//! hadmd
pub mod config;
pub mod connect;
pub mod core;
pub mod device;
pub mod kmod;
pub mod link;
pub mod log;
pub mod peer;
pub mod queue;
pub mod route;
pub mod sys;
pub mod timer;
pub mod wire;
