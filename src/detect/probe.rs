//! A rule's own sample made into a line of now about an address of our choice: what a self-test writes into a log.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::file::{RuleFile, Sample};
use super::restamp::restamped;
use super::rule::Rule;
use super::{Verdict, sample};
use crate::model::Timestamp;

/// Who failed to log in, where a sample lets the user be chosen: whoever reads the log shall know what it was.
const USER: &str = "nftjail-selftest";

/// Lines of which the last counts as a failure of `addr` by the rule; none where no sample of it can be made so.
/// Lines with a date go first: without one they count only in logs without dates.
pub fn lines(
    rule: &Arc<Rule>,
    file: &RuleFile,
    addr: IpAddr,
    now: Timestamp,
    zone: &TimeZone,
) -> Option<Vec<String>> {
    let candidates = || {
        let samples = file.samples.iter().map(|sample| &sample.value).filter(|sample| !sample.hostile);
        samples.flat_map(|sample| [true, false].map(|named| rewritten(sample, addr, named))).flatten()
    };
    let counts = |lines: &Vec<String>| {
        let verdict = sample::run(Arc::clone(rule), lines.iter().map(String::as_bytes));
        matches!(verdict, Some(Verdict::Failure(finding)) if finding.addr == addr)
    };
    let dated = |lines: Vec<String>| lines.iter().map(|line| restamped(line, now, zone)).collect();
    candidates().filter_map(dated).find(counts).or_else(|| candidates().find(counts))
}

/// The sample with its address replaced, and its user where that is wanted.
fn rewritten(sample: &Sample, addr: IpAddr, named: bool) -> Option<Vec<String>> {
    let (old, new) = (sample.addr?.to_string(), addr.to_string());
    let user = sample.user.as_deref().filter(|user| named && user.len() > 1);
    if named && user.is_none() {
        return None;
    }
    let line = |line: &str| {
        let line = line.replace(&old, &new);
        user.map_or_else(|| line.clone(), |user| line.replace(user, USER))
    };
    Some(sample.lines().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Library;

    const NOW: Timestamp = Timestamp::from_millis(1_798_949_106_000);

    fn probe(library: &Library, name: &str) -> Option<Vec<String>> {
        let rule = Arc::new(library.compile(name, None).unwrap());
        lines(&rule, &library.file(name).unwrap(), "192.0.2.213".parse().unwrap(), NOW, &TimeZone::UTC)
    }

    #[test]
    fn the_line_of_sshd_says_what_it_is() {
        let wanted = "Jan  3 04:05:06 web01 sshd[4242]: Failed password for nftjail-selftest from 192.0.2.213 port \
                      4242 ssh2";
        assert_eq!(probe(&Library::shipped(), "sshd"), Some(vec![wanted.to_owned()]));
    }

    #[test]
    fn every_shipped_rule_can_be_probed() {
        let library = Library::shipped();
        let without: Vec<&str> = library.names().filter(|name| probe(&library, name).is_none()).collect();
        assert_eq!(without, [""; 0]);
    }
}
