//! The state of a handshake's encryption: its key and cipher, the message that is due, and the result.
//!
//! Without keys it does nothing. The content of a message and its proof are the job of [`super::secure`].

use bytes::BytesMut;

use super::failure::Failure;
use super::noise::{AgreedKeys, Agreement, Cipher, MESSAGE_MAX};
use super::{Encryption, Plan};
use crate::config::keys::Keys;
use crate::daemon::link::LinkCodec;
use crate::wire::{Extension, ExtensionError, HELLO_LEN, Hello, KeyId, KeyOffer, Mark, PeerKey};

/// The state of the agreement.
#[derive(Debug)]
enum Stage {
    /// There is nothing to agree on.
    Plain,
    /// Messages go to and fro.
    Agreeing(Agreement),
    /// The acceptor waits for the confirmation; after that, and at once for the caller, only the codec is left to be
    /// taken.
    Agreed(AgreedKeys),
}

/// The encryption's part of a handshake.
#[derive(Debug)]
pub(super) struct KeyAgreement {
    /// The caller's hello, as it was sent.
    pub hello: [u8; HELLO_LEN],
    stage: Stage,
    /// The encryption that both sides agreed on.
    pub encryption: Option<Encryption>,
}

/// A message that came in.
pub(super) enum Heard {
    /// The other side's record.
    Record(Extension),
    /// The caller's confirmation: the link is ready.
    Confirmation,
}

fn unproved(error: impl std::fmt::Display) -> Failure {
    Failure::Unproved(error.to_string())
}

impl KeyAgreement {
    pub fn new() -> Self {
        KeyAgreement { hello: [0; HELLO_LEN], stage: Stage::Plain, encryption: None }
    }

    /// Returns true if the link is to be encrypted.
    pub fn is_on(&self) -> bool {
        self.encryption.is_some()
    }

    /// Begins to agree on the link's own keys.
    pub fn begin(
        &mut self,
        keys: &Keys,
        seal: KeyOffer,
        calls: bool,
        ack: &[u8; HELLO_LEN],
    ) -> Result<(), Failure> {
        let [id, _] = seal.keys;
        // The keys may have been replaced since the hello was sent.
        let key = keys.find(id).ok_or_else(|| {
            Failure::OtherKeys(format!("the other side chose key {id}, which is not in the key file here"))
        })?;
        let cipher = Cipher::numbered(seal.cipher)
            .ok_or_else(|| Failure::Malformed(format!("the other side chose cipher {}", seal.cipher)))?;
        let agreement = Agreement::new(key, cipher, calls, &self.hello, ack).map_err(unproved)?;
        self.stage = Stage::Agreeing(agreement);
        self.encryption = Some(Encryption { cipher: cipher.name(), key: id });
        Ok(())
    }

    /// Returns the record as it is sent, with its length.
    pub fn say(&mut self, record: &Extension) -> Result<Vec<u8>, Failure> {
        let record = record.encode();
        match &mut self.stage {
            Stage::Agreeing(agreement) => {
                agreement.say(record.get(2..).unwrap_or_default()).map_err(unproved)
            }
            _ => Ok(record),
        }
    }

    /// Returns the length of the next message in bytes, by its length field.
    pub fn body_len(&self, field: [u8; 2]) -> Result<usize, Failure> {
        let malformed = |error: ExtensionError| Failure::Malformed(error.to_string());
        if !self.is_on() {
            return Extension::body_len(field).map_err(malformed);
        }
        match usize::from(u16::from_le_bytes(field)) {
            len if len > MESSAGE_MAX => {
                Err(Failure::Malformed(format!("a message of {len} bytes about keys")))
            }
            len => Ok(len),
        }
    }

    /// Returns the content of the other side's message.
    pub fn hear(&mut self, message: &[u8]) -> Result<Heard, Failure> {
        let malformed = |error: ExtensionError| Failure::Malformed(error.to_string());
        let record = match &mut self.stage {
            Stage::Plain => Extension::decode(message),
            Stage::Agreeing(agreement) => Extension::decode(&agreement.hear(message).map_err(unproved)?),
            Stage::Agreed(agreed) => {
                return match agreed.is_confirmed(message) {
                    true => Ok(Heard::Confirmation),
                    false => Err(unproved("the caller has not confirmed its key: an old call, sent again?")),
                };
            }
        };
        record.map(Heard::Record).map_err(malformed)
    }

    /// Completes the agreement after both messages: the acceptor waits for the confirmation now.
    pub fn agreed(&mut self) -> Result<(), Failure> {
        if let Stage::Agreeing(agreement) = std::mem::replace(&mut self.stage, Stage::Plain) {
            self.stage = Stage::Agreed(agreement.agreed().map_err(unproved)?);
        }
        Ok(())
    }

    /// Returns the caller's confirmation, as it is sent.
    pub fn confirm(&mut self) -> Result<BytesMut, Failure> {
        match &mut self.stage {
            Stage::Agreed(agreed) => agreed.confirm().map_err(unproved),
            _ => Ok(BytesMut::new()),
        }
    }

    /// Returns the codec of the link, once that is ready.
    pub fn into_codec(self) -> Option<LinkCodec> {
        match self.stage {
            Stage::Agreed(agreed) => Some(agreed.into_codec()),
            Stage::Plain | Stage::Agreeing(_) => None,
        }
    }

    /// Checks that a call for another site's node, or for another resource, was not diverted to this one.
    pub fn check_realm(&self, plan: &Plan, peer: Option<PeerKey>) -> Result<(), Failure> {
        let theirs = match Hello::decode(&self.hello) {
            Ok(Hello { mark: Mark::Keyed(seal), .. }) => Some(seal.realm),
            _ => None,
        };
        match theirs.is_some() && theirs == peer.map(|peer| plan.realm(peer)) {
            true => Ok(()),
            false => Err(Failure::Malformed("the call was for another site or resource".into())),
        }
    }
}

/// Returns what both sides support: the newest of the caller's keys that is here, and a cipher.
pub(super) fn choose(keys: &Keys, theirs: KeyOffer) -> Result<KeyOffer, Failure> {
    let offered = theirs.keys.into_iter().filter(|&id| id != KeyId::default());
    let Some(chosen) = offered.clone().find(|&id| keys.find(id).is_some()) else {
        let list = |ids: Vec<String>| ids.join(" and ");
        let theirs = list(offered.map(|id| id.to_string()).collect());
        let ours = list(keys.ids().map(|id| id.to_string()).collect());
        let why =
            format!("no common key: the caller has {theirs}, this daemon {ours}; compare the key files");
        return Err(Failure::OtherKeys(why));
    };
    let cipher = Cipher::common(theirs.cipher).number();
    Ok(KeyOffer { keys: [chosen, KeyId::default()], cipher, realm: 0 })
}
