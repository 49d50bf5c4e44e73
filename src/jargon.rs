//! The small languages inside fail2ban's values: times, truths, lists, ports, and `name[option="value"]`.
#![forbid(unsafe_code)]

use crate::time::{Span, UNITS};

/// The abbreviations of time, in seconds; a month is 30.4375 days and a year 365.25.
const SECONDS: [(&[&str], f64); 7] = [
    (&["years", "year", "yy", "y"], 31_557_600.0),
    (&["months", "month", "mon", "mo"], 2_629_800.0),
    (&["weeks", "week", "ww", "w"], 604_800.0),
    (&["days", "day", "dd", "da", "d"], 86_400.0),
    (&["hours", "hour", "hh", "h"], 3_600.0),
    (&["minutes", "minute", "min", "mm", "m"], 60.0),
    (&["seconds", "second", "sec", "ss", "s"], 1.0),
];

/// A number or a length of time in seconds: `600`, `10m`, `1d 12h`, `-1`, `60*60*24`, `3600 # an hour`.
pub fn seconds(text: &str) -> Result<f64, String> {
    let plain = without_note(text).to_lowercase();
    let mut sum = Sum { rest: plain.trim(), depth: 0 };
    let bad = || format!("\"{}\" is not a length of time", text.escape_debug());
    let value = sum.terms().filter(|_| sum.rest.is_empty()).ok_or_else(bad)?;
    if value.is_finite() && value.abs() < 1e12 { Ok(value) } else { Err(bad()) }
}

/// What stands before ` #`, which is a part of the value to whoever does not know better.
pub fn without_note(text: &str) -> &str {
    let end = text.find(" #").or_else(|| text.find("\t#")).unwrap_or(text.len());
    text[..end].trim()
}

struct Sum<'t> {
    rest: &'t str,
    depth: usize,
}

impl Sum<'_> {
    fn eat(&mut self, mark: char) -> bool {
        let rest = self.rest.trim_start();
        let found = rest.strip_prefix(mark);
        self.rest = found.unwrap_or(rest);
        found.is_some()
    }

    fn terms(&mut self) -> Option<f64> {
        let mut sum = self.factors()?;
        loop {
            if self.eat('+') {
                sum += self.factors()?;
            } else if self.eat('-') {
                sum -= self.factors()?;
            } else if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
                // `1h 30m` stands for a sum.
                sum += self.factors()?;
            } else {
                return Some(sum);
            }
        }
    }

    fn factors(&mut self) -> Option<f64> {
        let mut product = self.atom()?;
        loop {
            if self.eat('*') {
                product *= self.atom()?;
            } else if self.eat('/') {
                product /= self.atom()?;
            } else {
                return Some(product);
            }
        }
    }

    fn atom(&mut self) -> Option<f64> {
        self.depth += 1;
        if self.depth > 64 {
            return None;
        }
        if self.eat('-') {
            return self.atom().map(|value| -value);
        }
        if self.eat('(') {
            let value = self.terms()?;
            return self.eat(')').then_some(value);
        }
        let digits = self.rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = self.rest[..digits].parse().ok()?;
        self.rest = self.rest[digits..].trim_start();
        let letters = self.rest.bytes().take_while(u8::is_ascii_lowercase).count();
        let unit = &self.rest[..letters];
        self.rest = self.rest[letters..].trim_start();
        if unit.is_empty() {
            return Some(number);
        }
        SECONDS.iter().find(|(names, _)| names.contains(&unit)).map(|(_, seconds)| number * seconds)
    }
}

/// A whole number of seconds as our configuration writes it, exactly: `1w2d`, `90s`; at least one second, and at most
/// ten years, which is what it becomes where it is more.
pub fn span(seconds: f64) -> String {
    let most = "520w".parse::<Span>().map_or(0, |span| span.0.as_secs());
    let mut left = (seconds.round().max(1.0) as u64).min(most);
    let mut text = String::new();
    for (unit, length) in UNITS {
        if left >= length {
            text += &format!("{}{unit}", left / length);
            left %= length;
        }
    }
    text
}

/// What fail2ban takes for yes; anything else is no.
pub fn truth(text: &str) -> bool {
    matches!(text.trim().to_lowercase().as_str(), "1" | "on" | "true" | "yes")
}

/// A name with options, such as a filter or an action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub options: Vec<(String, String)>,
}

impl Named {
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// Reads `name[a=b, c="d, e"][f='g']`.
pub fn named(text: &str) -> Result<Named, String> {
    let text = text.trim();
    let open = text.find('[').unwrap_or(text.len());
    let mut named = Named { name: text[..open].trim().to_owned(), options: Vec::new() };
    let mut rest = text[open..].trim_start();
    let bad = |at: &str| {
        let at: String = at.chars().take(30).collect();
        Err(format!("the options of {} are not understood from here on: {at}", text[..open].trim()))
    };
    while let Some(mut inner) = rest.strip_prefix('[') {
        loop {
            inner = inner.trim_start_matches([' ', '\t', '\n', ',']);
            if let Some(after) = inner.strip_prefix(']') {
                rest = after.trim_start();
                break;
            }
            let Some((key, after)) = inner.split_once('=') else { return bad(inner) };
            let after = after.trim_start();
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''));
            let found = match quote {
                Some(quote) => after[1..].split_once(quote),
                None => after.find([',', ']']).map(|end| (after[..end].trim(), &after[end..])),
            };
            let Some((value, after)) = found else { return bad(inner) };
            named.options.push((key.trim().to_lowercase(), value.to_owned()));
            inner = after;
        }
    }
    if rest.is_empty() { Ok(named) } else { bad(rest) }
}

/// A list of `name[options]`, of which each begins a line or follows the brackets of the one before.
pub fn list_of_named(text: &str) -> Result<Vec<Named>, String> {
    let mut pieces: Vec<String> = Vec::new();
    let (mut depth, mut quote) = (0, None);
    for c in text.chars() {
        match (c, quote) {
            (_, Some(open)) => quote = Some(open).filter(|open| *open != c),
            ('"' | '\'', None) if depth > 0 => quote = Some(c),
            ('[', None) => depth += 1,
            (']', None) => depth -= 1,
            _ => {}
        }
        let is_break = depth == 0 && quote.is_none() && c.is_whitespace();
        match pieces.last_mut() {
            Some(piece) if !is_break => piece.push(c),
            Some(piece) if !piece.is_empty() => pieces.push(String::new()),
            None if !is_break => pieces.push(c.to_string()),
            _ => {}
        }
    }
    pieces.iter().filter(|piece| !piece.is_empty()).map(|piece| named(piece)).collect()
}

/// What stands between blanks, commas and line ends.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', '\n', '\t', '\r']).filter(|word| !word.is_empty())
}

/// Ports as our configuration writes them; `all` where every port is meant.
pub fn ports(port: &str, protocol: &str) -> Vec<String> {
    let protocols: Vec<&str> = match protocol.to_lowercase().as_str() {
        "all" => vec!["tcp", "udp"],
        _ => words(protocol).collect(),
    };
    let mut ports = Vec::new();
    for word in words(port) {
        let word = word.replace(':', "-");
        if matches!(word.as_str(), "0-65535" | "1-65535" | "all" | "any" | "0-") {
            return vec!["all".to_owned()];
        }
        for protocol in &protocols {
            // Where no protocol is named, a number means TCP, and a name what /etc/services says.
            let text = if *protocol == "tcp" { word.clone() } else { format!("{word}/{protocol}") };
            if !ports.contains(&text) {
                ports.push(text);
            }
        }
    }
    ports
}

/// A jail's name as the sets of nftables can bear it.
pub fn jail_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let text: String =
        name.to_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).take(58).collect();
    match text.starts_with(|c: char| c.is_ascii_lowercase()) && text != "ignore" {
        true => text,
        false => format!("jail-{text}"),
    }
}

/// A text as YAML takes it on one line.
pub fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if is_word && text.chars().all(plain) && !reserved.contains(&text.to_lowercase().as_str()) {
        return text.to_owned();
    }
    let printable = |c: char| !c.is_control() && !('\u{FFFE}'..='\u{FFFF}').contains(&c) && c != '\u{FEFF}';
    if text.chars().all(printable) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    // JSON is YAML.
    serde_json::Value::from(text).to_string()
}

/// A list as YAML takes it on one line; a single value by itself.
pub fn yaml_list(texts: &[String]) -> String {
    match texts {
        [only] => yaml(only),
        many => format!("[{}]", many.iter().map(|text| yaml(text)).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written_in_the_field() {
        for (text, wanted) in [
            ("600", 600.0),
            ("10m", 600.0),
            ("1d12h", 129_600.0),
            ("1h 30m", 5_400.0),
            ("1h+30min", 5_400.0),
            ("-1", -1.0),
            ("60*60*24", 86_400.0),
            ("3600 # 10 minute ban", 3_600.0),
            ("2 Weeks", 1_209_600.0),
            ("1year-6mo", 15_778_800.0),
            ("(1+1)*1.5d", 259_200.0),
        ] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in ["", "soon", "1x", "1h)", "1/0", "((((", &"-".repeat(1_000), "__import__('os')"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_are_written_exactly() {
        for (seconds, wanted) in [(600.0, "10m"), (93_784.0, "1d2h3m4s"), (0.2, "1s"), (1e11, "520w")] {
            assert_eq!(span(seconds), wanted);
        }
    }

    #[test]
    fn options_may_be_quoted_grouped_and_on_lines_of_their_own() {
        let named = named("sshd[mode=aggressive, p=\"a, b]\"][q='x', r=]").unwrap();
        assert_eq!((named.name.as_str(), named.option("mode")), ("sshd", Some("aggressive")));
        assert_eq!(
            (named.option("p"), named.option("q"), named.option("r")),
            (Some("a, b]"), Some("x"), Some(""))
        );
        assert!(
            super::named("x[a=1").is_err()
                && super::named("x[a]").is_err()
                && super::named("x[a=1]b").is_err()
        );
        let list = list_of_named("nftables[port=\"1 2\", a=b]\n\n  mail[x=y] dummy").unwrap();
        let names: Vec<&str> = list.iter().map(|named| named.name.as_str()).collect();
        assert_eq!((names, list[0].option("port")), (vec!["nftables", "mail", "dummy"], Some("1 2")));
    }

    #[test]
    fn ports_and_names_become_ours() {
        assert_eq!(ports("0:65535", "tcp"), ["all"]);
        assert_eq!(ports("ssh,2222 8000:8010", "tcp"), ["ssh", "2222", "8000-8010"]);
        assert_eq!(ports("5060", "tcp,udp"), ["5060", "5060/udp"]);
        assert_eq!(ports("53", "all"), ["53", "53/udp"]);
        for (theirs, ours) in
            [("sshd", "sshd"), ("3proxy", "jail-3proxy"), ("My.Jail", "my-jail"), ("", "jail-")]
        {
            assert_eq!(jail_name(theirs), ours);
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in
            ["sshd", "/var/log/a*.log", "a: b # c", "it's", "true", "1e3", "", "- x", "\u{7}", "a\\b", "é"]
        {
            let file = format!("v: {}\n", yaml(text));
            let read: std::collections::BTreeMap<String, String> = crate::yaml::read("t", &file).unwrap();
            assert_eq!(read["v"], text, "{file}");
        }
    }
}
