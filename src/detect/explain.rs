//! Why no pattern fits a line: how far the nearest one came.
#![forbid(unsafe_code)]

use regex_automata::hybrid::dfa::DFA;
use regex_automata::nfa::thompson;
use regex_automata::util::{start, syntax};

use super::header::{self, Format};
use super::pattern;
use super::rule::Rule;

/// Where a line stopped being understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It has none of the headers that the rule knows.
    Header,
    /// Another program wrote it.
    Program(String),
    /// It is JSON, whose fields decide.
    Fields,
    /// The pattern that went furthest stopped at this byte of the line.
    Pattern { text: String, at: usize },
}

/// How far the rule came with a line that none of its patterns fits.
pub fn reach(rule: &Rule, line: &[u8]) -> Reach {
    if rule.formats().contains(&Format::Json) {
        return Reach::Fields;
    }
    let mut other = None;
    for format in rule.formats() {
        if *format == Format::None && other.is_some() {
            break;
        }
        let Some(header) = header::read(*format, line) else { continue };
        let named = matches!(format, Format::Syslog | Format::Kernel) || !header.program.is_empty();
        if named && !rule.hears(header.program) {
            other = Some(String::from_utf8_lossy(header.program).into_owned());
            continue;
        }
        let offset = header.message.as_ptr() as usize - line.as_ptr() as usize;
        let prefilter = rule.prefilter_text().map(|text| (text, walk(text, header.message)));
        let furthest = match prefilter {
            Some((text, at)) if at < header.message.len() => Some((text, at)),
            _ => rule
                .patterns()
                .iter()
                .map(|pattern| (pattern.text(), walk(pattern.text(), header.message)))
                .max_by_key(|(_, at)| *at),
        };
        return match furthest {
            Some((text, at)) => Reach::Pattern { text: text.to_owned(), at: offset + at },
            None => Reach::Header,
        };
    }
    other.map_or(Reach::Header, Reach::Program)
}

/// How many bytes of `text` a pattern can begin with, before no continuation would fit any more.
fn walk(pattern: &str, text: &[u8]) -> usize {
    let Some(dfa) = automaton(pattern) else { return 0 };
    let mut cache = dfa.create_cache();
    let anchored = start::Config::new().anchored(regex_automata::Anchored::Yes);
    let Ok(mut state) = dfa.start_state(&mut cache, &anchored) else { return 0 };
    for (at, byte) in text.iter().enumerate() {
        match dfa.next_state(&mut cache, state, *byte) {
            Ok(next) if next.is_dead() || next.is_quit() => return at,
            Ok(next) => state = next,
            Err(_) => return at,
        }
    }
    text.len()
}

fn automaton(pattern: &str) -> Option<DFA> {
    let expanded = pattern::expand(pattern).ok()?;
    DFA::builder()
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .thompson(thompson::Config::new().utf8(false))
        .build(&expanded.regex)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Library;

    #[test]
    fn a_line_that_almost_fits_is_told_from_one_of_another_program() {
        let rule = Library::shipped().compile("sshd", None).unwrap();
        let line = "Nov 21 10:00:00 web01 sshd[1]: Failed password for root fram 192.0.2.1";
        let Reach::Pattern { text, at } = reach(&rule, line.as_bytes()) else { panic!() };
        assert!(text.starts_with("^Failed "), "{text}");
        assert!(
            line[..at].ends_with("192.0.2.1"),
            "a name may hold blanks, so only the end is missing: {}",
            &line[..at]
        );
        let other = "Nov 21 10:00:00 web01 cron[1]: Failed password for root from 192.0.2.1";
        assert_eq!(reach(&rule, other.as_bytes()), Reach::Program("cron".to_owned()));
        let odd = "Nov 21 10:00:00 web01 sshd[1]: Connexion closed";
        let Reach::Pattern { at, .. } = reach(&rule, odd.as_bytes()) else { panic!() };
        assert_eq!(&odd[..at], "Nov 21 10:00:00 web01 sshd[1]: Conne");
    }
}
