//! Encryption of one link: the agreement on keys that follows hello and ACK, and the link's codec after that.
//!
//! ```text
//! caller:   hello HDK1 |          | message 1 (its record) |           | confirmation | packets
//! acceptor:            | ACK HDK1 |                        | message 2 |              | packets
//! ```
//! Each message is a u16 length and this many bytes: Noise NNpsk0 with the cluster's key, hello and ACK as its
//! prologue. Without the key none of them can be made. The first can be sent again by anyone who has recorded it, the
//! confirmation cannot: only after the confirmation may the acceptor trust the caller.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, BufMut, BytesMut};
use snow::params::{
    BaseChoice, CipherChoice, DHChoice, HandshakeChoice, HandshakeModifier, HandshakeModifierList,
    HandshakePattern, HashChoice, NoiseParams,
};
use snow::resolvers::{CryptoResolver, DefaultResolver, RingResolver};
use snow::{Builder, HandshakeState, StatelessTransportState, types};

use crate::config::keys::Key;
use crate::daemon::link::{CodecError, Decode, Encode, LinkCodec};
use crate::wire::{EXTENSION_MAX, HELLO_LEN};

/// Longest message of an agreement in bytes: public key, record and tag.
pub(super) const MESSAGE_MAX: usize = 32 + EXTENSION_MAX + TAG_LEN;
/// Bytes that authenticate a message.
const TAG_LEN: usize = 16;
/// Most bytes that one message can carry.
const CARRIED_MAX: usize = u16::MAX as usize - TAG_LEN;
/// Messages after which each side goes on with another key: at most 64 GiB for each.
const REKEY: u64 = if cfg!(test) { 100 } else { 1 << 20 };
/// The first bytes of the prologue.
const PROTOCOL: &[u8] = b"hadmd link 1";

/// The cipher of a link's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cipher {
    /// Fast on any processor.
    ChaChaPoly,
    /// Faster, on processors that have instructions for it on both sides.
    AesGcm,
}

impl Cipher {
    /// Returns the best cipher for this machine's processor.
    pub fn best() -> Self {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let fast = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let fast = std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
        let fast = false;
        if fast { Cipher::AesGcm } else { Cipher::ChaChaPoly }
    }

    /// Returns the cipher for this machine and a caller that wants cipher number `wanted` of a hello.
    pub fn common(wanted: u8) -> Self {
        match Self::best() {
            Cipher::AesGcm if wanted == Cipher::AesGcm.number() => Cipher::AesGcm,
            _ => Cipher::ChaChaPoly,
        }
    }

    /// Returns the cipher's number in a hello.
    pub const fn number(self) -> u8 {
        match self {
            Cipher::ChaChaPoly => 0,
            Cipher::AesGcm => 1,
        }
    }

    /// Returns the cipher of this number.
    pub fn numbered(number: u8) -> Option<Self> {
        [Cipher::ChaChaPoly, Cipher::AesGcm].into_iter().find(|cipher| cipher.number() == number)
    }

    /// Returns the cipher's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Cipher::ChaChaPoly => "ChaCha20-Poly1305",
            Cipher::AesGcm => "AES-256-GCM",
        }
    }
}

/// The other side has not proved that it has the key, or the system has no random numbers.
#[derive(Debug)]
pub(super) struct Unproved(snow::Error);

impl fmt::Display for Unproved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what the other side said of its key is no proof that it holds it ({})", self.0)
    }
}

impl From<snow::Error> for Unproved {
    fn from(error: snow::Error) -> Self {
        Unproved(error)
    }
}

/// Returns the parts of the handshake with this cipher. Not read from its name, which takes a reader for the names of
/// all other handshakes.
fn params(cipher: Cipher) -> NoiseParams {
    let (name, cipher) = match cipher {
        Cipher::ChaChaPoly => ("Noise_NNpsk0_25519_ChaChaPoly_SHA256", CipherChoice::ChaChaPoly),
        Cipher::AesGcm => ("Noise_NNpsk0_25519_AESGCM_SHA256", CipherChoice::AESGCM),
    };
    let modifiers = HandshakeModifierList { list: vec![HandshakeModifier::Psk(0)] };
    let handshake = HandshakeChoice { pattern: HandshakePattern::NN, modifiers };
    NoiseParams::new(
        name.into(),
        BaseChoice::Noise,
        handshake,
        DHChoice::Curve25519,
        cipher,
        HashChoice::SHA256,
    )
}

/// The source of the cryptographic primitives.
struct Blocks;

impl CryptoResolver for Blocks {
    fn resolve_rng(&self) -> Option<Box<dyn types::Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn types::Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn types::Hash>> {
        // The only one that is agreed. Named here, so that the code of no other is linked.
        (*choice == HashChoice::SHA256).then(|| DefaultResolver.resolve_hash(&HashChoice::SHA256)).flatten()
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn types::Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// The agreement of two sides on keys of their own.
#[derive(Debug)]
pub(super) struct Agreement(Box<HandshakeState>);

impl Agreement {
    /// Begins an agreement; both sides differ only in who calls.
    pub fn new(
        key: &Key,
        cipher: Cipher,
        calls: bool,
        hello: &[u8; HELLO_LEN],
        ack: &[u8; HELLO_LEN],
    ) -> Result<Self, Unproved> {
        let prologue = [PROTOCOL, hello, ack].concat();
        let builder = Builder::with_resolver(params(cipher), Box::new(Blocks));
        let builder = builder.psk(0, key.secret())?.prologue(&prologue)?;
        let state = if calls { builder.build_initiator() } else { builder.build_responder() };
        Ok(Agreement(Box::new(state?)))
    }

    /// Returns the next message, with its length, as it is sent.
    pub fn say(&mut self, record: &[u8]) -> Result<Vec<u8>, Unproved> {
        let mut message = vec![0; 2 + MESSAGE_MAX];
        let (len, body) = message.split_at_mut(2);
        let n = self.0.write_message(record, body)?;
        len.copy_from_slice(&(n as u16).to_le_bytes());
        message.truncate(2 + n);
        Ok(message)
    }

    /// Returns the content of the other side's message. `message` is without its length.
    pub fn hear(&mut self, message: &[u8]) -> Result<Vec<u8>, Unproved> {
        let mut record = vec![0; message.len()];
        let n = self.0.read_message(message, &mut record)?;
        record.truncate(n);
        Ok(record)
    }

    /// Returns the link's keys once both messages are through; the confirmation is still due.
    pub fn agreed(self) -> Result<AgreedKeys, Unproved> {
        let state = Arc::new(RwLock::new(self.0.into_stateless_transport_mode()?));
        Ok(AgreedKeys {
            seal: Encrypter { state: Arc::clone(&state), sent: 0 },
            open: Decrypter { state, heard: 0 },
        })
    }
}

/// Both directions of a link, before the confirmation.
#[derive(Debug)]
pub(super) struct AgreedKeys {
    seal: Encrypter,
    open: Decrypter,
}

impl AgreedKeys {
    /// Returns the confirmation, as the caller sends it: a message without content.
    pub fn confirm(&mut self) -> Result<BytesMut, CodecError> {
        let mut message = BytesMut::new();
        self.seal.message(&[], &mut message)?;
        Ok(message)
    }

    /// Returns true if `message`, without its length, is the caller's confirmation.
    pub fn is_confirmed(&mut self, message: &[u8]) -> bool {
        let mut nothing = BytesMut::new();
        self.open.message(message, &mut nothing).is_ok() && nothing.is_empty()
    }

    pub fn into_codec(self) -> LinkCodec {
        LinkCodec { encode: Box::new(self.seal), decode: Box::new(self.open) }
    }
}

/// The sending direction.
struct Encrypter {
    /// The keys of both directions; locked for writing only to change one.
    state: Arc<RwLock<StatelessTransportState>>,
    /// Messages sent so far, which is the number of the next.
    sent: u64,
}

/// The receiving direction.
struct Decrypter {
    state: Arc<RwLock<StatelessTransportState>>,
    /// Messages received so far. No number but that of the next is accepted.
    heard: u64,
}

impl fmt::Debug for Encrypter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encrypter after {}", self.sent)
    }
}

impl fmt::Debug for Decrypter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decrypter after {}", self.heard)
    }
}

impl Encrypter {
    fn message(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        let len = plain.len() + TAG_LEN;
        out.put_u16_le(len as u16);
        let at = out.len();
        out.resize(at + len, 0);
        let place = out.get_mut(at..).unwrap_or_default();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let sealed = state.write_message(self.sent, plain, place);
        drop(state);
        sealed.map_err(|error| CodecError(format!("cannot encrypt: {error}")))?;
        self.sent += 1;
        if self.sent % REKEY == 0 {
            self.state.write().unwrap_or_else(PoisonError::into_inner).rekey_outgoing();
        }
        Ok(())
    }
}

impl Encode for Encrypter {
    fn encode(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        plain.chunks(CARRIED_MAX).try_for_each(|part| self.message(part, out))
    }
}

impl Decrypter {
    fn message(&mut self, message: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        let at = out.len();
        // The buffer has the tag's length to spare: the message is decrypted in place.
        out.resize(at + message.len(), 0);
        let place = out.get_mut(at..).unwrap_or_default();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let opened = state.read_message(self.heard, message, place);
        drop(state);
        out.truncate(at + opened.as_ref().map_or(0, |n| *n));
        if opened.is_err() {
            return Err(CodecError(
                "a message that is not the next one of this link: forged, changed, repeated or out of order"
                    .into(),
            ));
        }
        self.heard += 1;
        if self.heard % REKEY == 0 {
            self.state.write().unwrap_or_else(PoisonError::into_inner).rekey_incoming();
        }
        Ok(())
    }
}

impl Decode for Decrypter {
    fn decode(&mut self, wire: &mut BytesMut, out: &mut BytesMut) -> Result<bool, CodecError> {
        let Some((len, rest)) = wire.split_first_chunk() else { return Ok(false) };
        let len = usize::from(u16::from_le_bytes(*len));
        if len <= TAG_LEN {
            return Err(CodecError(format!("an encrypted message of {len} bytes: none is so short")));
        }
        let Some(message) = rest.get(..len) else { return Ok(false) };
        self.message(message, out)?;
        wire.advance(2 + len);
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
