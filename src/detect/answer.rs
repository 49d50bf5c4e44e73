//! What the verb `match` says about a line.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::Serialize;

use super::{Clock, Detector, Kind, Verdict};
use crate::model::Timestamp;

/// One line's answer; as JSON it is what `match --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// From 1.
    pub line: u64,
    pub failure: bool,
    /// Whom the failure or the good log-in belongs to.
    pub addr: Option<IpAddr>,
    /// What decided; none where no pattern fits.
    pub rule: Option<String>,
    /// `failure`, `success`, `ignored` or `session`: what kind the pattern is that fits.
    pub kind: Option<&'static str>,
    pub pattern: Option<String>,
    pub user: Option<String>,
    pub time: Option<Timestamp>,
    pub weight: Option<u32>,
}

/// Asks `detector` about a line, exactly as the daemon would. Where several rules listen, a failure goes
/// before a success, and both before a line that is only understood.
pub fn answer(detector: &mut Detector, line: u64, text: &[u8], clock: Clock) -> Answer {
    let mut best: Option<(usize, Verdict)> = None;
    detector.detect(text, clock, |rule, verdict| {
        if best.as_ref().is_none_or(|(_, known)| rank(&verdict) < rank(known)) {
            best = Some((rule, verdict));
        }
    });
    let mut answer = Answer {
        line,
        failure: false,
        addr: None,
        rule: None,
        kind: None,
        pattern: None,
        user: None,
        time: None,
        weight: None,
    };
    let Some((rule, verdict)) = best else { return answer };
    let Some(rule) = detector.rules().nth(rule) else { return answer };
    let (index, finding) = match &verdict {
        Verdict::Failure(finding) | Verdict::Success(finding) => (finding.pattern, Some(finding)),
        Verdict::Noted { pattern } => (*pattern, None),
    };
    let pattern = &rule.patterns()[index];
    answer.failure = matches!(verdict, Verdict::Failure(_));
    answer.rule = Some(rule.name().to_owned());
    answer.pattern = Some(pattern.text().to_owned());
    answer.kind = Some(match pattern.kind() {
        Kind::Failure => "failure",
        Kind::Success => "success",
        Kind::Ignore => "ignored",
        Kind::Session => "session",
    });
    if let Some(finding) = finding {
        answer.addr = Some(finding.addr);
        answer.user = finding.user.clone();
        answer.time = Some(finding.at);
        answer.weight = answer.failure.then_some(finding.weight);
    }
    answer
}

fn rank(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Failure(_) => 0,
        Verdict::Success(_) => 1,
        Verdict::Noted { .. } => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::detect::Library;

    #[test]
    fn an_answer_says_what_decided() {
        let rule = Library::shipped().compile("sshd", None).unwrap();
        let mut detector = Detector::new(vec![Arc::new(rule)]);
        let mut ask = |line, message: &str| {
            let text = format!("Nov 21 10:00:00 web01 sshd[1]: {message}");
            answer(&mut detector, line, text.as_bytes(), Clock::Arrived(Timestamp::from_millis(0)))
        };
        let failed = ask(1, "Failed password for root from 192.0.2.1 port 22 ssh2");
        assert!(failed.failure && failed.kind == Some("failure") && failed.weight == Some(1));
        let json = serde_json::to_value(&failed).unwrap();
        assert_eq!(
            (&json["line"], &json["addr"], &json["user"]),
            (&1.into(), &"192.0.2.1".into(), &"root".into())
        );
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
        let accepted = ask(2, "Accepted password for root from 192.0.2.1 port 22 ssh2");
        assert!(!accepted.failure && accepted.kind == Some("success") && accepted.addr.is_some());
        assert_eq!(ask(3, "Connection from 192.0.2.2 port 22 on 192.0.2.3 port 22").kind, Some("session"));
        assert_eq!(ask(4, "Server listening").rule, None);
    }
}
