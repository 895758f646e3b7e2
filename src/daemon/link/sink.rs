//! The receiver of the packets that are read from a link.
//!
//! The interface alone: `daemon/route` has the receivers.

use super::{Closed, Item, Piped, Run};

/// The receiver of the items that a link's reading end found. It may block: then nothing more is read from this link,
/// so that a full queue slows its source down.
pub trait Sink {
    /// Takes one item.
    ///
    /// # Errors
    /// The reason for which the link cannot go on.
    fn take(&mut self, item: Item) -> Result<(), Closed>;

    /// Is called after each read that brought bytes, a whole packet or not, before [`Sink::take`] gets their items.
    fn heard(&mut self) {}

    /// Answers whether packets like those of this run, which has no bytes yet, may be given to [`Sink::take_piped`].
    fn takes_pipes(&self, _: &Run) -> TakesPipes {
        TakesPipes::No
    }

    /// Takes a run whose bytes lie in a pipe.
    ///
    /// # Errors
    /// Those of [`Sink::take`].
    fn take_piped(&mut self, run: Run, piped: Piped) -> Result<(), Closed> {
        let bytes = piped.into_bytes().map_err(Closed::Broken)?;
        self.take(Item::Run(Run { bytes, ..run }))
    }
}

/// The answer of a [`Sink`] whether it takes packets in a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakesPipes {
    /// It takes them.
    Yes,
    /// It takes others, perhaps: these have several recipients, or an encoder.
    No,
    /// It takes them when their queue is shorter.
    Later,
}
