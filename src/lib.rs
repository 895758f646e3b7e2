//! hadmd
pub mod config;
pub mod core;
pub mod link;
pub mod queue;
pub mod sys;
pub mod wire;
