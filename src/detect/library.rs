//! All rules by name: those the binary carries, and an administrator's own, which go before them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use super::compile::{self, BadRule};
use super::file::RuleFile;
use super::rule::Rule;
use super::sample;
use crate::model::plain;
use crate::yaml::{self, Fault};

/// The rule files of the source tree, `(FILE NAME, TEXT)`.
const SHIPPED: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/rules.rs"));

/// Rule files by name, not yet parsed.
#[derive(Clone, Debug, Default)]
pub struct Library {
    files: BTreeMap<String, Source>,
}

#[derive(Clone, Debug)]
struct Source {
    /// What messages call it.
    file: String,
    /// Or why it cannot be read.
    text: Result<String, String>,
    shipped: bool,
}

impl Library {
    /// The rules that the binary carries.
    pub fn shipped() -> Self {
        let mut library = Library::default();
        for (file, text) in SHIPPED {
            library.insert(&format!("rules/{file}"), Ok((*text).to_owned()), true);
        }
        library
    }

    /// Adds every `NAME.yaml` of `dir`; one named like a rule that is there replaces it. A file that cannot be read
    /// spoils its own rule alone.
    pub fn add_dir(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                self.insert(&path.display().to_string(), read(&path), false);
            }
        }
        Ok(())
    }

    /// Adds one rule file; its name without folder and `.yaml` is the rule's.
    pub fn add(&mut self, file: &str, text: &str) {
        self.insert(file, Ok(text.to_owned()), false);
    }

    fn insert(&mut self, file: &str, text: Result<String, String>, shipped: bool) {
        let name = file.rsplit('/').next().unwrap_or(file);
        let name = name.strip_suffix(".yaml").unwrap_or(name);
        let source = Source { file: file.to_owned(), text, shipped };
        self.files.insert(name.to_owned(), source);
    }

    /// Every rule's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether there is a rule of this name, sound or not.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The rule as written.
    pub fn file(&self, name: &str) -> Result<RuleFile, BadRule> {
        let source = self.source(name)?;
        let text = source.text.as_ref().map_err(|why| Fault::whole(&source.file, why))?;
        let file: RuleFile = yaml::read(&source.file, text)?;
        if file.rule.value != name {
            let message = format!("calls itself \"{}\", but the file is named {name}.yaml", file.rule.value);
            return Err(Fault::near(&source.file, file.rule.referenced, message).into());
        }
        Ok(file)
    }

    /// Compiles the rule `name` for `mode`; without one, for its base patterns. An own rule is also proven, and
    /// its samples run: one that shows none is not used. The shipped ones are proven by this project's tests.
    pub fn compile(&self, name: &str, mode: Option<&str>) -> Result<Rule, BadRule> {
        let source = self.source(name)?;
        if !source.shipped {
            self.check_rule(name)?;
        }
        compile::compile(&source.file, &self.file(name)?, mode, false)
    }

    /// Compiles and proves every rule in every mode, and runs its samples; all that is wrong with them.
    pub fn check(&self) -> Vec<BadRule> {
        self.names().flat_map(|name| self.check_rule(name).err()).collect()
    }

    /// Like [`Library::check`], for one rule.
    pub fn check_rule(&self, name: &str) -> Result<(), BadRule> {
        let source = self.source(name)?;
        let faults = sample::check(&source.file, &self.file(name)?)?;
        if faults.is_empty() { Ok(()) } else { Err(BadRule(faults)) }
    }

    fn source(&self, name: &str) -> Result<&Source, BadRule> {
        self.files.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            Fault::whole("rules", yaml::unknown("rule", name, &names)).into()
        })
    }
}

fn read(path: &Path) -> Result<String, String> {
    let told = |error: io::Error| format!("cannot be read: {}", plain(&error));
    if fs::metadata(path).map_err(told)?.len() > yaml::FILE_BYTES_MAX as u64 {
        return Err(format!("is larger than {} KiB", yaml::FILE_BYTES_MAX >> 10));
    }
    String::from_utf8(fs::read(path).map_err(told)?).map_err(|_| "is not UTF-8 text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "rule: sshd\nabout: own\nformat: none\nfailregex: ['^x <HOST>$']\nsamples:\n  - {line: x 192.0.2.1, \
                        addr: 192.0.2.1}\n  - {line: y}\n  - {line: x 192.0.2.1 from 203.0.113.9, hostile: true}\n";

    #[test]
    fn own_rules_go_before_shipped_ones() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sshd.yaml"), RULE).unwrap();
        fs::write(dir.path().join("notes.txt"), "no rule").unwrap();
        let mut library = Library::shipped();
        let names = library.names().count();
        library.add_dir(dir.path()).unwrap();
        assert_eq!(library.names().count(), names);
        assert_eq!(library.compile("sshd", None).unwrap().about(), "own");
        assert_eq!(library.check_rule("sshd"), Ok(()));
    }

    #[test]
    fn a_file_that_cannot_be_read_spoils_its_own_rule_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sshd.yaml"), b"rule: \xff").unwrap();
        fs::create_dir(dir.path().join("vsftpd.yaml")).unwrap();
        fs::write(dir.path().join("exim.yaml"), " ".repeat(yaml::FILE_BYTES_MAX + 1)).unwrap();
        let mut library = Library::shipped();
        library.add_dir(dir.path()).unwrap();
        for (rule, why) in
            [("sshd", "is not UTF-8"), ("vsftpd", "cannot be read"), ("exim", "is larger than")]
        {
            let said = library.compile(rule, None).unwrap_err().to_string();
            assert!(said.contains(&format!("{rule}.yaml: {why}")), "{said}");
        }
        assert!(library.compile("dovecot", None).is_ok());
    }

    #[test]
    fn an_own_rule_that_proves_nothing_is_not_used() {
        let mut library = Library::default();
        library.add("sshd.yaml", &format!("{}samples: []\n", RULE.split("samples:").next().unwrap()));
        let said = library.compile("sshd", None).unwrap_err().to_string();
        assert!(said.contains("no sample counts") && said.contains("no sample is hostile"), "{said}");
    }

    #[test]
    fn a_rule_is_named_like_its_file() {
        let mut library = Library::default();
        library.add("/etc/x/other.yaml", RULE);
        let said = library.compile("other", None).unwrap_err().to_string();
        assert_eq!(said, "/etc/x/other.yaml:1:7: calls itself \"sshd\", but the file is named other.yaml");
        let said = library.compile("oth", None).unwrap_err().to_string();
        assert_eq!(said, "rules: unknown rule \"oth\": did you mean other?");
    }

    #[test]
    fn wrong_samples_are_told_with_their_line() {
        let mut library = Library::default();
        let text =
            RULE.replace("addr: 192.0.2.1}", "addr: 192.0.2.2}").replace("line: y", "line: x 192.0.2.3");
        library.add("sshd.yaml", &text);
        let said = library.check_rule("sshd").unwrap_err().to_string();
        assert!(said.contains("sshd.yaml:6:5: counts for 192.0.2.1, and must count for 192.0.2.2"), "{said}");
        assert!(said.contains("sshd.yaml:7:5: counts for 192.0.2.3, and must not count"), "{said}");
        library.add("sshd.yaml", &RULE[..RULE.find("  - {line: y").unwrap()]);
        let said = library.check_rule("sshd").unwrap_err().to_string();
        assert!(said.contains("every sample counts") && said.contains("no sample is hostile"), "{said}");
    }
}
