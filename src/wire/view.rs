//! A daemon's view of its own connections: the payload of a packet HD_VIEW.
//!
//! It goes on the meta link, only to peers whose record says [`crate::wire::FEATURE_VIEWS`], and ends at the
//! daemon: no kernel module and no C daemon ever sees one. A receiver must not pass it on.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version of the payload, 1 |
//! | 1 | 3 | zero, ignored |
//! | 4 | 4 | the ids the sender is connected with: nodes, or on a site link the sites of that resource |
//! | 8 | 4 | milliseconds since that last changed; the largest number stands for all above it |

use std::time::Duration;

use super::{Mask, Refusal};

/// Bytes of the payload.
pub const VIEW_LEN: usize = 12;
const VERSION: u8 = 1;

/// The peers that the sender is connected with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Nodes, or sites of one resource.
    pub mask: Mask,
    /// Time since they last changed, in whole milliseconds on the wire.
    pub unchanged: Duration,
}

impl PeerView {
    /// Returns the payload.
    pub fn encode(&self) -> [u8; VIEW_LEN] {
        let mut bytes = [0; VIEW_LEN];
        bytes[0] = VERSION;
        bytes[4..8].copy_from_slice(&self.mask.0.to_le_bytes());
        let unchanged = u32::try_from(self.unchanged.as_millis()).unwrap_or(u32::MAX);
        bytes[8..12].copy_from_slice(&unchanged.to_le_bytes());
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`Refusal::View`] if its length or version is not that of the feature.
    pub fn decode(payload: &[u8]) -> Result<Self, Refusal> {
        match *payload {
            [VERSION, _, _, _, m0, m1, m2, m3, u0, u1, u2, u3] => Ok(PeerView {
                mask: Mask(u32::from_le_bytes([m0, m1, m2, m3])),
                unchanged: Duration::from_millis(u32::from_le_bytes([u0, u1, u2, u3]).into()),
            }),
            _ => Err(Refusal::View {
                len: payload.len(),
                version: payload.first().copied().unwrap_or_default(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let view = PeerView { mask: Mask(0x8000_0005), unchanged: Duration::from_millis(0x0102_0304) };
        assert_eq!(view.encode(), [1, 0, 0, 0, 5, 0, 0, 0x80, 4, 3, 2, 1]);
        let long = PeerView { unchanged: Duration::from_secs(1 << 40), ..view };
        assert_eq!(long.encode()[8..], [0xff; 4]);
    }

    #[test]
    fn another_version_or_length_is_refused() {
        let good = PeerView::default().encode();
        assert!(PeerView::decode(&good).is_ok());
        let mut newer = good;
        newer[0] = 2;
        assert!(PeerView::decode(&newer).is_err());
        assert!(PeerView::decode(&good[..11]).is_err());
        assert!(PeerView::decode(&[&good[..], &[0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(view) = PeerView::decode(&bytes) {
                prop_assert_eq!(PeerView::decode(&view.encode()), Ok(view));
            }
        }
    }
}
