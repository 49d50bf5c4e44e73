//! A rule file becomes a rule, or a list of everything that is wrong with it.
#![forbid(unsafe_code)]

use std::fmt;

use regex_automata::meta::Regex;
use regex_syntax::hir::Hir;

use super::WEIGHT_MAX;
use super::file::{self, Mode, RuleFile, Session};
use super::header::Format;
use super::json::Where;
use super::pattern::{self, Expanded};
use super::rule::{Groups, Kind, Pattern, Rule};
use crate::model::Bantime;
use crate::yaml::{Fault, Location, Spanned};

/// The most memory that a rule's automaton may take; the library's largest rules need a tenth.
const NFA_BYTES_MAX: usize = 4 << 20;
/// How much of the lazy automaton is kept per detector and rule.
const CACHE_BYTES: usize = 256 << 10;

/// All that is wrong with a rule file; not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRule(pub Vec<Fault>);

impl fmt::Display for BadRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(Fault::to_string).collect();
        f.write_str(&texts.join("\n"))
    }
}

impl std::error::Error for BadRule {}

impl From<Fault> for BadRule {
    fn from(fault: Fault) -> Self {
        BadRule(vec![fault])
    }
}

/// Compiles `file` for `mode`; without one, and for a mode `normal` that the rule does not define, for its base
/// patterns. With `prove`, each pattern is proven to leave an attacker no
/// choice of the address, which costs about a millisecond each; shipped rules are proven by the tests.
pub fn compile(name: &str, file: &RuleFile, mode: Option<&str>, prove: bool) -> Result<Rule, BadRule> {
    let mut compiler = Compiler { name, file, prove, faults: Vec::new() };
    let mode = mode.filter(|&mode| mode != "normal" || file.modes.contains_key(mode));
    let rule = compiler.rule(mode);
    if compiler.faults.is_empty() { Ok(rule) } else { Err(BadRule(compiler.faults)) }
}

struct Compiler<'f> {
    name: &'f str,
    file: &'f RuleFile,
    prove: bool,
    faults: Vec<Fault>,
}

/// A pattern that was found sound, with its expression.
struct Sound {
    pattern: Pattern,
    regex: Option<Hir>,
}

impl<'f> Compiler<'f> {
    fn fault(&mut self, place: Location, text: String) {
        self.faults.push(Fault::near(self.name, place, text));
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
            module: file.module.clone(),
            units: file.units.clone(),
            journalmatch: file.journalmatch.clone(),
            logpath: file.logpath.clone(),
            port: file.port.clone(),
            maxretry: file.maxretry,
            session: file.session.as_ref().map(|session| session.value),
            fields: file.fields.clone(),
            prefilter,
            prefilter_text: file.prefilter.as_ref().map(|written| written.value.clone()),
            patterns,
            joined,
        }
    }

    fn prefilter(&mut self) -> Option<(Regex, Groups)> {
        let written = self.file.prefilter.as_ref()?;
        let (expanded, hir) = self.expand(written.referenced, &written.value, None)?;
        if !expanded.has("content") {
            self.fault(written.referenced, "a prefilter needs <CONTENT>".to_owned());
            return None;
        }
        let regex = self.build(written.referenced, &[hir])?;
        let groups = groups(&regex, 0);
        Some((regex, groups))
    }

    /// The patterns of a mode and the rule's own, in the order in which they are tried.
    fn patterns(&mut self, mode: Option<&str>, prefilter: &Groups) -> Vec<Sound> {
        let mut out = Vec::new();
        let file = self.file;
        let members = mode.map_or(Vec::new(), |mode| self.members(mode));
        self.add(&mut out, Kind::Ignore, &file.ignoreregex, prefilter);
        for member in &members {
            let Some(own) = member else {
                self.add(&mut out, Kind::Failure, &file.failregex, prefilter);
                continue;
            };
            self.add(&mut out, Kind::Ignore, &own.ignoreregex, prefilter);
            self.add(&mut out, Kind::Failure, &own.failregex, prefilter);
            self.add(&mut out, Kind::Success, &own.successregex, prefilter);
            self.add(&mut out, Kind::Session, &own.sessionregex, prefilter);
        }
        if members.iter().all(|member| member.is_some_and(|own| own.base)) {
            self.add(&mut out, Kind::Failure, &file.failregex, prefilter);
        }
        self.add(&mut out, Kind::Success, &file.successregex, prefilter);
        self.add(&mut out, Kind::Session, &file.sessionregex, prefilter);
        if !out.iter().any(|sound| sound.pattern.kind == Kind::Failure) && self.faults.is_empty() {
            self.fault(file.rule.referenced, "nothing counts: give it a failregex".to_owned());
        }
        out
    }

    /// What `mode` stands for, in order; none is the rule's own failregex, which a list calls `normal`.
    fn members(&mut self, mode: &str) -> Vec<Option<&'f file::Patterns>> {
        let file = self.file;
        let (names, place) = match file.modes.get(mode).map(|found| (&found.value, found.referenced)) {
            Some((Mode::Own(own), _)) => return vec![Some(own)],
            Some((Mode::All(names), place)) => (names, place),
            None => {
                let known: Vec<&str> = file.modes.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                self.fault(file.rule.referenced, format!("has no mode \"{mode}\"; its modes: {known}"));
                return Vec::new();
            }
        };
        let mut members = Vec::new();
        for name in names {
            match file.modes.get(name).map(|mode| &mode.value) {
                Some(Mode::Own(own)) => members.push(Some(own)),
                None if name == "normal" => members.push(None),
                _ => self.fault(place, format!("\"{name}\" is not a mode with patterns of its own")),
            }
        }
        members
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
        let regex = match &value.regex {
            Some(regex) => Some(self.expand(place, regex, value.r#unsafe.as_deref())?),
            None => None,
        };
        let names_host = regex.as_ref().is_some_and(|(expanded, _)| expanded.has("host"));
        if kind == Kind::Failure && !(names_host || prefilter.host.is_some() || self.brings_an_address()) {
            let text = "blames nobody: give it a <HOST>, or the rule a `session` that brings the address";
            self.fault(place, text.to_owned());
        }
        if regex.is_none() && value.r#where.is_none() {
            self.fault(place, "needs a `regex` or a `where`".to_owned());
        }
        let pattern = Pattern {
            kind,
            text: value.regex.clone().unwrap_or_default(),
            weight: self.weight(place, value),
            bantime: self.bantime(place, value),
            ends: value.ends,
            groups: Groups::default(),
            wish: self.wish(place, value),
            alone: None,
        };
        Some(Sound { pattern, regex: regex.map(|(_, hir)| hir) })
    }

    /// Whether something other than a pattern names the client.
    fn brings_an_address(&self) -> bool {
        let formats = self.file.format.as_slice();
        self.file.session.is_some() || formats.iter().any(|format| format.names_the_client())
    }

    fn weight(&mut self, place: Location, value: &file::Pattern) -> u32 {
        let weight = value.weight.unwrap_or(1);
        if !(1..=WEIGHT_MAX).contains(&weight) {
            self.fault(place, format!("`weight` must be 1 to {WEIGHT_MAX}"));
        }
        weight
    }

    fn bantime(&mut self, place: Location, value: &file::Pattern) -> Option<Bantime> {
        match value.bantime.as_deref()?.parse() {
            Ok(bantime) => Some(bantime),
            Err(error) => {
                self.fault(place, format!("`bantime`: {error}"));
                None
            }
        }
    }

    fn wish(&mut self, place: Location, value: &file::Pattern) -> Option<Where> {
        let wish = value.r#where.as_ref()?;
        if self.file.fields.is_none() {
            self.fault(place, "`where` asks for fields that only JSON has".to_owned());
        }
        let build = |regex: &str| {
            let sound = pattern::expand(regex).and_then(|expanded| pattern::prove_sound(regex, &expanded));
            let hir = sound.map_err(|fault| point_at(regex, &fault))?;
            engine(&[hir]).map_err(|error| error.to_string())
        };
        match Where::new(wish, build) {
            Ok(wish) => Some(wish),
            Err((path, error)) => {
                self.fault(place, format!("`where` {path}: {error}"));
                None
            }
        }
    }

    /// Expands a pattern and proves what can be proven of it.
    fn expand(&mut self, place: Location, text: &str, reason: Option<&str>) -> Option<(Expanded, Hir)> {
        if reason.is_some_and(|reason| reason.trim().is_empty()) {
            self.fault(place, "`unsafe` must say why".to_owned());
        }
        let proven = pattern::expand(text).and_then(|expanded| {
            let hir = pattern::prove_sound(text, &expanded)?;
            if self.prove && reason.is_none() {
                pattern::prove_steady(text, &expanded)?;
            }
            Ok((expanded, hir))
        });
        match proven {
            Ok((expanded, hir)) => {
                let joins = self.file.session.as_ref().map(|session| session.value);
                if expanded.has("session") && joins != Some(Session::Captured) {
                    self.fault(place, "<SESSION> needs `session: <SESSION>`".to_owned());
                }
                Some((expanded, hir))
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
        let (mut patterns, regexes): (Vec<Pattern>, Vec<Option<Hir>>) =
            sounds.into_iter().map(|sound| (sound.pattern, sound.regex)).unzip();
        if each {
            for (pattern, hir) in patterns.iter_mut().zip(regexes) {
                pattern.alone = hir.and_then(|hir| self.build(place, &[hir]));
                pattern.groups = pattern.alone.as_ref().map(|alone| groups(alone, 0)).unwrap_or_default();
            }
            return (patterns, None);
        }
        let regexes: Vec<Hir> = regexes.into_iter().flatten().collect();
        let joined = self.build(place, &regexes);
        if let Some(joined) = &joined {
            for (index, pattern) in patterns.iter_mut().enumerate() {
                pattern.groups = groups(joined, index);
            }
        }
        (patterns, joined)
    }

    fn build(&mut self, place: Location, regexes: &[Hir]) -> Option<Regex> {
        match engine(regexes) {
            Ok(regex) => Some(regex),
            Err(error) => {
                self.fault(place, format!("the patterns do not fit together: {error}"));
                None
            }
        }
    }
}

/// Bytes, not characters: a log is not always UTF-8. Of several patterns that match, the first wins.
fn engine(regexes: &[Hir]) -> Result<Regex, Box<regex_automata::meta::BuildError>> {
    let config = Regex::config()
        .utf8_empty(false)
        .nfa_size_limit(Some(NFA_BYTES_MAX))
        .onepass_size_limit(Some(CACHE_BYTES))
        .hybrid_cache_capacity(CACHE_BYTES)
        .dfa(false)
        .pool_capacity(1);
    Regex::builder().configure(config).build_many_from_hir(regexes).map_err(Box::new)
}

fn groups(regex: &Regex, pattern: usize) -> Groups {
    let pattern = regex_automata::PatternID::must(pattern);
    let index = |name| regex.group_info().to_index(pattern, name);
    Groups {
        host: index("host"),
        user: index("user"),
        path: index("path"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<RuleFile, BadRule> {
        Ok(crate::yaml::read("t.yaml", yaml)?)
    }

    const START: &str = "rule: t\nabout: x\nsamples: []\n";

    /// Everything that is said about a rule file in a mode.
    fn said(yaml: &str, mode: Option<&str>) -> String {
        match parse(yaml).and_then(|file| compile("t.yaml", &file, mode, true)) {
            Ok(_) => String::new(),
            Err(bad) => bad.to_string(),
        }
    }

    #[test]
    fn all_faults_are_told_at_once_each_with_its_place() {
        let yaml = format!(
            "{START}format: syslog\nfailregex:\n  - 'bad <HOST>'\n  - '^a (?=b) <HOST>$'\n  - '^.* from <HOST>'\n  \
             - '^nobody$'\n  - {{regex: '^x <HOST>$', bantime: 1y}}\n  - {{regex: '^x <HOST>$', weight: 0}}\n"
        );
        let said = said(&yaml, None);
        for part in [
            "t.yaml:6:5: must begin with ^ in every alternative",
            "    bad <HOST>\n    ^",
            "t.yaml:7:5: look-around",
            "    ^a (?=b) <HOST>$\n       ^^^",
            "t.yaml:8:5: an attacker could choose the address",
            "    ^.* from <HOST>\n             ^^^^^^",
            "t.yaml:9:5: blames nobody",
            "t.yaml:10:5: `bantime`: ",
            "t.yaml:11:5: `weight` must be",
        ] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
    }

    #[test]
    fn yaml_is_strict_and_points_at_the_line() {
        for (yaml, says) in [
            (format!("{START}format: sylog\n"), "syslog"),
            (format!("{START}format: none\nfailregx: []\n"), "failregx"),
            (format!("{START}format: none\nformat: none\n"), "a second time"),
            (format!("{START}format: none\nfailregex: [{{regx: a}}]\n"), "regx"),
            (format!("{START}format: none\nfailregex: [{{regex: '^<HOST>$', ends: yes}}]\n"), "ends"),
            (format!("{START}format: none\nfailregex: [[a]]\n"), "a regular expression, or a map"),
        ] {
            let said = said(&yaml, None);
            assert!(said.starts_with("t.yaml:") && said.contains(says), "{says} is not in\n{said}");
        }
    }

    #[test]
    fn what_an_author_answers_for_is_let_through() {
        let yaml = |reason: &str| {
            format!("{START}format: none\nfailregex: [{{regex: '^.* from <HOST>', unsafe: '{reason}'}}]\n")
        };
        assert_eq!(said(&yaml("only our own service writes here"), None), "");
        assert!(said(&yaml(" "), None).contains("must say why"));
    }

    #[test]
    fn modes_add_patterns_or_take_their_place() {
        let yaml = format!(
            "{START}format: none\nfailregex: ['^base <HOST>$']\nmodes:\n  more: {{failregex: ['^more <HOST>$']}}\n  \
             only: {{failregex: ['^only <HOST>$'], base: false}}\n  both: [more, more]\n  \
             all: [only, normal, more]\n  few: [only, more]\n  lost: [nowhere]\n"
        );
        let patterns = |mode| {
            let file = parse(&yaml).unwrap();
            let rule = compile("t.yaml", &file, mode, true).unwrap();
            rule.patterns().iter().map(|pattern| pattern.text().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(patterns(None), ["^base <HOST>$"]);
        assert_eq!(patterns(Some("normal")), ["^base <HOST>$"]);
        assert_eq!(patterns(Some("more")), ["^more <HOST>$", "^base <HOST>$"]);
        assert_eq!(patterns(Some("only")), ["^only <HOST>$"]);
        assert_eq!(patterns(Some("both")).len(), 3);
        assert_eq!(patterns(Some("all")), ["^only <HOST>$", "^base <HOST>$", "^more <HOST>$"]);
        assert_eq!(patterns(Some("few")), ["^only <HOST>$", "^more <HOST>$"]);
        assert!(said(&yaml, Some("lost")).contains("\"nowhere\" is not a mode"));
        assert!(said(&yaml, Some("x")).contains("its modes: all, both, few, lost, more, only"));
    }

    #[test]
    fn what_a_mode_ignores_hides_nothing_that_was_listed_before_it() {
        let yaml = format!(
            "{START}format: none\nfailregex: ['^base <HOST>$']\nignoreregex: ['^never']\nmodes:\n  \
             a: {{failregex: ['^a <HOST>$']}}\n  b: {{failregex: ['^b <HOST>$'], ignoreregex: ['^quiet']}}\n  \
             ab: [a, b]\n  last: [a, normal, b]\n"
        );
        let patterns = |mode| {
            let file = parse(&yaml).unwrap();
            let rule = compile("t.yaml", &file, Some(mode), true).unwrap();
            rule.patterns().iter().map(|pattern| pattern.text().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(patterns("ab"), ["^never", "^a <HOST>$", "^quiet", "^b <HOST>$", "^base <HOST>$"]);
        assert_eq!(patterns("last"), ["^never", "^a <HOST>$", "^base <HOST>$", "^quiet", "^b <HOST>$"]);
    }

    #[test]
    fn parts_that_belong_together_are_asked_for_together() {
        for (yaml, says) in [
            ("format: json\nfailregex: ['^<HOST>$']", "`fields` belong together"),
            ("format: none\nfailregex: [{where: {a: 1}}]", "only JSON has"),
            ("format: none\nprefilter: '^x$'\nfailregex: ['^<HOST>$']", "a prefilter needs <CONTENT>"),
            ("format: none\nfailregex: ['^<SESSION> <HOST>$']", "needs `session: <SESSION>`"),
            ("format: none", "nothing counts"),
            ("format: json\nfields: {host: a}\nfailregex: [{where: {a: '^(?!b)'}}]", "look-around"),
            ("format: json\nfields: {host: a}\nfailregex: [{weight: 2}]", "needs a `regex` or a `where`"),
        ] {
            let said = said(&format!("{START}{yaml}\n"), None);
            assert!(said.contains(says), "{says} is not in\n{said}");
        }
    }
}
