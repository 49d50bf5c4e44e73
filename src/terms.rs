//! How fail2ban counts and bans, key by key, in the words of our configuration: times, growth, whom nobody bans, zones.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use crate::ini::{Beyond, Layers, Value};
use crate::jargon::{self, seconds, span, truth, without_note, words};
use crate::never::{self, Entry};
use crate::yaml::Fault;

/// What is otherwise than it was, or was left out: what it is about, and why or what to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub done: Vec<(String, String)>,
    pub changed: Vec<(String, String)>,
    pub left: Vec<(String, String)>,
}

/// What notes about no jail in particular are about.
pub const EVERY_JAIL: &str = "every jail";

impl Notes {
    pub fn done(&mut self, about: &str, text: impl Into<String>) {
        note(&mut self.done, about, text.into());
    }

    pub fn changed(&mut self, about: &str, text: impl Into<String>) {
        note(&mut self.changed, about, text.into());
    }

    pub fn left(&mut self, about: &str, text: impl Into<String>) {
        note(&mut self.left, about, text.into());
    }
}

/// What is said of every jail is not said of each again.
fn note(notes: &mut Vec<(String, String)>, about: &str, text: String) {
    if !notes.iter().any(|(whom, said)| *said == text && (whom == about || whom == EVERY_JAIL)) {
        notes.push((about.to_owned(), text));
    }
}

/// One section of the jails' files.
pub struct Section<'l> {
    pub layers: &'l Layers,
    pub name: &'l str,
    pub beyond: &'l Beyond<'l>,
}

impl Section<'_> {
    pub fn get(&self, key: &str) -> Result<Option<String>, Fault> {
        Ok(self.layers.get(self.name, key, self.beyond)?.map(|text| text.trim().to_owned()))
    }

    /// The value, where it is not empty.
    pub fn filled(&self, key: &str) -> Result<Option<String>, Fault> {
        Ok(self.get(key)?.filter(|text| !text.is_empty()))
    }

    /// A fault that points at a key's value.
    pub fn fault(&self, key: &str, message: impl Into<String>) -> Fault {
        match self.layers.raw(self.name, key) {
            Some(value) => value.fault(first_line(value), message),
            None => Fault::whole(self.name, message),
        }
    }

    fn seconds(&self, key: &str) -> Result<Option<f64>, Fault> {
        let Some(text) = self.filled(key)? else { return Ok(None) };
        let wrong = |why| self.fault(key, format!("{why}: write 600, 10m, 1h30m, 2d or 1w"));
        seconds(&text).map(Some).map_err(wrong)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Fault> {
        let Some(text) = self.filled(key)? else { return Ok(None) };
        let wrong = |_| self.fault(key, format!("\"{}\" is no number", text.escape_debug()));
        seconds(&text).map(Some).map_err(wrong)
    }
}

fn first_line(value: &Value) -> &str {
    value.text.lines().next().unwrap_or_default()
}

/// By what a jail counts and bans, as our configuration writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub maxretry: u32,
    pub findtime: String,
    pub bantime: String,
    pub increment: Option<String>,
    pub ignoreip: Vec<String>,
    pub tz: Option<String>,
}

/// What holds where no file says anything.
const TEN_MINUTES: f64 = 600.0;
const MAXRETRY: f64 = 5.0;
/// The most that our configuration takes.
const MAXRETRY_MAX: f64 = 1_000.0;
/// So many earlier bans make a ban longer.
const DOUBLINGS_MAX: i32 = 20;

impl Terms {
    /// Reads the terms of a section; `about` is what notes call it.
    pub fn read(section: &Section, about: &str, notes: &mut Notes) -> Result<Terms, Fault> {
        for key in ["bantime", "findtime", "maxretry", "enabled", "port"] {
            if let Some(text) = section.filled(key)?
                && without_note(&text) != text
                && section.layers.own(section.name, key).is_some()
            {
                let plain = without_note(&text);
                notes.changed(
                    about,
                    format!("{key} = {text}: a # in a line is no comment there; read as {plain}"),
                );
            }
        }
        let maxretry = section.number("maxretry")?.unwrap_or(MAXRETRY).round();
        if !(1.0..=MAXRETRY_MAX).contains(&maxretry) {
            return Err(section.fault("maxretry", "must be from 1 to 1000"));
        }
        let findtime = section.seconds("findtime")?.unwrap_or(TEN_MINUTES);
        if findtime <= 0.0 {
            return Err(section.fault("findtime", "must be more than nothing"));
        }
        let base = section.seconds("bantime")?.unwrap_or(TEN_MINUTES);
        if base == 0.0 {
            return Err(section.fault("bantime", "bans for no time at all: write a length, or -1 for ever"));
        }
        Ok(Terms {
            maxretry: maxretry as u32,
            findtime: span(findtime),
            bantime: if base < 0.0 { "forever".to_owned() } else { span(base) },
            increment: increment(section, base, about, notes)?,
            ignoreip: ignoreip(section, about, notes)?,
            tz: tz(section, about, notes)?,
        })
    }
}

fn increment(section: &Section, base: f64, about: &str, notes: &mut Notes) -> Result<Option<String>, Fault> {
    if !section.filled("bantime.increment")?.is_some_and(|text| truth(&text)) || base < 0.0 {
        return Ok(None);
    }
    let factor = section.number("bantime.factor")?.unwrap_or(1.0);
    let maxtime = section.seconds("bantime.maxtime")?;
    let mut keys = Vec::new();
    if let Some(text) = section.filled("bantime.multipliers")? {
        let numbers: Option<Vec<f64>> = words(&text).map(|word| seconds(word).ok()).collect();
        let numbers = numbers.filter(|numbers| !numbers.is_empty());
        let numbers = numbers
            .ok_or_else(|| section.fault("bantime.multipliers", "must be numbers with blanks between"))?;
        // The first ban is never multiplied.
        let later = numbers.iter().skip(1).map(|number| span(base * factor * number));
        keys.push(format!(
            "steps: [{}]",
            [span(base)].into_iter().chain(later).collect::<Vec<_>>().join(", ")
        ));
    } else {
        if let Some(formula) = section.filled("bantime.formula")?
            && !is_doubling(&formula)
        {
            notes.changed(
                about,
                format!(
                    "bantime.formula = {formula}: a formula is not evaluated; each ban is twice as long as the one \
                     before. `increment: {{steps: [...]}}` takes any lengths"
                ),
            );
        }
        match factor == 1.0 {
            true => keys.push("factor: 2".to_owned()),
            false => {
                let most = maxtime.unwrap_or(f64::INFINITY).min(35.0 * 86_400.0);
                let mut steps = vec![span(base)];
                for doublings in 1..=DOUBLINGS_MAX {
                    let length = (base * f64::powi(2.0, doublings) * factor).max(base);
                    steps.push(span(length.min(most)));
                    if length >= most {
                        break;
                    }
                }
                keys.push(format!("steps: [{}]", steps.join(", ")));
            }
        }
    }
    match maxtime {
        Some(maxtime) => keys.push(format!("maxtime: {}", span(maxtime))),
        None => notes.changed(about, "growing bans end at five weeks, where no bantime.maxtime is set"),
    }
    if let Some(rndtime) = section.seconds("bantime.rndtime")?.filter(|rndtime| *rndtime >= 1.0) {
        keys.push(format!("rndtime: {}", span(rndtime)));
    }
    if section.filled("bantime.overalljails")?.is_some_and(|text| truth(&text)) {
        keys.push("overalljails: true".to_owned());
    }
    Ok(Some(format!("{{{}}}", keys.join(", "))))
}

/// Whether a formula is the usual one, however it is written.
fn is_doubling(formula: &str) -> bool {
    let plain: String = formula.chars().filter(|c| !c.is_whitespace()).collect();
    plain.starts_with("ban.Time*(1<<(ban.Count") && plain.ends_with("*banFactor")
}

fn ignoreip(section: &Section, about: &str, notes: &mut Notes) -> Result<Vec<String>, Fault> {
    if section.filled("ignoreself")?.is_some_and(|text| !truth(&text)) {
        notes.changed(about, "ignoreself = false: the host's own addresses are never banned here");
    }
    let mut entries = Vec::new();
    for word in words(section.filled("ignoreip")?.as_deref().unwrap_or_default()) {
        let Some(entry) = entry(word) else {
            notes.left(
                about,
                format!(
                    "ignoreip {word}: it is no address, network, host name or file: take it out or correct it"
                ),
            );
            continue;
        };
        // Loopback is never banned in any case.
        if !matches!(entry.as_str(), "127.0.0.0/8" | "127.0.0.1" | "::1") && !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// An entry of `ignoreip` as we take it: bits beyond a prefix are cut off, and a mask becomes a prefix.
fn entry(word: &str) -> Option<String> {
    let masked = || {
        let (addr, mask) = word.split_once('/')?;
        let mask: std::net::Ipv4Addr = mask.parse().ok()?;
        ipnet::ipv4_mask_to_prefix(mask).ok().map(|prefix| format!("{addr}/{prefix}"))
    };
    let word = masked().unwrap_or_else(|| word.to_owned());
    if let Ok(net) = word.parse::<IpNet>() {
        let net = net.trunc();
        return Some(if net.prefix_len() == net.max_prefix_len() {
            net.addr().to_string()
        } else {
            net.to_string()
        });
    }
    never::net(&word)
        .map(|net| net.addr().to_string())
        .ok()
        .or_else(|| word.parse::<Entry>().ok().map(|_| word))
}

/// Zones that people abbreviate, in hours and minutes from UTC. Those of summer are what the word says all year.
const ZONES: [(&str, &str); 18] = [
    ("PST", "-08:00"),
    ("PDT", "-07:00"),
    ("MST", "-07:00"),
    ("MDT", "-06:00"),
    ("CST", "-06:00"),
    ("CDT", "-05:00"),
    ("EST", "-05:00"),
    ("EDT", "-04:00"),
    ("WET", "+00:00"),
    ("WEST", "+01:00"),
    ("BST", "+01:00"),
    ("CET", "+01:00"),
    ("CEST", "+02:00"),
    ("EET", "+02:00"),
    ("EEST", "+03:00"),
    ("MSK", "+03:00"),
    ("JST", "+09:00"),
    ("AEST", "+10:00"),
];

fn tz(section: &Section, about: &str, notes: &mut Notes) -> Result<Option<String>, Fault> {
    if let Some(codec) = section.filled("logencoding")?
        && !matches!(codec.to_lowercase().as_str(), "auto" | "utf-8" | "utf8" | "ascii" | "us-ascii")
    {
        notes.left(
            about,
            format!("logencoding = {codec}: lines are read as bytes, which is fine unless they are UTF-16"),
        );
    }
    let Some(text) = section.filled("logtimezone")? else { return Ok(None) };
    let upper = text.to_uppercase();
    if let Some((_, offset)) = ZONES.iter().find(|(name, _)| *name == upper) {
        return Ok(Some((*offset).to_owned()));
    }
    let offset = upper.trim_start_matches("UTC").trim_start_matches("GMT").trim_start_matches('Z');
    let digits: String = offset.chars().filter(char::is_ascii_digit).collect();
    let sign = offset.chars().next();
    match (sign, digits.len()) {
        (None, 0) => Ok(Some("UTC".to_owned())),
        (Some(sign @ ('+' | '-')), 2) => Ok(Some(format!("{sign}{digits}:00"))),
        (Some(sign @ ('+' | '-')), 4) => Ok(Some(format!("{sign}{}:{}", &digits[..2], &digits[2..]))),
        _ => Err(section.fault("logtimezone", "no such zone: write UTC, UTC+0200 or CET")),
    }
}

/// Whether what a boolean says is understood by fail2ban as people mean it.
pub fn meant(text: &str) -> bool {
    truth(jargon::without_note(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ini;

    fn read(text: &str) -> (Result<Terms, String>, Notes) {
        let layers = ini::parse("jail.local", text.as_bytes()).unwrap();
        let mut notes = Notes::default();
        let section = Section { layers: &layers, name: "sshd", beyond: &|_, _| None };
        (Terms::read(&section, "sshd", &mut notes).map_err(|fault| fault.to_string()), notes)
    }

    fn increment(text: &str) -> (Option<String>, usize) {
        let (terms, notes) = read(&format!("[sshd]\nbantime = 600\nbantime.increment = true\n{text}"));
        (terms.unwrap().increment, notes.changed.len())
    }

    #[test]
    fn bans_grow_as_they_did() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(increment("bantime.maxtime = 5w\n"), (some("{factor: 2, maxtime: 5w}"), 0));
        assert_eq!(
            increment(
                "bantime.multipliers = 1 5 30 60\nbantime.maxtime = 1d\nbantime.rndtime = 30\nbantime.overalljails = yes\n"
            ),
            (some("{steps: [10m, 50m, 5h, 10h], maxtime: 1d, rndtime: 30s, overalljails: true}"), 0)
        );
        assert_eq!(
            increment("bantime.factor = 3\nbantime.maxtime = 4h\n"),
            (some("{steps: [10m, 1h, 2h, 4h], maxtime: 4h}"), 0)
        );
        assert_eq!(
            increment("bantime.formula = ban.Time * math.exp(ban.Count)\n").1,
            2,
            "formula and maxtime are told"
        );
        let usual = "bantime.formula = ban.Time * (1<<(ban.Count if ban.Count<20 else 20)) * banFactor\nbantime.maxtime = 1w\n";
        assert_eq!(increment(usual), (some("{factor: 2, maxtime: 1w}"), 0));
        assert_eq!(read("[sshd]\nbantime = -1\nbantime.increment = true\n").0.unwrap().increment, None);
    }

    #[test]
    fn terms_are_read_as_they_are_meant() {
        let (terms, notes) = read(
            "[sshd]\nbantime = 3600 # an hour\nfindtime = 1d12h\nmaxretry = 3\nignoreip = 127.0.0.1/8 ::1, \
             192.0.2.7/24\n 198.51.100.0/255.255.255.0 2001:db8::1 office.example.org ?\nlogtimezone = UTC+0200\n\
             ignoreself = false\n",
        );
        assert_eq!(
            terms.unwrap(),
            Terms {
                maxretry: 3,
                findtime: "1d12h".to_owned(),
                bantime: "1h".to_owned(),
                increment: None,
                ignoreip: ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::1", "office.example.org"]
                    .map(str::to_owned)
                    .into(),
                tz: Some("+02:00".to_owned()),
            }
        );
        assert_eq!((notes.changed.len(), notes.left.len()), (2, 1));
        for (zone, wanted) in
            [("Z", "UTC"), ("gmt", "UTC"), ("CEST", "+02:00"), ("UTC-03:30", "-03:30"), ("GMT+01", "+01:00")]
        {
            assert_eq!(
                read(&format!("[sshd]\nlogtimezone = {zone}\n")).0.unwrap().tz.as_deref(),
                Some(wanted)
            );
        }
    }

    #[test]
    fn what_is_no_term_is_pointed_at() {
        for (text, told) in [
            ("[sshd]\nbantime = soon\n", "jail.local:2:11: \"soon\" is not a length of time"),
            ("[sshd]\nmaxretry = 0\n", "jail.local:2:12: must be from 1 to 1000"),
            ("[sshd]\nfindtime = -5\n", "jail.local:2:12: must be more than nothing"),
            ("[sshd]\nlogtimezone = Mars\n", "jail.local:2:15: no such zone"),
            ("[sshd]\nbantime = 0\n", "jail.local:2:11: bans for no time"),
        ] {
            let said = read(text).0.unwrap_err();
            assert!(said.starts_with(told), "{said}");
        }
    }
}
