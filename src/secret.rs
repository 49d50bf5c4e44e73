//! What nobody outside can foresee: marks that stand for text, and what is left to chance.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;

use crate::model::{Mark, Target, Timestamp};

/// Whoever does not know the secret finds no two texts with the same mark.
pub fn mark(secret: u64, text: &[u8]) -> Mark {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(secret);
    hasher.write(text);
    Mark::new(hasher.finish()).unwrap_or(Mark::MIN)
}

/// A number that looks random to whoever does not know the secret (SplitMix64's finaliser over all three).
pub fn chance(secret: u64, target: Target, at: Timestamp) -> u64 {
    let bits = match target.network() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    };
    let mut mixed = secret;
    for part in [bits, at.as_millis() as u64] {
        mixed = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}
