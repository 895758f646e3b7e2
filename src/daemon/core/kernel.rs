//! The kernel module's two links, as states.
//!
//! ```text
//!   Detached --D or M--> Half --the other--> Attached
//!      ^                  |                     |
//!      +---- time out ----+---- a link lost ----+
//! ```
//! A second D or M while that link is up is refused, and so is one whose socket belongs to another user than that of
//! the waiting half. `Half` is left by time-out: no thread reads a link that waits for its other half, so the core
//! would wait for ever for a module that died there.
//!
//! Pure: knows connections by their ids only. Used by the core alone.

use super::HALF_LIMIT;
use super::types::{Action, AttachId, ConnId, KernelRefusal, Moment};
use crate::wire::Class;

#[derive(Debug)]
pub(super) enum Kernel {
    Detached,
    Half { class: Class, conn: ConnId, uid: Option<u32>, until: Moment },
    Attached(AttachId),
}

impl Kernel {
    pub fn is_attached(&self) -> bool {
        matches!(self, Kernel::Attached(_))
    }

    /// Returns the waiting half that a link of this class and user would complete.
    pub fn waits_for(&self, class: Class, uid: Option<u32>) -> Option<ConnId> {
        match *self {
            Kernel::Half { class: first, conn, uid: other, .. } if first != class && other == uid => {
                Some(conn)
            }
            _ => None,
        }
    }

    pub fn deadline(&self) -> Option<Moment> {
        match self {
            Kernel::Half { until, .. } => Some(*until),
            Kernel::Detached | Kernel::Attached(_) => None,
        }
    }

    /// Takes a handshake packet that came on a new connection.
    ///
    /// # Errors
    /// The reason for which it is refused.
    pub fn hello(
        &mut self,
        now: Moment,
        (class, conn, uid): (Class, ConnId, Option<u32>),
        attach: AttachId,
        out: &mut Vec<Action>,
    ) -> Result<(), KernelRefusal> {
        match *self {
            Kernel::Detached => {
                out.push(Action::AckKernel { conn, class });
                *self = Kernel::Half { class, conn, uid, until: now + HALF_LIMIT };
                Ok(())
            }
            Kernel::Half { class: first, uid: other, .. } if first != class && other != uid => {
                Err(KernelRefusal::OtherUser(other))
            }
            Kernel::Half { class: first, conn: other, .. } if first != class => {
                let (data, meta) = if class == Class::Data { (conn, other) } else { (other, conn) };
                out.push(Action::AckKernel { conn, class });
                out.push(Action::AttachKernel { attach, data, meta });
                *self = Kernel::Attached(attach);
                Ok(())
            }
            Kernel::Half { .. } | Kernel::Attached(_) => Err(KernelRefusal::Second),
        }
    }

    /// Ends this stay because a link is gone; `false` if the stay is over already.
    pub fn lost(&mut self, attach: AttachId) -> bool {
        let current = matches!(*self, Kernel::Attached(id) if id == attach);
        if current {
            *self = Kernel::Detached;
        }
        current
    }

    /// Drops the half that waits; `false` if `lost` is not that half.
    pub fn half_lost(&mut self, lost: ConnId) -> bool {
        let current = matches!(*self, Kernel::Half { conn, .. } if conn == lost);
        if current {
            *self = Kernel::Detached;
        }
        current
    }

    /// Drops the half that waits if its time is over, and returns it.
    pub fn expire(&mut self, now: Moment) -> Option<ConnId> {
        match *self {
            Kernel::Half { conn, until, .. } if until <= now => {
                *self = Kernel::Detached;
                Some(conn)
            }
            _ => None,
        }
    }
}
