//! The configuration file (XML): read, checked whole, and turned into a [`Config`].
//!
//! Every error of a file is found in one run, each with its line and column, the value found and what would
//! be right. Nothing in this room starts, listens or logs; a configuration that was refused leaves no trace.
//! The binaries call [`Config::read`]; whoever has the text already calls [`parse`].
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod cluster;
mod digest;
mod element;
mod file;
mod global;
mod model;
mod problem;
mod value;

#[cfg(test)]
mod tests;

pub use file::{FILE_MAX, Loaded, Resolver, parse};
pub use model::*;
pub use problem::{ConfigError, Problem, Severity};
