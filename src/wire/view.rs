//! A daemon's view of its own connections: the payload of a packet HD_VIEW.
//!
//! It goes on the meta link, only to peers whose record says [`crate::wire::FEATURE_VIEWS`], and ends at the
//! daemon: no kernel module and no C daemon ever sees one. A receiver must not pass it on.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version of the payload, 1 or 2 |
//! | 1 | 3 | zero, ignored |
//! | 4 | 4 | the ids the sender is connected with: nodes, or on a site link the sites of that resource |
//! | 8 | 4 | milliseconds since that last changed; the largest number stands for all above it |
//! | 12 | to the end | version 2 only: a record as behind the hello, without its length field |
//!
//! Version 2 goes only to peers whose record says [`crate::wire::FEATURE_RECORDS`]. The record says what may change
//! while a session lasts: the configuration, and the logs that the sender owns.

use std::time::Duration;

use super::{EXTENSION_MAX, Extension, Mask, Refusal};

/// Bytes of the payload of version 1.
const VIEW_LEN: usize = 12;
const PLAIN: u8 = 1;
const WITH_RECORD: u8 = 2;

/// The peers that the sender is connected with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Nodes, or sites of one resource.
    pub mask: Mask,
    /// Time since they last changed, in whole milliseconds on the wire.
    pub unchanged: Duration,
    /// The facts about the sender that may change in a session; `None` in version 1.
    pub record: Option<Extension>,
}

impl PeerView {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        let version = if self.record.is_some() { WITH_RECORD } else { PLAIN };
        let mut bytes = vec![version, 0, 0, 0];
        bytes.extend_from_slice(&self.mask.0.to_le_bytes());
        let unchanged = u32::try_from(self.unchanged.as_millis()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&unchanged.to_le_bytes());
        if let Some(record) = &self.record {
            bytes.extend(record.encode().into_iter().skip(size_of::<u16>()));
        }
        bytes
    }

    /// Reads a payload, of version 2 only where that was agreed.
    ///
    /// # Errors
    /// [`Refusal::View`] if its length, version or record is not as agreed.
    pub fn decode(payload: &[u8], has_record: bool) -> Result<Self, Refusal> {
        let refusal =
            || Refusal::View { len: payload.len(), version: payload.first().copied().unwrap_or_default() };
        let (head, rest) = payload.split_first_chunk::<VIEW_LEN>().ok_or_else(refusal)?;
        let [version, _, _, _, m0, m1, m2, m3, u0, u1, u2, u3] = *head;
        let record = match (version, rest) {
            (PLAIN, []) => None,
            (WITH_RECORD, record) if has_record && record.len() <= EXTENSION_MAX => {
                Some(Extension::decode(record).map_err(|_| refusal())?)
            }
            _ => return Err(refusal()),
        };
        Ok(PeerView {
            mask: Mask(u32::from_le_bytes([m0, m1, m2, m3])),
            unchanged: Duration::from_millis(u32::from_le_bytes([u0, u1, u2, u3]).into()),
            record,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let view =
            PeerView { mask: Mask(0x8000_0005), unchanged: Duration::from_millis(0x0102_0304), record: None };
        assert_eq!(view.encode(), [1, 0, 0, 0, 5, 0, 0, 0x80, 4, 3, 2, 1]);
        let long = PeerView { unchanged: Duration::from_secs(1 << 40), ..view.clone() };
        assert_eq!(long.encode()[8..], [0xff; 4]);
        let owner =
            PeerView { record: Some(Extension { owned: Some(Vec::new()), ..Extension::default() }), ..view };
        assert_eq!(owner.encode(), [2, 0, 0, 0, 5, 0, 0, 0x80, 4, 3, 2, 1, 1, 2, 1, 1, 9, 0]);
    }

    #[test]
    fn what_was_not_agreed_is_refused() {
        let good = PeerView::default().encode();
        assert!(PeerView::decode(&good, false).is_ok() && PeerView::decode(&good, true).is_ok());
        for version in [0, 2, 3] {
            let mut other = good.clone();
            other[0] = version;
            assert_eq!(PeerView::decode(&other, true).is_ok(), version == 2);
            assert!(PeerView::decode(&other, false).is_err());
        }
        assert!(PeerView::decode(&good[..11], true).is_err());
        assert!(PeerView::decode(&[&good[..], &[0]].concat(), true).is_err());
        let mut long = PeerView { record: Some(Extension::default()), ..PeerView::default() }.encode();
        long.extend([77, 0].repeat(EXTENSION_MAX / 2));
        assert!(PeerView::decode(&long, true).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(view) = PeerView::decode(&bytes, true) {
                prop_assert_eq!(PeerView::decode(&view.encode(), true), Ok(view));
            }
        }
    }
}
