//! The verb `match`: what a rule makes of each line of a log, for programs and for people.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::acquire::archive::Archive;
use crate::detect::answer::{Answer, answer};
use crate::detect::explain::{Reach, reach};
use crate::detect::{Clock, Detector, Rule};
use crate::host;

/// What to show beside the lines that count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// One JSON object for each line, and nothing else.
    pub json: bool,
    /// Lines that no pattern fits, instead of those that count.
    pub missed: bool,
    /// For each line that no pattern fits, how far the nearest came.
    pub explain: bool,
}

/// Runs a rule over a log. The agent would decide the same of each line.
pub fn run(rule: Rule, log: &Path, wishes: Wishes) -> io::Result<()> {
    let mut archive = Archive::open(log).map_err(io::Error::other)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let styled = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let rule = Arc::new(rule);
    let mut detector = Detector::new(vec![rule.clone()]);
    let (now, zone) = (host::now(), TimeZone::system());
    let mut totals = Totals::default();
    let mut line = Vec::new();
    while archive.next_line(&mut line)? {
        totals.lines += 1;
        let answer = answer(&mut detector, totals.lines, &line, Clock::Written { now, zone: &zone });
        totals.count(&answer);
        if wishes.json {
            serde_json::to_writer(&mut out, &answer)?;
            out.write_all(b"\n")?;
        } else if let Some(text) = shown(&rule, &line, &answer, wishes, styled) {
            out.write_all(text.as_bytes())?;
        }
    }
    if !wishes.json {
        out.write_all(totals.text(&rule).as_bytes())?;
    }
    out.flush()
}

#[derive(Debug, Default)]
struct Totals {
    lines: u64,
    failures: u64,
    missed: u64,
    /// For each pattern as written: what it is for, and how many lines it fits.
    patterns: BTreeMap<String, (&'static str, u64)>,
}

impl Totals {
    fn count(&mut self, answer: &Answer) {
        self.failures += u64::from(answer.failure);
        match (&answer.pattern, answer.kind) {
            (Some(pattern), Some(kind)) => self.patterns.entry(pattern.clone()).or_insert((kind, 0)).1 += 1,
            _ => self.missed += 1,
        }
    }

    fn text(&self, rule: &Rule) -> String {
        let mut text = String::new();
        let mut order: Vec<_> = self.patterns.iter().collect();
        order.sort_by_key(|(_, (kind, count))| (*kind, std::cmp::Reverse(*count)));
        if !order.is_empty() {
            text += "\n   LINES  KIND     PATTERN\n";
        }
        for (pattern, (kind, count)) in order {
            text += &format!("{count:>8}  {kind:<7}  {pattern}\n");
        }
        let Totals { lines, failures, missed, .. } = self;
        text + &format!(
            "\n{lines} lines: {failures} count as failures by the rule {}, {missed} were not understood\n",
            rule.name()
        )
    }
}

/// What people see of one line; none where they asked for others.
fn shown(rule: &Rule, line: &[u8], answer: &Answer, wishes: Wishes, styled: bool) -> Option<String> {
    let number = answer.line;
    if answer.rule.is_none() && (wishes.missed || wishes.explain) {
        let mut text = format!("{number}: {}\n", escaped(line));
        if wishes.explain {
            text += &explained(rule, line, &format!("{number}: "));
        }
        return Some(text);
    }
    if !answer.failure || wishes.missed {
        return None;
    }
    let addr = answer.addr.map_or_else(|| "nobody".to_owned(), |addr| addr.to_string());
    let user =
        answer.user.as_ref().map(|user| format!(" as \"{}\"", user.escape_debug())).unwrap_or_default();
    let weight = answer.weight.filter(|weight| *weight > 1).map(|weight| format!(", counts {weight}"));
    let time = answer.time.map(|time| time.to_string()).unwrap_or_default();
    Some(format!(
        "{number}: {addr}{user} at {time}{}\n    {}\n",
        weight.unwrap_or_default(),
        marked(line, answer.addr, styled)
    ))
}

/// The line with the last place that reads as the address between marks.
fn marked(line: &[u8], addr: Option<IpAddr>, styled: bool) -> String {
    let (before, after) = if styled { ("\u{1b}[1;31m", "\u{1b}[0m") } else { (">", "<") };
    let place = addr.and_then(|addr| place_of(line, addr));
    match place {
        Some((start, end)) => {
            let (left, right) = (escaped(&line[..start]), escaped(&line[end..]));
            format!("{left}{before}{}{after}{right}", escaped(&line[start..end]))
        }
        None => escaped(line),
    }
}

fn place_of(line: &[u8], addr: IpAddr) -> Option<(usize, usize)> {
    let is_part = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    let mut end = line.len();
    while end > 0 {
        let start = line[..end].iter().rposition(|byte| !is_part(byte)).map_or(0, |at| at + 1);
        let word = std::str::from_utf8(&line[start..end]).unwrap_or_default();
        let trimmed = word.trim_end_matches([':', '.']);
        if trimmed.parse::<IpAddr>().is_ok_and(|found| found.to_canonical() == addr) {
            return Some((start, start + trimmed.len()));
        }
        end = start.saturating_sub(1);
    }
    None
}

fn explained(rule: &Rule, line: &[u8], margin: &str) -> String {
    match reach(rule, line) {
        Reach::Header => "    it has none of the headers that the rule knows\n".to_owned(),
        Reach::Program(name) => {
            format!("    it is of the program \"{}\", not of this rule's\n", name.escape_debug())
        }
        Reach::Fields => "    no pattern's fields are as wished\n".to_owned(),
        Reach::Pattern { text, at } => {
            let column = margin.chars().count() + escaped(&line[..at]).chars().count();
            format!("{}^ the nearest pattern came this far\n    {text}\n", " ".repeat(column))
        }
    }
}

/// Text of a log may hold whatever an attacker wrote: nothing of it reaches the terminal as it is.
fn escaped(text: &[u8]) -> String {
    let mut shown = String::new();
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Library;

    const LINE: &[u8] =
        b"Nov 21 10:00:00 web01 sshd[1]: Failed password for invalid user \x1b[2J from 192.0.2.9 \
                          port 1 from 192.0.2.10 port 4242 ssh2";

    fn ask(line: &[u8], wishes: Wishes) -> Option<String> {
        let rule = Arc::new(Library::shipped().compile("sshd", None).unwrap());
        let mut detector = Detector::new(vec![rule.clone()]);
        let clock = Clock::Written {
            now: crate::model::Timestamp::from_millis(1_795_262_400_000),
            zone: &TimeZone::UTC,
        };
        let answer = answer(&mut detector, 7, line, clock);
        shown(&rule, line, &answer, wishes, false)
    }

    #[test]
    fn the_address_is_marked_and_the_terminal_left_alone() {
        let wanted = "7: 192.0.2.10 as \"\\u{1b}[2J from 192.0.2.9 port 1\" at 2026-11-21T10:00:00.000Z\n    Nov 21 10:00:00 \
                      web01 sshd[1]: Failed password for invalid user \\u{1b}[2J from 192.0.2.9 port 1 from >192.0.2.10< \
                      port 4242 ssh2\n";
        assert_eq!(ask(LINE, Wishes::default()).unwrap(), wanted);
        assert_eq!(ask(LINE, Wishes { missed: true, ..Wishes::default() }), None);
    }

    #[test]
    fn a_line_that_nearly_fits_shows_where_it_stops() {
        let line = b"Nov 21 10:00:00 web01 sshd[1]: Connexion closed by 192.0.2.1";
        assert_eq!(ask(line, Wishes::default()), None);
        let told = ask(line, Wishes { explain: true, ..Wishes::default() }).unwrap();
        let caret = told.lines().nth(1).unwrap().find('^').unwrap();
        assert_eq!(&told.lines().next().unwrap()[..caret], "7: Nov 21 10:00:00 web01 sshd[1]: Conne");
    }
}
