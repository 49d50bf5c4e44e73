//! Which entries of a journal are meant: `FIELD=VALUE` words as journalctl(1) takes them, but that somebody trusted
//! must have written the entry.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::export::Fields;

/// Sets of wishes, of which one must hold whole. What it prints as can be read again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Matches(Vec<Set>);

/// Each field with the values of which it must have one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Set(Vec<(String, Vec<String>)>);

const UNIT: &str = "_SYSTEMD_UNIT";
/// The units of people's own programs: no pattern may reach them.
const OF_PEOPLE: [&str; 3] = ["user@1000.service", "session-1.scope", "user-1000.slice"];
/// The journal refuses longer names of fields.
const NAME_BYTES_MAX: usize = 64;

impl Matches {
    /// Whether an entry is meant.
    pub fn take(&self, entry: &Fields) -> bool {
        self.0.iter().any(|set| set.take(entry))
    }

    /// What to ask journalctl for, so that it gives every entry that one of these means, and few others.
    /// Nothing where only everything will do: it knows no patterns.
    pub fn arguments<'a>(all: impl Iterator<Item = &'a Matches>) -> Vec<String> {
        let mut sets: Vec<Vec<String>> = all.flat_map(|matches| &matches.0).map(Set::arguments).collect();
        sets.sort();
        sets.dedup();
        if sets.iter().any(Vec::is_empty) {
            return Vec::new();
        }
        sets.join(&"+".to_owned())
    }
}

impl FromStr for Matches {
    type Err = String;

    /// Words with blanks between them. A set that nothing proves is only for entries of root: any program may call
    /// itself what it likes, and `_COMM` and `_EXE` too are what its user chose to run.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut sets = vec![Set::default()];
        for word in text.split_whitespace() {
            match word {
                "+" => sets.push(Set::default()),
                _ => sets.last_mut().expect("one set at least").add(word)?,
            }
        }
        if sets.iter().any(|set| set.0.is_empty()) {
            return Err(
                "a set of matches is empty: write FIELD=VALUE, and + only between two sets".to_owned()
            );
        }
        for set in sets.iter_mut().filter(|set| !set.is_proof()) {
            set.0.insert(0, ("_UID".to_owned(), vec!["0".to_owned()]));
        }
        Ok(Matches(sets))
    }
}

impl Set {
    fn add(&mut self, word: &str) -> Result<(), String> {
        let malformed = || format!("\"{word}\" is no match: write FIELD=VALUE, as {UNIT}=ssh.service");
        let (name, value) = word.split_once('=').ok_or_else(malformed)?;
        let is_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) || value.is_empty() {
            return Err(malformed());
        }
        if name.starts_with("__") {
            return Err(format!("\"{name}\" is the entry's place in the journal: it cannot be asked for"));
        }
        if name == UNIT && value.contains('*') && OF_PEOPLE.iter().any(|unit| fits(value, unit)) {
            return Err(format!("\"{word}\" takes what people run as well: name the unit more closely"));
        }
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value.to_owned()),
            None => self.0.push((name.to_owned(), vec![value.to_owned()])),
        }
        Ok(())
    }

    /// Whether it names something that the journal itself knows of the writer, and that the writer cannot choose.
    fn is_proof(&self) -> bool {
        let of_kernel = |value: &String| matches!(value.as_str(), "kernel" | "audit" | "driver");
        self.0.iter().any(|(name, values)| match name.as_str() {
            UNIT | "_UID" | "_SYSTEMD_CGROUP" => true,
            "_TRANSPORT" => values.iter().all(of_kernel),
            _ => false,
        })
    }

    fn take(&self, entry: &Fields) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let fits = |found: &[u8], wanted: &str| match name == UNIT {
                true => std::str::from_utf8(found).is_ok_and(|found| fits(wanted, found)),
                false => found == wanted.as_bytes(),
            };
            entry.values(name).any(|found| wanted.iter().any(|wanted| fits(found, wanted)))
        })
    }

    fn arguments(&self) -> Vec<String> {
        let is_exact = |values: &Vec<String>| !values.iter().any(|value| value.contains('*'));
        let exact = self.0.iter().filter(|(name, values)| name != UNIT || is_exact(values));
        exact.flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}"))).collect()
    }
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = left.find(piece) else { return false };
        left = &left[at + piece.len()..];
    }
    left.ends_with(last)
}

impl fmt::Display for Matches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, set) in self.0.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { " + " })?;
            let words = set.0.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
            for (number, (name, value)) in words.enumerate() {
                write!(f, "{}{name}={value}", if number == 0 { "" } else { " " })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acquire::export::Export;

    fn take(matches: &str, entry: &str) -> bool {
        let matches: Matches = matches.parse().unwrap();
        let mut taken = None;
        let text = format!("__CURSOR=c\n{}\n\n", entry.replace(' ', "\n"));
        Export::default().feed(text.as_bytes(), |fields| taken = Some(matches.take(fields))).unwrap();
        taken.unwrap()
    }

    #[test]
    fn equal_fields_are_alternatives_and_unequal_ones_must_all_hold() {
        let both = "_SYSTEMD_UNIT=a.service _SYSTEMD_UNIT=b.service _UID=7";
        assert!(take(both, "_UID=7 _SYSTEMD_UNIT=b.service"));
        assert!(!take(both, "_UID=7 _SYSTEMD_UNIT=c.service"));
        assert!(!take(both, "_SYSTEMD_UNIT=a.service"));
        let either = "_SYSTEMD_UNIT=a.service + _UID=0 SYSLOG_IDENTIFIER=a";
        assert!(take(either, "_SYSTEMD_UNIT=a.service _UID=9"));
        assert!(take(either, "_UID=0 SYSLOG_IDENTIFIER=a"));
        assert!(!take(either, "_UID=0 SYSLOG_IDENTIFIER=b"));
        assert!(take("_UID=0", "_UID=0 X=a X=b") && take("_UID=0 X=b", "_UID=0 X=a X=b"));
    }

    #[test]
    fn what_a_program_says_of_itself_proves_nothing() {
        let forged = "_UID=65534 SYSLOG_IDENTIFIER=sshd _COMM=sshd _EXE=/tmp/sshd _TRANSPORT=syslog \
                      _SYSTEMD_UNIT=user@1000.service _SYSTEMD_USER_UNIT=ssh.service UNIT=ssh.service";
        for matches in [
            "SYSLOG_IDENTIFIER=sshd",
            "_COMM=sshd",
            "_EXE=/tmp/sshd",
            "_TRANSPORT=syslog",
            "_TRANSPORT=kernel _TRANSPORT=syslog",
            "_SYSTEMD_USER_UNIT=ssh.service",
            "UNIT=ssh.service",
            "_SYSTEMD_UNIT=ssh.service",
            "_SYSTEMD_UNIT=ssh*.service + _COMM=sshd",
            "_TRANSPORT=kernel",
        ] {
            assert!(!take(matches, forged), "{matches}");
        }
        assert!(take("SYSLOG_IDENTIFIER=sshd", "_UID=0 SYSLOG_IDENTIFIER=sshd"));
        assert_eq!("_COMM=a + _UID=7".parse::<Matches>().unwrap().to_string(), "_UID=0 _COMM=a + _UID=7");
    }

    #[test]
    fn the_instances_of_a_unit_can_be_meant_but_not_what_people_run() {
        let entry = |unit: &str| take("_SYSTEMD_UNIT=open*vpn@*.service", &format!("_SYSTEMD_UNIT={unit}"));
        assert!(entry("openvpn@a.service") && entry("open-vpn@.service") && entry("openvpn@a@vpn@b.service"));
        assert!(!entry("openvpn.service") && !entry("xopenvpn@a.service") && !entry("openvpn@a.servic"));
        assert!(!take("SYSLOG_IDENTIFIER=*", "_UID=0 SYSLOG_IDENTIFIER=x"), "only units have patterns");
        for pattern in ["*", "*.service", "*@*", "user@*.service", "session*"] {
            let error = format!("_SYSTEMD_UNIT={pattern}").parse::<Matches>().unwrap_err();
            assert!(error.ends_with("takes what people run as well: name the unit more closely"), "{error}");
        }
    }

    #[test]
    fn one_child_is_asked_for_what_all_want() {
        let asked = |all: &[&str]| {
            let all: Vec<Matches> = all.iter().map(|text| text.parse().unwrap()).collect();
            Matches::arguments(all.iter()).join(" ")
        };
        assert_eq!(asked(&["_UID=0 A=b", "_UID=0 A=b", "_UID=1"]), "_UID=0 A=b + _UID=1");
        assert_eq!(asked(&["_SYSTEMD_UNIT=a@*.service _COMM=a"]), "_COMM=a");
        assert_eq!(asked(&["_SYSTEMD_UNIT=a@*.service", "_UID=1"]), "", "everything");
    }

    #[test]
    fn a_mistake_is_told_with_what_to_write() {
        let told = |text: &str| text.parse::<Matches>().unwrap_err();
        let malformed = "\"ssh.service\" is no match: write FIELD=VALUE, as _SYSTEMD_UNIT=ssh.service";
        assert_eq!(told("ssh.service"), malformed);
        for text in ["", "+", "A=b +", "+ A=b", "A=b + + A=b"] {
            assert!(told(text).starts_with("a set of matches is empty"), "{text}");
        }
        for text in ["_uid=0", "=x", "A=", "--since=1", &format!("{}=x", "A".repeat(65))] {
            assert!(told(text).contains("is no match"), "{text}");
        }
        assert!(told("__CURSOR=x").contains("cannot be asked for"));
    }
}
