//! Whether one line can be read as blaming two addresses; if so, such a line.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::look::Look;
use regex_automata::util::primitives::{PatternID, StateID};
use regex_syntax::hir::Hir;

/// Stands for `<HOST>` in the proof: addresses that begin or end like one another, so that every way to
/// confuse two is found, and few enough to keep the automaton small.
pub const EXAMPLE_HOSTS: &str = r"(?P<host>192\.0\.2\.1|20?3\.0\.113\.9|2001:db8::1(?::22)?|3\.0\.113\.9)";

/// More pairs of states than any sensible pattern needs.
const PAIRS_MAX: usize = 100_000;

/// What the proof found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No line has two readings.
    Steady,
    /// This line has.
    Fooled(Vec<u8>),
    /// The pattern is too large to tell.
    TooBig,
}

/// Where a reading stands in the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Before a state that reads bytes.
    At(StateID),
    /// Matched; the rest of the line does not matter.
    Done,
    /// Matched by `$`; nothing may follow.
    Ended,
}

/// One reading of the line so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reading {
    place: Place,
    part: Part,
}

/// Whether a reading is before, inside or behind the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    Before,
    Inside,
    Behind,
}

/// Two readings of the same bytes, and whether they already disagree about the address.
type Pair = (Reading, Reading, bool);

/// Walks two readings of one line at once, breadth first, so that the line found is a shortest one. Both
/// accept it and disagree about which bytes are the address: then whoever writes a part of the line can
/// choose. The engine would take one of them, but its preference is not a promise of the service.
///
/// A reading that merely stops earlier inside the same address is no second one, since an address is taken
/// whole (see [`super::address::ends_before`]); one that stops at a colon is, for a port would do that.
pub fn second_reading(hir: &Hir) -> Answer {
    let Ok(nfa) = NFA::compiler().configure(NFA::config().utf8(false)).build_from_hir(hir) else {
        return Answer::TooBig;
    };
    let Some(slot) = nfa.group_info().to_index(PatternID::ZERO, "host") else { return Answer::Steady };
    let walk = Walk { nfa: &nfa, open: 2 * slot, closed: 2 * slot + 1 };
    let mut trail: Vec<(Pair, usize, u8)> = Vec::new();
    let mut seen: HashSet<Pair> = HashSet::new();
    let first = walk.follow(nfa.start_anchored(), Part::Before, true);
    for &a in &first {
        for &b in &first {
            if seen.insert((a, b, false)) {
                trail.push(((a, b, false), usize::MAX, 0));
            }
        }
    }
    let mut next = 0;
    while next < trail.len() {
        let (pair, ..) = trail[next];
        if pair.2 && is_over(pair.0) && is_over(pair.1) {
            return Answer::Fooled(spell(&trail, next));
        }
        for (byte, follower) in walk.step(pair) {
            if seen.insert(follower) {
                trail.push((follower, next, byte));
            }
        }
        if trail.len() > PAIRS_MAX {
            return Answer::TooBig;
        }
        next += 1;
    }
    Answer::Steady
}

fn is_over(reading: Reading) -> bool {
    matches!(reading.place, Place::Done | Place::Ended)
}

fn spell(trail: &[(Pair, usize, u8)], mut at: usize) -> Vec<u8> {
    let mut line = Vec::new();
    while let (_, before, byte) = trail[at]
        && before != usize::MAX
    {
        line.push(byte);
        at = before;
    }
    line.reverse();
    line
}

struct Walk<'n> {
    nfa: &'n NFA,
    /// The capture slots that open and close the address.
    open: usize,
    closed: usize,
}

impl Walk<'_> {
    /// Every reading that can be reached from `state` without reading a byte.
    fn follow(&self, state: StateID, part: Part, at_start: bool) -> Vec<Reading> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut left = vec![(state, part, false)];
        while let Some((id, part, ended)) = left.pop() {
            if !seen.insert((id, part, ended)) {
                continue;
            }
            let mut push = |place| found.push(Reading { place, part });
            match self.nfa.state(id) {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) if !ended => push(Place::At(id)),
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Fail => (),
                State::Match { .. } => push(if ended { Place::Ended } else { Place::Done }),
                State::Union { alternates } => left.extend(alternates.iter().map(|&id| (id, part, ended))),
                State::BinaryUnion { alt1, alt2 } => {
                    left.extend([(*alt1, part, ended), (*alt2, part, ended)])
                }
                State::Capture { next, slot, .. } => {
                    let part = match slot.as_usize() {
                        slot if slot == self.open => Part::Inside,
                        slot if slot == self.closed => Part::Behind,
                        _ => part,
                    };
                    left.push((*next, part, ended));
                }
                State::Look { look, next } => match look {
                    Look::Start if !at_start => (),
                    Look::End => left.push((*next, part, true)),
                    _ => left.push((*next, part, ended)),
                },
            }
        }
        found
    }

    /// Every pair that one more byte leads to, with that byte.
    fn step(&self, (a, b, differ): Pair) -> Vec<(u8, Pair)> {
        let mut found = Vec::new();
        let mut colon_only = false;
        let differs = match (a.part == Part::Inside, b.part == Part::Inside) {
            _ if differ => true,
            (false, false) | (true, true) => false,
            // The mirrored pair is walked too.
            (true, false) => return found,
            (false, true) => {
                colon_only = a.part == Part::Behind;
                true
            }
        };
        for (low_a, high_a, next_a) in self.transitions(a) {
            for (low_b, high_b, next_b) in self.transitions(b) {
                let (low, high) = (low_a.max(low_b), high_a.min(high_b));
                let byte = if colon_only { b':' } else { readable(low, high) };
                if low > high || !(low..=high).contains(&byte) {
                    continue;
                }
                for &a in &self.enter(a, next_a) {
                    for &b in &self.enter(b, next_b) {
                        found.push((byte, (a, b, differs)));
                    }
                }
            }
        }
        found
    }

    fn enter(&self, from: Reading, next: Option<StateID>) -> Vec<Reading> {
        match next {
            Some(state) => self.follow(state, from.part, false),
            None => vec![from],
        }
    }

    fn transitions(&self, reading: Reading) -> Vec<(u8, u8, Option<StateID>)> {
        let id = match reading.place {
            Place::At(id) => id,
            Place::Done => return vec![(0, 255, None)],
            Place::Ended => return Vec::new(),
        };
        match self.nfa.state(id) {
            State::ByteRange { trans } => vec![(trans.start, trans.end, Some(trans.next))],
            State::Sparse(sparse) => {
                sparse.transitions.iter().map(|t| (t.start, t.end, Some(t.next))).collect()
            }
            State::Dense(dense) => {
                let reads = dense.transitions.iter().enumerate().filter(|(_, next)| **next != StateID::ZERO);
                reads.map(|(byte, &next)| (byte as u8, byte as u8, Some(next))).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A byte of the range that people can read, if there is one.
fn readable(low: u8, high: u8) -> u8 {
    let mut wanted = b"x1 ".iter().copied().chain(b'!'..=b'~');
    wanted.find(|byte| (low..=high).contains(byte)).unwrap_or(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::pattern;

    #[test]
    fn the_line_that_fools_is_short_and_plain() {
        let hir = pattern::parse(&format!("^user .* from {EXAMPLE_HOSTS} port")).unwrap();
        let Answer::Fooled(line) = second_reading(&hir) else { panic!("it has two readings") };
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("user  from ") && line.matches(" from ").count() == 2, "{line}");
    }

    #[test]
    fn a_pattern_without_an_address_blames_nobody() {
        assert_eq!(second_reading(&pattern::parse("^.*x.*$").unwrap()), Answer::Steady);
    }

    #[test]
    fn a_huge_pattern_is_not_waited_for() {
        let hir = pattern::parse(&format!("^(?:.{{0,300}} .{{0,300}})+ {EXAMPLE_HOSTS}$")).unwrap();
        assert_eq!(second_reading(&hir), Answer::TooBig);
    }
}
