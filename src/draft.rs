//! A rule that is put together from patterns, with lines that prove it.
#![forbid(unsafe_code)]

use std::fmt::Write;

use regex_syntax::hir::{Hir, HirKind};

use crate::detect::{Library, pattern};
use crate::jargon::yaml;
use crate::shapes::{Filter, Shape, class_bytes, class_len};

/// A pattern in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    pub regex: String,
    pub kind: &'static str,
    pub ends: bool,
}

/// A rule that is being put together.
pub struct Draft<'f> {
    pub filter: &'f Filter,
    pub shape: &'f Shape,
    pub session: bool,
    pub prefilter: Option<String>,
    pub ignores: Vec<String>,
    pub ours: Vec<Ours>,
}

/// Who tries, and whom a hostile line is to have banned.
const ATTACKER: &str = "192.0.2.10";
const VICTIM: &str = "203.0.113.9";

impl Draft<'_> {
    /// Whether the rule with this pattern alone is sound.
    pub fn proven_with(&self, ours: &Ours) -> Result<(), String> {
        // Something that counts by itself must be there for a rule to be one.
        let mut all = vec![ours.clone()];
        if ours.kind != "failregex" || (self.session && !ours.regex.contains("<HOST>")) {
            all.push(Ours { regex: "^never seen from <HOST>$".to_owned(), kind: "failregex", ends: false });
        }
        let draft =
            Draft { ours: all, ignores: self.ignores.clone(), prefilter: self.prefilter.clone(), ..*self };
        draft.proven().map(drop)
    }

    /// The rule's text, where every proof and sample of it holds.
    pub fn proven(&self) -> Result<String, String> {
        let head = self.head();
        let mut samples = String::new();
        for ours in self.ours.iter().filter(|ours| ours.kind == "failregex") {
            samples += &self.samples(&head, ours)?;
        }
        samples += &sample(&self.shape.line(self.nothing(), ATTACKER), None, false);
        let text = format!("{head}\nsamples:\n{samples}");
        judge(&self.filter.name, &text).map(|()| text)
    }

    fn nothing(&self) -> &'static str {
        if *self.shape == Shape::Clf {
            "\"GET /index.html HTTP/1.1\" 200 0 \"-\" \"-\""
        } else {
            "nothing that counts"
        }
    }

    fn head(&self) -> String {
        let filter = self.filter;
        let mut text = format!("rule: {}\nabout: Made from {}.\n\n", yaml(&filter.name), about(&filter.from));
        text += "# The samples were made from the patterns, to prove them: add lines of your own log.\n";
        let _ = writeln!(text, "format: {}", self.shape.format());
        if let Shape::Syslog(program) = self.shape
            && !program.is_empty()
        {
            let _ = writeln!(
                text,
                "program: [{}]",
                program.iter().map(|name| yaml(name)).collect::<Vec<_>>().join(", ")
            );
        }
        if !filter.journalmatch.is_empty() {
            let words: Vec<String> = filter.journalmatch.iter().map(|word| yaml(word)).collect();
            let _ = writeln!(text, "journalmatch: [{}]", words.join(", "));
        }
        if self.session {
            text += "session: pid\n";
        }
        if let Some(prefilter) = &self.prefilter {
            let _ = writeln!(text, "prefilter: {}", yaml(prefilter));
        }
        if !self.ignores.is_empty() {
            text += "ignoreregex:\n";
            self.ignores.iter().for_each(|regex| text += &format!("  - {}\n", yaml(regex)));
        }
        for kind in ["failregex", "successregex", "sessionregex"] {
            let of_kind: Vec<&Ours> = self.ours.iter().filter(|ours| ours.kind == kind).collect();
            if !of_kind.is_empty() {
                let _ = writeln!(text, "{kind}:");
            }
            for Ours { regex, ends, .. } in of_kind {
                let _ = match ends {
                    true => writeln!(text, "  - {{regex: {}, ends: true}}", yaml(regex)),
                    false => writeln!(text, "  - {}", yaml(regex)),
                };
            }
        }
        text
    }

    /// Lines that prove one pattern: one that counts, and some in which a client names a victim.
    fn samples(&self, head: &str, ours: &Ours) -> Result<String, String> {
        let names_host = ours.regex.contains("<HOST>");
        if !names_host && !self.shape.names_the_client() {
            // Another line of the session brings the address.
            return Ok(String::new());
        }
        let message = |client: &str| self.message(&ours.regex, client);
        let line = self.shape.line(&message(ATTACKER)?, ATTACKER);
        let mut text = sample(&line, Some(ATTACKER), false);
        let victim = self.shape.line(&message(VICTIM)?, VICTIM);
        let hostile = match self.shape {
            Shape::Clf => vec![
                self.shape.line(&format!("\"GET /{VICTIM} HTTP/1.1\" 200 0 \"{VICTIM}\" \"-\""), ATTACKER),
                self.shape
                    .line(&format!("{} \"{}\"", message(ATTACKER)?, victim.replace('"', "\\x22")), ATTACKER),
            ],
            _ => vec![
                self.shape.line(&format!("x {victim}"), ATTACKER),
                self.shape.line(&format!("user {} {}", VICTIM, message(ATTACKER)?), ATTACKER),
                format!("Nov 21 10:00:00 web01 other[78]: {}", message(VICTIM)?),
            ],
        };
        for line in hostile {
            // What no sample can be certain of is asked of the rule itself.
            let with = |addr| format!("{head}\nsamples:\n{text}{}", sample(&line, addr, true));
            let more = sample(&self.shape.line(self.nothing(), ATTACKER), None, false);
            let fits = [None, Some(ATTACKER)]
                .into_iter()
                .find(|addr| judge(&self.filter.name, &(with(*addr) + &more)).is_ok());
            match fits {
                Some(addr) => text += &sample(&line, addr, true),
                None => judge(&self.filter.name, &(with(None) + &more))?,
            }
        }
        Ok(text)
    }

    /// A shortest message that the pattern matches, with this address in it.
    fn message(&self, regex: &str, client: &str) -> Result<String, String> {
        let mut message = example(regex, client, None)?;
        if let Some(prefilter) = &self.prefilter {
            message = example(prefilter, client, Some(&message))?;
        }
        Ok(message)
    }
}

fn about(from: &str) -> String {
    from.replace([':', '#'], " ")
}

fn sample(line: &str, addr: Option<&str>, hostile: bool) -> String {
    let mut text = format!("  - line: {}\n", yaml(line));
    if let Some(addr) = addr {
        text += &format!("    addr: {addr}\n");
    }
    if hostile {
        text += "    hostile: true\n";
    }
    text
}

/// What is wrong with a rule, if anything is.
fn judge(name: &str, text: &str) -> Result<(), String> {
    let mut library = Library::default();
    library.add(&format!("{name}.yaml"), text);
    let Err(bad) = library.check_rule(name) else { return Ok(()) };
    let told: Vec<String> = bad.0.into_iter().map(|fault| fault.message).collect();
    Err(told.join("\n"))
}

/// A shortest text that a pattern of ours matches; `content` stands for what a prefilter leaves.
fn example(regex: &str, client: &str, content: Option<&str>) -> Result<String, String> {
    let expanded = pattern::expand(regex).map_err(|fault| pointed(regex, &fault))?;
    let hir = pattern::prove_sound(regex, &expanded).map_err(|fault| pointed(regex, &fault))?;
    let mut out = Vec::new();
    write_example(&hir, client, content, &mut out);
    if out.ends_with(b" ") {
        out.push(b'x');
    }
    String::from_utf8(out).map_err(|_| "it matches bytes that are no text".to_owned())
}

fn pointed(regex: &str, fault: &pattern::Fault) -> String {
    let before = regex[..fault.start].chars().count();
    let under = regex[fault.start..fault.end].chars().count().max(1);
    format!("{}\n    {regex}\n    {}{}", fault.text, " ".repeat(before), "^".repeat(under))
}

fn write_example(hir: &Hir, client: &str, content: Option<&str>, out: &mut Vec<u8>) {
    // More than a line holds proves nothing more.
    if out.len() > 4_096 {
        return;
    }
    match hir.kind() {
        HirKind::Literal(literal) => out.extend_from_slice(&literal.0),
        HirKind::Class(class) => out.push(likely(&class_bytes(class))),
        HirKind::Repetition(repetition) => {
            // Blanks at the end of a line are gone: where anything may stand, something does.
            let is_any = matches!(repetition.sub.kind(), HirKind::Class(class) if class_len(class) > 200);
            for _ in 0..repetition.min.clamp(u32::from(is_any && repetition.max.is_none()), 1_000) {
                write_example(&repetition.sub, client, content, out);
            }
        }
        HirKind::Capture(capture) => match (capture.name.as_deref(), content) {
            (Some("host"), _) => out.extend_from_slice(client.as_bytes()),
            (Some("content"), Some(content)) => out.extend_from_slice(content.as_bytes()),
            _ => write_example(&capture.sub, client, content, out),
        },
        HirKind::Concat(parts) => parts.iter().for_each(|part| write_example(part, client, content, out)),
        HirKind::Alternation(parts) => write_example(&parts[0], client, content, out),
        HirKind::Empty | HirKind::Look(_) => {}
    }
}

/// A byte of a class that a person would have typed.
fn likely(bytes: &[u8]) -> u8 {
    let wishes: [fn(&u8) -> bool; 4] =
        [u8::is_ascii_lowercase, u8::is_ascii_alphanumeric, u8::is_ascii_punctuation, u8::is_ascii_graphic];
    let found = wishes.iter().find_map(|wish| bytes.iter().find(|byte| wish(byte)));
    *found.or(bytes.iter().find(|byte| **byte == b' ')).or(bytes.first()).unwrap_or(&b'x')
}
