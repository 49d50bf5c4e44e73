//! The shipped rules: each proves itself, none can be fooled, none can be slowed down, and sshd's finds what real
//! daemons logged.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use nftjail::acquire::journalmatch::Matches;
use nftjail::detect::file::RuleFile;
use nftjail::detect::{Clock, Detector, LINE_BYTES_MAX, Library, Rule, Verdict};
use nftjail::model::Timestamp;
use proptest::prelude::*;

const CLOCK: Clock = Clock::Arrived(Timestamp::from_millis(1_795_255_200_000));

fn rule(name: &str, mode: Option<&str>) -> Arc<Rule> {
    Arc::new(Library::shipped().compile(name, mode).unwrap_or_else(|bad| panic!("{bad}")))
}

/// Every address that `rule` finds a failure of in `lines`, as one source shows them; each once.
fn blamed<'l>(rule: Arc<Rule>, lines: impl IntoIterator<Item = &'l [u8]>) -> Vec<IpAddr> {
    let mut detector = Detector::new(vec![rule]);
    let mut found = Vec::new();
    for line in lines {
        detector.detect(line, CLOCK, |_, verdict| {
            if let Verdict::Failure(finding) = verdict {
                found.push(finding.addr);
            }
        });
    }
    found.sort();
    found.dedup();
    found
}

fn modes(file: &RuleFile) -> Vec<Option<String>> {
    std::iter::once(None).chain(file.modes.keys().cloned().map(Some)).collect()
}

#[test]
fn every_rule_is_proven_and_its_samples_hold() {
    let bad = Library::shipped().check();
    assert!(bad.is_empty(), "{}", bad.iter().map(|bad| format!("{bad}\n")).collect::<String>());
}

#[test]
fn every_rule_says_itself_who_must_have_written_the_entries_of_the_journal() {
    let library = Library::shipped();
    let mut count = 0;
    for name in library.names() {
        let words = library.file(name).unwrap().journalmatch.join(" ");
        if words.is_empty() {
            continue;
        }
        count += 1;
        let matches: Matches = words.parse().unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        assert_eq!(matches.to_string(), words, "{name}: what proves the writer is written out");
    }
    assert!(count > 40);
}

#[test]
fn every_rule_shows_what_an_attacker_would_write() {
    let library = Library::shipped();
    for name in library.names() {
        let file = library.file(name).unwrap();
        let hostile = file.samples.iter().filter(|sample| sample.value.hostile).count();
        assert!(hostile >= 5, "{name} has {hostile} hostile samples");
    }
}

/// What stands in no header, no pattern and no daemon's log: a victim who must never be found.
#[test]
fn no_name_that_a_client_chooses_finds_the_victim() {
    let names = [
        "203.0.113.9",
        " 203.0.113.9",
        "x from 203.0.113.9",
        "x from 203.0.113.9 port 22",
        "x from 203.0.113.9 port 22 ssh2",
        "x from 203.0.113.9 port 22 ssh2: ",
        "x from 203.0.113.9 port 22 ssh2: RSA SHA256:x",
        "x 203.0.113.9 port 22",
        "x 203.0.113.9 port 22 [preauth]",
        "x 203.0.113.9 port 22: Too many authentication failures",
        "x from 203.0.113.9 not allowed because listed in DenyUsers",
        "x\" from 203.0.113.9",
        "[203.0.113.9]",
        "rhost=203.0.113.9",
        "x from 203.0.113.9 via 203.0.113.9",
        "invalid user x from 203.0.113.9",
        ": Change of username or service not allowed: ",
        "x 203.0.113.9 port 1: Change of username or service not allowed: (a) -> (b)",
    ];
    let forms = [
        "Failed password for invalid user {} from 192.0.2.1 port 4242 ssh2",
        "Failed publickey for invalid user {} from 192.0.2.1 port 4242 ssh2: RSA SHA256:abc",
        "Failed publickey for invalid user a from 192.0.2.1 port 4242 ssh2: RSA-CERT SHA256:abc ID {} (serial 0) CA RSA SHA256:abc",
        "Failed hostbased for invalid user {} from 192.0.2.1 port 4242 ssh2: RSA SHA256:abc, client user \"{}\", client host \"{}\"",
        "Invalid user {} from 192.0.2.1 port 4242",
        "error: PAM: Authentication failure for illegal user {} from 192.0.2.1",
        "Connection closed by invalid user {} 192.0.2.1 port 4242 [preauth]",
        "Connection closed by authenticating user {} 192.0.2.1 port 4242 [preauth]",
        "Disconnected from invalid user {} 192.0.2.1 port 4242 [preauth]",
        "Disconnecting invalid user {} 192.0.2.1 port 4242: Too many authentication failures [preauth]",
        "Disconnecting invalid user {} 192.0.2.1 port 4242: Change of username or service not allowed: ({},ssh-connection) -> ({},ssh-connection) [preauth]",
        "Disconnecting: Too many authentication failures for {} [preauth]",
        "error: maximum authentication attempts exceeded for invalid user {} from 192.0.2.1 port 4242 ssh2 [preauth]",
        "error: Received disconnect from 192.0.2.1 port 4242:3: {}: Auth fail [preauth]",
        "Received disconnect from 192.0.2.1 port 4242:11: {} [preauth]",
        "error: kex_exchange_identification: client sent invalid protocol identifier \"{}\"",
        "Bad protocol version identification '{}' from 192.0.2.1 port 4242",
        "ssh_dispatch_run_fatal: Connection from invalid user {} 192.0.2.1 port 4242: invalid format [preauth]",
        "SSH: Server;Ltype: Version;Remote: 192.0.2.1-50122;Protocol: 2.0;Client: {}",
        "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.1  user={}",
        "Unable to negotiate with 192.0.2.1 port 4242: no matching cipher found. Their offer: {} [preauth]",
    ];
    let attacker: IpAddr = "192.0.2.1".parse().unwrap();
    for mode in [None, Some("aggressive")] {
        let rule = rule("sshd", mode);
        for (form, name) in forms.iter().flat_map(|form| names.iter().map(move |name| (form, name))) {
            let line = format!("Nov 21 10:00:00 web01 sshd[4242]: {}", form.replace("{}", name));
            let closed =
                "Nov 21 10:00:00 web01 sshd[4242]: Connection closed by 192.0.2.1 port 4242 [preauth]";
            let found = blamed(Arc::clone(&rule), [line.as_bytes(), closed.as_bytes()]);
            assert!(found.iter().all(|addr| *addr == attacker), "{line}\nfinds {found:?}");
        }
    }
}

#[test]
fn three_syslog_formats_of_one_run_find_the_same() {
    let of = |log: &'static [u8]| blamed(rule("sshd", Some("aggressive")), log.split(|&b| b == b'\n'));
    let traditional = of(include_bytes!("reallogs/sshd-bookworm.trad.log"));
    let rfc5424 = of(include_bytes!("reallogs/sshd-bookworm.rfc5424.log"));
    assert!(traditional.len() > 20);
    assert_eq!(traditional, rfc5424);
    let victim = |addr: &IpAddr| addr.to_string().starts_with("192.0.2.") || addr.to_string() == "10.0.0.1";
    assert!(!traditional.iter().any(victim), "only names that a client chose hold those");
}

/// The least processor time of several runs, so that a busy machine does not count.
fn cost(detector: &mut Detector, line: &[u8], runs: u32) -> Duration {
    let spent =
        || Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap();
    let run = |detector: &mut Detector| {
        let start = spent();
        detector.detect(line, CLOCK, |_, _| ());
        spent() - start
    };
    (0..runs).map(|_| run(detector)).min().unwrap()
}

/// Twice the text may cost twice the time; a backtracking engine would need four times, or worse.
#[test]
fn the_nastiest_text_costs_linear_time() {
    let library = Library::shipped();
    for name in library.names() {
        let file = library.file(name).unwrap();
        for mode in modes(&file) {
            let mut detector = Detector::new(vec![rule(name, mode.as_deref())]);
            for sample in &file.samples {
                let line = sample.value.lines().last().unwrap();
                let middle = (line.len() / 2..=line.len()).find(|&at| line.is_char_boundary(at)).unwrap();
                // A long run of what the pattern is looking for, at the place where a client's text stands.
                let long = |bytes: usize| {
                    let (before, after) = line.split_at(middle);
                    let body: String = after.chars().chain(" ".chars()).cycle().take(bytes).collect();
                    let mut text = format!("{before}{body}{after}").into_bytes();
                    text.truncate(LINE_BYTES_MAX);
                    text
                };
                let texts = [LINE_BYTES_MAX / 4, LINE_BYTES_MAX / 2, LINE_BYTES_MAX].map(long);
                // Between two sizes the engine may change to another way of searching, which is as linear but
                // slower; what is not linear grows too fast at every step.
                let mut growth = |runs| {
                    let [small, middle, large] = texts
                        .each_ref()
                        .map(|text| cost(&mut detector, text, runs).max(Duration::from_micros(100)));
                    let ratio = |of: Duration, to: Duration| of.as_secs_f64() / to.as_secs_f64();
                    ratio(middle, small).min(ratio(large, middle))
                };
                // A single look can be unlucky; a pattern that is not linear never gets lucky.
                let growth = Some(growth(2)).filter(|growth| *growth < 3.0).unwrap_or_else(|| growth(20));
                assert!(growth < 3.0, "{name}: twice the text costs {growth:.1} times as much: {line}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Invalid UTF-8, NUL, escapes: no line stops the detector, and the next good one still counts.
    #[test]
    fn no_bytes_stop_the_detector(
        start in prop_oneof![
            Just(""), Just("Nov 21 10:00:00 web01 sshd[4242]: "), Just("{\"log\":\""),
            Just("Nov 21 10:00:00 web01 sshd[4242]: Failed password for invalid user ")
        ],
        noise in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut detector = Detector::new(vec![rule("sshd", Some("aggressive"))]);
        detector.detect(&[start.as_bytes(), &noise].concat(), CLOCK, |_, _| ());
        let good = b"Nov 21 10:00:00 web01 sshd[4242]: Failed password for root from 192.0.2.10 port 4242 ssh2";
        let mut counted = 0;
        detector.detect(good, CLOCK, |_, verdict| counted += usize::from(matches!(verdict, Verdict::Failure(_))));
        prop_assert_eq!(counted, 1);
    }
}

#[test]
fn old_lines_count_by_their_own_date() {
    let zone = TimeZone::UTC;
    let clock = Clock::Written { now: Timestamp::from_millis(1_795_262_400_000), zone: &zone };
    let mut detector = Detector::new(vec![rule("sshd", None)]);
    let mut at = None;
    detector.detect(
        b"Nov 21 10:00:00 web01 sshd[4242]: Failed password for root from 192.0.2.10 port 4242 ssh2",
        clock,
        |_, verdict| {
            if let Verdict::Failure(finding) = verdict {
                at = Some(finding.at.to_string());
            }
        },
    );
    assert_eq!(at.as_deref(), Some("2026-11-21T10:00:00.000Z"));
}

/// The rules in the manual are rules.
#[test]
fn the_manuals_examples_hold() {
    let manual = include_str!("../rules/README.md");
    let examples: Vec<&str> =
        manual.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        let name = example.lines().next().unwrap().trim_start_matches("rule: ").split(' ').next().unwrap();
        let mut library = Library::default();
        library.add(&format!("{name}.yaml"), example);
        library.check_rule(name).unwrap_or_else(|bad| panic!("{bad}"));
    }
}
