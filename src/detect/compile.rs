//! A rule file becomes a rule, or a list of everything that is wrong with it.
#![forbid(unsafe_code)]

use std::fmt;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use serde_saphyr::{Location, Spanned};

use super::WEIGHT_MAX;
use super::file::{self, Mode, RuleFile, Session};
use super::header::Format;
use super::json::Where;
use super::pattern::{self, Expanded};
use super::rule::{Groups, Kind, Pattern, Rule};
use crate::model::Bantime;

/// The most memory that a rule's automaton may take; the library's largest rules need a tenth.
const NFA_BYTES_MAX: usize = 4 << 20;
/// How much of the lazy automaton is kept per detector and rule.
const CACHE_BYTES: usize = 256 << 10;

/// All that is wrong with a rule file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRule {
    pub file: String,
    /// Not empty.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Both from 1; 0 where the fault has no place.
    pub line: u64,
    pub column: u64,
    /// May be several lines.
    pub text: String,
}

impl fmt::Display for BadRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match fault.line {
                0 => write!(f, "{}: {}", self.file, fault.text)?,
                line => write!(f, "{}:{line}:{}: {}", self.file, fault.column, fault.text)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for BadRule {}

/// Reads a rule file; unknown keys, doubled keys and oversized YAML are refused. `file` is what messages
/// call it.
pub fn parse(file: &str, text: &str) -> Result<RuleFile, BadRule> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: true,
        budget: serde_saphyr::budget! {
            max_events: 50_000,
            max_aliases: 0,
            max_anchors: 0,
            max_depth: 16,
            max_documents: 1,
            max_total_scalar_bytes: 1 << 20,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
        BadRule { file: file.to_owned(), faults: vec![Fault { line, column, text: error.to_string() }] }
    })
}

/// Compiles `file` for `mode`, or for no mode. With `prove`, each pattern is proven to leave an attacker no
/// choice of the address, which costs about a millisecond each; shipped rules are proven by the tests.
pub fn compile(name: &str, file: &RuleFile, mode: Option<&str>, prove: bool) -> Result<Rule, BadRule> {
    let mut compiler = Compiler { file, prove, faults: Vec::new() };
    let rule = compiler.rule(mode);
    if compiler.faults.is_empty() {
        Ok(rule)
    } else {
        Err(BadRule { file: name.to_owned(), faults: compiler.faults })
    }
}

struct Compiler<'f> {
    file: &'f RuleFile,
    prove: bool,
    faults: Vec<Fault>,
}

/// A pattern that was found sound, with its expression.
struct Sound {
    pattern: Pattern,
    regex: Option<String>,
}

impl Compiler<'_> {
    fn fault(&mut self, place: Location, text: String) {
        self.faults.push(Fault { line: place.line(), column: place.column(), text });
    }

    fn rule(&mut self, mode: Option<&str>) -> Rule {
        let file = self.file;
        let prefilter = self.prefilter();
        let prefilter_groups = prefilter.as_ref().map(|(_, groups)| *groups).unwrap_or_default();
        let sounds = self.patterns(mode, &prefilter_groups);
        let (patterns, joined) = self.join(sounds);
        if file.format.as_slice().contains(&Format::Json) != file.fields.is_some() {
            self.fault(file.rule.referenced, "`format: json` and `fields` belong together".to_owned());
        }
        Rule {
            name: file.rule.value.clone(),
            mode: mode.map(str::to_owned),
            about: file.about.clone(),
            formats: file.format.as_slice().to_vec(),
            program: file.program.clone(),
            units: file.units.clone(),
            journalmatch: file.journalmatch.clone(),
            logpath: file.logpath.clone(),
            port: file.port.clone(),
            maxretry: file.maxretry,
            session: file.session.as_ref().map(|session| session.value),
            fields: file.fields.clone(),
            prefilter,
            patterns,
            joined,
        }
    }

    fn prefilter(&mut self) -> Option<(Regex, Groups)> {
        let written = self.file.prefilter.as_ref()?;
        let expanded = self.expand(written.referenced, &written.value, None)?;
        if !expanded.has("content") {
            self.fault(written.referenced, "a prefilter needs <CONTENT>".to_owned());
            return None;
        }
        let regex = self.build(written.referenced, &[&expanded.regex])?;
        let groups = groups(&regex, 0);
        Some((regex, groups))
    }

    /// The patterns of a mode and the rule's own, in the order in which they are tried.
    fn patterns(&mut self, mode: Option<&str>, prefilter: &Groups) -> Vec<Sound> {
        let mut out = Vec::new();
        let mut base = true;
        let file = self.file;
        for name in mode.map_or(Vec::new(), |mode| self.modes(mode)) {
            let Some(Mode::Own(own)) = file.modes.get(&name).map(|mode| &mode.value) else { continue };
            base &= own.base;
            self.add(&mut out, Kind::Ignore, &own.ignoreregex, prefilter);
            self.add(&mut out, Kind::Failure, &own.failregex, prefilter);
            self.add(&mut out, Kind::Success, &own.successregex, prefilter);
            self.add(&mut out, Kind::Session, &own.sessionregex, prefilter);
        }
        if base {
            self.add(&mut out, Kind::Failure, &file.failregex, prefilter);
        }
        self.add(&mut out, Kind::Success, &file.successregex, prefilter);
        self.add(&mut out, Kind::Session, &file.sessionregex, prefilter);
        self.add(&mut out, Kind::Ignore, &file.ignoreregex, prefilter);
        // What is ignored is ignored before all else; the order is otherwise kept.
        out.sort_by_key(|sound: &Sound| sound.pattern.kind != Kind::Ignore);
        if !out.iter().any(|sound| sound.pattern.kind == Kind::Failure) && self.faults.is_empty() {
            self.fault(file.rule.referenced, "nothing counts: give it a failregex".to_owned());
        }
        out
    }

    /// The modes that `mode` stands for.
    fn modes(&mut self, mode: &str) -> Vec<String> {
        let file = self.file;
        match file.modes.get(mode).map(|found| (&found.value, found.referenced)) {
            Some((Mode::Own(_), _)) => vec![mode.to_owned()],
            Some((Mode::All(names), place)) => {
                for name in names {
                    if !matches!(file.modes.get(name).map(|mode| &mode.value), Some(Mode::Own(_))) {
                        self.fault(place, format!("\"{name}\" is not a mode with patterns of its own"));
                    }
                }
                names.clone()
            }
            None => {
                let known: Vec<&str> = file.modes.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                self.fault(file.rule.referenced, format!("has no mode \"{mode}\"; its modes: {known}"));
                Vec::new()
            }
        }
    }

    fn add(
        &mut self,
        out: &mut Vec<Sound>,
        kind: Kind,
        patterns: &[Spanned<file::Pattern>],
        prefilter: &Groups,
    ) {
        for written in patterns {
            out.extend(self.pattern(kind, written, prefilter));
        }
    }

    fn pattern(&mut self, kind: Kind, written: &Spanned<file::Pattern>, prefilter: &Groups) -> Option<Sound> {
        let (place, value) = (written.referenced, &written.value);
        let text = value.regex.clone().unwrap_or_default();
        let expanded = match &value.regex {
            Some(regex) => Some(self.expand(place, regex, value.r#unsafe.as_deref())?),
            None => None,
        };
        let weight = value.weight.unwrap_or(1);
        if !(1..=WEIGHT_MAX).contains(&weight) {
            self.fault(place, format!("`weight` must be 1 to {WEIGHT_MAX}"));
        }
        let bantime = match value.bantime.as_deref().map(str::parse::<Bantime>).transpose() {
            Ok(bantime) => bantime,
            Err(error) => {
                self.fault(place, format!("`bantime`: {error}"));
                None
            }
        };
        let has = |group| expanded.as_ref().is_some_and(|expanded| expanded.has(group));
        let formats = self.file.format.as_slice();
        let header_names_it = formats.iter().any(|format| format.names_the_client());
        let blames =
            has("host") || prefilter.host.is_some() || header_names_it || self.file.session.is_some();
        if kind == Kind::Failure && !blames {
            let text = "blames nobody: give it a <HOST>, or the rule a `session` that brings the address";
            self.fault(place, text.to_owned());
        }
        if value.regex.is_none() && value.r#where.is_none() {
            self.fault(place, "needs a `regex` or a `where`".to_owned());
        }
        if value.r#where.is_some() && self.file.fields.is_none() {
            self.fault(place, "`where` asks for fields that only JSON has".to_owned());
        }
        let wish = value.r#where.as_ref().map(|wish| Where::new(wish, |regex| engine(&[regex])));
        let wish = match wish.transpose() {
            Ok(wish) => wish,
            Err((path, error)) => {
                self.fault(place, format!("`where` {path}: {error}"));
                None
            }
        };
        let pattern = Pattern {
            kind,
            text,
            weight,
            bantime,
            ends: value.ends,
            groups: Groups::default(),
            wish,
            alone: None,
        };
        Some(Sound { pattern, regex: expanded.map(|expanded| expanded.regex) })
    }

    /// Expands a pattern and proves what can be proven of it.
    fn expand(&mut self, place: Location, text: &str, reason: Option<&str>) -> Option<Expanded> {
        let proven = pattern::expand(text).and_then(|expanded| {
            pattern::prove_sound(text, &expanded)?;
            if self.prove && reason.is_none() {
                pattern::prove_steady(text, &expanded)?;
            }
            Ok(expanded)
        });
        if reason.is_some_and(|reason| reason.trim().is_empty()) {
            self.fault(place, "`unsafe` must say why".to_owned());
        }
        match proven {
            Ok(expanded) => {
                if expanded.has("session")
                    && self.file.session.as_ref().map(|session| session.value) != Some(Session::Captured)
                {
                    self.fault(place, "<SESSION> needs `session: <SESSION>`".to_owned());
                }
                Some(expanded)
            }
            Err(fault) => {
                self.fault(place, point_at(text, &fault));
                None
            }
        }
    }

    /// One automaton for all patterns, or one for each where fields decide too.
    fn join(&mut self, sounds: Vec<Sound>) -> (Vec<Pattern>, Option<Regex>) {
        let place = self.file.rule.referenced;
        let each = sounds.iter().any(|sound| sound.regex.is_none() || sound.pattern.wish.is_some());
        let texts: Vec<&str> = sounds.iter().filter_map(|sound| sound.regex.as_deref()).collect();
        let joined = if each || texts.is_empty() { None } else { self.build(place, &texts) };
        let mut patterns = Vec::with_capacity(sounds.len());
        for (index, Sound { mut pattern, regex }) in sounds.into_iter().enumerate() {
            if let Some(joined) = &joined {
                pattern.groups = groups(joined, index);
            } else if let Some(alone) = regex.and_then(|regex| self.build(place, &[&regex])) {
                pattern.groups = groups(&alone, 0);
                pattern.alone = Some(alone);
            }
            patterns.push(pattern);
        }
        (patterns, joined)
    }

    fn build(&mut self, place: Location, texts: &[&str]) -> Option<Regex> {
        match engine(texts) {
            Ok(regex) => Some(regex),
            Err(error) => {
                self.fault(place, format!("the patterns do not fit together: {error}"));
                None
            }
        }
    }
}

/// Bytes, not characters: a log is not always UTF-8. Of several patterns that match, the first wins.
fn engine(patterns: &[&str]) -> Result<Regex, Box<regex_automata::meta::BuildError>> {
    let config = Regex::config()
        .utf8_empty(false)
        .nfa_size_limit(Some(NFA_BYTES_MAX))
        .onepass_size_limit(Some(CACHE_BYTES))
        .hybrid_cache_capacity(CACHE_BYTES)
        .dfa(false)
        .pool_capacity(1);
    let syntax = syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true);
    Regex::builder().configure(config).syntax(syntax).build_many(patterns).map_err(Box::new)
}

fn groups(regex: &Regex, pattern: usize) -> Groups {
    let pattern = regex_automata::PatternID::must(pattern);
    let index = |name| regex.group_info().to_index(pattern, name);
    Groups {
        host: index("host"),
        user: index("user"),
        count: index("count"),
        session: index("session"),
        content: index("content"),
    }
}

/// The fault's text with the pattern and a caret under the spot.
fn point_at(pattern: &str, fault: &pattern::Fault) -> String {
    let before = pattern[..fault.start].chars().count();
    let length = pattern[fault.start..fault.end].chars().count().max(1);
    format!("{}\n    {pattern}\n    {}{}", fault.text, " ".repeat(before), "^".repeat(length))
}
