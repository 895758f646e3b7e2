//! hadmd
pub mod config;
pub mod core;
pub mod queue;
pub mod wire;
