//! How the lines are wrapped that a pattern of fail2ban is for, and what of the pattern is left without the wrapping.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use regex::Regex;
use regex_syntax::hir::{Class, Hir, HirKind};

use crate::detect::pattern;
use crate::dialect::{APACHE, PREFIX, shown};

/// A filter as its files say it, with all variables put in.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub name: String,
    /// The files that say it, in words.
    pub from: String,
    pub prefregex: Option<String>,
    pub failregex: Vec<String>,
    pub ignoreregex: Vec<String>,
    /// A pattern of the program's name.
    pub daemon: Option<String>,
    pub datepattern: Vec<String>,
    pub lines_at_once: bool,
    /// As journalctl takes it, if the filter says so.
    pub journalmatch: Vec<String>,
    /// What the jail reads, which tells an access log.
    pub logpath: Vec<String>,
}

/// How a log's lines are wrapped, as a pattern shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Syslog(Vec<String>),
    Clf,
    NginxError,
    ApacheError,
    Date,
}

impl Shape {
    pub fn format(&self) -> &'static str {
        match self {
            Shape::Syslog(_) => "syslog",
            Shape::Clf => "clf",
            Shape::NginxError => "nginx-error",
            Shape::ApacheError => "apache-error",
            Shape::Date => "date",
        }
    }

    /// A line with this message, from this client.
    pub fn line(&self, message: &str, client: &str) -> String {
        match self {
            Shape::Syslog(program) => {
                let program = program.first().map_or("example", |name| name.trim_end_matches('*'));
                format!("Nov 21 10:00:00 web01 {program}[77]: {message}")
            }
            Shape::Clf => format!("{client} - - [21/Nov/2026:10:00:00 +0000] {message}"),
            Shape::NginxError => format!("2026/11/21 10:00:00 [error] 60#60: *9 {message}"),
            Shape::ApacheError => {
                format!(
                    "[Sat Nov 21 10:00:00.000000 2026] [core:error] [pid 60] [client {client}:4242] {message}"
                )
            }
            Shape::Date => format!("2026-11-21 10:00:00 {message}"),
        }
    }

    pub fn names_the_client(&self) -> bool {
        matches!(self, Shape::Clf | Shape::ApacheError)
    }
}

static CLF_JUNK: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"^(?: |-|\\-|\.\*\??|\.\+\??|\\S[*+]?|\\s[*+]?|\\\[|\\\]|\[\^"\][*+]|\[\^ \][*+]|\\\[\[\^\\?\]\][*+]\\\]|\(-\|\\S\+\)|\(\\S\+\)|\(\?:\\S\+\))*"#)
        .expect("a pattern")
});
static HAND_MADE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^\^?(?:\\s\*|\.\*\??|\.\+|\\S\+|\\s\+?|\\w\+| )*([A-Za-z][A-Za-z0-9_./-]*)(?:\\\[(?:\\d\+|\[0-9\]\+|\.\*|\\S\+|\\d\*)\\\]):(?:\\s\*|\\s\+|\\s| )?",
    )
    .expect("a pattern")
});
static NGINX: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\^?.{0,60}?\\d\+#\\d\+:\s?(?:\\s\*|\\s\+|\\s)?(?:\(\?:\\\*\\d\+ \)\??|\(\?:\\\*\\d\+ \)|\\\*\\d\+(?: |\\s\+?|\\s\*)|\.\*\?? ?)?").expect("a pattern")
});
static APACHE_CLIENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\^?[^<]*\\\[client <HOST>(?:\(:\\d\{1,5\}\)\?|\(\?::\\d\+\)\?|:\\d\+|\(:\\d\+\)\?)?\\\](?: |\\s\+?|\\s\*)?")
        .expect("a pattern")
});

pub fn anchored(plain: &str) -> Result<String, String> {
    match plain.starts_with('^') {
        true => Ok(plain.to_owned()),
        false => Err(not_anchored(plain)),
    }
}

fn not_anchored(plain: &str) -> String {
    format!(
        "must begin with ^: else an attacker's text may stand before it; write out what stands between the date and \
         this\n    {}\n    ^",
        shown(plain)
    )
}

/// Takes off what a format of ours takes off a line.
pub fn peeled(plain: &str, filter: &Filter) -> Result<(Shape, String), String> {
    let behind = |rest: &str| format!("^{}", rest.trim_start_matches('^'));
    if let Some(rest) = plain.strip_prefix('^').unwrap_or(plain).strip_prefix(PREFIX) {
        return Ok((Shape::Syslog(programs(filter)), behind(rest)));
    }
    if let Some(rest) = plain.strip_prefix('^').unwrap_or(plain).strip_prefix(APACHE) {
        return Ok((Shape::ApacheError, behind(rest.trim_start_matches("\\s+").trim_start())));
    }
    if let Some(found) = APACHE_CLIENT.find(plain) {
        return Ok((Shape::ApacheError, behind(&plain[found.end()..])));
    }
    if let Some(found) = NGINX.find(plain) {
        return Ok((Shape::NginxError, behind(&plain[found.end()..])));
    }
    if let Some(found) = HAND_MADE.captures(plain) {
        let program = found[1].replace('\\', "");
        return Ok((Shape::Syslog(vec![program]), behind(&plain[found[0].len()..])));
    }
    let start = plain.trim_start_matches('^').trim_start_matches("\\s*").trim_start_matches(' ');
    let hosts = ["<HOST>", "<ADDR>", "<IP4>", "\\S+ <HOST>", "\\S+\\s<HOST>"];
    if let Some(rest) =
        hosts.iter().find_map(|host| start.strip_prefix(host)).filter(|_| is_access_log(plain, filter))
    {
        return clf(rest);
    }
    if !plain.starts_with('^') {
        return Err(not_anchored(plain));
    }
    let mut rest = plain.trim_start_matches('^');
    while let Some(less) =
        ["\\s*", "\\s+", "\\s", " ", "\\[\\s*\\]", "\\[\\]"].iter().find_map(|gap| rest.strip_prefix(gap))
    {
        rest = less;
    }
    if rest.contains("\\[\\]") {
        return Err(
            "the date is cut out of the middle of the line: no format of ours knows such lines".to_owned()
        );
    }
    Ok((Shape::Date, behind(rest)))
}

fn is_access_log(plain: &str, filter: &Filter) -> bool {
    let speaks_http = ["GET", "POST", "HTTP", "HEAD"].iter().any(|word| plain.contains(word));
    plain.contains("\\[\\]")
        || speaks_http
        || filter.logpath.iter().any(|path| path.contains("access"))
        || filter.name.starts_with("nginx")
}

/// What follows the client in an access log, from the request's quote on.
fn clf(rest: &str) -> Result<(Shape, String), String> {
    let junk = CLF_JUNK.find(rest).map_or("", |found| found.as_str());
    let rest = &rest[junk.len()..];
    let quoted = rest.strip_prefix("\\\"").or_else(|| rest.strip_prefix('"'));
    match quoted {
        Some(behind) => Ok((Shape::Clf, format!("^\"{behind}"))),
        None if junk.contains(".*") || junk.contains(".+") => Ok((Shape::Clf, format!("^\".*{rest}"))),
        None => {
            let rest: String = rest.chars().take(40).collect();
            Err(format!(
                "what stands between the client and its request is not understood from here on: {}",
                shown(&rest)
            ))
        }
    }
}

/// The names of programs that a pattern of them stands for; none where it stands for more than can be listed.
fn programs(filter: &Filter) -> Vec<String> {
    let Some(daemon) = &filter.daemon else { return Vec::new() };
    let Ok(hir) = pattern::parse(daemon) else { return Vec::new() };
    listed(&hir).filter(|names| names.len() <= 20).unwrap_or_default()
}

fn listed(hir: &Hir) -> Option<Vec<String>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(literal) => Some(vec![String::from_utf8(literal.0.to_vec()).ok()?]),
        HirKind::Capture(capture) => listed(&capture.sub),
        HirKind::Alternation(parts) => {
            Some(parts.iter().map(listed).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
        }
        HirKind::Concat(parts) => {
            let mut names = vec![String::new()];
            for part in parts {
                let ends = listed(part)?;
                names = names
                    .iter()
                    .flat_map(|name| ends.iter().map(move |end| format!("{name}{end}")))
                    .collect();
                if names.len() > 100 {
                    return None;
                }
            }
            Some(names)
        }
        HirKind::Class(class) if class_len(class) <= 20 => {
            let bytes = class_bytes(class);
            Some(bytes.into_iter().map(|byte| char::from(byte).to_string()).collect())
        }
        HirKind::Repetition(repetition) if repetition.max == Some(1) && repetition.min == 0 => {
            Some([vec![String::new()], listed(&repetition.sub)?].concat())
        }
        _ => None,
    }
}

pub fn class_len(class: &Class) -> usize {
    class_bytes(class).len()
}

pub fn class_bytes(class: &Class) -> Vec<u8> {
    match class {
        Class::Bytes(class) => class.iter().flat_map(|range| range.start()..=range.end()).collect(),
        Class::Unicode(class) => {
            let ascii = |c: char| u8::try_from(c).unwrap_or(u8::MAX);
            class.iter().flat_map(|range| ascii(range.start())..=ascii(range.end())).collect()
        }
    }
}
