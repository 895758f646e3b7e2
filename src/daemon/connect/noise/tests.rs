//! Tests of the messages about keys, by both sides of one link.

use super::*;
use crate::wire::KeyId;
use zeroize::Zeroizing;

fn key(byte: u8) -> Key {
    Zeroizing::new([byte; crate::config::keys::KEY_LEN]).into()
}

const HELLO: [u8; HELLO_LEN] = [1; HELLO_LEN];
const ACK: [u8; HELLO_LEN] = [2; HELLO_LEN];

/// Returns caller and acceptor, each with its own keys.
fn pair(
    caller: (&Key, Cipher, &[u8; HELLO_LEN]),
    acceptor: (&Key, Cipher, &[u8; HELLO_LEN]),
) -> [Agreement; 2] {
    [(caller, true), (acceptor, false)]
        .map(|((key, cipher, hello), calls)| Agreement::new(key, cipher, calls, hello, &ACK).unwrap())
}

fn agreed(cipher: Cipher) -> [AgreedKeys; 2] {
    let [mut caller, mut acceptor] = pair((&key(7), cipher, &HELLO), (&key(7), cipher, &HELLO));
    assert_eq!(acceptor.hear(&caller.say(b"who calls").unwrap()[2..]).unwrap(), b"who calls");
    assert_eq!(caller.hear(&acceptor.say(b"who answers").unwrap()[2..]).unwrap(), b"who answers");
    [caller.agreed().unwrap(), acceptor.agreed().unwrap()]
}

fn codecs(cipher: Cipher) -> [LinkCodec; 2] {
    let [mut caller, mut acceptor] = agreed(cipher);
    let confirmation = caller.confirm().unwrap();
    assert_eq!(confirmation.len(), 2 + TAG_LEN);
    assert!(acceptor.is_confirmed(&confirmation[2..]));
    [caller.into_codec(), acceptor.into_codec()]
}

/// Sends `plain` in one run and decodes the bytes.
fn carry(from: &mut LinkCodec, to: &mut LinkCodec, plain: &[u8]) -> BytesMut {
    let (mut wire, mut out) = (BytesMut::new(), BytesMut::new());
    from.encode.encode(plain, &mut wire).unwrap();
    assert!(plain.len() < 16 || !wire.windows(16).any(|part| plain.windows(16).any(|other| other == part)));
    while to.decode.decode(&mut wire, &mut out).unwrap() {}
    assert!(wire.is_empty());
    out
}

#[test]
fn both_ciphers_carry_both_ways_through_changes_of_keys() {
    for cipher in [Cipher::ChaChaPoly, Cipher::AesGcm] {
        assert_eq!(Cipher::numbered(cipher.number()), Some(cipher));
        let [mut caller, mut acceptor] = codecs(cipher);
        for n in 0..3 * REKEY as usize {
            let plain: Vec<u8> = (0..n).map(|i| (i * 7 + n) as u8).collect();
            assert_eq!(carry(&mut caller, &mut acceptor, &plain), plain);
            if n % 3 == 0 {
                assert_eq!(carry(&mut acceptor, &mut caller, &plain), plain);
            }
        }
        for n in [CARRIED_MAX, CARRIED_MAX + 1, 3 * CARRIED_MAX - 1] {
            let plain: Vec<u8> = (0..n).map(|i| (i ^ i >> 8) as u8).collect();
            let mut wire = BytesMut::new();
            caller.encode.encode(&plain, &mut wire).unwrap();
            let mut out = BytesMut::new();
            while acceptor.decode.decode(&mut wire, &mut out).unwrap() {}
            assert!(out == plain);
        }
    }
    assert_eq!(Cipher::numbered(2), None);
}

#[test]
fn another_key_cipher_or_hello_is_no_agreement() {
    let chacha = Cipher::ChaChaPoly;
    let other = [3; HELLO_LEN];
    for acceptor in [(&key(8), chacha, &HELLO), (&key(7), Cipher::AesGcm, &HELLO), (&key(7), chacha, &other)]
    {
        let [mut caller, mut acceptor] = pair((&key(7), chacha, &HELLO), acceptor);
        assert!(acceptor.hear(&caller.say(b"record").unwrap()[2..]).is_err());
    }
}

#[test]
fn a_recorded_call_is_not_confirmed_and_its_answer_no_good() {
    let chacha = Cipher::ChaChaPoly;
    let [mut caller, mut acceptor] = pair((&key(7), chacha, &HELLO), (&key(7), chacha, &HELLO));
    let first = caller.say(b"record").unwrap();
    acceptor.hear(&first[2..]).unwrap();
    let second = acceptor.say(b"record").unwrap();
    caller.hear(&second[2..]).unwrap();
    let confirmation = caller.agreed().unwrap().confirm().unwrap();
    let [_, mut again] = pair((&key(7), chacha, &HELLO), (&key(7), chacha, &HELLO));
    again.hear(&first[2..]).unwrap();
    again.say(b"record").unwrap();
    assert!(!again.agreed().unwrap().is_confirmed(&confirmation[2..]));
    let [mut new_caller, _] = pair((&key(7), chacha, &HELLO), (&key(7), chacha, &HELLO));
    new_caller.say(b"record").unwrap();
    assert!(new_caller.hear(&second[2..]).is_err());
}

#[test]
fn what_is_changed_repeated_left_out_or_of_another_link_is_refused() {
    type Change = fn(&mut Vec<BytesMut>);
    let changes: [(&str, Change); 7] = [
        ("a bit", |frames| frames[0][20] ^= 1),
        ("a bit of the tag", |frames| *frames[0].last_mut().unwrap() ^= 0x80),
        ("order", |frames| frames.swap(0, 1)),
        ("twice", |frames| frames[1] = frames[0].clone()),
        ("left out", |frames| drop(frames.remove(0))),
        ("shorter", |frames| {
            let n = frames[0].len() - 1;
            frames[0].truncate(n);
            frames[0][..2].copy_from_slice(&(n as u16 - 2).to_le_bytes());
        }),
        ("no content", |frames| {
            frames[0] = BytesMut::from(&[&[TAG_LEN as u8][..], &[0; TAG_LEN + 1]].concat()[..])
        }),
    ];
    for (what, change) in changes {
        let [mut caller, mut acceptor] = codecs(Cipher::AesGcm);
        let mut frames = ["first", "second"].map(|text| {
            let mut frame = BytesMut::new();
            caller.encode.encode(text.repeat(9).as_bytes(), &mut frame).unwrap();
            frame
        });
        let mut frames = std::mem::take(&mut frames).to_vec();
        change(&mut frames);
        let (mut wire, mut out) = (BytesMut::from(&frames.concat()[..]), BytesMut::new());
        let mut end = Ok(true);
        while let Ok(true) = end {
            end = acceptor.decode.decode(&mut wire, &mut out);
        }
        assert!(end.is_err(), "{what}");
        assert!(out.is_empty() || (what == "twice" && out == "first".repeat(9)), "{what}: {out:?}");
    }
    let [[mut one, _], [_, mut other]] = [codecs(Cipher::AesGcm), codecs(Cipher::AesGcm)];
    let mut wire = BytesMut::new();
    one.encode.encode(b"spliced", &mut wire).unwrap();
    assert!(other.decode.decode(&mut wire, &mut BytesMut::new()).is_err());
}

#[test]
fn ciphers_are_chosen_by_both() {
    let best = Cipher::best();
    assert_eq!(Cipher::common(best.number()), best);
    assert_eq!(Cipher::common(Cipher::ChaChaPoly.number()), Cipher::ChaChaPoly);
    assert_eq!(Cipher::common(200), Cipher::ChaChaPoly);
    assert_ne!(key(1).id, KeyId::default());
}
