//! A pattern as written becomes a regular expression, or a fault that points at the spot.
#![forbid(unsafe_code)]

use regex_syntax::ast;
use regex_syntax::hir::{Hir, Look};

use super::{address, steer};

/// The tags and what they stand for. A tag may occur once in a pattern.
const TAGS: [(&str, &str); 6] = [
    ("<HOST>", address::HOST_REGEX),
    ("<USER>", "(?P<user>.*)"),
    ("<PATH>", r#"(?P<path>[^\s"]*)"#),
    ("<COUNT>", "(?P<count>[0-9]+)"),
    ("<SESSION>", r"(?P<session>\S+)"),
    ("<CONTENT>", "(?P<content>.*)"),
];

/// fail2ban's tags that have no equal here, and what to write instead.
const FOREIGN_TAGS: [(&str, &str); 9] = [
    ("<ADDR>", "write <HOST>: it is always a literal address here"),
    ("<IP4>", "write <HOST>: it takes IPv4 and IPv6"),
    ("<IP6>", "write <HOST>: it takes IPv4 and IPv6"),
    ("<CIDR>", "write <HOST>: networks are not banned from a log"),
    ("<SUBNET>", "write <HOST>: networks are not banned from a log"),
    ("<DNS>", "write <HOST>: names are never looked up"),
    (
        "<F-",
        "write <USER>, <CONTENT>, <SESSION>, or successregex and sessionregex for lines that do not count",
    ),
    (
        "</F-",
        "write <USER>, <CONTENT>, <SESSION>, or successregex and sessionregex for lines that do not count",
    ),
    ("<SKIPLINES>", "join the lines of a connection with `session`"),
];

/// The named groups that mean something.
pub const GROUPS: [&str; 6] = ["host", "user", "path", "count", "session", "content"];

/// A fault in a pattern: what is wrong and where, in bytes of the pattern as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub text: String,
    pub start: usize,
    pub end: usize,
}

/// A pattern whose tags are replaced.
#[derive(Clone, Debug)]
pub struct Expanded {
    pub regex: String,
    /// The groups of [`GROUPS`] that it has.
    pub groups: Vec<&'static str>,
    /// The same pattern with a few example addresses in place of `<HOST>`.
    examples: String,
    /// Where each tag stood, where its text stands now, and how long both are.
    moved: Vec<(usize, usize, usize, usize)>,
}

impl Expanded {
    pub fn has(&self, group: &str) -> bool {
        self.groups.contains(&group)
    }

    /// Where a byte of the regular expression comes from in the pattern: the start or the end of a tag where
    /// it is inside a tag's text.
    fn origin(&self, at: usize, is_end: bool) -> usize {
        let mut shift = 0;
        for &(from, to, tag_length, text_length) in &self.moved {
            if at < to + usize::from(is_end) {
                break;
            }
            if at < to + text_length {
                return if is_end { from + tag_length } else { from };
            }
            shift = (to + text_length) as isize - (from + tag_length) as isize;
        }
        (at as isize - shift) as usize
    }
}

/// Replaces the tags of `pattern`.
pub fn expand(pattern: &str) -> Result<Expanded, Fault> {
    let mut out = Expanded {
        regex: String::with_capacity(pattern.len() + address::HOST_REGEX.len()),
        groups: Vec::new(),
        examples: String::new(),
        moved: Vec::new(),
    };
    let mut at = 0;
    while let Some(open) = pattern[at..].find('<').map(|offset| at + offset) {
        let rest = &pattern[open..];
        if let Some((tag, hint)) = FOREIGN_TAGS.iter().find(|(tag, _)| rest.starts_with(tag)) {
            let end = open + rest.find('>').map_or(tag.len(), |close| close + 1);
            return Err(Fault { text: format!("unknown tag; {hint}"), start: open, end });
        }
        let (text, examples, length) = match TAGS.iter().find(|(tag, _)| rest.starts_with(tag)) {
            Some((tag @ "<HOST>", regex)) => (*regex, steer::EXAMPLE_HOSTS, tag.len()),
            Some((tag, regex)) => (*regex, *regex, tag.len()),
            None => ("<", "<", 1),
        };
        out.regex += &pattern[at..open];
        out.examples += &pattern[at..open];
        if length > 1 {
            out.moved.push((open, out.regex.len(), length, text.len()));
        }
        out.regex += text;
        out.examples += examples;
        at = open + length;
    }
    out.regex += &pattern[at..];
    out.examples += &pattern[at..];
    out.groups = GROUPS.into_iter().filter(|group| names(&out.regex, group)).collect();
    Ok(out)
}

fn names(regex: &str, group: &str) -> bool {
    regex.contains(&format!("(?P<{group}>")) || regex.contains(&format!("(?<{group}>"))
}

/// Parses an expanded pattern. Refuses what cannot be run in linear time, and what is not tied to the start
/// of the text.
pub fn prove_sound(pattern: &str, expanded: &Expanded) -> Result<Hir, Fault> {
    let hir = parse(&expanded.regex).map_err(|error| syntax_fault(pattern, expanded, &error))?;
    if !hir.properties().look_set_prefix().contains(Look::Start) {
        let text = "must begin with ^ in every alternative: else an attacker's text may stand before it";
        return Err(Fault { text: text.to_owned(), start: 0, end: 1.min(pattern.len()) });
    }
    Ok(hir)
}

/// Refuses a pattern under which one line can be read as blaming two addresses: whoever chooses a part of
/// the line then chooses between them. The fault holds such a line.
pub fn prove_steady(pattern: &str, expanded: &Expanded) -> Result<(), Fault> {
    if !expanded.has("host") {
        return Ok(());
    }
    let host_at = pattern.find("<HOST>").or_else(|| pattern.find("<host>")).unwrap_or(0);
    let fault = |text: String| Fault { text, start: host_at, end: host_at + "<HOST>".len() };
    let hir = parse(&expanded.examples).map_err(|error| syntax_fault(pattern, expanded, &error))?;
    match steer::second_reading(&hir) {
        steer::Answer::Steady => Ok(()),
        steer::Answer::TooBig => Err(fault("is too large to be proven safe; split it".to_owned())),
        steer::Answer::Fooled(line) => Err(fault(format!(
            "an attacker could choose the address: this can be read in two ways, as in\n      {}\n    End the \
             pattern with $ and let nothing behind <HOST> match arbitrary text, or let nothing before it do so",
            line.escape_ascii()
        ))),
    }
}

/// Parses with the same settings that the patterns are run with.
pub fn parse(regex: &str) -> Result<Hir, Box<regex_syntax::Error>> {
    let mut parser = regex_syntax::ParserBuilder::new();
    parser.unicode(false).utf8(false).dot_matches_new_line(true);
    parser.build().parse(regex).map_err(Box::new)
}

fn syntax_fault(pattern: &str, expanded: &Expanded, error: &regex_syntax::Error) -> Fault {
    let (text, span) = match error {
        regex_syntax::Error::Parse(error) => (explain(error.kind()), *error.span()),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), *error.span()),
        _ => (error.to_string(), ast::Span::splat(ast::Position::new(0, 1, 1))),
    };
    let start = expanded.origin(span.start.offset, false).min(pattern.len());
    let end = expanded.origin(span.end.offset, true).clamp(start, pattern.len());
    Fault { text, start, end }
}

fn explain(kind: &ast::ErrorKind) -> String {
    match kind {
        ast::ErrorKind::UnsupportedLookAround => {
            "look-around would not run in linear time; put what must not match into ignoreregex, or into a \
             pattern that stands before this one"
                .to_owned()
        }
        ast::ErrorKind::UnsupportedBackreference => {
            "back-references would not run in linear time; write one pattern for each text that may repeat"
                .to_owned()
        }
        ast::ErrorKind::GroupNameDuplicate { .. } => {
            "a group may stand only once; write one pattern for each alternative".to_owned()
        }
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str) -> Result<(), Fault> {
        let expanded = expand(pattern)?;
        prove_sound(pattern, &expanded)?;
        prove_steady(pattern, &expanded)
    }

    #[test]
    fn patterns_that_leave_no_choice_are_accepted() {
        for pattern in [
            r"^Failed \S+ for <USER> from <HOST> port \d+ ssh2$",
            r"^Invalid user <USER> from <HOST>(?: port \d+)?$",
            r"^Invalid user (?P<user>\S+) from <HOST> .*",
            r"^drop connection #\d+ from \[<HOST>\]:\d+ on \[\S+\]:\d+ penalty: .*$",
            r"^auth failed, user=<USER>, rip=<HOST>, lip=\S+$",
            r"^auth failed, user=[^,]*, rip=<HOST>, .*$",
            r"^<HOST> - \S+",
            r"^<HOST>:\d+ bad",
            r"^Timeout for connection from <HOST> to \S+, pid = \d+$",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn patterns_that_an_attacker_could_steer_are_refused_with_a_line() {
        for pattern in [
            r"^Failed \S+ for .* from <HOST>",
            r"^Failed \S+ for .*? from <HOST>(?: port \d+)?",
            r"^Failed \S+ for <USER> from <HOST> port \d+ ssh2: .*$",
            r"^User <USER> from <HOST> not allowed because .*$",
            r"^.*<HOST>$",
            r"^client <HOST>(?::\d+)?$",
            r"^Failed for <USER>(?: from <HOST>)?$",
            r"^auth failed, user=[^;]*, rip=<HOST>, .*$",
        ] {
            let fault = check(pattern).expect_err(pattern);
            assert!(fault.text.contains("two ways"), "{pattern}: {}", fault.text);
            assert!(pattern[fault.start..].starts_with("<HOST>"));
        }
    }

    #[test]
    fn faults_point_at_their_place() {
        for (pattern, start, end, says) in [
            ("Failed from <HOST>", 0, 1, "must begin with ^"),
            ("^a <HOST>|b", 0, 1, "every alternative"),
            ("^<HOST> (?!x) y", 8, 11, "ignoreregex"),
            (r"^(a)<HOST>\1", 10, 12, "back-references"),
            ("^<HOST> <HOST>", 8, 14, "only once"),
            ("^x <ADDR>$", 3, 9, "<HOST>"),
            ("^x <F-USER>y</F-USER> <HOST>", 3, 11, "<USER>"),
            ("^<HOST> [", 8, 9, "unclosed"),
        ] {
            let fault = check(pattern).expect_err(pattern);
            assert!(fault.text.contains(says), "{pattern}: {}", fault.text);
            assert_eq!((fault.start, fault.end), (start, end), "{pattern}: {}", fault.text);
        }
    }
}
