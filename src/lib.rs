//! hadmd
pub mod config;
pub mod probe;
pub mod wire;
