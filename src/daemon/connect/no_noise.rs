//! Replaces `secure` in a daemon that was built without feature `authkey`. Its configuration has no keys: no
//! agreement is ever begun, and a [`Never`] has no value.

use bytes::BytesMut;

use crate::config::keys::Key;
use crate::daemon::link::LinkCodec;
use crate::wire::HELLO_LEN;

pub(super) const MESSAGE_MAX: usize = 0;

#[derive(Debug)]
enum Never {}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cipher;

impl Cipher {
    pub fn best() -> Self {
        Cipher
    }

    pub fn common(_: u8) -> Self {
        Cipher
    }

    pub fn numbered(_: u8) -> Option<Self> {
        None
    }

    pub fn number(self) -> u8 {
        0
    }

    pub fn name(self) -> &'static str {
        "none"
    }
}

#[derive(Debug)]
pub(super) struct Agreement(Never);

impl Agreement {
    pub fn new(
        _: &Key,
        _: Cipher,
        _: bool,
        _: &[u8; HELLO_LEN],
        _: &[u8; HELLO_LEN],
    ) -> Result<Self, &'static str> {
        Err("this daemon was built without encryption")
    }

    pub fn say(&mut self, _: &[u8]) -> Result<Vec<u8>, &'static str> {
        match self.0 {}
    }

    pub fn hear(&mut self, _: &[u8]) -> Result<Vec<u8>, &'static str> {
        match self.0 {}
    }

    pub fn agreed(self) -> Result<AgreedKeys, &'static str> {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(super) struct AgreedKeys(Never);

impl AgreedKeys {
    pub fn confirm(&mut self) -> Result<BytesMut, &'static str> {
        match self.0 {}
    }

    pub fn is_confirmed(&mut self, _: &[u8]) -> bool {
        match self.0 {}
    }

    pub fn into_codec(self) -> LinkCodec {
        match self.0 {}
    }
}
