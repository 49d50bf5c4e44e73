//! YAML as this project reads it: strict, bounded, and with faults that point at the line.
#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Error, Options};
pub use serde_saphyr::{Location, Spanned};

/// What is wrong in a file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub file: String,
    /// From 1; 0 where the fault is the file's as a whole.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    /// The line itself.
    pub source: String,
}

/// No file of ours comes near this; a larger one is a mistake or an attack.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads one document. Duplicate and unknown keys, YAML 1.1 booleans, and bombs of nesting or aliases are faults.
pub fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, Fault> {
    if text.len() > FILE_BYTES_MAX {
        return Err(Fault::whole(
            file,
            format!("larger than {} KiB: nothing was read", FILE_BYTES_MAX >> 10),
        ));
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| fault(file, text, &error))
}

fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: 100_000,
            max_aliases: 100,
            max_anchors: 100,
            max_depth: 32,
        },
    }
}

impl Fault {
    /// A fault of the file as a whole.
    pub fn whole(file: &str, message: impl Into<String>) -> Self {
        Fault { file: file.to_owned(), line: 0, column: 0, message: message.into(), source: String::new() }
    }

    /// A fault at a place whose line need not be shown, because the message shows what is wrong.
    pub fn near(file: &str, place: Location, message: impl Into<String>) -> Self {
        let (line, column) = (place.line() as usize, place.column() as usize);
        Fault { line, column, ..Fault::whole(file, message) }
    }

    /// A fault at a place that [`Spanned`] gave.
    pub fn at(file: &str, text: &str, place: Location, message: impl Into<String>) -> Self {
        let line = place.line() as usize;
        let source = line.checked_sub(1).and_then(|index| text.lines().nth(index)).unwrap_or_default();
        let column = (place.column() as usize).min(source.chars().count() + 1);
        Fault { file: file.to_owned(), line, column, message: message.into(), source: source.to_owned() }
    }
}

/// One line that says it all, then the source line with a caret under the place.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "{}: {}", self.file, self.message);
        }
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        if self.source.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // A tab under a tab keeps the caret under its character.
        let shift: String = self
            .source
            .chars()
            .take(self.column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let source: String =
            self.source.chars().map(|c| if c.is_control() && c != '\t' { '\u{FFFD}' } else { c }).collect();
        writeln!(f, " {number} | {source}")?;
        write!(f, " {margin} | {shift}^")
    }
}

/// All faults of a configuration, as every verb tells them.
pub fn told(faults: &[Fault]) -> String {
    let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
    format!("the configuration is not in order\n{}", texts.join("\n"))
}

fn fault(file: &str, text: &str, error: &Error) -> Fault {
    let error = error.without_snippet();
    let message = message(error);
    match error.location() {
        Some(place) if place.line() > 0 => Fault::at(file, text, place, message),
        _ => Fault::whole(file, message),
    }
}

fn message(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
        Error::SerdeUnknownVariant { variant, expected, .. } => unknown("word", variant, expected),
        Error::SerdeMissingField { field, .. } => format!("the key {field} is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("\"{key}\" stands here a second time: merge the two, or rename one")
        }
        Error::SerdeInvalidType { unexpected, expected, .. } => {
            format!("{unexpected} stands here, want {expected}")
        }
        Error::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("{unexpected} stands here, want {expected}")
        }
        Error::InvalidScalar { ty, .. } => format!("this is not {}", number_words(ty)),
        Error::InvalidBooleanStrict { .. } => "write true or false".to_owned(),
        Error::Message { msg, .. } => msg.clone(),
        other => first_line(&other.to_string()).to_owned(),
    }
}

fn number_words(ty: &str) -> String {
    match ty {
        "u8" | "u16" | "u32" | "u64" => "a whole number of 0 or more that fits here".to_owned(),
        _ => format!("what belongs here ({ty})"),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("not valid YAML")
}

/// `unknown key "maxretri": did you mean maxretry?`, or the words there are where none comes near.
pub fn unknown<S: AsRef<str>>(what: &str, word: &str, known: &[S]) -> String {
    let word: String = word.chars().take(64).map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    match near(&word, known) {
        Some(near) => format!("unknown {what} \"{word}\": did you mean {near}?"),
        None => {
            let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
            format!("unknown {what} \"{word}\": there are {}", known.join(", "))
        }
    }
}

/// What may have been meant by a word that is none of these.
pub fn near<'k, S: AsRef<str>>(word: &str, known: &'k [S]) -> Option<&'k str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    known
        .iter()
        .map(|candidate| (distance(&plain(word), &plain(candidate.as_ref())), candidate.as_ref()))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: the least number of letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// One value or a list of them, each read as text by its own parser: `port: ssh` and `port: [ssh, 2222]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Many<T>(pub Vec<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ManyVisitor(PhantomData))
    }
}

struct ManyVisitor<T>(PhantomData<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for ManyVisitor<T> {
    type Value = Many<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Many<T>, E> {
        text.parse().map(|one| Many(vec![one])).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Many<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Many<T>, A::Error> {
        let mut many = Vec::new();
        while let Some(Text(one)) = list.next_element()? {
            many.push(one);
        }
        Ok(Many(many))
    }
}

/// A value that is read as text by its own parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)]
    struct Sheet {
        maxretry: u32,
        enabled: bool,
        jails: BTreeMap<String, u32>,
        port: Option<Many<u16>>,
        findtime: Option<Text<crate::model::Span>>,
    }

    fn told(text: &str) -> String {
        read::<Sheet>("a.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_mistyped_key_is_pointed_at_and_the_right_one_named() {
        assert_eq!(
            told("enabled: true\nmax_retri: 5\n"),
            "a.yaml:2:1: unknown key \"max_retri\": did you mean maxretry?\n 2 | max_retri: 5\n   | ^"
        );
        assert!(told("colour: 5").contains("there are maxretry, enabled, jails"));
    }

    #[test]
    fn a_jail_that_stands_twice_is_a_fault() {
        assert!(told("jails:\n  a: 1\n  a: 2\n").starts_with("a.yaml:3:3: \"a\" stands here a second time"));
    }

    #[test]
    fn what_does_not_fit_is_said_in_words() {
        assert!(told("maxretry: -1").starts_with("a.yaml:1:11: this is not a whole number"));
        assert!(told("enabled: yes").contains("write true or false"));
        assert!(told("enabled: [").starts_with("a.yaml:"));
    }

    #[test]
    fn a_value_that_its_parser_refuses_is_pointed_at() {
        assert_eq!(read::<Sheet>("a.yaml", "port: 22").unwrap().port, Some(Many(vec![22])));
        assert_eq!(read::<Sheet>("a.yaml", "port: [22, 80]").unwrap().port, Some(Many(vec![22, 80])));
        assert!(told("enabled: true\nport:\n  - 22\n  - x\n").starts_with("a.yaml:4:5: invalid digit"));
        assert!(told("port: 70000").starts_with("a.yaml:1:7: number too large"));
        assert!(told("findtime: 600").starts_with("a.yaml:1:11: \"600\" is not a length of time"));
    }

    #[test]
    fn bombs_are_stopped() {
        assert!(read::<Sheet>("a.yaml", &"[".repeat(5_000)).is_err());
        assert!(read::<Sheet>("a.yaml", &" ".repeat(FILE_BYTES_MAX + 1)).is_err());
    }
}
