//! A resource's disk at this site: its metadata on `bwr_disk`, and the data disk itself.
//!
//! Nothing here may decide about the mirror: the core says which block is written, and when. `format` is pure bytes;
//! the rest reads and writes. Called by the runner of the mirror and by `hadm-nbd init`, `check` and `dump`.

pub mod adopt;
pub mod bitmap;
pub mod check;
pub mod content;
pub mod data;
pub mod device;
pub mod dump;
pub mod format;
pub mod init;
pub mod pool;
pub mod store;
mod users;
pub mod volume;
pub mod witness;
pub mod words;

#[cfg(test)]
mod tests;

pub use bitmap::Bitmap;
