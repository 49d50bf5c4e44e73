//! What real daemons logged under real attacks: each scenario finds its attacker and nobody else, or nothing.
//!
//! `reallogs/NAME.log` is as the daemon wrote it. `reallogs/NAME.tsv` says for ranges of its lines which rule reads
//! them, in which mode, and whom it must find; `-` stands for no mode, and for nobody. Attackers had addresses of
//! 198.51.100.0/24, 203.0.113.0/24 and 2001:db8:51::/48; any other address stands only in text they chose.
//! `reallogs/NAME.journal.export` is the same as `journalctl -o export` gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use nftjail::acquire::export::Export;
use nftjail::acquire::journalmatch::Matches;
use nftjail::detect::{Clock, Detector, Library, Verdict};
use nftjail::model::Timestamp;

/// 2026-11-21, the day of the laboratory.
const CLOCK: Clock = Clock::Arrived(Timestamp::from_millis(1_795_255_200_000));

struct Scenario {
    lines: std::ops::Range<usize>,
    rule: String,
    mode: Option<String>,
    expected: BTreeSet<IpAddr>,
    what: String,
}

impl Scenario {
    fn read(row: &str) -> Scenario {
        let columns: Vec<&str> = row.split('\t').collect();
        let [first, last, rule, mode, expected, what] = columns[..] else { panic!("six columns: {row}") };
        let number = |text: &str| text.parse::<usize>().unwrap_or_else(|_| panic!("a line number: {row}"));
        Scenario {
            lines: number(first) - 1..number(last),
            rule: rule.to_owned(),
            mode: Some(mode.to_owned()).filter(|mode| mode != "-"),
            expected: expected
                .split(',')
                .filter(|addr| *addr != "-")
                .map(|addr| addr.parse().unwrap())
                .collect(),
            what: what.to_owned(),
        }
    }
}

#[test]
fn every_scenario_finds_its_attacker_and_nobody_else() {
    let library = Library::shipped();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/reallogs");
    let mut checked = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let table = entry.unwrap().path();
        if table.extension().is_none_or(|extension| extension != "tsv") {
            continue;
        }
        let log = fs::read(table.with_extension("log")).unwrap();
        let lines: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
        let rows = String::from_utf8_lossy(&fs::read(&table).unwrap()).into_owned();
        for row in rows.lines().skip(1) {
            let scenario = Scenario::read(row);
            let rule = library
                .compile(&scenario.rule, scenario.mode.as_deref())
                .unwrap_or_else(|bad| panic!("{bad}"));
            let mut detector = Detector::new(vec![Arc::new(rule)]);
            let mut found = BTreeSet::new();
            for line in &lines[scenario.lines.clone()] {
                detector.detect(line, CLOCK, |_, verdict| {
                    if let Verdict::Failure(finding) = verdict {
                        found.insert(finding.addr);
                    }
                });
            }
            checked += 1;
            if found != scenario.expected {
                let Scenario { rule, expected, what, .. } = &scenario;
                wrong.push(format!("{}: {rule}: {what}: {found:?}, not {expected:?}", table.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 100, "the scenarios were read: {checked}");
}

/// How often each address fails, by a detector that `hear` offers all there is.
fn failures(
    rule: &str,
    hear: impl FnOnce(&mut Detector, &mut dyn FnMut(usize, Verdict)),
) -> BTreeMap<IpAddr, u32> {
    let rule = Library::shipped().compile(rule, None).unwrap_or_else(|bad| panic!("{bad}"));
    let mut found = BTreeMap::new();
    hear(&mut Detector::new(vec![Arc::new(rule)]), &mut |_, verdict| {
        if let Verdict::Failure(finding) = verdict {
            *found.entry(finding.addr).or_default() += finding.weight;
        }
    });
    found
}

#[test]
fn the_journal_shows_the_same_attackers_as_the_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/reallogs");
    let words = Library::shipped().compile("sshd", None).unwrap().journalmatch().join(" ");
    let matches: Matches = words.parse().unwrap();
    for name in ["sshd-bookworm", "sshd-trixie"] {
        let text = fs::read(folder.join(format!("{name}.log"))).unwrap();
        let by_text = failures("sshd", |detector, found| {
            text.split(|byte| *byte == b'\n').for_each(|line| detector.detect(line, CLOCK, &mut *found));
        });
        let export = fs::read(folder.join(format!("{name}.journal.export"))).unwrap();
        let by_journal = failures("sshd", |detector, found| {
            let fed = Export::default().feed(&export, |fields| {
                if matches.take(fields) {
                    detector.detect_entry(fields.entry(Timestamp::default()).unwrap(), CLOCK, &mut *found);
                }
            });
            fed.unwrap();
        });
        assert!(by_text.len() > 15, "{name}: {by_text:?}");
        assert_eq!(by_journal, by_text, "{name}");
    }
}
