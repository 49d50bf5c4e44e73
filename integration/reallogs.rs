//! What real daemons logged under real attacks: each scenario finds its attacker and nobody else, or nothing.
//!
//! `reallogs/NAME.log` is as the daemon wrote it. `reallogs/NAME.tsv` says for ranges of its lines which rule reads
//! them, in which mode, and whom it must find; `-` stands for no mode, and for nobody. Attackers had addresses of
//! 198.51.100.0/24, 203.0.113.0/24 and 2001:db8:51::/48; any other address stands only in text they chose.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

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
