//! Layered INI files as Python's configparser reads them, one laid over another, and the values that refer to others.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::yaml::Fault;

/// The section whose values hold for all others.
pub const DEFAULT: &str = "DEFAULT";
/// The section that names other files to be read before and after this one.
const INCLUDES: &str = "INCLUDES";

/// No file that a person writes comes near these.
const FILE_BYTES_MAX: usize = 1 << 20;
const LINE_BYTES_MAX: usize = 64 << 10;
/// So deep may files include each other, and values refer to each other.
const DEPTH_MAX: usize = 32;
/// So many files make one configuration.
const FILES_MAX: usize = 2_000;
/// So many references are followed for one value, and so long may it become.
const REFERENCES_MAX: usize = 10_000;
const VALUE_BYTES_MAX: usize = 256 << 10;

/// A file's name and its text, for pointing at it.
type Source = Arc<(String, String)>;

/// A value as written: its lines without their indentation, joined by `\n`.
#[derive(Clone, Debug)]
pub struct Value {
    pub text: String,
    key: String,
    section: String,
    /// What the section said before, in an earlier file.
    before: Option<Box<Value>>,
    source: Source,
    /// The number of each of its lines, from 1.
    lines: Vec<usize>,
}

impl Value {
    /// The file that says it.
    pub fn file(&self) -> &str {
        &self.source.0
    }

    /// `FILE:LINE`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.source.0, self.lines[0])
    }

    /// A fault that points at a piece of the value.
    pub fn fault(&self, piece: &str, message: impl Into<String>) -> Fault {
        let at = self.text.find(piece).unwrap_or(0);
        let index = self.text[..at].matches('\n').count().min(self.lines.len() - 1);
        let line = self.lines[index];
        let source: String =
            self.source.1.lines().nth(line - 1).unwrap_or_default().chars().take(200).collect();
        let column = source.find(piece).map_or(1, |at| source[..at].chars().count() + 1);
        Fault { file: self.source.0.clone(), line, column, message: message.into(), source }
    }
}

type Section = BTreeMap<String, Value>;

/// What one file or several say, the later over the earlier.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    sections: BTreeMap<String, Section>,
}

/// Reads one file. Comments begin a line with `#` or `;`, or follow ` ;`; what is indented goes on with the value above.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Layers, Fault> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Fault::whole(file, format!("is larger than {} KiB", FILE_BYTES_MAX >> 10)));
    }
    if bytes.contains(&0) {
        return Err(Fault::whole(file, "is not text: it holds zero bytes"));
    }
    let text = String::from_utf8_lossy(bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes));
    let source = Arc::new((file.to_owned(), text.into_owned()));
    let mut reader = Reader { source: source.clone(), layers: Layers::default(), section: None, key: None };
    for (index, line) in source.1.lines().enumerate() {
        reader.line(index + 1, line)?;
    }
    Ok(reader.layers)
}

struct Reader {
    source: Source,
    layers: Layers,
    section: Option<String>,
    /// The key whose value may go on, and how far it is indented.
    key: Option<(String, usize)>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) -> Result<(), Fault> {
        let wrong = |message: &str| {
            let source = line.chars().take(200).collect();
            Err(Fault { line: number, column: 1, source, ..Fault::whole(&self.source.0, message) })
        };
        if line.len() > LINE_BYTES_MAX {
            return wrong("this line is longer than 64 KiB");
        }
        let text = without_comment(line);
        if text.is_empty() {
            return Ok(());
        }
        if text.contains('\u{FFFD}') {
            return wrong("this line is not UTF-8 text: save the file as UTF-8");
        }
        let indent = line.len() - line.trim_start().len();
        if let (Some(section), Some((key, depth))) = (&self.section, &self.key)
            && indent > *depth
        {
            let value = self.layers.sections.get_mut(section).and_then(|section| section.get_mut(key));
            if let Some(value) = value {
                value.text = format!("{}\n{text}", value.text);
                value.lines.push(number);
            }
            return Ok(());
        }
        if let Some(name) = text.strip_prefix('[').and_then(|rest| Some(rest.rsplit_once(']')?.0)) {
            self.section = Some(name.to_owned());
            self.key = None;
            self.layers.sections.entry(name.to_owned()).or_default();
            return Ok(());
        }
        let Some(section) = &self.section else {
            return wrong("no section begins before this line: write [DEFAULT] or a jail's name above it");
        };
        let Some(at) = text.find(['=', ':']).filter(|at| *at > 0) else {
            return wrong(
                "this is neither a section, a key = value, nor indented to go on with the value above",
            );
        };
        let key = text[..at].trim().to_lowercase();
        let value = text[at + 1..].trim().to_owned();
        let value = Value {
            text: value,
            key: key.clone(),
            section: section.clone(),
            before: None,
            source: self.source.clone(),
            lines: vec![number],
        };
        self.layers.sections.entry(section.clone()).or_default().insert(key.clone(), value);
        self.key = Some((key, indent));
        Ok(())
    }
}

fn without_comment(line: &str) -> &str {
    let text = line.trim();
    if text.starts_with(['#', ';']) {
        return "";
    }
    let cut = [" ;", "\t;"].iter().filter_map(|mark| text.find(mark)).min();
    text[..cut.unwrap_or(text.len())].trim_end()
}

/// Gives the bytes of a file below the configuration's folder; none where it is not there.
pub type Read<'r> = dyn Fn(&str) -> Result<Option<Vec<u8>>, Fault> + 'r;

/// Reads files, each over those before it, with all that they include. A file that is not there is as good as empty.
pub fn layers(files: &[String], read: &Read) -> Result<Layers, Fault> {
    let mut all = Layers::default();
    let mut count = 0;
    for file in files {
        include(file, read, &mut Vec::new(), &mut count, &mut all)?;
    }
    Ok(all)
}

fn include(
    file: &str,
    read: &Read,
    within: &mut Vec<String>,
    count: &mut usize,
    all: &mut Layers,
) -> Result<(), Fault> {
    let Some(bytes) = read(file)? else { return Ok(()) };
    if within.iter().any(|known| known == file) || within.len() > DEPTH_MAX {
        let message = format!("includes itself: {} includes {file}", within.join(" includes "));
        return Err(Fault::whole(file, message));
    }
    *count += 1;
    if *count > FILES_MAX {
        return Err(Fault::whole(file, format!("is one of more than {FILES_MAX} files that are included")));
    }
    let mut own = parse(file, &bytes)?;
    let includes = own.sections.remove(INCLUDES).unwrap_or_default();
    within.push(file.to_owned());
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut around = |key: &str, all: &mut Layers| -> Result<(), Fault> {
        let names = includes.get(key).map_or("", |value| value.text.as_str());
        for name in names.split('\n').map(str::trim).filter(|name| !name.is_empty()) {
            let path = if folder.is_empty() || name.starts_with('/') {
                name.to_owned()
            } else {
                format!("{folder}/{name}")
            };
            include(&path, read, within, count, all)?;
            if let Some(start) = path.strip_suffix(".conf") {
                include(&format!("{start}.local"), read, within, count, all)?;
            }
        }
        Ok(())
    };
    around("before", all)?;
    all.absorb(own);
    around("after", all)?;
    within.pop();
    Ok(())
}

impl Layers {
    /// Lays later values over these.
    pub fn absorb(&mut self, later: Layers) {
        for (name, section) in later.sections {
            let mine = self.sections.entry(name).or_default();
            for (key, mut value) in section {
                value.before = mine.remove(&key).map(Box::new);
                mine.insert(key, value);
            }
        }
    }

    /// The sections but `DEFAULT`, sorted.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.sections.keys().map(String::as_str).filter(|name| *name != DEFAULT)
    }

    pub fn has(&self, section: &str) -> bool {
        self.sections.contains_key(section)
    }

    /// The value as written, in the section itself or in `DEFAULT`.
    pub fn raw(&self, section: &str, key: &str) -> Option<&Value> {
        self.own(section, key).or_else(|| self.own(DEFAULT, key))
    }

    /// The value as written in the section itself.
    pub fn own(&self, section: &str, key: &str) -> Option<&Value> {
        self.sections.get(section)?.get(key)
    }

    /// The keys that a section has itself.
    pub fn keys(&self, section: &str) -> impl Iterator<Item = &str> {
        self.sections.get(section).into_iter().flat_map(|section| section.keys().map(String::as_str))
    }

    /// The value with all that it refers to; `beyond` knows what no section says. None where nothing says it.
    ///
    /// # Errors
    /// A reference that goes round in circles, leads nowhere, or makes the value too long.
    pub fn get(&self, section: &str, key: &str, beyond: &Beyond) -> Result<Option<String>, Fault> {
        let Some(value) = self.raw(section, key) else { return Ok(None) };
        self.expand(section, value, beyond).map(Some)
    }

    /// A text as if it stood in a section, with all that it refers to.
    pub fn expand(&self, section: &str, value: &Value, beyond: &Beyond) -> Result<String, Fault> {
        let within = vec![(value.key.clone(), value.place())];
        Expansion { layers: self, section, beyond, within, references: 0 }.expand(value)
    }
}

/// Whether a name stands for a text of its own: asked first with the value that the files give it, and at last without.
pub type Beyond<'b> = dyn Fn(&str, Option<&Value>) -> Option<String> + 'b;

struct Expansion<'l> {
    layers: &'l Layers,
    section: &'l str,
    beyond: &'l Beyond<'l>,
    /// The names that are being expanded and where each is said, the outermost first.
    within: Vec<(String, String)>,
    references: usize,
}

impl Expansion<'_> {
    fn expand(&mut self, value: &Value) -> Result<String, Fault> {
        let mut out = String::new();
        let mut rest = value.text.as_str();
        while let Some(at) = rest.find('%') {
            out += &rest[..at];
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("%%") {
                out.push('%');
                rest = after;
                continue;
            }
            let Some((name, after)) = rest.strip_prefix("%(").and_then(|inner| inner.split_once(")s")) else {
                let piece: String = rest.chars().take(20).collect();
                return Err(value.fault(&piece, "a % by itself: write %% for one, or %(name)s"));
            };
            out += &self.reference(value, &rest[..name.len() + 4], &name.to_lowercase())?;
            rest = after;
            if out.len() > VALUE_BYTES_MAX {
                return Err(value.fault("%(", "this becomes longer than 256 KiB when all is put in"));
            }
        }
        Ok(out + rest)
    }

    fn reference(&mut self, value: &Value, piece: &str, name: &str) -> Result<String, Fault> {
        self.references += 1;
        if self.references > REFERENCES_MAX {
            return Err(value.fault(piece, "this refers to others more than 10000 times"));
        }
        if name == "__name__" {
            return Ok(self.section.to_owned());
        }
        let found = self.find(value, name).cloned();
        if let Some(text) = (self.beyond)(name, found.as_ref()) {
            return Ok(text);
        }
        let Some(found) = found else {
            return Err(value.fault(piece, format!("nothing says what {name} is: name it, or take this out")));
        };
        let place = found.place();
        if self.within.iter().any(|(_, known)| *known == place) || self.within.len() > DEPTH_MAX {
            let circle: Vec<&str> = self.within.iter().map(|(name, _)| name.as_str()).collect();
            let circle = circle.join(" refers to ");
            return Err(value.fault(piece, format!("goes round in circles: {circle} refers to {name}")));
        }
        self.within.push((name.to_owned(), place));
        let text = self.expand(&found)?;
        self.within.pop();
        Ok(text)
    }

    /// What a name means in `value`: `known/KEY` is what the key was before it was said last, `SECTION/KEY` another
    /// section's.
    fn find<'v>(&'v self, value: &'v Value, name: &str) -> Option<&'v Value> {
        let layers = self.layers;
        let Some((section, key)) = name.split_once('/') else { return layers.raw(self.section, name) };
        match section {
            "known" => {
                let last = if value.key == key { Some(value) } else { layers.raw(self.section, key) };
                let below =
                    || layers.own(DEFAULT, key).filter(|_| last.is_none_or(|last| last.section != DEFAULT));
                last.and_then(|last| last.before.as_deref()).or_else(below)
            }
            "default" => layers.own(DEFAULT, key),
            _ => {
                let of = layers.sections.iter().find(|(name, _)| name.eq_ignore_ascii_case(section))?;
                layers.raw(of.0, key)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(files: &[(&str, &str)]) -> Result<Layers, Fault> {
        let names: Vec<String> =
            files.iter().map(|(name, _)| name.to_string()).filter(|name| name.starts_with("jail")).collect();
        let read = |name: &str| {
            Ok(files.iter().find(|(file, _)| *file == name).map(|(_, text)| text.as_bytes().to_vec()))
        };
        layers(&names, &read)
    }

    fn value(layers: &Layers, section: &str, key: &str) -> Result<String, String> {
        let found = layers.get(section, key, &|_, _| None).map_err(|fault| fault.to_string())?;
        Ok(found.expect("it is there"))
    }

    #[test]
    fn later_files_go_over_earlier_ones_key_by_key() {
        let layers = all(&[
            ("jail.conf", "[DEFAULT]\nbantime = 10m\nPort : ssh\n[sshd]\nlogpath = /a\n  # no\n\n  /b\n"),
            ("jail.local", "# mine\n[DEFAULT]\nbantime = 1h ; longer\n[sshd]\nenabled = true # no comment\n"),
        ])
        .unwrap();
        assert_eq!(value(&layers, "sshd", "bantime").unwrap(), "1h");
        assert_eq!(value(&layers, "sshd", "port").unwrap(), "ssh");
        assert_eq!(value(&layers, "sshd", "logpath").unwrap(), "/a\n/b");
        assert_eq!(value(&layers, "sshd", "enabled").unwrap(), "true # no comment");
        assert_eq!(layers.raw("sshd", "bantime").unwrap().place(), "jail.local:3");
    }

    #[test]
    fn values_refer_to_others_and_to_what_they_were() {
        let layers = all(&[
            ("paths.conf", "[DEFAULT]\nlog = /var/%(os)s\nos = x\n"),
            ("paths.local", "[DEFAULT]\nos = debian\n"),
            (
                "jail.conf",
                "[INCLUDES]\nbefore = paths.conf\n[DEFAULT]\nignoreip = a\n[sshd]\nfilter = %(__name__)s\n",
            ),
            (
                "jail.local",
                "[DEFAULT]\nignoreip = %(known/ignoreip)s b\n[sshd]\nignoreip = %(known/ignoreip)s c\n\
                            p = 100%% %(LOG)s %(default/log)s %(other/q)s\n[other]\nq = 1\n",
            ),
        ])
        .unwrap();
        assert_eq!(value(&layers, "sshd", "ignoreip").unwrap(), "a b c");
        assert_eq!(value(&layers, "sshd", "filter").unwrap(), "sshd");
        assert_eq!(value(&layers, "sshd", "p").unwrap(), "100% /var/debian /var/debian 1");
    }

    #[test]
    fn what_cannot_be_followed_is_pointed_at() {
        let told = |text: &str| value(&all(&[("jail.local", text)]).unwrap(), "x", "a").unwrap_err();
        assert_eq!(
            told("[x]\na = 1 %(b)s\nb = %(c)s\nc = %(a)s\n"),
            "jail.local:4:5: goes round in circles: a refers to b refers to c refers to a\n 4 | c = %(a)s\n   |     ^"
        );
        assert!(
            told("[x]\na = q\n  # c\n  %(none)s\n").starts_with("jail.local:4:3: nothing says what none is")
        );
        assert!(told("[x]\na = 5%\n").contains("write %% for one"));
        let bomb: String = (0..30).map(|n| format!("a{n} = %(a{})s%(a{})s\n", n + 1, n + 1)).collect();
        let told = told(&format!("[x]\na = %(a0)s\n{bomb}a30 = zzzzzzzz\n"));
        assert!(told.contains("10000 times") || told.contains("256 KiB"), "{told}");
    }

    #[test]
    fn what_is_no_configuration_is_refused_at_its_line() {
        let told = |bytes: &[u8]| parse("f", bytes).unwrap_err().to_string();
        assert!(told(b"a = 1\n").starts_with("f:1:1: no section begins before this line"));
        assert!(told(b"[x]\nfoo\n").starts_with("f:2:1: this is neither"));
        assert!(told(b"[x]\na = \0\n").contains("zero bytes"));
        assert!(told(b"[x]\na = \xff\n").starts_with("f:2:1: this line is not UTF-8"));
        assert!(parse("f", b"# caf\xe9\n[x]\na = 1\n").is_ok(), "comments may be anything");
        assert!(
            told(&[b"[x]\na = ".to_vec(), vec![b'a'; LINE_BYTES_MAX]].concat())
                .contains("longer than 64 KiB")
        );
        assert!(told(&vec![b'a'; FILE_BYTES_MAX + 1]).contains("larger than"));
        let circle =
            [("jail.conf", "[INCLUDES]\nbefore = b.conf\n"), ("b.conf", "[INCLUDES]\nafter = jail.conf\n")];
        assert!(all(&circle).unwrap_err().to_string().contains("includes itself: jail.conf includes b.conf"));
    }
}
