//! The last lines of those who failed, so that it can be shown why somebody is banned and what he tried since.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet, VecDeque};

use crate::model::{JailName, Target, Timestamp};

/// What all lines together may take; the oldest go first.
const BYTES_MAX: usize = 1 << 20;
/// What one line may take of it, beside its text.
const LINE_BYTES: usize = size_of::<Clue>();
/// So much of a line is kept.
const TEXT_MAX: usize = 512;
/// So many lines are shown of one who failed, the last ones.
pub const SHOWN: usize = 10;

/// A line that counted against somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clue {
    pub jail: JailName,
    pub target: Target,
    pub at: Timestamp,
    /// As it was written, but for bytes that are not UTF-8; at most 512 bytes.
    pub text: Box<str>,
}

#[derive(Debug, Default)]
pub struct Evidence {
    clues: VecDeque<Clue>,
    bytes: usize,
}

impl Evidence {
    /// Keeps a line.
    pub fn note(&mut self, jail: &JailName, target: Target, at: Timestamp, text: &[u8]) {
        let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_MAX)]).into();
        let clue = Clue { jail: jail.clone(), target, at, text };
        self.bytes += LINE_BYTES + clue.text.len();
        self.clues.push_back(clue);
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.clues.pop_front()
        {
            self.bytes -= LINE_BYTES + oldest.text.len();
        }
    }

    /// The last lines against each of these, oldest first: one walk, however many are asked for.
    pub fn against(
        &self,
        whom: &HashSet<(JailName, Target)>,
    ) -> HashMap<(JailName, Target), VecDeque<&Clue>> {
        let mut found: HashMap<_, VecDeque<&Clue>> = HashMap::new();
        for clue in &self.clues {
            let key = (clue.jail.clone(), clue.target);
            if whom.contains(&key) {
                let lines = found.entry(key).or_default();
                if lines.len() == SHOWN {
                    lines.pop_front();
                }
                lines.push_back(clue);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_against_somebody_are_kept_and_the_oldest_of_all_go_first() {
        let (sshd, web): (JailName, JailName) = ("sshd".parse().unwrap(), "web".parse().unwrap());
        let (one, other): (Target, Target) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut evidence = Evidence::default();
        for n in 0..12 {
            evidence.note(&sshd, one, Timestamp::from_millis(n), format!("line {n} \u{1b}").as_bytes());
            evidence.note(&web, one, Timestamp::from_millis(n), b"not this");
        }
        let whom = HashSet::from([(sshd.clone(), one), (sshd.clone(), other)]);
        let found = evidence.against(&whom);
        let texts: Vec<&str> = found[&(sshd.clone(), one)].iter().map(|clue| &*clue.text).collect();
        assert_eq!((texts.len(), texts[0], texts[9]), (SHOWN, "line 2 \u{1b}", "line 11 \u{1b}"));
        assert!(!found.contains_key(&(sshd.clone(), other)));

        for _ in 0..10_000 {
            evidence.note(&sshd, other, Timestamp::from_millis(0), &[b'\xC3'; 70_000]);
        }
        assert!(evidence.bytes <= BYTES_MAX);
        let counted: usize = evidence.clues.iter().map(|clue| LINE_BYTES + clue.text.len()).sum();
        assert_eq!(counted, evidence.bytes);
        assert!(!evidence.against(&whom).contains_key(&(sshd, one)), "the flood pushed it out");
    }
}
