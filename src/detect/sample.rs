//! A rule's own lines prove it: those that count, those that do not, and those an attacker wrote.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compile::{self, BadRule};
use super::file::{RuleFile, Sample};
use super::rule::Rule;
use super::{Clock, Detector, Finding, Verdict};
use crate::model::Timestamp;
use crate::yaml::{Fault, Spanned};
use jiff::tz::TimeZone;

/// Compiles and proves a rule in all its modes, then runs its samples; every one that is wrong. `name` is
/// what messages call the file.
pub fn check(name: &str, file: &RuleFile) -> Result<Vec<Fault>, BadRule> {
    let mut rules: BTreeMap<Option<&str>, Arc<Rule>> = BTreeMap::new();
    let mut bad = Vec::new();
    for mode in std::iter::once(None).chain(file.modes.keys().map(|mode| Some(mode.as_str()))) {
        match compile::compile(name, file, mode, true) {
            Ok(rule) => {
                rules.insert(mode, Arc::new(rule));
            }
            Err(BadRule(faults)) => {
                let fresh: Vec<Fault> = faults.into_iter().filter(|fault| !bad.contains(fault)).collect();
                bad.extend(fresh);
            }
        }
    }
    if !bad.is_empty() {
        return Err(BadRule(bad));
    }
    let mut faults = missing(name, file);
    for sample in &file.samples {
        let modes = sample.value.mode.as_ref().map_or(&[][..], |modes| modes.as_slice());
        let modes: Vec<Option<&str>> = match modes {
            [] => vec![None],
            names => names.iter().map(|name| (name != "normal").then_some(name.as_str())).collect(),
        };
        for mode in modes {
            let wrong = match rules.get(&mode) {
                Some(rule) => judge(Arc::clone(rule), &sample.value),
                None => Some(format!("there is no mode \"{}\"", mode.unwrap_or_default())),
            };
            faults.extend(wrong.map(|text| fault(name, sample, mode, &text)));
        }
    }
    Ok(faults)
}

/// What a rule must show and does not.
fn missing(name: &str, file: &RuleFile) -> Vec<Fault> {
    let has = |wanted: fn(&Sample) -> bool| file.samples.iter().any(|sample| wanted(&sample.value));
    let wants = [
        (has(|sample| sample.addr.is_some()), "no sample counts"),
        (has(|sample| sample.addr.is_none()), "every sample counts: show a line that must not"),
        (
            has(|sample| sample.hostile),
            "no sample is hostile: show a line in which an attacker names a victim",
        ),
    ];
    let place = file.rule.referenced;
    let missing = wants.into_iter().filter(|(shown, _)| !shown);
    missing.map(|(_, text)| Fault::near(name, place, text)).collect()
}

fn fault(name: &str, sample: &Spanned<Sample>, mode: Option<&str>, text: &str) -> Fault {
    let place = sample.referenced;
    let mode = mode.map_or(String::new(), |mode| format!(" in mode {mode}"));
    let last = sample.value.lines().last().unwrap_or_default().escape_debug().to_string();
    Fault::near(name, place, format!("{text}{mode}\n    {last}"))
}

/// What is wrong with a rule's verdict on the last line of a sample.
fn judge(rule: Arc<Rule>, sample: &Sample) -> Option<String> {
    let found = run(rule, sample.lines().map(str::as_bytes));
    let found = match (sample.lines().next(), found) {
        (None, _) => return Some("a sample needs a line".to_owned()),
        (_, Some(Verdict::Failure(finding))) => Some(finding),
        _ => None,
    };
    match (sample.addr, found) {
        (None, None) => None,
        (None, Some(finding)) => Some(format!("counts for {}, and must not count", finding.addr)),
        (Some(addr), None) => Some(format!("does not count, and must count for {addr}")),
        (Some(addr), Some(finding)) if finding.addr != addr.to_canonical() => {
            Some(format!("counts for {}, and must count for {addr}", finding.addr))
        }
        (Some(_), Some(finding)) => differs(sample, &finding),
    }
}

fn differs(sample: &Sample, finding: &Finding) -> Option<String> {
    let user = finding.user.as_deref();
    if sample.user.is_some() && sample.user.as_deref() != user {
        return Some(format!(
            "names the user \"{}\", and must name \"{}\"",
            user.unwrap_or_default().escape_debug(),
            sample.user.as_deref().unwrap_or_default().escape_debug()
        ));
    }
    let path = finding.path.as_deref().map(String::from_utf8_lossy);
    if sample.path.is_some() && sample.path.as_deref() != path.as_deref() {
        return Some(format!(
            "names the path \"{}\", and must name \"{}\"",
            path.as_deref().unwrap_or_default().escape_debug(),
            sample.path.as_deref().unwrap_or_default().escape_debug()
        ));
    }
    match sample.count {
        Some(count) if count != finding.weight => {
            Some(format!("counts as {}, and must count as {count}", finding.weight))
        }
        _ => None,
    }
}

/// The verdict of a rule alone on the last of `lines`, which nobody else's lines stand between.
pub fn run<'l>(rule: Arc<Rule>, lines: impl Iterator<Item = &'l [u8]>) -> Option<Verdict> {
    let mut detector = Detector::new(vec![rule]);
    let clock = Clock::Written { now: Timestamp::from_millis(0), zone: &TimeZone::UTC };
    let mut last = None;
    for line in lines {
        last = None;
        detector.detect(line, clock, |_, verdict| last = Some(verdict));
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_names_another_user_path_or_count_is_a_fault() {
        let told = |expected: &str| {
            let text = format!(
                "rule: t\nabout: x\nformat: none\nfailregex: ['^<COUNT> of (?P<user>[a-z]+) for <PATH> from <HOST>$']\n\
                 samples:\n  - {{line: 2 of ann for /a from 192.0.2.1, addr: 192.0.2.1, {expected}}}\n  \
                 - {{line: nothing}}\n  - {{line: nothing, hostile: true}}\n"
            );
            let file = crate::yaml::read("t.yaml", &text).unwrap();
            check("t.yaml", &file).unwrap().iter().map(|fault| fault.message.clone()).collect::<String>()
        };
        assert_eq!(told("user: ann, path: /a, count: 2"), "");
        assert!(told("user: bob").starts_with("names the user \"ann\", and must name \"bob\""));
        assert!(told("path: /b").starts_with("names the path \"/a\", and must name \"/b\""));
        assert!(told("count: 1").starts_with("counts as 2, and must count as 1"));
    }
}
