//! A line becomes a finding: who failed, as whom, when, and how badly.
//!
//! A [`Detector`] belongs to one log source and holds every [`Rule`] that listens to it. It reads a line's
//! header once, asks each rule that hears the line's program, and joins the lines of one connection. It reads
//! no clock, opens no file and looks up no name.
#![forbid(unsafe_code)]

pub mod address;
pub mod answer;
pub mod compile;
pub mod date;
pub mod explain;
pub mod file;
pub mod header;
pub mod json;
pub mod library;
pub mod pattern;
pub mod probe;
pub mod repeat;
mod restamp;
pub mod rule;
pub mod sample;
pub mod session;
pub mod skew;
pub mod steer;
mod web;
pub mod wrapper;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::tz::TimeZone;

pub use compile::BadRule;
pub use library::Library;
pub use rule::{Kind, Rule};

use crate::model::{Bantime, Entry, Timestamp};
use date::{Dates, Stamp};
use file::Session;
use header::{Format, Header};
use json::Record;
use repeat::Again;
use rule::{Hit, Scratch};
use session::{Debt, Outcome, Role, Sessions, Told};
use skew::{Comparison, Skew};
use wrapper::{Inner, Unwrapper};

/// The longest line that is looked at, in bytes; what is longer is nobody's.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// The most that one line counts as.
pub const WEIGHT_MAX: u32 = 1000;

/// The mode of a rule that adds nothing.
pub const NORMAL: &str = "normal";

/// When a line counts.
#[derive(Clone, Copy, Debug)]
pub enum Clock<'z> {
    /// A live line: now, whatever date it bears.
    Arrived(Timestamp),
    /// An old line: by its own date, read in `zone` where it names none; `now` where it bears none
    /// or a later one.
    Written { now: Timestamp, zone: &'z TimeZone },
}

/// One failure or good log-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub addr: IpAddr,
    pub at: Timestamp,
    /// At most 128 bytes, as the attacker wrote it: escape before printing.
    pub user: Option<String>,
    /// What it asked for, without a query, as the attacker wrote it.
    pub path: Option<Vec<u8>>,
    /// How many failures it counts as: 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// The pattern's own length of a ban.
    pub bantime: Option<Bantime>,
    /// Which of [`Rule::patterns`] decided; for a failure that waited for its address, the one that failed.
    pub pattern: usize,
}

/// What a rule makes of a line that one of its patterns matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Failure(Finding),
    Success(Finding),
    /// Understood, and nothing follows: ignored, only tells of its session, waits for an address, or names
    /// something that is none.
    Noted {
        pattern: usize,
    },
}

/// The rules of one log source, and what they remember of it.
#[derive(Debug)]
pub struct Detector {
    rules: Vec<Listener>,
    /// Rules that hear only these programs through syslog.
    by_program: HashMap<Vec<u8>, Vec<usize>>,
    /// All other rules.
    others: Vec<usize>,
    /// Whether a syslog daemon may be the one that writes the source.
    is_syslog: bool,
    unwrapper: Unwrapper,
    comparison: Comparison,
    memory: Memory,
}

#[derive(Debug)]
struct Listener {
    rule: Arc<Rule>,
    scratch: Scratch,
    sessions: Sessions,
}

#[derive(Debug, Default)]
struct Memory {
    dates: Dates,
    /// Whether the source has ever shown a line that begins with a date.
    dated: bool,
    /// Whether some rule's failure pattern fits the line.
    failed: bool,
    /// The last line where it was such a one, in case that a daemon says that it came again; empty otherwise.
    last: Vec<u8>,
}

impl Detector {
    pub fn new(rules: Vec<Arc<Rule>>) -> Self {
        let mut by_program: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        let mut others = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let named = !rule.program.is_empty() && !rule.program.iter().any(|name| name.ends_with('*'));
            if named && rule.formats == [Format::Syslog] {
                for name in &rule.program {
                    by_program.entry(name.clone().into_bytes()).or_default().push(index);
                }
            } else {
                others.push(index);
            }
        }
        let is_syslog = rules.iter().any(|rule| rule.formats.contains(&Format::Syslog));
        let listen =
            |rule: Arc<Rule>| Listener { scratch: Scratch::new(&rule), sessions: Sessions::default(), rule };
        let rules = rules.into_iter().map(listen).collect();
        Detector {
            rules,
            by_program,
            others,
            is_syslog,
            unwrapper: Unwrapper::default(),
            comparison: Comparison::default(),
            memory: Memory::default(),
        }
    }

    /// Takes over what the detector that read the source before knew of it: its dates and wrapper, and the connections
    /// that rules which did not change are in the middle of. Clocks are compared anew, perhaps in another zone.
    pub fn inherit(&mut self, older: Detector) {
        for listener in &mut self.rules {
            if let Some(old) = older.rules.iter().find(|old| old.rule.is_like(&listener.rule)) {
                listener.sessions = old.sessions.clone();
            }
        }
        self.memory = older.memory;
        self.unwrapper = older.unwrapper;
    }

    /// The rules in the order in which they were given; `found` is told their index.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = &Arc<Rule>> {
        self.rules.iter().map(|listener| &listener.rule)
    }

    /// Offers a line of text to all rules. A line end and a container runtime's wrapper are taken off.
    ///
    /// A line without a date counts only as long as the source has shown none with a date: a file that a
    /// syslog daemon writes has a header on every line, so text without one is the rest of a message that
    /// somebody broke in two. Only a rule whose one format is `none` takes every line. Where a syslog daemon
    /// says that the line before came again so many times, that line is what is offered, with so much weight.
    pub fn detect(&mut self, text: &[u8], clock: Clock, mut found: impl FnMut(usize, Verdict)) {
        let line = without_line_end(text);
        // What is not looked at is as good as an empty line.
        let line = if line.len() > LINE_BYTES_MAX { b"" } else { line };
        let Some(Inner { text, written }) = self.unwrapper.open(line) else { return };
        let line = without_line_end(&text);
        let mut last = std::mem::take(&mut self.memory.last);
        if let Some(again) = Again::read(line)
            && again.is_of(&last)
        {
            let said = Said { written: written.or(Some(again.stamp)), times: again.times };
            self.offer(&mut Reading::new(Some(&last), said), clock, &mut found);
            self.memory.last = last;
            return;
        }
        self.memory.failed = false;
        self.offer(&mut Reading::new(Some(line), Said { written, times: 0 }), clock, &mut found);
        last.clear();
        if self.memory.failed {
            last.extend_from_slice(line);
        }
        self.memory.last = last;
    }

    /// Compares the date of a line that arrived just now with the clock; whether something new is found.
    pub fn compare_clocks(&mut self, line: &[u8], now: Timestamp, zone: &TimeZone) -> bool {
        self.comparison.note(line, now, zone)
    }

    /// How the dates of the source differ from the clock.
    pub fn skew(&self) -> Option<Skew> {
        self.comparison.found()
    }

    /// Offers a journal entry to all rules. Line ends within its message are part of the message: what a client
    /// sent with one does not become a line of its own.
    pub fn detect_entry(&mut self, entry: Entry, clock: Clock, mut found: impl FnMut(usize, Verdict)) {
        if entry.message.len() > LINE_BYTES_MAX {
            return;
        }
        let Entry { host, program, pid, message, contained, .. } = entry;
        if contained {
            return self.detect(message, clock, found);
        }
        let entry = Header { host, program, pid, message: without_line_end(message), ..Header::default() };
        self.offer(&mut Reading { entry, ..Reading::new(None, Said::default()) }, clock, &mut found);
    }

    fn offer(&mut self, reading: &mut Reading, clock: Clock, found: &mut impl FnMut(usize, Verdict)) {
        let header = if self.is_syslog { reading.header(Format::Syslog) } else { None };
        self.memory.dated |= reading.line.is_some() && header.is_some_and(|header| header.stamp.is_some());
        let program = header.map_or(&b""[..], |header| header.program);
        let named = self.by_program.get(program).map_or(&[][..], Vec::as_slice);
        for &index in self.others.iter().chain(named) {
            if let Some(verdict) = self.rules[index].hear(reading, clock, &mut self.memory) {
                found(index, verdict);
            }
        }
    }
}

/// The date that a line bears, whichever program wrote it; none where it bears none.
pub fn date_of(line: &[u8], now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    stamp_of(line)?.resolve(now, zone)
}

fn stamp_of(line: &[u8]) -> Option<Stamp<'_>> {
    wrapper::written(line)
        .or_else(|| restamp::DATED.into_iter().find_map(|format| header::read(format, line)?.stamp))
}

/// One line, and what has been read of it so far.
struct Reading<'a> {
    /// None where it is a journal entry.
    line: Option<&'a [u8]>,
    entry: Header<'a>,
    said: Said<'a>,
    headers: [Option<Option<Header<'a>>>; 8],
    json: Option<Option<serde_json::Value>>,
}

/// What is said of a line elsewhere, by somebody who knows better than the line itself.
#[derive(Clone, Copy, Debug, Default)]
struct Said<'a> {
    written: Option<Stamp<'a>>,
    /// How many times it came; 0 where nobody says.
    times: u32,
}

impl Said<'_> {
    fn over<'h>(&'h self, header: Header<'h>) -> Header<'h> {
        let times = if self.times > 0 { self.times } else { header.times };
        Header { stamp: self.written.or(header.stamp), times, ..header }
    }
}

impl<'a> Reading<'a> {
    fn new(line: Option<&'a [u8]>, said: Said<'a>) -> Self {
        Reading { line, entry: Header::default(), said, headers: [None; 8], json: None }
    }

    fn header(&mut self, format: Format) -> Option<Header<'a>> {
        *self.headers[format as usize].get_or_insert_with(|| match self.line {
            Some(line) => header::read(format, line),
            None => header::read_entry(format, &self.entry),
        })
    }

    fn json(&mut self) -> Option<&serde_json::Value> {
        let text = self.line.unwrap_or(self.entry.message);
        self.json.get_or_insert_with(|| json::read(text)).as_ref()
    }
}

impl Listener {
    /// The first of the rule's formats that fits the line decides what the message is.
    fn hear(&mut self, reading: &mut Reading, clock: Clock, memory: &mut Memory) -> Option<Verdict> {
        let rule = Arc::clone(&self.rule);
        let (is_entry, said) = (reading.line.is_none(), reading.said);
        if is_entry && !rule.hears(reading.entry.program) {
            return None;
        }
        for &format in &rule.formats {
            if format == Format::Json {
                let Some(value) = reading.json() else { continue };
                let record = Record::new(value, rule.fields.as_ref()?);
                return self.judge(&said.over(record.header()), Some(&record), clock, memory);
            }
            let Some(header) = reading.header(format) else { continue };
            let names_programs = matches!(format, Format::Syslog | Format::Kernel);
            memory.dated |= !is_entry && header.stamp.is_some();
            let is_heard = (!names_programs && header.program.is_empty()) || rule.hears(header.program);
            if !is_heard || !rule.hears_module(header.module) {
                continue;
            }
            let is_whole = is_entry || rule.formats == [Format::None];
            if header.stamp.is_none() && memory.dated && !is_whole {
                continue;
            }
            return self.judge(&said.over(header), None, clock, memory);
        }
        None
    }

    fn judge(
        &mut self,
        header: &Header,
        record: Option<&Record>,
        clock: Clock,
        memory: &mut Memory,
    ) -> Option<Verdict> {
        let rule = &self.rule;
        let hit = rule.find(&mut self.scratch, header, record)?;
        let pattern = &rule.patterns[hit.pattern];
        let noted = Some(Verdict::Noted { pattern: hit.pattern });
        let role = match pattern.kind {
            Kind::Ignore => return noted,
            Kind::Failure => {
                memory.failed = true;
                Role::Failure
            }
            Kind::Success => Role::Success,
            Kind::Session => Role::Told,
        };
        let addr = match blamed(&hit, header) {
            Ok(addr) => addr,
            Err(NoAddress) => return noted,
        };
        let at = match (clock, &header.stamp) {
            (Clock::Arrived(now), _) => now,
            (Clock::Written { now, zone }, Some(stamp)) => {
                memory.dates.resolve(stamp, now, zone).unwrap_or(now).min(now)
            }
            (Clock::Written { now, .. }, None) => now,
        };
        let count =
            hit.count.map_or_else(|| record.map_or(1, |record| counted(record.count.as_bytes())), counted);
        let weight = pattern.weight.saturating_mul(count).saturating_mul(header.times.max(1));
        let debt = Debt { pattern: hit.pattern, weight: weight.clamp(1, WEIGHT_MAX) };
        let user = hit.user.unwrap_or(header.user);
        let key = session_key(rule, &hit, header, record);
        let path = hit.path.or_else(|| record.and_then(|record| record.path.as_ref()).map(String::as_bytes));
        let path = path.map(|path| path.split(|byte| *byte == b'?').next().unwrap_or_default().to_vec());
        let told = Told { role, addr, user, ends: pattern.ends, debt };
        let finding = |addr, user, debt: Debt| Finding {
            addr,
            at,
            user,
            path,
            weight: debt.weight,
            bantime: rule.patterns[debt.pattern].bantime,
            pattern: debt.pattern,
        };
        match self.sessions.handle(&key, told, at) {
            Outcome::Nothing => noted,
            Outcome::Failure { addr, user, debt } => Some(Verdict::Failure(finding(addr, user, debt))),
            Outcome::Success { addr, user } => Some(Verdict::Success(finding(addr, user, debt))),
        }
    }
}

/// A line names its client, and it is no address: the line blames nobody.
struct NoAddress;

/// Whom the line itself blames. What the pattern matched goes before what the header says.
fn blamed(hit: &Hit, header: &Header) -> Result<Option<IpAddr>, NoAddress> {
    let found = match (hit.host, &header.client) {
        (Some((text, after)), _) => address::parse(text).filter(|_| address::ends_before(after)),
        (None, Some(client)) => client.addr(),
        (None, None) => return Ok(None),
    };
    found.map(Some).ok_or(NoAddress)
}

/// "7 times" counts seven; what is no number, or zero, counts one.
fn counted(text: &[u8]) -> u32 {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    number.map_or(1, |number| number.clamp(1, u64::from(WEIGHT_MAX)) as u32)
}

/// What joins the line to others: its host, and process or captured key. Empty where nothing does.
fn session_key(rule: &Rule, hit: &Hit, header: &Header, record: Option<&Record>) -> Vec<u8> {
    let own = match rule.session {
        None => return Vec::new(),
        Some(Session::Pid) => header.pid,
        Some(Session::Captured) => {
            hit.session.or_else(|| record.map(|record| record.session.as_bytes())).unwrap_or_default()
        }
    };
    if own.is_empty() { Vec::new() } else { [own, b" ", header.host].concat() }
}

/// Blanks at the end go too: some services write them, and none means them.
fn without_line_end(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_255_200_000);

    /// A rule from YAML without the parts that every rule has.
    fn rule(yaml: &str) -> Arc<Rule> {
        let text = format!("rule: t\nabout: x\nsamples: []\n{yaml}");
        let file = crate::yaml::read("t.yaml", &text).unwrap_or_else(|fault| panic!("{fault}"));
        Arc::new(compile::compile("t.yaml", &file, None, true).unwrap_or_else(|bad| panic!("{bad}")))
    }

    /// What the rules find in the lines, one text for each line: `INDEX:ADDRESS*WEIGHT`.
    fn found(rules: &[Arc<Rule>], lines: &[&str]) -> Vec<String> {
        let mut detector = Detector::new(rules.to_vec());
        let mut out = Vec::new();
        for line in lines {
            let mut texts = Vec::new();
            detector.detect(line.as_bytes(), Clock::Arrived(NOW), |index, verdict| {
                if let Verdict::Failure(finding) = verdict {
                    texts.push(format!("{index}:{}*{}", finding.addr, finding.weight));
                }
            });
            out.push(texts.join(" "));
        }
        out
    }

    const SYSLOG: &str = "format: syslog\nprogram: [app, 'mta/*']\nfailregex: ['^bad <HOST>$']";

    #[test]
    fn only_the_rules_of_a_program_hear_it() {
        let other = rule("format: syslog\nprogram: [other]\nfailregex: ['^bad <HOST>$']");
        let all = rule("format: syslog\nfailregex: ['^bad <HOST>$']");
        let lines = ["h app[1]: bad 192.0.2.1", "h mta/in[1]: bad 192.0.2.1", "h x[1]: bad 192.0.2.1"];
        assert_eq!(
            found(&[rule(SYSLOG), other, all], &lines),
            ["0:192.0.2.1*1 2:192.0.2.1*1", "0:192.0.2.1*1 2:192.0.2.1*1", "2:192.0.2.1*1"]
        );
    }

    #[test]
    fn the_first_pattern_wins_and_what_is_ignored_is_nobodys() {
        let yaml = "format: none\nignoreregex: ['^bad 192\\.0\\.2\\.2$']\nfailregex:\n  - {regex: '^bad <HOST>$', \
                    weight: 3, bantime: 1w}\n  - '^b<USER> <HOST>$'";
        let rule = rule(yaml);
        assert_eq!(
            found(&[Arc::clone(&rule)], &["bad 192.0.2.1", "bad 192.0.2.2", "bxx 192.0.2.3"]),
            ["0:192.0.2.1*3", "", "0:192.0.2.3*1"]
        );
        let mut bantime = None;
        Detector::new(vec![rule]).detect(b"bad 192.0.2.1", Clock::Arrived(NOW), |_, verdict| {
            if let Verdict::Failure(finding) = verdict {
                bantime = finding.bantime.map(|bantime| bantime.to_string());
            }
        });
        assert_eq!(bantime.as_deref(), Some("1w"));
    }

    #[test]
    fn a_count_in_the_line_is_bounded() {
        let rule = rule("format: none\nfailregex: [{regex: '^<COUNT> from <HOST>$', weight: 2}]");
        let lines = ["7 from 192.0.2.1", "0 from 192.0.2.1", "99999999999999999999999 from 192.0.2.1"];
        assert_eq!(found(&[rule], &lines), ["0:192.0.2.1*14", "0:192.0.2.1*2", "0:192.0.2.1*2"]);
    }

    #[test]
    fn what_is_no_address_blames_nobody() {
        let rule = rule("format: none\nfailregex: ['^bad <HOST>(?: |$)']");
        let lines = [
            "bad 192.0.2.1 x",
            "bad 192.0.2.1.example.com",
            "bad 192.030.0.6",
            "bad 224.0.0.1",
            "bad ::ffff:192.0.2.1",
        ];
        assert_eq!(found(&[rule], &lines), ["0:192.0.2.1*1", "", "", "", "0:192.0.2.1*1"]);
    }

    #[test]
    fn a_prefilter_narrows_what_patterns_see() {
        let yaml = "format: none\nprefilter: '^\\[<HOST>\\] <CONTENT>$'\nfailregex: ['^no$']";
        assert_eq!(
            found(&[rule(yaml)], &["[192.0.2.1] no", "[192.0.2.1] nope", "no"]),
            ["0:192.0.2.1*1", "", ""]
        );
    }

    #[test]
    fn sessions_join_by_captured_keys() {
        let yaml = "format: none\nsession: <SESSION>\nfailregex: ['^<SESSION> bad$']\nsessionregex: ['^<SESSION> is <HOST>$']";
        assert_eq!(found(&[rule(yaml)], &["a is 192.0.2.1", "b bad", "a bad"]), ["", "", "0:192.0.2.1*1"]);
    }

    #[test]
    fn a_detector_goes_on_where_the_one_before_stopped() {
        let yaml =
            "format: [syslog, none]\nsession: pid\nfailregex: ['^bad$']\nsessionregex: ['^is <HOST>$']";
        let other = yaml.replace("'^bad$'", "'^worse$', '^bad$'");
        let heard = |again: Arc<Rule>, line: &str| {
            let mut before = Detector::new(vec![rule(yaml)]);
            before.detect(b"Nov 21 10:00:00 h app[1]: bad", Clock::Arrived(NOW), |_, _| ());
            let mut after = Detector::new(vec![again]);
            after.inherit(before);
            let mut failures = 0;
            after.detect(line.as_bytes(), Clock::Arrived(NOW), |_, verdict| {
                failures += usize::from(matches!(verdict, Verdict::Failure(_)));
            });
            failures
        };
        let address = "Nov 21 10:00:01 h app[1]: is 192.0.2.1";
        assert_eq!(heard(rule(yaml), address), 1, "what was owed is charged");
        assert_eq!(heard(rule(&other), address), 0, "another rule may mean something else by it");
        let own = "format: [date, none]\nfailregex: ['^bad <HOST>$']";
        assert_eq!(found(&[rule(own)], &["bad 192.0.2.1"]), ["0:192.0.2.1*1"]);
        assert_eq!(
            heard(rule(own), "bad 192.0.2.1"),
            0,
            "a line without a date is still the rest of another"
        );
    }

    #[test]
    fn web_logs_name_the_client_themselves() {
        let yaml = "format: clf\nfailregex: ['^\"(?:GET|POST) /wp-login\\.php[^\"]*\" 40[13] ']";
        let line = |user: &str, request: &str, status: u32| {
            format!(
                "192.0.2.1 - {user} [21/Nov/2026:10:00:00 +0000] \"{request}\" {status} 1 \"-\" \"203.0.113.9\""
            )
        };
        let lines = [
            line("-", "POST /wp-login.php HTTP/1.1", 403),
            line("203.0.113.9 [x]", "GET /wp-login.php HTTP/1.1", 401),
            line("-", "GET /wp-login.php HTTP/1.1", 200),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(found(&[rule(yaml)], &lines), ["0:192.0.2.1*1", "0:192.0.2.1*1", ""]);
    }

    #[test]
    fn a_path_is_what_was_asked_for_without_its_query() {
        let path = |rule: Arc<Rule>, line: &str| {
            let mut path = None;
            Detector::new(vec![rule]).detect(line.as_bytes(), Clock::Arrived(NOW), |_, verdict| {
                if let Verdict::Failure(finding) = verdict {
                    path = finding.path.map(|path| String::from_utf8(path).unwrap());
                }
            });
            path
        };
        let missing = rule("format: none\nfailregex: ['^<HOST> asks for <PATH> in vain$', '^<HOST> fails$']");
        assert!(missing.names_paths());
        assert_eq!(path(missing.clone(), "192.0.2.1 asks for /a/b?c=/d in vain").as_deref(), Some("/a/b"));
        assert_eq!(path(missing, "192.0.2.1 fails"), None);
        let json = "format: json\nfields: {host: ip, path: uri}\nfailregex: [{where: {status: 404}}]";
        let line = r#"{"ip":"192.0.2.1","uri":"/a?b","status":404}"#;
        assert_eq!(path(rule(json), line).as_deref(), Some("/a"));
        assert!(rule(json).names_paths());
        assert!(!rule(SYSLOG).names_paths());
    }

    #[test]
    fn json_needs_no_pattern() {
        let yaml = "format: json\nfields: {host: [ip, remote], user: name, message: msg, count: n}\nfailregex:\n  \
                    - where: {status: [401, 403]}\n  - {regex: '^Login failed', where: {app: core}}";
        let lines = [
            r#"{"ip":"192.0.2.1","status":401}"#,
            r#"{"remote":"[2001:db8::1]:80","status":403,"n":3}"#,
            r#"{"ip":"192.0.2.1","status":200,"msg":"Login failed: 203.0.113.9","app":"core"}"#,
            r#"{"ip":"192.0.2.1","msg":"Login failed","app":"x"}"#,
            r#"{"ip":"host.example.com","status":401}"#,
            "192.0.2.1",
        ];
        let expected = ["0:192.0.2.1*1", "0:2001:db8::1*3", "0:192.0.2.1*1", "", "", ""];
        assert_eq!(found(&[rule(yaml)], &lines), expected);
    }

    #[test]
    fn text_without_a_header_is_nobodys_once_there_was_one() {
        let rule = rule("format: [syslog, none]\nprogram: [app]\nfailregex: ['^bad <HOST>$']");
        let dated = "Nov 21 10:00:00 h x[1]: hello";
        let lines =
            ["bad 192.0.2.1", "h app[1]: bad 192.0.2.1", dated, "bad 192.0.2.1", "h app[1]: bad 192.0.2.1"];
        assert_eq!(found(&[rule], &lines), ["0:192.0.2.1*1", "0:192.0.2.1*1", "", "", ""]);
    }

    /// What a runtime makes of a line.
    fn wrapped(line: &str) -> [String; 2] {
        let log = serde_json::to_string(&format!("{line}\n")).unwrap();
        [
            format!(r#"{{"log":{log},"stream":"stdout","time":"2026-11-21T09:00:00Z"}}"#),
            format!("2026-11-21T09:00:00Z stdout F {line}"),
        ]
    }

    #[test]
    fn lines_of_containers_are_unwrapped_and_dated_by_their_runtime() {
        let rules = [
            rule(SYSLOG),
            rule("format: json\nfields: {host: ip}\nfailregex: [{where: {a: 1}}]"),
            rule("format: none\nfailregex: ['^bad <HOST>$']"),
        ];
        let lines =
            ["bad 192.0.2.1", "Nov 21 10:00:00 h app[1]: bad 192.0.2.2", r#"{"ip":"192.0.2.3","a":1}"#];
        for runtime in [0, 1] {
            let mut detector = Detector::new(rules.to_vec());
            let mut out = Vec::new();
            for line in lines {
                let clock = Clock::Written { now: NOW, zone: &TimeZone::UTC };
                detector.detect(wrapped(line)[runtime].as_bytes(), clock, |index, verdict| {
                    let Verdict::Failure(finding) = verdict else { panic!() };
                    assert_eq!(finding.at.to_string(), "2026-11-21T09:00:00.000Z");
                    out.push((index, finding.addr.to_string()));
                });
            }
            let expected = [(2, "192.0.2.1"), (0, "192.0.2.2"), (1, "192.0.2.3")];
            assert_eq!(out, expected.map(|(index, addr)| (index, addr.to_owned())));
        }
    }

    #[test]
    fn the_rest_of_a_broken_line_is_no_line_after_a_reload_either() {
        let rules = vec![rule("format: none\nfailregex: ['^bad <HOST>$']")];
        let clock = Clock::Arrived(NOW);
        let mut older = Detector::new(rules.clone());
        older.detect(b"2026-11-21T09:00:00Z stdout P he is ", clock, |_, _| panic!());
        let mut detector = Detector::new(rules);
        detector.inherit(older);
        detector.detect(b"2026-11-21T09:00:00Z stdout F bad 192.0.2.1", clock, |_, _| panic!());
    }

    #[test]
    fn a_syslog_file_obeys_no_wrapper_that_somebody_wrote_into_it() {
        let rules = [rule(SYSLOG), rule("format: none\nfailregex: ['^bad <HOST>$']")];
        for forged in wrapped("Nov 21 10:00:00 h app[1]: bad 192.0.2.1") {
            assert_eq!(found(&rules, &["Nov 21 10:00:00 h x[1]: hello", &forged]), ["", ""]);
        }
    }

    const BAD: &str = "Nov 21 10:00:00 h app[1]: bad 192.0.2.1";

    #[test]
    fn what_a_daemon_says_came_again_counts_so_often() {
        let rules = [rule(SYSLOG), rule("format: syslog\nfailregex: [{regex: '^bad <HOST>$', weight: 2}]")];
        let line = "Nov 21 10:00:00 h app[1]: message repeated 3 times: [ bad 192.0.2.1]";
        assert_eq!(found(&rules, &[line]), ["0:192.0.2.1*3 1:192.0.2.1*6"]);
        let again = "Nov 21 10:00:30 h last message repeated 3 times";
        let (once, thrice) = ("0:192.0.2.1*1 1:192.0.2.1*2", "0:192.0.2.1*3 1:192.0.2.1*6");
        // sysklogd tells after a while, and then again.
        assert_eq!(found(&rules, &[BAD, again, again]), [once, thrice, thrice]);
        let more = line.replace("3", "7");
        assert_eq!(found(&rules, &[&more, again])[1], thrice);
        let most = format!("0:192.0.2.1*{WEIGHT_MAX} 1:192.0.2.1*{WEIGHT_MAX}");
        for line in [line, again].map(|line| line.replace('3', "999999999")) {
            assert_eq!(found(&rules, &[BAD, &line.replace("10:00:9999999990", "10:00:30")])[1], most);
        }
    }

    #[test]
    fn what_came_again_is_the_line_just_before_on_the_same_host() {
        let rules = [rule(SYSLOG)];
        let again = "Nov 21 10:00:30 h last message repeated 3 times";
        let other = "Nov 21 10:00:30 g last message repeated 3 times";
        let hello = "Nov 21 10:00:00 h x[1]: hello";
        assert_eq!(found(&rules, &[BAD, hello, again]), ["0:192.0.2.1*1", "", ""]);
        assert_eq!(found(&rules, &[BAD, other, again]), ["0:192.0.2.1*1", "", ""]);
        assert_eq!(found(&rules, &[again, BAD]), ["", "0:192.0.2.1*1"]);
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        assert_eq!(found(&rules, &[BAD, &long, again]), ["0:192.0.2.1*1", "", ""]);
    }

    #[test]
    fn a_client_cannot_say_that_a_line_came_again() {
        let rules = [rule("format: syslog\nprogram: [app]\nfailregex: ['^bad user <USER> from <HOST>$']")];
        let victim = "Nov 21 10:00:00 h app[1]: bad user bob from 203.0.113.9";
        for name in [
            "last message repeated 1000 times",
            "message repeated 1000 times: [ bad user x from 203.0.113.9]",
            "x Last message 'bad user bob from 20' repeated 1000 times, suppressed by syslog-ng on h",
        ] {
            let line = format!("Nov 21 10:00:00 h app[1]: bad user {name} from 192.0.2.1");
            assert_eq!(found(&rules, &[victim, &line]), ["0:203.0.113.9*1", "0:192.0.2.1*1"]);
            for quoted in ["closing for {}", "{}: closing", "user {}"] {
                let line = format!("Nov 21 10:00:00 h app[1]: {}", quoted.replace("{}", name));
                assert_eq!(found(&rules, &[victim, &line]), ["0:203.0.113.9*1", ""], "{line}");
            }
        }
        // What rsyslog cut may end wherever a client likes.
        let name = format!("{} from 203.0.113.9", "x".repeat(800 - " bad user  from 203.0.113.9".len()));
        let cut = format!("Nov 21 10:00:00 h app[1]: message repeated 9 times: [ bad user {name}]");
        assert_eq!(found(&rules, &[&cut]), [""]);
        assert_eq!(
            found(&rules, &[&cut.replace("xx ", "x ")]),
            ["0:203.0.113.9*9"],
            "a byte less was not cut"
        );
    }

    #[test]
    fn what_only_tells_of_a_session_does_not_count_when_it_comes_again() {
        let yaml = "format: syslog\nsession: pid\nfailregex: ['^bad$']\nsessionregex: ['^is <HOST>$']";
        let line = |message: &str| format!("Nov 21 10:00:00 h app[1]: {message}");
        let again = "Nov 21 10:00:30 h last message repeated 3 times";
        let lines = [&line("bad"), &line("is 192.0.2.1"), again, &line("bad"), again].map(str::to_owned);
        let lines = lines.each_ref().map(String::as_str);
        let expected = ["", "0:192.0.2.1*1", "", "0:192.0.2.1*1", "0:192.0.2.1*3"];
        assert_eq!(found(&[rule(yaml)], &lines), expected);
        let lines = [&line("bad"), again, &line("is 192.0.2.1")].map(str::to_owned);
        assert_eq!(found(&[rule(yaml)], &lines.each_ref().map(String::as_str)), ["", "", "0:192.0.2.1*3"]);
    }

    #[test]
    fn what_came_again_is_dated_by_the_line_that_says_so() {
        let mut detector = Detector::new(vec![rule(SYSLOG)]);
        let mut at = Vec::new();
        for line in [BAD, "Nov 21 10:00:30 h last message repeated 3 times"] {
            let now = NOW.plus(std::time::Duration::from_secs(3600));
            let clock = Clock::Written { now, zone: &TimeZone::UTC };
            detector.detect(line.as_bytes(), clock, |_, verdict| {
                let Verdict::Failure(finding) = verdict else { panic!() };
                at.push(finding.at.to_string());
            });
        }
        assert_eq!(at, ["2026-11-21T10:00:00.000Z", "2026-11-21T10:00:30.000Z"]);
    }

    #[test]
    fn a_journal_entry_needs_no_header() {
        let mut detector = Detector::new(vec![
            rule(SYSLOG),
            rule("format: none\nprogram: [x]\nfailregex: ['^bad <HOST>$']"),
        ]);
        let entry = Entry {
            host: b"h",
            program: b"app",
            pid: b"1",
            message: b"bad 192.0.2.1\n",
            contained: false,
            at: NOW,
        };
        let mut heard = Vec::new();
        detector.detect_entry(entry, Clock::Arrived(NOW), |index, _| heard.push(index));
        detector.detect_entry(Entry { program: b"x", ..entry }, Clock::Arrived(NOW), |index, _| {
            heard.push(index)
        });
        detector.detect_entry(Entry { program: b"y", ..entry }, Clock::Arrived(NOW), |index, _| {
            heard.push(index)
        });
        assert_eq!(heard, [0, 1]);
    }

    #[test]
    fn an_entry_is_one_line_whatever_is_in_it_and_a_containers_line_has_its_own_header() {
        let mut detector = Detector::new(vec![rule(SYSLOG)]);
        let entry = Entry { host: b"h", program: b"app", pid: b"1", message: b"", contained: false, at: NOW };
        let contained = Entry { program: b"0123456789ab", contained: true, ..entry };
        for (entry, message, count) in [
            (entry, "x\nbad 192.0.2.1", 0),
            (entry, "x\nNov 21 10:00:00 h app[1]: bad 192.0.2.1\n", 0),
            (entry, "bad 192.0.2.1\nx", 0),
            (entry, "bad 192.0.2.1", 1),
            (contained, "bad 192.0.2.1", 0),
            (contained, "Nov 21 10:00:00 h app[1]: bad 192.0.2.1", 1),
        ] {
            let mut found = 0;
            let entry = Entry { message: message.as_bytes(), ..entry };
            detector.detect_entry(entry, Clock::Arrived(NOW), |_, _| found += 1);
            assert_eq!(found, count, "{message}");
        }
    }

    #[test]
    fn overlong_lines_are_nobodys() {
        let rule = rule("format: none\nfailregex: ['^bad <HOST>(?: |$)']");
        let long = format!("bad 192.0.2.1 {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(found(&[rule], &[&long, "bad 192.0.2.1"]), ["", "0:192.0.2.1*1"]);
    }
}
