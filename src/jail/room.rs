//! Room in a full table: what is least worth keeping goes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;

/// Leaves at most seven eighths of `most`, so that the cost is spread over as many insertions as there is room for.
/// What ranks lowest goes; where two rank the same, the lesser key. Returns how many went.
pub fn make<K: Ord + Hash + Clone, V, R: Ord>(
    table: &mut HashMap<K, V>,
    most: usize,
    rank: impl Fn(&V) -> R,
) -> u64 {
    let share = table.len().saturating_sub(most - (most / 8).max(1).min(most));
    if share == 0 {
        return 0;
    }
    let mut ranked: Vec<(R, &K)> = table.iter().map(|(key, value)| (rank(value), key)).collect();
    ranked.select_nth_unstable(share - 1);
    let lowest: Vec<K> = ranked[..share].iter().map(|(_, key)| (*key).clone()).collect();
    for key in &lowest {
        table.remove(key);
    }
    share as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_go_until_an_eighth_is_free() {
        let mut table: HashMap<u32, u32> = (0..80).map(|key| (key, key / 2)).collect();
        assert_eq!(make(&mut table, 80, |rank| *rank), 10);
        let mut left: Vec<u32> = table.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, (10..80).collect::<Vec<_>>());
        assert_eq!(make(&mut table, 80, |rank| *rank), 0);
        assert_eq!(make(&mut table, 4, |rank| *rank), 67);
        assert!(table.contains_key(&79));
    }
}
