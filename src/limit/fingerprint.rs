//! What stands for a key in a table: 127 bits of its SipHash-1-3-128 under a secret of this process.
//!
//! Two keys with one fingerprint would share a bucket. Nobody who does not know the secret finds such a pair but by chance:
//! a key that comes anew meets one of `n` others with probability n / 2^127, at 2^21 of them (what a store holds at most)
//! 2^-106. A million new keys a second for a hundred years are less than 2^52: one of them collides with probability
//! 2^-54. Pure.

use siphasher::sip128::SipHasher13;
use std::hash::{BuildHasher, RandomState};

/// Makes fingerprints, under a secret of its own.
pub(super) struct Fingerprints {
    secret: (u64, u64),
}

/// A key, as a table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u128);

impl Default for Fingerprints {
    /// The secret comes from the operating system, by way of the standard library's seeds.
    fn default() -> Fingerprints {
        let half = || RandomState::new().hash_one(());
        Fingerprints { secret: (half(), half()) }
    }
}

impl Fingerprints {
    /// The fingerprint of a key.
    pub fn of(&self, key: &[u8]) -> Fingerprint {
        let (low, high) = self.secret;
        Fingerprint(u128::from(SipHasher13::new_with_keys(low, high).hash(key)) | 1)
    }
}

impl Fingerprint {
    /// No key's.
    pub const NONE: Fingerprint = Fingerprint(0);

    /// Which of so many parts it belongs to: the larger it is, the later.
    pub fn part(self, parts: usize) -> usize {
        (((self.0 >> 64) * parts as u128) >> 64) as usize
    }

    /// Which of so many shards it belongs to, whatever part.
    pub fn shard(self, shards: usize) -> usize {
        (self.0 >> 1) as usize % shards
    }

    #[cfg(test)]
    pub fn with_bits(bits: u128) -> Fingerprint {
        Fingerprint(bits | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_secret_gives_a_key_one_fingerprint_and_another_secret_another() {
        let (one, other) = (Fingerprints::default(), Fingerprints::default());
        assert_eq!(one.of(b"alice"), one.of(b"alice"));
        assert_ne!(one.of(b"alice"), one.of(b"alicf"));
        assert_ne!(one.of(b"alice"), other.of(b"alice"));
        assert_ne!(one.of(b""), Fingerprint::NONE);
    }

    #[test]
    fn parts_and_shards_get_about_as_many_each() {
        let prints = Fingerprints::default();
        let (mut parts, mut shards) = ([0; 7], [0; 8]);
        for number in 0..70_000u32 {
            let print = prints.of(&number.to_le_bytes());
            parts[print.part(7)] += 1;
            shards[print.shard(8)] += 1;
        }
        assert!(parts.iter().all(|count| (9_000..11_000).contains(count)), "{parts:?}");
        assert!(shards.iter().all(|count| (8_000..9_500).contains(count)), "{shards:?}");
    }
}
