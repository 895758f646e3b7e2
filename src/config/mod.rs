//! The configuration file (XML): read, checked as a whole, and turned into a [`Config`].
//!
//! Every error of a file is found in one run, each with its line and column, the value found and the remedy. Nothing
//! in this module starts, listens or logs; a refused configuration leaves no trace. The binaries call
//! [`Config::read`]; callers that have the text already use [`parse`].
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod cluster;
mod digest;
mod element;
mod file;
mod global;
pub mod keys;
mod limits;
mod listeners;
pub mod mirror;
mod model;
mod problem;
mod value;

#[cfg(test)]
mod tests;

pub use file::{Loaded, Resolver, parse};
pub use global::GLOBAL_ELEMENTS;
pub use model::*;
pub use problem::{ConfigError, Problem, Severity};
pub use value::{is_stand_in, stand_in};

/// Longest configuration file in bytes: the largest cluster with every comment kept needs a tenth of it.
pub const FILE_MAX: u64 = 1 << 20;

/// Adds an item to a list in order; returns true if the list did not have it. A set would be ten times the code.
fn add_new<T: Ord>(list: &mut Vec<T>, item: T) -> bool {
    match list.binary_search(&item) {
        Ok(_) => false,
        Err(at) => {
            list.insert(at, item);
            true
        }
    }
}

/// Returns the items in the order of a key, equal ones in their own. There are few: a sort would be ten times the code.
fn in_order<T, K: Ord>(items: impl Iterator<Item = T>, id: impl Fn(&T) -> K) -> Vec<T> {
    let mut list = Vec::new();
    for item in items {
        list.insert(list.partition_point(|other| id(other) <= id(&item)), item);
    }
    list
}
