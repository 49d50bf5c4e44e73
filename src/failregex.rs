//! A filter of fail2ban becomes a rule of ours, pattern by pattern, each proven; or it is said why one does not.
#![forbid(unsafe_code)]

use crate::dialect::{in_our_words, is_known_date, shown, without_flags};
use crate::draft::{Draft, Ours};
use crate::shapes::{Filter, Shape, anchored, peeled};

/// What became of a filter.
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// The rule file; none where nothing of it can count.
    pub rule: Option<String>,
    /// The programs whose lines it hears; empty where it hears all.
    pub program: Vec<String>,
    /// Each pattern that did not become one of ours, and why.
    pub refused: Vec<(String, String)>,
    /// How the patterns mean something else than they did.
    pub changes: Vec<String>,
}

/// Translates a filter.
pub fn translate(filter: &Filter) -> Translated {
    let mut out = Translated::default();
    if let Some(why) = out_of_reach(filter) {
        out.refused = filter.failregex.iter().map(|pattern| (named(pattern), why.clone())).collect();
        return out;
    }
    let mut session = false;
    let mut found: Vec<(Shape, Ours, &str)> = Vec::new();
    for theirs in &filter.failregex {
        match shaped(theirs, filter, &mut session) {
            Ok((shape, ours)) => found.push((shape, ours, theirs)),
            Err(why) => out.refused.push((named(theirs), why)),
        }
    }
    let Some(shape) = most_common(&found) else { return out };
    let (alike, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(other, ..)| *other == shape);
    let why = format!(
        "it reads another kind of log than the filter's other patterns, which read {}: give it a filter of its own",
        shape.format()
    );
    out.refused.extend(others.into_iter().map(|(_, _, theirs)| (named(theirs), why.clone())));
    let mut draft =
        Draft { filter, shape: &shape, session, prefilter: None, ignores: Vec::new(), ours: Vec::new() };
    draft.prefilter = match prefilter(filter) {
        Ok(prefilter) => prefilter,
        Err(why) => {
            out.refused.extend(alike.into_iter().map(|(_, _, theirs)| (named(theirs), why.clone())));
            return out;
        }
    };
    for theirs in &filter.ignoreregex {
        match ignored(theirs, &shape, filter.prefregex.is_some()) {
            Ok(ours) => draft.ignores.push(ours),
            Err(why) => out.refused.push((format!("ignoreregex {}", shown(theirs)), why)),
        }
    }
    for (_, ours, theirs) in alike {
        match draft.proven_with(&ours) {
            Ok(()) => draft.ours.push(ours),
            Err(why) => out.refused.push((named(theirs), why)),
        }
    }
    if !draft.ours.iter().any(|ours| ours.kind == "failregex") {
        return out;
    }
    match draft.proven() {
        Ok(rule) => out.rule = Some(rule),
        Err(why) => out.refused.push(("all of it together".to_owned(), why)),
    }
    if let Shape::Syslog(program) = &shape {
        out.program.clone_from(program);
    }
    out.changes = changes(filter, &shape);
    out
}

fn changes(filter: &Filter, shape: &Shape) -> Vec<String> {
    let mut changes = Vec::new();
    if shape.names_the_client() {
        let format = shape.format();
        changes.push(format!(
            "the address is the one that the {format} header of a line names, wherever <HOST> stood"
        ));
    }
    if *shape == Shape::Clf {
        changes.push("the first quote of a pattern is the one that begins the request".to_owned());
    }
    if *shape == Shape::Date {
        changes.push("lines must begin with a date, in brackets or not".to_owned());
    }
    if matches!(shape, Shape::Syslog(program) if program.is_empty()) {
        changes.push(
            "lines of every program count, since the filter does not name one: add `program: [NAME]` to the rule"
                .to_owned(),
        );
    }
    if !filter.datepattern.is_empty() {
        changes.push("datepattern is left out: dates are known by themselves".to_owned());
    }
    changes
}

fn named(pattern: &str) -> String {
    format!("failregex {}", shown(pattern))
}

/// What no pattern of this filter can be translated for.
fn out_of_reach(filter: &Filter) -> Option<String> {
    if filter.lines_at_once || filter.failregex.iter().any(|pattern| pattern.contains("<SKIPLINES>")) {
        return Some(
            "it matches several lines at once: write a rule with `session`, which joins lines".to_owned(),
        );
    }
    let odd = filter.datepattern.iter().find(|pattern| !is_known_date(pattern))?;
    Some(format!(
        "its datepattern \"{odd}\" is no date that is known here: the line's shape is not understood"
    ))
}

/// What the pattern says of how its lines are wrapped, and the rest of it in our words.
fn shaped(theirs: &str, filter: &Filter, session: &mut bool) -> Result<(Shape, Ours), String> {
    let (plain, kind, ends) = without_flags(theirs, session)?;
    let (plain, any_case) = match plain.strip_prefix("(?i)") {
        Some(rest) => (rest.to_owned(), true),
        None => (plain, false),
    };
    let whole = filter.prefregex.as_deref().filter(|prefix| prefix.contains("<F-CONTENT>"));
    let (shape, rest) = match whole {
        // The prefix says it; the pattern sees only what is behind it.
        Some(prefix) => (peeled(&without_flags(prefix, session)?.0, filter)?.0, anchored(&plain)?),
        None => peeled(&plain, filter)?,
    };
    let mut regex = in_our_words(&rest)?;
    if any_case {
        regex.insert_str(1, "(?i)");
    }
    Ok((shape, Ours { regex, kind, ends }))
}

fn prefilter(filter: &Filter) -> Result<Option<String>, String> {
    let Some(prefix) = &filter.prefregex else { return Ok(None) };
    let (plain, ..) = without_flags(prefix, &mut false)?;
    if !plain.contains("<F-CONTENT>") {
        return Err(format!(
            "its prefregex has no <F-CONTENT>: write the prefix into each pattern\n    {}",
            shown(&plain)
        ));
    }
    let (_, rest) = peeled(&plain, filter)?;
    let ours = in_our_words(&rest)?;
    let trivial = ["^(?P<content>.+)$", "^(?P<content>.*)$", "^(?P<content>.+)", "^(?P<content>.*)"];
    Ok((!trivial.contains(&ours.as_str())).then_some(ours))
}

/// `inner`: what comes behind the prefix of all lines is what it sees.
fn ignored(theirs: &str, shape: &Shape, inner: bool) -> Result<String, String> {
    let filter = Filter { logpath: vec!["access".to_owned()], ..Filter::default() };
    let (plain, ..) = without_flags(theirs, &mut false)?;
    let regex = match peeled(&plain, &filter) {
        _ if inner && plain.starts_with('^') => plain,
        Ok((other, rest)) if other.format() == shape.format() && plain.starts_with('^') => rest,
        _ if plain.starts_with('^') => {
            return Err("it is tied to the start of the line, which is not seen here".to_owned());
        }
        _ => format!("^.*(?:{plain})"),
    };
    in_our_words(&regex)
}

fn most_common(found: &[(Shape, Ours, &str)]) -> Option<Shape> {
    let count = |shape: &Shape| found.iter().filter(|(other, ..)| other == shape).count();
    let mut best: Option<&Shape> = None;
    for (shape, ..) in found {
        if best.is_none_or(|best| count(shape) > count(best)) {
            best = Some(shape);
        }
    }
    best.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::PREFIX;

    fn filter(patterns: &[&str]) -> Filter {
        Filter {
            name: "mine".to_owned(),
            from: "filter.d/mine.conf".to_owned(),
            failregex: patterns.iter().map(|pattern| pattern.to_string()).collect(),
            daemon: Some("(?:myd|my-daemon)".to_owned()),
            ..Filter::default()
        }
    }

    /// The patterns of the rule that one of theirs becomes.
    fn ours(pattern: &str) -> Result<(String, String), String> {
        let translated = translate(&filter(&[&pattern.replace("PREFIX", &PREFIX.to_string())]));
        let Some(rule) = translated.rule else { return Err(translated.refused[0].1.clone()) };
        let value = |key: &str| {
            let after = rule.split_once(&format!("\n{key}")).unwrap().1;
            after.lines().next().unwrap().trim_start_matches("  - ").to_owned()
        };
        Ok((value("format: "), value("failregex:\n")))
    }

    #[test]
    fn sound_patterns_of_every_kind_of_log_are_translated() {
        for (theirs, format, wanted) in [
            (
                "^PREFIXLogin failed for <F-USER>\\S+</F-USER> from <ADDR>$",
                "syslog",
                r"'^Login failed for (?P<user>\S+) from <HOST>$'",
            ),
            (r"^\s*\S+ myd\[\d+\]: bad <HOST>$", "syslog", "'^bad <HOST>$'"),
            (r"myd\[\d+\]: bad <HOST>$", "syslog", "'^bad <HOST>$'"),
            (r#"^<HOST> -.*"(GET|POST).*HTTP.*" 404 .*$"#, "clf", r#"'^"(GET|POST).*HTTP.*" 404 .*$'"#),
            (r#"^<HOST> - \S+ \[\] "POST /wp-login.php"#, "clf", r#"'^"POST /wp-login.php'"#),
            (r#"<HOST>.*GET.*(\.php|\.asp)"#, "clf", r#"'^".*GET.*(\.php|\.asp)'"#),
            (
                r"^\s*\[error\] \d+#\d+: \*\d+ access forbidden by rule, client: <HOST>, ",
                "nginx-error",
                "'^access forbidden by rule, client: <HOST>, '",
            ),
            (
                r"^\[[^]]*\] \[error\] \[client <HOST>\] File does not exist: /x",
                "apache-error",
                "'^File does not exist: /x'",
            ),
            (
                r"^ \[WARN\] login of [^[]+ from <IP4> failed\Z",
                "date",
                r"'^\[WARN\] login of [^\[]+ from <HOST> failed\z'",
            ),
            (r"^\[\] auth {bad} <HOST>$", "date", r"'^auth \{bad\} <HOST>$'"),
        ] {
            assert_eq!(ours(theirs), Ok((format.to_owned(), wanted.to_owned())), "{theirs}");
        }
    }

    #[test]
    fn unsound_patterns_are_explained_with_a_caret() {
        for (theirs, why) in [
            ("Login failed from <HOST>", "must begin with ^"),
            ("^PREFIXfailed for .* from <HOST>", "an attacker could choose the address"),
            ("^PREFIXfailed (?!x) from <HOST>$", "look-around"),
            (r"^PREFIX(\w+) \1 from <HOST>$", "back-references"),
            ("^PREFIXfrom <DNS>$", "names are never looked up"),
            ("^PREFIXuser <F-ID>\\S+</F-ID>$", "only an address can be banned"),
            ("^PREFIXno address$", "blames nobody"),
            ("^PREFIX[a <HOST>$", "unclosed"),
        ] {
            let told = ours(theirs).unwrap_err();
            assert!(told.contains(why), "{theirs}: {told}");
            assert!(told.contains("\n    ") && told.contains('^') || why.starts_with("blames"), "{told}");
        }
        assert!(ours("^PREFIXa<SKIPLINES>b <HOST>$").unwrap_err().contains("several lines"));
    }

    #[test]
    fn one_bad_pattern_does_not_spoil_the_others() {
        let theirs = Filter {
            prefregex: Some(format!("^{PREFIX}(?:info|warn): <F-CONTENT>.+</F-CONTENT>$")),
            ignoreregex: vec!["from 192\\.0\\.2\\.".to_owned()],
            datepattern: vec!["{^LN-BEG}%Y-%m-%d %H:%M:%S".to_owned()],
            ..filter(&["^bad <HOST>$", "^bad (?=x) <HOST>$", "unanchored <HOST>"])
        };
        let translated = translate(&theirs);
        let rule = translated.rule.unwrap();
        assert!(rule.contains("prefilter: '^(?:info|warn): (?P<content>.+)$'"), "{rule}");
        assert!(
            rule.contains(
                r"ignoreregex:
  - '^.*(?:from 192\.0\.2\.)'"
            ),
            "{rule}"
        );
        assert!(
            rule.contains("program: [myd, my-daemon]") && rule.matches("hostile: true").count() >= 3,
            "{rule}"
        );
        assert_eq!(translated.refused.len(), 2);
    }

    #[test]
    fn sessions_keep_their_meaning() {
        let patterns = [
            format!("^<F-MLFID>{PREFIX}</F-MLFID>failed from <HOST>$"),
            format!("^<F-MLFID>{PREFIX}</F-MLFID><F-NOFAIL>connection from</F-NOFAIL> <HOST>$"),
            format!(
                "^<F-MLFID>{PREFIX}</F-MLFID><F-MLFFORGET><F-MLFGAINED>welcome</F-MLFGAINED></F-MLFFORGET> <HOST>$"
            ),
            format!("^<F-MLFID>{PREFIX}</F-MLFID>too many$"),
        ];
        let translated = translate(&filter(&patterns.each_ref().map(String::as_str)));
        let rule = translated.rule.unwrap_or_else(|| panic!("{:?}", translated.refused));
        for piece in [
            "session: pid\n",
            "failregex:\n  - '^failed from <HOST>$'\n  - '^too many$'\n",
            "successregex:\n  - {regex: '^welcome <HOST>$', ends: true}\n",
            "sessionregex:\n  - '^connection from <HOST>$'\n",
        ] {
            assert!(rule.contains(piece), "{piece} is not in\n{rule}");
        }
    }

    #[test]
    fn dates_are_known_or_not() {
        for known in [
            "%Y-%m-%d %H:%M:%S",
            "^%d/%b/%Y:%H:%M:%S %z",
            "{^LN-BEG}",
            "%%Y/%%m/%%d %%H:%%M:%%S",
            "^\\[%ExY-%Exm-%Exd %ExH:%ExM:%ExS\\]",
        ] {
            assert!(is_known_date(&known.replace("%%", "%")), "{known}");
        }
        for odd in ["%H.%M Uhr", "^foo %Y", "(\\d+)"] {
            assert!(!is_known_date(odd), "{odd}");
        }
    }
}
