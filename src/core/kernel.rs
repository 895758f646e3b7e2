//! The kernel module's two links, as states.
//!
//! ```text
//!   Detached --D or M--> Half --the other--> Attached
//!      ^                  |                     |
//!      +---- time out ----+---- a link lost ----+
//! ```
//! A second D or M while that link is up is refused. `Half` is left by time-out: nobody reads a link that
//! waits for its other half, so a module that died there would otherwise be waited for for ever.

use super::HALF_LIMIT;
use super::types::{Action, AttachId, ConnId, Moment};
use crate::wire::Class;

#[derive(Debug)]
pub(super) enum Kernel {
    Detached,
    Half { class: Class, conn: ConnId, until: Moment },
    Attached(AttachId),
}

impl Kernel {
    pub fn is_attached(&self) -> bool {
        matches!(self, Kernel::Attached(_))
    }

    pub fn deadline(&self) -> Option<Moment> {
        match self {
            Kernel::Half { until, .. } => Some(*until),
            Kernel::Detached | Kernel::Attached(_) => None,
        }
    }

    /// A handshake packet on a new connection; `false` refuses it.
    pub fn hello(
        &mut self,
        now: Moment,
        class: Class,
        conn: ConnId,
        attach: AttachId,
        out: &mut Vec<Action>,
    ) -> bool {
        match *self {
            Kernel::Detached => {
                out.push(Action::AckKernel { conn, class });
                *self = Kernel::Half { class, conn, until: now + HALF_LIMIT };
                true
            }
            Kernel::Half { class: first, conn: other, .. } if first != class => {
                let (data, meta) = if class == Class::Data { (conn, other) } else { (other, conn) };
                out.push(Action::AckKernel { conn, class });
                out.push(Action::AttachKernel { attach, data, meta });
                *self = Kernel::Attached(attach);
                true
            }
            Kernel::Half { .. } | Kernel::Attached(_) => false,
        }
    }

    /// A link of this stay is gone; `false` if the stay is over already.
    pub fn lost(&mut self, attach: AttachId) -> bool {
        let current = matches!(*self, Kernel::Attached(id) if id == attach);
        if current {
            *self = Kernel::Detached;
        }
        current
    }

    /// The half that waits has gone; `false` if it is not this one that waits.
    pub fn half_lost(&mut self, lost: ConnId) -> bool {
        let current = matches!(*self, Kernel::Half { conn, .. } if conn == lost);
        if current {
            *self = Kernel::Detached;
        }
        current
    }

    /// The half that waited in vain, if its time is over.
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
