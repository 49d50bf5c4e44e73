//! Configurations of fail2ban as people have them, and what each becomes: `import/CASE/expected.txt`, made with BLESS=1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nftjail::config::{self, Config};
use nftjail::host::Services;
use nftjail::import;

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/import");
    let mut cases: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// All files of a folder as one text.
fn shown(dir: &Path) -> String {
    let show = |path: &PathBuf| {
        let name = path.strip_prefix(dir).unwrap().display().to_string();
        format!("==> {name} <==\n{}\n", fs::read_to_string(path).unwrap())
    };
    files(dir).iter().map(show).collect()
}

#[test]
fn every_configuration_becomes_what_is_expected_and_is_in_order() {
    let cases = cases();
    assert!(cases.len() >= 7);
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("nftjail");
        import::run(&case.join("fail2ban"), &out).unwrap_or_else(|why| panic!("{}: {why}", case.display()));
        let places = [(out.display().to_string(), "OUT"), (case.display().to_string(), "CASE")];
        let found = places.iter().fold(shown(&out), |text, (place, name)| text.replace(place, name));
        let expected = case.join("expected.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap();
        for (number, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
            assert_eq!(found, wanted, "{}:{}", expected.display(), number + 1);
        }
        assert_eq!(found.lines().count(), wanted.lines().count(), "{}", expected.display());
        let config = Config::load(Some(&out), &Services::of_this_host()).unwrap();
        assert!(!config.jails.is_empty() && config.broken.is_empty(), "{}", case.display());
        let library = config::library(&config::rules_dir(Some(&out))).unwrap();
        for rule in files(&out).iter().filter(|path| path.parent().unwrap().ends_with("rules")) {
            assert_eq!(library.check_rule(rule.file_stem().unwrap().to_str().unwrap()), Ok(()));
        }
    }
}

fn nftjail(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nftjail")).args(arguments).output().unwrap()
}

#[test]
fn match_takes_what_fail2ban_regex_takes() {
    let line = "Nov 21 10:00:00 web01 myd[7]: login of ann from 192.0.2.7 failed";
    let pattern = r"^\s*\S+ myd\[\d+\]: login of <F-USER>\S+</F-USER> from <HOST> failed$";
    let counted = |arguments: &[&str]| {
        let output = nftjail(&[&["match"], arguments].concat());
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        told.contains("1 lines: 1 count as failures")
    };
    assert!(counted(&[line, pattern]));
    assert!(!counted(&[line, pattern, "login of ann"]), "an ignoreregex");
    assert!(!counted(&[line, "sshd"]), "a rule by its name");
    let sshd = "Nov 21 10:00:00 web01 sshd[7]: Connection closed by 192.0.2.7 port 4242 [preauth]";
    assert!(!counted(&[sshd, "sshd"]) && counted(&["-v", sshd, "sshd[mode=aggressive]"]));
    let dir = tempfile::tempdir().unwrap();
    let (log, filter) = (dir.path().join("my.log"), dir.path().join("my.conf"));
    fs::write(&log, format!("{line}\n")).unwrap();
    fs::write(&filter, format!("[Definition]\nfailregex = {pattern}\n")).unwrap();
    assert!(counted(&["--print-all-matched", log.to_str().unwrap(), filter.to_str().unwrap()]));
    let output = nftjail(&["match", line, "from <HOST> failed"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("must begin with ^") && told.contains("    ^"), "{told}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(nftjail(&["match"]).status.code(), Some(2), "neither rule nor pattern");
}
