//! The verb `compare`: whom fail2ban banned by its log, whom we would have by the logs that it read, and why they differ.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::acquire::archive::Archive;
use crate::acquire::place::Place;
use crate::acquire::rotated;
use crate::config::Config;
use crate::detect::{self, Clock};
use crate::engine::{Engine, Listener, Outcome};
use crate::jail::allow::Allow;
use crate::jargon::jail_name;
use crate::model::{Bantime, Event, JailName, Span, Target, Timestamp, plain};

/// What fail2ban's log is called when nothing else is said.
pub const LOG: &str = "/var/log/fail2ban.log";
/// So many lines are shown for each side of a difference, the last ones.
const LINES_MAX: usize = 10;
/// So many hosts and jails are compared; what comes beyond is not looked at.
const TARGETS_MAX: usize = 20_000;

/// What both did, and where they differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    pub since: Timestamp,
    pub lines: u64,
    pub both: Vec<Both>,
    pub only_fail2ban: Vec<Only>,
    pub only_nftjail: Vec<Only>,
    /// What could not be compared, in words.
    pub notes: Vec<String>,
}

/// A ban of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Both {
    pub jail: JailName,
    pub target: Target,
    pub fail2ban: Timestamp,
    pub nftjail: Timestamp,
    /// The lines that differ in time are told where it is more than a minute.
    pub why: Option<Why>,
}

/// A ban of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Only {
    pub jail: String,
    pub target: Target,
    pub at: Timestamp,
    pub why: Why,
}

/// What explains a difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Why {
    pub reason: String,
    /// Lines of fail2ban's own log about the host, up to its ban.
    pub fail2ban: Vec<String>,
    /// Lines of the logs that count here.
    pub nftjail: Vec<String>,
}

/// What both saw of one host in one jail.
#[derive(Debug, Default)]
struct Story {
    theirs: Vec<Moment>,
    ours: Vec<Moment>,
    /// Fail2ban's last lines about it, and the log's last lines that count.
    told: VecDeque<String>,
    counted: VecDeque<String>,
    found: usize,
    /// The most failures at once here, and how many ban.
    peak: (u32, u32),
}

/// A ban, and the lines that led to it.
#[derive(Clone, Debug)]
struct Moment {
    at: Timestamp,
    lines: Vec<String>,
}

type Stories = BTreeMap<(String, Target), Story>;

/// Reads fail2ban's log `theirs` and its older parts, and the logs of the configuration's jails, or `logs` for every jail.
///
/// # Errors
/// What cannot be read, in words.
pub fn run(
    config: &Config,
    own: &[ipnet::IpNet],
    theirs: &Path,
    logs: &[PathBuf],
    (since, now): (Timestamp, Timestamp),
    zone: &TimeZone,
) -> Result<Compared, String> {
    let mut out = Compared { schema: 1, since, ..Compared::default() };
    let mut stories = Stories::new();
    let files = parts(theirs, since);
    if files.is_empty() {
        return Err(format!("there is no {}: name fail2ban's log with --fail2ban-log", theirs.display()));
    }
    for file in files {
        each_line(&file, |line| their_line(line, now, zone, since, &mut stories))?;
    }
    let never = config.never(own);
    let sources = sources(config, logs, since, &mut out.notes);
    out.lines = replay(config, &never, &sources, (since, now), zone, &mut stories)?;
    if stories.len() >= TARGETS_MAX {
        out.notes.push(format!("only the first {TARGETS_MAX} hosts were compared: take fewer days"));
    }
    for ((jail, target), story) in stories {
        judge(config, &never, (jail, target), story, &mut out);
    }
    Ok(out)
}

/// A log with what its rotator made of it lately, the oldest first.
fn parts(log: &Path, since: Timestamp) -> Vec<PathBuf> {
    let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let dir = log.parent().unwrap_or(Path::new("/"));
    let mut older: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let unpacked = found.trim_end_matches(".gz").trim_end_matches(".zst");
        let written = entry.metadata().and_then(|about| about.modified()).ok();
        let written = written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let fresh = written.is_some_and(|at| at.as_millis() as i64 >= since.as_millis());
        if fresh && rotated::is_rotated(unpacked, &name) {
            older.push(found);
        }
    }
    older.sort_by_key(|name| rotated::order(name.trim_end_matches(".gz").trim_end_matches(".zst")));
    let mut all: Vec<PathBuf> = older.into_iter().map(|name| dir.join(name)).collect();
    all.extend(log.is_file().then(|| log.to_owned()));
    all
}

fn each_line(file: &Path, mut hear: impl FnMut(&str)) -> Result<(), String> {
    let mut archive = Archive::open(file)?;
    let mut line = Vec::new();
    while archive.next_line(&mut line).map_err(|error| format!("{}: {}", file.display(), plain(&error)))? {
        hear(&String::from_utf8_lossy(&line));
    }
    Ok(())
}

/// One line of fail2ban's log: `DATE fail2ban.actions [PID]: NOTICE [JAIL] Ban ADDR`.
fn their_line(line: &str, now: Timestamp, zone: &TimeZone, since: Timestamp, stories: &mut Stories) {
    let Some((jail, words, whom)) = parsed(line) else { return };
    let Some(at) = detect::date_of(line.as_bytes(), now, zone) else { return };
    if at < since || stories.len() >= TARGETS_MAX {
        return;
    }
    let story = stories.entry((jail_name(jail), whom)).or_default();
    keep(&mut story.told, line);
    match words {
        "Ban" => story.theirs.push(Moment { at, lines: story.told.iter().cloned().collect() }),
        "Found" => story.found += 1,
        _ => {}
    }
}

/// The jail, what happened, and to whom.
fn parsed(line: &str) -> Option<(&str, &str, Target)> {
    let (head, rest) = line.split_once("]: ")?;
    if !head.contains("fail2ban.") {
        return None;
    }
    let (_, rest) = rest.split_once('[')?;
    let (jail, rest) = rest.split_once("] ")?;
    let mut words = rest.split(' ');
    let word =
        words.next().filter(|word| matches!(*word, "Ban" | "Found" | "Ignore" | "Restore" | "Unban"))?;
    let whom = if word == "Restore" { words.nth(1) } else { words.next() };
    Some((jail, word, whom?.parse().ok()?))
}

fn keep(lines: &mut VecDeque<String>, line: &str) {
    if lines.len() == LINES_MAX {
        lines.pop_front();
    }
    // Whatever an attacker wrote reaches no terminal as it is.
    lines.push_back(
        line.chars()
            .take(500)
            .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
            .collect(),
    );
}

/// The files that are read, and the jails that hear each.
fn sources(
    config: &Config,
    logs: &[PathBuf],
    since: Timestamp,
    notes: &mut Vec<String>,
) -> Vec<(Vec<PathBuf>, Vec<usize>)> {
    let hearing = || (0..config.jails.len()).filter(|index| !config.jails[*index].terms.hears_bans);
    if !logs.is_empty() {
        return vec![(logs.to_vec(), hearing().collect())];
    }
    let mut by_log: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
    for index in hearing() {
        let jail = &config.jails[index];
        for place in &jail.logpath {
            let files = match place {
                Place::File(path) => vec![path.clone()],
                Place::Glob(glob) => glob::glob(&glob.to_string()).into_iter().flatten().flatten().collect(),
                Place::Journal(..) | Place::Stream(_) => {
                    let name = &jail.terms.name;
                    notes.push(format!("{name} reads {place}, which is no file: give its lines as a LOG"));
                    continue;
                }
            };
            for file in files {
                let jails = by_log.entry(file).or_default();
                if !jails.contains(&index) {
                    jails.push(index);
                }
            }
        }
    }
    by_log.into_iter().map(|(log, jails)| (parts(&log, since), jails)).collect()
}

/// A log that is being read, with the line that is next and its date.
struct Reading {
    source: usize,
    files: VecDeque<PathBuf>,
    open: Option<Archive>,
    line: Vec<u8>,
    at: Timestamp,
}

impl Reading {
    /// Goes to the next line; false at the end of the last file.
    fn advance(&mut self, now: Timestamp, zone: &TimeZone) -> Result<bool, String> {
        loop {
            if self.open.is_none() {
                let Some(file) = self.files.pop_front() else { return Ok(false) };
                self.open = Some(Archive::open(&file)?);
            }
            let more = self.open.as_mut().map_or(Ok(false), |open| open.next_line(&mut self.line));
            if more.map_err(|error| plain(&error))? {
                // A line without a date belongs to the one before.
                self.at = detect::date_of(&self.line, now, zone).unwrap_or(self.at);
                return Ok(true);
            }
            self.open = None;
        }
    }
}

/// Judges all logs as one stream, by the dates of their lines. How many lines there were.
fn replay(
    config: &Config,
    never: &Allow,
    sources: &[(Vec<PathBuf>, Vec<usize>)],
    (since, now): (Timestamp, Timestamp),
    zone: &TimeZone,
    stories: &mut Stories,
) -> Result<u64, String> {
    let listeners = sources.iter().map(|(_, jails)| {
        let listener = |index: &usize| {
            let jail = &config.jails[*index];
            Listener { jail: jail.terms.name.clone(), rule: jail.rule.clone(), zone: jail.zone.clone() }
        };
        jails.iter().map(listener).collect()
    });
    let terms = config.jails.iter().map(|jail| jail.terms.clone()).collect();
    let mut engine = Engine::new(terms, listeners.collect(), never.clone(), 0);
    let mut readings: Vec<Reading> = Vec::new();
    for (source, (files, jails)) in sources.iter().enumerate() {
        let zone = jails.iter().find_map(|index| config.jails[*index].zone.as_ref()).unwrap_or(zone);
        let mut reading = Reading {
            source,
            files: files.iter().cloned().collect(),
            open: None,
            line: Vec::new(),
            at: since,
        };
        if reading.advance(now, zone)? {
            readings.push(reading);
        }
    }
    let mut lines = 0;
    while let Some(first) = (0..readings.len()).min_by_key(|index| readings[*index].at) {
        let reading = &mut readings[first];
        if reading.at >= since {
            lines += 1;
            one_line(&mut engine, reading, now, zone, stories);
        }
        if !reading.advance(now, zone)? {
            readings.swap_remove(first);
        }
    }
    Ok(lines)
}

fn one_line(engine: &mut Engine, reading: &Reading, now: Timestamp, zone: &TimeZone, stories: &mut Stories) {
    let at = reading.at;
    let mut out = Outcome::default();
    engine.handle_timeout(at, &mut Outcome::default());
    engine.handle_line(reading.source, &reading.line, Clock::Written { now, zone }, at, &mut out);
    // A ban may be the last straw in a jail that hears bans.
    while let Some(change) = out.changes.pop() {
        engine.handle_taken(&change, at, &mut out);
    }
    let line = String::from_utf8_lossy(&reading.line);
    for event in out.events {
        let (jail, target) = match &event {
            Event::Failed { jail, addr, .. } => (jail, Target::of(*addr)),
            Event::Banned { ban } | Event::Extended { ban } => (&ban.jail, ban.target),
            _ => continue,
        };
        let key = (jail.to_string(), target);
        if stories.len() >= TARGETS_MAX && !stories.contains_key(&key) {
            continue;
        }
        let story = stories.entry(key).or_default();
        match event {
            Event::Failed { count, maxretry, .. } => {
                keep(&mut story.counted, &line);
                story.peak = story.peak.max((count, maxretry));
            }
            _ => story.ours.push(Moment { at, lines: story.counted.iter().cloned().collect() }),
        }
    }
}

/// Pairs the bans of one host in one jail, and says why one has no other.
fn judge(
    config: &Config,
    never: &Allow,
    (jail, target): (String, Target),
    mut story: Story,
    out: &mut Compared,
) {
    let known = config.jails.iter().find(|known| known.terms.name.as_str() == jail);
    let reach = known.map_or(Duration::ZERO, |known| match known.terms.bantime {
        Bantime::For(length) => length.max(known.terms.findtime),
        Bantime::Forever => Duration::from_secs(10 * 365 * 86_400),
    });
    let apart = |one: Timestamp, other: Timestamp| one.since(other).max(other.since(one));
    for theirs in std::mem::take(&mut story.theirs) {
        let near = (0..story.ours.len()).min_by_key(|index| apart(story.ours[*index].at, theirs.at));
        let near = near.filter(|index| apart(story.ours[*index].at, theirs.at) <= reach);
        match (near, known) {
            (Some(index), Some(known)) => {
                let ours = story.ours.remove(index);
                let why = (apart(ours.at, theirs.at) > Duration::from_secs(60)).then(|| Why {
                    reason: when(ours.at, theirs.at),
                    fail2ban: theirs.lines,
                    nftjail: ours.lines,
                });
                let jail = known.terms.name.clone();
                out.both.push(Both { jail, target, fail2ban: theirs.at, nftjail: ours.at, why });
            }
            _ => {
                let reason = match known {
                    None => "no jail of this name runs here".to_owned(),
                    Some(_) if never.covers(target.network()) => "it is never banned here".to_owned(),
                    Some(known) => ours_fell_short(&story, &known.terms),
                };
                let why =
                    Why { reason, fail2ban: theirs.lines, nftjail: story.counted.iter().cloned().collect() };
                out.only_fail2ban.push(Only { jail: jail.clone(), target, at: theirs.at, why });
            }
        }
    }
    for ours in story.ours {
        let told: Vec<String> = story.told.iter().cloned().collect();
        let reason = match (story.found, told.iter().any(|line| line.contains("] Ignore "))) {
            (_, true) => "fail2ban ignores it".to_owned(),
            (0, _) => "fail2ban's log does not name it: its pattern does not fit these lines, or it reads another log".to_owned(),
            (found, _) => format!("fail2ban found it {found} times, and never often enough by its measure"),
        };
        let why = Why { reason, fail2ban: told, nftjail: ours.lines };
        out.only_nftjail.push(Only { jail: jail.clone(), target, at: ours.at, why });
    }
}

fn when(ours: Timestamp, theirs: Timestamp) -> String {
    match ours < theirs {
        true => format!("nftjail was {} earlier", Span(theirs.since(ours))),
        false => format!("nftjail was {} later", Span(ours.since(theirs))),
    }
}

fn ours_fell_short(story: &Story, terms: &crate::jail::Terms) -> String {
    let within = Span(terms.findtime);
    match story.peak {
        (0, _) => "no line of these logs counts for it here".to_owned(),
        (count, maxretry) if count < maxretry => {
            let friend =
                if maxretry > terms.maxretry { ", as for everybody who logged in lately" } else { "" };
            format!("at most {count} of {maxretry} failures fell within {within} here{friend}")
        }
        _ => "it was banned here at another time".to_owned(),
    }
}

/// What people see.
pub fn text(compared: &Compared) -> String {
    let Compared { since, lines, both, only_fail2ban, only_nftjail, notes, .. } = compared;
    let mut text = format!("since {since}, {lines} lines\n");
    let late: Vec<&Both> = both.iter().filter(|both| both.why.is_some()).collect();
    text += &format!("{} bans of both, {} of them more than a minute apart\n", both.len(), late.len());
    for both in late {
        let why = both.why.as_ref().map(why_text).unwrap_or_default();
        text += &format!("\n{} {} at {}{why}", both.jail, both.target, both.nftjail);
    }
    for (title, only) in [("only by fail2ban", only_fail2ban), ("only by nftjail", only_nftjail)] {
        text += &format!("\n{} bans {title}\n", only.len());
        for Only { jail, target, at, why } in only {
            text += &format!("\n{jail} {target} at {at}{}", why_text(why));
        }
    }
    for note in notes {
        text += &format!("\n{note}\n");
    }
    text
}

fn why_text(why: &Why) -> String {
    let side = |title: &str, lines: &[String]| -> String {
        lines.iter().map(|line| format!("    {title}: {line}\n")).collect()
    };
    format!(": {}\n{}{}", why.reason, side("fail2ban", &why.fail2ban), side("log", &why.nftjail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Services;

    const NOW: Timestamp = Timestamp::from_millis(1_795_262_400_000);

    fn ssh(minute: u32, second: u32, addr: &str) -> String {
        format!(
            "2026-11-21T10:{minute:02}:{second:02}Z web01 sshd[7]: Failed password for root from {addr} port 4242 ssh2\n"
        )
    }

    fn theirs(minute: u32, second: u32, jail: &str, what: &str) -> String {
        format!(
            "2026-11-21 10:{minute:02}:{second:02},123 fail2ban.actions        [77]: NOTICE  [{jail}] {what}\n"
        )
    }

    #[test]
    fn every_difference_has_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, log) = (dir.path().join("auth.log"), dir.path().join("fail2ban.log"));
        let five = |addr: &str, apart: u32| (0..5).map(|n| ssh(n * apart, n, addr)).collect::<String>();
        let mut lines: Vec<String> = [
            five("192.0.2.1", 0),
            five("192.0.2.2", 0),
            // One in three minutes: five are not within ten.
            five("192.0.2.3", 3),
        ]
        .concat()
        .lines()
        .map(|line| format!("{line}\n"))
        .collect();
        lines.sort();
        fs::write(&auth, lines.concat()).unwrap();
        let banned = [
            theirs(0, 5, "sshd", "Ban 192.0.2.1"),
            theirs(12, 5, "sshd", "Ban 192.0.2.3"),
            theirs(13, 5, "nosuch", "Ban 192.0.2.4"),
            theirs(14, 5, "sshd", "Unban 192.0.2.1"),
            theirs(14, 6, "sshd", "192.0.2.9 already banned"),
        ];
        fs::write(dir.path().join("fail2ban.log.1"), banned[..1].concat()).unwrap();
        fs::write(&log, banned[1..].concat()).unwrap();
        let path = dir.path().join("nftjail.yaml");
        fs::write(&path, format!("jails: {{sshd: {{logpath: {}, port: 22}}}}", auth.display())).unwrap();
        let config = Config::load(Some(&path), &Services::of_this_host()).unwrap();
        let since = NOW.minus(Duration::from_secs(86_400));
        let compared = run(&config, &[], &log, &[], (since, NOW), &TimeZone::UTC).unwrap();
        let both: Vec<_> =
            compared.both.iter().map(|both| (both.target.to_string(), both.why.is_some())).collect();
        assert_eq!(both, [("192.0.2.1".to_owned(), false)]);
        let reasons = |only: &[Only]| -> Vec<(String, String)> {
            only.iter().map(|only| (only.target.to_string(), only.why.reason.clone())).collect()
        };
        assert_eq!(
            reasons(&compared.only_fail2ban),
            [
                ("192.0.2.4".to_owned(), "no jail of this name runs here".to_owned()),
                ("192.0.2.3".to_owned(), "at most 4 of 5 failures fell within 10m here".to_owned()),
            ]
        );
        assert_eq!(compared.only_fail2ban[1].why.nftjail.len(), 5);
        assert_eq!(compared.only_nftjail.len(), 1);
        assert!(compared.only_nftjail[0].why.reason.contains("does not name it"));
        assert_eq!((compared.only_nftjail[0].why.nftjail.len(), compared.lines), (5, 15));
        let text = text(&compared);
        assert!(
            text.contains("1 bans of both") && text.contains("    log: 2026-11-21T10:00:00Z web01"),
            "{text}"
        );
    }

    #[test]
    fn only_lines_of_fail2ban_itself_are_believed() {
        let line = "2026-11-21 10:00:00,123 fail2ban.actions        [77]: NOTICE  [sshd] Ban 192.0.2.1";
        assert_eq!(parsed(line), Some(("sshd", "Ban", "192.0.2.1".parse().unwrap())));
        let line = "2026-11-21 10:00:00,123 fail2ban.filter         [77]: INFO    [sshd] Found 192.0.2.1 - 2026-11-21 10:00:00";
        assert_eq!(parsed(line).unwrap().1, "Found");
        let line =
            "2026-11-21 10:00:00,123 fail2ban.actions        [77]: NOTICE  [sshd] Restore Ban 2001:db8::1";
        assert_eq!(parsed(line).unwrap().1, "Restore");
        for line in
            ["Nov 21 app[1]: NOTICE [sshd] Ban 192.0.2.1", "fail2ban.x [1]: NOTICE [sshd] Ban evil", ""]
        {
            assert_eq!(parsed(line), None, "{line}");
        }
    }
}
