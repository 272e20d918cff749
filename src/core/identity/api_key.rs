//! The key's format: `cpk_live_` or `cpk_test_`, a version digit, 30 random Base62 digits (178 bits), a 10-digit tag, a
//! 6-digit checksum: 56 characters that a double click selects.
//!
//! The checksum (CRC32, public) tells typos; the tag (59 bits of HMAC-SHA-256 under a tag secret) lets forged keys die
//! without I/O; the hash (HMAC-SHA-256 of the whole key under a pepper) is all that is stored. No slow password hash:
//! 178 random bits need no stretching, and it would be a denial of service by ourselves.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::config::secrets::{KeySecrets, Versioned};

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM: usize = 30;
const TAG: usize = 10;
const CHECKSUM: usize = 6;
const PREFIX: usize = "cpk_live_".len();
const LENGTH: usize = PREFIX + 1 + RANDOM + TAG + CHECKSUM;

/// What the key is for; shown in its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEnv {
    Live,
    Test,
}

impl KeyEnv {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "cpk_live_",
            Self::Test => "cpk_test_",
        }
    }

    /// As stored.
    pub const fn code(self) -> i16 {
        match self {
            Self::Live => 0,
            Self::Test => 1,
        }
    }
}

/// A key in a request whose form and checksum are right. Nothing is known yet about whether it is one of ours.
pub struct Presented<'a>(&'a str);

impl<'a> Presented<'a> {
    /// `None` unless the text has a key's form and a matching checksum.
    pub fn parse(text: &'a str) -> Option<Self> {
        let known = [KeyEnv::Live, KeyEnv::Test].iter().any(|env| text.starts_with(env.prefix()));
        if !known || text.len() != LENGTH || !text.bytes().skip(PREFIX).all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let (body, sum) = text.split_at(LENGTH - CHECKSUM);
        (checksum(body) == sum.as_bytes()).then_some(Self(text))
    }

    fn signed(&self) -> (&'a str, &'a str) {
        let (signed, rest) = self.0.split_at(PREFIX + 1 + RANDOM);
        (signed, &rest[..TAG])
    }
}

/// A key just made: the only time its text exists here.
pub struct NewKey {
    pub text: SecretString,
    pub hash: [u8; 32],
    pub pepper_version: i16,
    /// What may be shown later: prefix, version and the last four characters.
    pub hint: String,
    pub env: KeyEnv,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewKey({})", self.hint)
    }
}

/// The secrets under which keys are made and recognised, newest first.
pub struct KeyRing {
    peppers: Vec<Keyed>,
    tags: Vec<Keyed>,
}

/// A MAC that has taken its secret in, which is half of the work; each message gets a copy.
struct Keyed {
    version: u8,
    mac: Hmac<Sha256>,
}

impl KeyRing {
    pub fn new(secrets: &KeySecrets) -> Self {
        let keyed = |secrets: &[Versioned]| secrets.iter().map(Keyed::from).collect();
        Self { peppers: keyed(&secrets.peppers), tags: keyed(&secrets.tags) }
    }

    /// Makes a key from `random` bytes, asking for more until 30 digits are found (rejection sampling: no bias).
    ///
    /// # Errors
    /// Those of `random`.
    pub fn make<E>(&self, env: KeyEnv, mut random: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<NewKey, E> {
        let (tag_secret, pepper) = (&self.tags[0], &self.peppers[0]);
        let mut text = String::with_capacity(LENGTH);
        text.push_str(env.prefix());
        text.push(char::from(DIGITS[usize::from(tag_secret.version)]));
        while text.len() < PREFIX + 1 + RANDOM {
            let mut bytes = [0u8; RANDOM];
            random(&mut bytes)?;
            // 248 = 4 × 62: the four values above it would favour some digits.
            for byte in bytes.into_iter().filter(|byte| *byte < 248).take(PREFIX + 1 + RANDOM - text.len()) {
                text.push(char::from(DIGITS[usize::from(byte % 62)]));
            }
        }
        text.extend(tag_secret.tag(&text).map(char::from));
        text.extend(checksum(&text).map(char::from));
        Ok(NewKey {
            hash: pepper.of(text.as_bytes()),
            pepper_version: i16::from(pepper.version),
            hint: format!("{}{}…{}", env.prefix(), &text[PREFIX..=PREFIX], &text[LENGTH - 4..]),
            env,
            text: SecretString::from(text),
        })
    }

    /// Whether one of our tag secrets made it. Costs no I/O.
    pub fn is_ours(&self, presented: &Presented<'_>) -> bool {
        let (signed, claimed) = presented.signed();
        let version = DIGITS.iter().position(|digit| *digit == signed.as_bytes()[PREFIX]);
        let secret = self.tags.iter().find(|secret| Some(usize::from(secret.version)) == version);
        secret.is_some_and(|secret| secret.tag(signed).ct_eq(claimed.as_bytes()).into())
    }

    /// Its hash under each pepper, newest first.
    pub fn hashes(&self, presented: &Presented<'_>) -> impl Iterator<Item = [u8; 32]> {
        self.peppers.iter().map(|pepper| pepper.of(presented.0.as_bytes()))
    }

    /// A MAC under the newest pepper: for what must be derived from a secret without storing it.
    pub fn derive(&self, label: &[u8]) -> [u8; 32] {
        self.peppers[0].of(label)
    }
}

impl From<&Versioned> for Keyed {
    fn from(secret: &Versioned) -> Self {
        let mac = Hmac::new_from_slice(secret.secret.expose_secret()).expect("HMAC takes a key of any length");
        Self { version: secret.version, mac }
    }
}

impl Keyed {
    fn of(&self, message: &[u8]) -> [u8; 32] {
        self.mac.clone().chain_update(message).finalize().into_bytes().into()
    }

    fn tag(&self, signed: &str) -> [u8; TAG] {
        let mac = self.of(signed.as_bytes());
        let first: [u8; 8] = mac[..8].try_into().expect("a MAC has 32 bytes");
        base62(u64::from_be_bytes(first) >> 5)
    }
}

fn checksum(body: &str) -> [u8; CHECKSUM] {
    base62(u64::from(crc32fast::hash(body.as_bytes())))
}

/// The number's last `N` Base62 digits, zero-padded.
fn base62<const N: usize>(mut number: u64) -> [u8; N] {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[usize::try_from(number % 62).expect("below 62")];
        number /= 62;
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn ring(version: u8, byte: u8) -> KeyRing {
        let secret = || vec![Versioned { version, secret: vec![byte; 32].into() }];
        KeyRing::new(&KeySecrets { peppers: secret(), tags: secret(), cache: secret() })
    }

    fn make(ring: &KeyRing) -> NewKey {
        let mut next = 0u8;
        ring.make(KeyEnv::Live, |bytes| {
            bytes.iter_mut().for_each(|byte| {
                next = next.wrapping_mul(5).wrapping_add(17);
                *byte = next;
            });
            Ok::<(), Infallible>(())
        })
        .expect("infallible")
    }

    #[test]
    fn a_new_key_has_the_documented_form_and_is_recognised() {
        let ring = ring(1, 7);
        let key = make(&ring);
        let text = key.text.expose_secret();
        assert_eq!(text.len(), 56);
        assert!(text.starts_with("cpk_live_1"));
        let presented = Presented::parse(text).expect("well-formed");
        assert!(ring.is_ours(&presented));
        assert_eq!(ring.hashes(&presented).next(), Some(key.hash));
        assert!(!format!("{key:?}").contains(text) && key.hint.ends_with(&text[52..]));
    }

    #[test]
    fn every_single_typo_fails_the_checksum() {
        let key = make(&ring(1, 7));
        let text = key.text.expose_secret();
        for at in PREFIX..LENGTH {
            let mut typo = text.as_bytes().to_vec();
            typo[at] = if typo[at] == b'x' { b'y' } else { b'x' };
            let typo = String::from_utf8(typo).expect("ASCII");
            assert!(Presented::parse(&typo).is_none(), "{at}");
        }
        assert!(Presented::parse("").is_none());
        assert!(Presented::parse(&text[..55]).is_none());
        assert!(Presented::parse(&text.replace('c', "é")).is_none());
    }

    #[test]
    fn a_key_of_another_secret_is_not_ours_though_its_checksum_is_right() {
        let key = make(&ring(1, 7));
        let presented = Presented::parse(key.text.expose_secret()).expect("well-formed");
        assert!(!ring(1, 8).is_ours(&presented), "same version, other secret");
        assert!(!ring(2, 7).is_ours(&presented), "unknown version");
    }
}
