//! A rule, compiled for one mode: which lines it hears, and what a message of theirs means.
#![forbid(unsafe_code)]

use regex_automata::meta::{Cache, Regex};
use regex_automata::util::captures::Captures;
use regex_automata::{Anchored, Input};

use super::file::Session;
use super::header::{Format, Header};
use super::json::{Fields, Record, Where};
use crate::model::Bantime;

/// What a pattern's match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ignore,
    Failure,
    Success,
    Session,
}

/// One pattern of a rule.
#[derive(Debug)]
pub struct Pattern {
    pub(super) kind: Kind,
    pub(super) text: String,
    pub(super) weight: u32,
    pub(super) bantime: Option<Bantime>,
    pub(super) ends: bool,
    pub(super) groups: Groups,
    pub(super) wish: Option<Where>,
    /// Only where the rule's patterns cannot be tried in one pass.
    pub(super) alone: Option<Regex>,
}

impl Pattern {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The regular expression as written; empty where only fields decide.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The numbers of a pattern's groups that mean something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Groups {
    pub host: Option<usize>,
    pub user: Option<usize>,
    pub path: Option<usize>,
    pub count: Option<usize>,
    pub session: Option<usize>,
    pub content: Option<usize>,
}

/// A rule file compiled for one mode. Not changed by use, so that several detectors share it.
#[derive(Debug)]
pub struct Rule {
    pub(super) name: String,
    pub(super) mode: Option<String>,
    pub(super) about: String,
    pub(super) formats: Vec<Format>,
    pub(super) program: Vec<String>,
    pub(super) module: Vec<String>,
    pub(super) units: Vec<String>,
    pub(super) journalmatch: Vec<String>,
    pub(super) logpath: Vec<String>,
    pub(super) port: Vec<String>,
    pub(super) maxretry: Option<u32>,
    pub(super) session: Option<Session>,
    pub(super) fields: Option<Fields>,
    pub(super) prefilter: Option<(Regex, Groups)>,
    pub(super) prefilter_text: Option<String>,
    pub(super) patterns: Vec<Pattern>,
    /// All patterns in one pass; none where a pattern also asks for fields.
    pub(super) joined: Option<Regex>,
}

impl Rule {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn mode(&self) -> Option<&str> {
        self.mode.as_deref()
    }

    pub fn about(&self) -> &str {
        &self.about
    }

    pub fn formats(&self) -> &[Format] {
        &self.formats
    }

    /// The programs whose lines it hears; empty where it hears all.
    pub fn program(&self) -> &[String] {
        &self.program
    }

    pub fn units(&self) -> &[String] {
        &self.units
    }

    pub fn journalmatch(&self) -> &[String] {
        &self.journalmatch
    }

    /// Where the log may be, the likeliest first.
    pub fn logpath(&self) -> &[String] {
        &self.logpath
    }

    pub fn port(&self) -> &[String] {
        &self.port
    }

    pub fn maxretry(&self) -> Option<u32> {
        self.maxretry
    }

    /// The prefilter as written.
    pub fn prefilter_text(&self) -> Option<&str> {
        self.prefilter_text.as_deref()
    }

    /// In the order in which they are tried; a finding names one by its index.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether any line says which path a failure asked for.
    pub fn names_paths(&self) -> bool {
        let prefilter = self.prefilter.as_ref().map(|(_, groups)| groups);
        let failures = self.patterns.iter().filter(|pattern| pattern.kind == Kind::Failure);
        let groups = failures.map(|pattern| &pattern.groups).chain(prefilter);
        self.fields.as_ref().is_some_and(|fields| fields.path.is_some())
            || groups.into_iter().any(|groups| groups.path.is_some())
    }

    /// Whether lines of `program` are its business.
    pub fn hears(&self, program: &[u8]) -> bool {
        is_among(&self.program, program)
    }

    /// Whether what `module` says is its business; a line that names none may be of any.
    pub fn hears_module(&self, module: &[u8]) -> bool {
        module.is_empty() || is_among(&self.module, module)
    }

    /// Whether it means the same by each of its patterns.
    pub fn is_like(&self, other: &Rule) -> bool {
        let same = |(one, two): (&Pattern, &Pattern)| one.kind == two.kind && one.text == two.text;
        self.name == other.name
            && self.mode == other.mode
            && self.patterns.len() == other.patterns.len()
            && self.patterns.iter().zip(&other.patterns).all(same)
    }

    /// How many bytes its automata hold.
    pub fn memory_usage(&self) -> usize {
        let alone = self.patterns.iter().filter_map(|pattern| pattern.alone.as_ref());
        let all = alone.chain(&self.joined).chain(self.prefilter.as_ref().map(|(regex, _)| regex));
        all.map(Regex::memory_usage).sum()
    }
}

/// Whether a name is one of these, of which some may end with `*`; none of these stands for all.
fn is_among(names: &[String], name: &[u8]) -> bool {
    names.is_empty()
        || names.iter().any(|known| match known.strip_suffix('*') {
            Some(start) => name.starts_with(start.as_bytes()),
            None => name == known.as_bytes(),
        })
}

/// What a matching pattern found in a message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hit<'a> {
    pub pattern: usize,
    /// The address as matched, and what follows it in the message.
    pub host: Option<(&'a [u8], &'a [u8])>,
    pub user: Option<&'a [u8]>,
    pub path: Option<&'a [u8]>,
    pub count: Option<&'a [u8]>,
    pub session: Option<&'a [u8]>,
}

/// What running a rule's automata needs to write to; one for each detector that uses the rule.
#[derive(Debug)]
pub(super) struct Scratch {
    joined: Option<(Cache, Captures)>,
    prefilter: Option<(Cache, Captures)>,
    alone: Vec<Option<(Cache, Captures)>>,
}

impl Scratch {
    pub fn new(rule: &Rule) -> Self {
        let make = |regex: &Regex| (regex.create_cache(), regex.create_captures());
        Scratch {
            joined: rule.joined.as_ref().map(make),
            prefilter: rule.prefilter.as_ref().map(|(regex, _)| make(regex)),
            alone: rule.patterns.iter().map(|pattern| pattern.alone.as_ref().map(make)).collect(),
        }
    }
}

impl Rule {
    /// The first pattern that fits, in order. `record` is the line's JSON where it is JSON.
    pub(super) fn find<'a>(
        &self,
        scratch: &mut Scratch,
        header: &Header<'a>,
        record: Option<&Record>,
    ) -> Option<Hit<'a>> {
        let mut hit = Hit::default();
        let mut content = header.message;
        if let (Some((regex, groups)), Some(scratch)) = (&self.prefilter, &mut scratch.prefilter) {
            search(regex, scratch, content)?;
            hit.take(groups, &scratch.1, content);
            content = group(groups.content, &scratch.1, content).unwrap_or(content);
        }
        if let (Some(regex), Some(scratch)) = (&self.joined, &mut scratch.joined) {
            hit.pattern = search(regex, scratch, content)?;
            hit.take(&self.patterns[hit.pattern].groups, &scratch.1, content);
            return Some(hit);
        }
        for (index, (pattern, scratch)) in self.patterns.iter().zip(&mut scratch.alone).enumerate() {
            if pattern
                .wish
                .as_ref()
                .is_some_and(|wish| !record.is_some_and(|record| wish.holds(record.value)))
            {
                continue;
            }
            if let (Some(regex), Some(scratch)) = (&pattern.alone, scratch) {
                if search(regex, scratch, content).is_none() {
                    continue;
                }
                hit.take(&pattern.groups, &scratch.1, content);
            }
            hit.pattern = index;
            return Some(hit);
        }
        None
    }
}

impl<'a> Hit<'a> {
    fn take(&mut self, groups: &Groups, captures: &Captures, text: &'a [u8]) {
        if let Some(span) = groups.host.and_then(|index| captures.get_group(index)) {
            self.host = Some((&text[span.range()], &text[span.end..]));
        }
        self.user = group(groups.user, captures, text).or(self.user);
        self.path = group(groups.path, captures, text).or(self.path);
        self.count = group(groups.count, captures, text).or(self.count);
        self.session = group(groups.session, captures, text).or(self.session);
    }
}

fn group<'a>(index: Option<usize>, captures: &Captures, text: &'a [u8]) -> Option<&'a [u8]> {
    Some(&text[captures.get_group(index?)?.range()])
}

/// Which pattern matches `text` from its start; the groups are left in the scratch.
fn search(regex: &Regex, (cache, captures): &mut (Cache, Captures), text: &[u8]) -> Option<usize> {
    let input = Input::new(text).anchored(Anchored::Yes);
    regex.search_captures_with(cache, &input, captures);
    captures.pattern().map(|pattern| pattern.as_usize())
}
