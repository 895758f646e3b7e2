//! The witness: a site without a disk of the resource, which keeps the newest generation that a primary asked it to store.
//!
//! Its memory changes only from the content that the asking site has seen: of two sites that go on apart from the same
//! content, the second is refused. Must never change for a request that saw another content. A site that asks looks first
//! whether its own data descends from what the witness knows. Called by the core, and by the witness's program.

use super::Generation;
use super::promotion::Witness;
use super::record::Cursor;
use crate::wire::Mask;

const ASK: &[u8; 8] = b"HADMDWQ1";
const ANSWER: &[u8; 8] = b"HADMDWA1";

/// A request to the witness: the payload of SC_PRI_PRO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// A random number, which the answer repeats.
    pub number: u64,
    /// The change that is asked for; `None`: the content is only to be reported.
    pub swap: Option<Swap>,
}

/// A change of the witness's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The generation that the sender has last heard of.
    pub seen: Generation,
    /// The new content.
    pub fresh: Witness,
}

/// The witness's answer, with its content as it is durable: the payload of SC_PRI_PRO_ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number of the request.
    pub number: u64,
    /// The content.
    pub content: Witness,
}

impl Ask {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        let head = [u8::from(self.swap.is_some()), 0, 0, 0, 0, 0, 0, 0];
        let swap = self.swap.unwrap_or(Swap { seen: Generation::NONE, fresh: Witness::default() });
        let seen = swap.seen.bits().to_le_bytes();
        [&ASK[..], &head, &self.number.to_le_bytes(), &seen, &encode(swap.fresh)].concat()
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = Cursor(payload.strip_prefix(ASK)?);
        let [swaps, _, _, _, _, _, _, _] = from.take()?;
        let number = from.u64()?;
        let swap = Swap { seen: Generation::from_bits(from.u64()?), fresh: decode(&mut from)? };
        match swaps {
            0 => Some(Ask { number, swap: None }),
            1 if swap.fresh.current.has_data() => Some(Ask { number, swap: Some(swap) }),
            _ => None,
        }
    }

    /// Returns the new content of the witness, if this request changes it.
    pub fn change(&self, content: Witness) -> Option<Witness> {
        let swap = self.swap.filter(|swap| swap.seen == content.current)?;
        (swap.fresh != content).then_some(swap.fresh)
    }
}

impl Answer {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        [&ANSWER[..], &self.number.to_le_bytes(), &encode(self.content)].concat()
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = Cursor(payload.strip_prefix(ANSWER)?);
        Some(Answer { number: from.u64()?, content: decode(&mut from)? })
    }
}

fn encode(content: Witness) -> Vec<u8> {
    [&content.current.bits().to_le_bytes()[..], &content.holders.0.to_le_bytes()].concat()
}

fn decode(from: &mut Cursor<'_>) -> Option<Witness> {
    Some(Witness { current: Generation::from_bits(from.u64()?), holders: Mask(from.u32()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(bits: u64, holders: u32) -> Witness {
        Witness { current: Generation::from_bits(bits), holders: Mask(holders) }
    }

    #[test]
    fn requests_and_answers_come_back() {
        let swap = Swap { seen: Generation::from_bits(64), fresh: content(128, 3) };
        for swap in [None, Some(swap)] {
            let ask = Ask { number: 7, swap };
            assert_eq!(Ask::decode(&ask.encode()), Some(ask));
            assert_eq!(Ask::decode(&ask.encode()[..30]), None);
        }
        let answer = Answer { number: 9, content: content(64, 1) };
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        assert_eq!(Answer::decode(b"HADMDPV1"), None);
        let blank = Ask { number: 7, swap: Some(Swap { seen: Generation::NONE, fresh: content(0, 3) }) };
        assert_eq!(Ask::decode(&blank.encode()), None, "nobody can make it forget");
    }

    #[test]
    fn the_second_of_two_is_refused() {
        let swap = |seen: u64, fresh| Ask {
            number: 1,
            swap: Some(Swap { seen: Generation::from_bits(seen), fresh }),
        };
        let (first, second) = (swap(64, content(128, 1)), swap(64, content(256, 2)));
        let after = first.change(content(64, 3)).unwrap();
        assert_eq!(after, content(128, 1));
        assert_eq!(second.change(after), None);
        // The same again, late.
        assert_eq!(first.change(after), None);
    }
}
