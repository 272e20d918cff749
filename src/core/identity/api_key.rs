//! The format of API keys: `cpk_live_` or `cpk_test_`, a version digit, 30 random Base62 digits (178 bits), a 10-digit
//! tag and a 6-digit checksum: 56 characters, which a double click selects.
//!
//! The checksum (CRC32, public) finds typos. The tag (59 bits of HMAC-SHA-256 under a tag secret) refuses forged keys
//! without I/O. Only the hash is stored: HMAC-SHA-256 of the whole key under a pepper. There is no slow password hash:
//! 178 random bits need no stretching, and at 10 to 100 ms each verifications would be a denial of service against
//! ourselves.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::config::secrets::{KeySecrets, Versioned};

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_DIGITS: usize = 30;
const TAG_DIGITS: usize = 10;
const CHECKSUM_DIGITS: usize = 6;
const PREFIX_LENGTH: usize = "cpk_live_".len();
const KEY_LENGTH: usize = PREFIX_LENGTH + 1 + RANDOM_DIGITS + TAG_DIGITS + CHECKSUM_DIGITS;

/// The purpose of a key, as its prefix shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEnv {
    /// Production use.
    Live,
    /// Tests.
    Test,
}

impl KeyEnv {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "cpk_live_",
            Self::Test => "cpk_test_",
        }
    }

    /// Returns the value of the column `env`.
    pub const fn code(self) -> i16 {
        match self {
            Self::Live => 0,
            Self::Test => 1,
        }
    }
}

/// A key in a request, whose form and checksum are right. Whether this cluster made it is not known yet.
pub struct PresentedKey<'a>(&'a str);

impl<'a> PresentedKey<'a> {
    /// Returns `None` unless the text has the form of a key and a matching checksum.
    pub fn parse(text: &'a str) -> Option<Self> {
        let has_prefix = [KeyEnv::Live, KeyEnv::Test].iter().any(|env| text.starts_with(env.prefix()));
        if !has_prefix
            || text.len() != KEY_LENGTH
            || !text.bytes().skip(PREFIX_LENGTH).all(|b| b.is_ascii_alphanumeric())
        {
            return None;
        }
        let (body, sum) = text.split_at(KEY_LENGTH - CHECKSUM_DIGITS);
        (checksum(body) == sum.as_bytes()).then_some(Self(text))
    }

    /// Splits the key into what the tag signs and the tag.
    fn signed_and_tag(&self) -> (&'a str, &'a str) {
        let (signed, rest) = self.0.split_at(PREFIX_LENGTH + 1 + RANDOM_DIGITS);
        (signed, &rest[..TAG_DIGITS])
    }
}

/// A key that was just generated. Its text exists nowhere else.
pub struct NewKey {
    /// The whole key.
    pub text: SecretString,
    /// Its hash under the newest pepper.
    pub hash: [u8; 32],
    /// The version of that pepper.
    pub pepper_version: i16,
    /// The part that may be shown later: prefix, version and the last four characters.
    pub hint: String,
    /// Its purpose.
    pub env: KeyEnv,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewKey({})", self.hint)
    }
}

/// The secrets under which keys are generated and recognised, newest first.
pub struct KeyRing {
    peppers: Vec<VersionedMac>,
    tags: Vec<VersionedMac>,
}

/// A MAC that is initialised with its secret, which is half of the work. Each message is signed by a copy.
struct VersionedMac {
    version: u8,
    mac: Hmac<Sha256>,
}

impl KeyRing {
    /// Makes a ring of a cluster's secrets.
    pub fn new(secrets: &KeySecrets) -> Self {
        let macs = |secrets: &[Versioned]| secrets.iter().map(VersionedMac::from).collect();
        Self { peppers: macs(&secrets.peppers), tags: macs(&secrets.tags) }
    }

    /// Generates a key from bytes that `random` fills in, as often as needed for 30 digits (rejection sampling: no
    /// bias).
    ///
    /// # Errors
    /// Those of `random`.
    pub fn generate<E>(&self, env: KeyEnv, mut random: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<NewKey, E> {
        let (tag_secret, pepper) = (&self.tags[0], &self.peppers[0]);
        let mut text = String::with_capacity(KEY_LENGTH);
        text.push_str(env.prefix());
        text.push(char::from(DIGITS[usize::from(tag_secret.version)]));
        while text.len() < PREFIX_LENGTH + 1 + RANDOM_DIGITS {
            let mut bytes = [0u8; RANDOM_DIGITS];
            random(&mut bytes)?;
            // 248 = 4 × 62: the four values above it would favour some digits.
            for byte in
                bytes.into_iter().filter(|byte| *byte < 248).take(PREFIX_LENGTH + 1 + RANDOM_DIGITS - text.len())
            {
                text.push(char::from(DIGITS[usize::from(byte % 62)]));
            }
        }
        text.extend(tag_secret.tag(&text).map(char::from));
        text.extend(checksum(&text).map(char::from));
        Ok(NewKey {
            hash: pepper.sign(text.as_bytes()),
            pepper_version: i16::from(pepper.version),
            hint: format!("{}{}…{}", env.prefix(), &text[PREFIX_LENGTH..=PREFIX_LENGTH], &text[KEY_LENGTH - 4..]),
            env,
            text: SecretString::from(text),
        })
    }

    /// Returns whether one of the tag secrets made the key's tag. Costs no I/O.
    pub fn has_valid_tag(&self, presented: &PresentedKey<'_>) -> bool {
        let (signed, tag) = presented.signed_and_tag();
        let version = DIGITS.iter().position(|digit| *digit == signed.as_bytes()[PREFIX_LENGTH]);
        let secret = self.tags.iter().find(|secret| Some(usize::from(secret.version)) == version);
        secret.is_some_and(|secret| secret.tag(signed).ct_eq(tag.as_bytes()).into())
    }

    /// Returns the key's hash under each pepper, newest first.
    pub fn hashes(&self, presented: &PresentedKey<'_>) -> impl Iterator<Item = [u8; 32]> {
        self.peppers.iter().map(|pepper| pepper.sign(presented.0.as_bytes()))
    }

    /// Returns a MAC under the newest pepper, for values that are derived from it instead of being stored.
    pub fn derive(&self, label: &[u8]) -> [u8; 32] {
        self.peppers[0].sign(label)
    }
}

impl From<&Versioned> for VersionedMac {
    fn from(secret: &Versioned) -> Self {
        let mac = Hmac::new_from_slice(secret.secret.expose_secret()).expect("HMAC takes a key of any length");
        Self { version: secret.version, mac }
    }
}

impl VersionedMac {
    fn sign(&self, message: &[u8]) -> [u8; 32] {
        self.mac.clone().chain_update(message).finalize().into_bytes().into()
    }

    fn tag(&self, signed: &str) -> [u8; TAG_DIGITS] {
        let mac = self.sign(signed.as_bytes());
        let first: [u8; 8] = mac[..8].try_into().expect("a MAC has 32 bytes");
        base62(u64::from_be_bytes(first) >> 5)
    }
}

fn checksum(body: &str) -> [u8; CHECKSUM_DIGITS] {
    base62(u64::from(crc32fast::hash(body.as_bytes())))
}

/// Returns the number's last `N` Base62 digits, padded with zeros.
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

    fn generate(ring: &KeyRing) -> NewKey {
        let mut next = 0u8;
        ring.generate(KeyEnv::Live, |bytes| {
            bytes.iter_mut().for_each(|byte| {
                next = next.wrapping_mul(5).wrapping_add(17);
                *byte = next;
            });
            Ok::<(), Infallible>(())
        })
        .expect("infallible")
    }

    #[test]
    fn new_key_has_the_documented_form_and_is_recognised() {
        let ring = ring(1, 7);
        let key = generate(&ring);
        let text = key.text.expose_secret();
        assert_eq!(text.len(), 56);
        assert!(text.starts_with("cpk_live_1"));
        let presented = PresentedKey::parse(text).expect("well-formed");
        assert!(ring.has_valid_tag(&presented));
        assert_eq!(ring.hashes(&presented).next(), Some(key.hash));
        assert!(!format!("{key:?}").contains(text) && key.hint.ends_with(&text[52..]));
    }

    #[test]
    fn key_with_one_wrong_character_is_not_parsed() {
        let key = generate(&ring(1, 7));
        let text = key.text.expose_secret();
        for at in PREFIX_LENGTH..KEY_LENGTH {
            let mut typo = text.as_bytes().to_vec();
            typo[at] = if typo[at] == b'x' { b'y' } else { b'x' };
            let typo = String::from_utf8(typo).expect("ASCII");
            assert!(PresentedKey::parse(&typo).is_none(), "{at}");
        }
        assert!(PresentedKey::parse("").is_none());
        assert!(PresentedKey::parse(&text[..55]).is_none());
        assert!(PresentedKey::parse(&text.replace('c', "é")).is_none());
    }

    #[test]
    fn key_of_another_secret_has_no_valid_tag() {
        let key = generate(&ring(1, 7));
        let presented = PresentedKey::parse(key.text.expose_secret()).expect("well-formed");
        assert!(!ring(1, 8).has_valid_tag(&presented), "same version, other secret");
        assert!(!ring(2, 7).has_valid_tag(&presented), "unknown version");
    }
}
