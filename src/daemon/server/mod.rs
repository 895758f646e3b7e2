//! The control socket: its clients, their requests, and the answers.
//!
//! Requests and answers are lines in the form of [`crate::control`]. Nothing here touches the data path: requests go
//! to the timer thread, which answers from its state, and a client that does not read its answers is disconnected.

mod clients;
mod doctor;
mod names;
mod port;
mod reload;
mod scrape;
mod socket;
mod verdict;

pub use names::{Answer, Names};
pub use reload::{Parse, Reloads};
pub use scrape::Scrape;
pub use socket::{Kind, Loader, Server, listen, serve};

use crossbeam::channel::{Receiver, Sender};

use crate::config::Config;
use crate::control::{Line, Request};

/// Group whose members may send requests, where it exists.
pub const GROUP: &str = "hadm";
/// Most clients at the same time.
pub const MAX_CLIENTS: usize = 16;
/// Most clients at the same time that are neither root's nor the daemon's own user's, for whom the rest is kept.
pub const MAX_OTHERS: usize = 12;
/// Most clients at the same time of one such user.
pub const MAX_OF_A_USER: usize = 8;
/// Most clients at the same time that listen to a stream: the rest of the places are for requests.
pub const MAX_STREAMS: usize = 12;
/// Most lines that may wait for a client; one that falls further behind is disconnected.
pub const BACKLOG: usize = 1024;

/// A checked configuration, and warnings about its file, ready to be shown.
pub type Loaded = (Config, Vec<String>);

/// A request on its way to the timer thread, and the channel for its answer. Lines beyond the channel's capacity are
/// left out, and the sender is dropped: the client is disconnected.
pub struct ControlRequest {
    /// The request.
    pub request: Request,
    /// The checked configuration of a reload or plan, with the warnings about its file.
    pub config: Option<Box<Loaded>>,
    /// The channel for the lines of the answer.
    pub reply: Sender<Line>,
    /// Disconnected when no client waits for the answer any more.
    pub gone: Receiver<()>,
}
