//! What fail2ban's tags and Python's patterns and dates say, in the words of ours.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use regex::Regex;

use crate::detect::date::Stamp;

/// Stands for the prefix that syslog gives a line, where a filter names it by its variable.
pub const PREFIX: char = '\u{E000}';
/// Stands for the prefix of apache's error log with the client's address.
pub const APACHE: char = '\u{E001}';

static TAG: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"<(/?)F-([A-Z0-9_-]+)(/?)>").expect("a pattern"));

/// Whether a date of this pattern is one that we read at the start of a line.
pub fn is_known_date(pattern: &str) -> bool {
    let mut text = pattern.trim().trim_start_matches('^').to_owned();
    for mark in ["{^LN-BEG}", "{DATE}", "{DEFAULT}", "{UNB}", "**", "Epoch", "EPOCH", "ISO8601"] {
        text = text.replace(mark, "");
    }
    text = text
        .replace("\\[", "")
        .replace("\\]", "")
        .replace("%E", "%")
        .replace("\\s", " ")
        .replace("%.%f", ".%f");
    if text.trim().is_empty() {
        return true;
    }
    for (token, value) in [
        ("%xY", "2026"),
        ("%Y", "2026"),
        ("%m", "11"),
        ("%xm", "11"),
        ("%d", "21"),
        ("%xd", "21"),
        ("%H", "10"),
        ("%xH", "10"),
        ("%M", "00"),
        ("%xM", "00"),
        ("%S", "00"),
        ("%xS", "00"),
        ("%f", "123"),
        ("%b", "Nov"),
        ("%B", "Nov"),
        ("%a", "Sat"),
        ("%y", "26"),
        ("%z", "+0000"),
        ("%Z", "UTC"),
        ("%%", "%"),
    ] {
        text = text.replace(token, value);
    }
    let text = text.trim().trim_end_matches('$').trim();
    Stamp::find(text.as_bytes())
        .is_some_and(|(_, rest)| rest.iter().all(|byte| !byte.is_ascii_alphanumeric()))
}

/// Takes the marks of a session out of a pattern: what is left, what a match means, and whether it ends the session.
pub fn without_flags(theirs: &str, session: &mut bool) -> Result<(String, &'static str, bool), String> {
    let mut plain = theirs.to_owned();
    let has = |tag: &str| theirs.contains(tag);
    let (gained, nofail) = (has("<F-MLFGAINED"), has("<F-NOFAIL"));
    let kind = match (gained, nofail) {
        (true, _) => "successregex",
        (false, true) => "sessionregex",
        _ => "failregex",
    };
    let ends = has("<F-MLFFORGET");
    if has("<F-MLFID>") {
        *session = true;
    }
    for flag in ["MLFID", "NOFAIL", "MLFFORGET", "MLFGAINED"] {
        for tag in [format!("<F-{flag}/>"), format!("<F-{flag}>"), format!("</F-{flag}>")] {
            plain = plain.replace(&tag, "");
        }
    }
    Ok((plain, kind, ends))
}

/// Replaces fail2ban's tags and what Python writes in another way.
pub fn in_our_words(theirs: &str) -> Result<String, String> {
    let point = |piece: &str, why: &str| {
        let before = theirs.find(piece).map_or(0, |at| shown(&theirs[..at]).chars().count());
        let under = " ".repeat(before) + &"^".repeat(piece.chars().count().max(1));
        Err(format!("{why}\n    {}\n    {under}", shown(theirs)))
    };
    for (tag, why) in [
        ("<DNS>", "names are never looked up: only an address can be banned"),
        ("<F-ID>", "only an address can be banned, not another identity"),
        ("<F-ID/>", "only an address can be banned, not another identity"),
        ("<CIDR>", "networks are not banned from a log"),
        ("<SUBNET>", "networks are not banned from a log"),
    ] {
        if theirs.contains(tag) {
            return point(tag, why);
        }
    }
    if let Some(prefix) = theirs.find([PREFIX, APACHE]) {
        let piece = theirs[prefix..].chars().next().unwrap_or(PREFIX).to_string();
        return point(&piece, "the prefix of the line stands only at the start of a pattern here");
    }
    let mut text = theirs.to_owned();
    for tag in ["<ADDR>", "<IP4>", "<IP6>"] {
        text = text.replace(tag, "<HOST>");
    }
    // Their <HOST> takes brackets around an address with it.
    let mut users = 0;
    let text = TAG.replace_all(&text, |found: &regex::Captures| {
        let (closes, name, empty) = (&found[1] == "/", &found[2], &found[3] == "/");
        let is_user = name == "USER" || name.starts_with("ALT_USER");
        match (closes, empty, name) {
            (true, ..) => ")".to_owned(),
            (_, true, "PORT") => r"\w+".to_owned(),
            (_, true, _) => r"\S+".to_owned(),
            (_, _, "CONTENT") => "(?P<content>".to_owned(),
            _ if is_user && users == 0 => {
                users += 1;
                "(?P<user>".to_owned()
            }
            _ => "(?:".to_owned(),
        }
    });
    Ok(in_our_syntax(&text))
}

/// Python takes a `[` in a class and a `{` by itself as they are, and `\<` and `\Z` mean something else there.
fn in_our_syntax(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_class = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if c == '\\' {
            let next = after.chars().next().unwrap_or('\\');
            match next {
                '<' | '>' | '"' | '\'' | '/' | '@' | '!' | ',' | ';' | '=' | '%' | '`' | ':' | '_' | ' ' => {
                    out.push(next)
                }
                'Z' => out.push_str(r"\z"),
                _ => out.extend(['\\', next]),
            }
            rest = &after[next.len_utf8().min(after.len())..];
            continue;
        }
        if !in_class
            && c == '('
            && let Some(comment) = rest.strip_prefix("(?#")
        {
            rest = comment.split_once(')').map_or("", |(_, after)| after);
            continue;
        }
        match (c, in_class) {
            ('[', false) => {
                in_class = true;
                out.push('[');
                let mut inner = after;
                if let Some(behind) = inner.strip_prefix('^') {
                    out.push('^');
                    inner = behind;
                }
                // A bracket that closes at once is a member.
                if let Some(behind) = inner.strip_prefix(']') {
                    out.push_str(r"\]");
                    inner = behind;
                }
                rest = inner;
                continue;
            }
            (']', true) => {
                in_class = false;
                out.push(']');
            }
            ('[' | '&' | '~', true) => out.extend(['\\', c]),
            ('{', false) if !is_count(after) => out.push_str(r"\{"),
            ('}', false) if !out.ends_with(|c: char| c.is_ascii_digit() || c == ',') => out.push_str(r"\}"),
            _ => out.push(c),
        }
        rest = after;
    }
    out
}

fn is_count(after: &str) -> bool {
    let inner = after.split('}').next().unwrap_or_default();
    after.contains('}')
        && !inner.is_empty()
        && inner.chars().all(|c| c.is_ascii_digit() || c == ',')
        && inner != ","
}

/// A pattern as a person may see it.
pub fn shown(pattern: &str) -> String {
    let named = pattern.replace(PREFIX, "%(__prefix_line)s").replace(APACHE, "%(_apache_error_client)s");
    named.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).take(1_000).collect()
}
