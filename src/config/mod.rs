//! The configuration file (XML).
mod model;
pub use model::*;
