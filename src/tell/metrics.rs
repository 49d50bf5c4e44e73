//! Status → OpenMetrics text: every number has a jail or a source, never an address.
#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::status::{JailStatus, SourceStatus, Status};

/// What Prometheus is told that the text is (OpenMetrics 1.0, section 4.1).
pub const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// The agent as it stands, or that it does not answer.
pub fn text(status: Option<&Status>) -> String {
    let mut registry = Registry::with_prefix("nftjail");
    let mut numbers = Numbers { registry: &mut registry };
    numbers.gauge(
        "up",
        "Whether the agent answers",
        [(Labels::new(), f64::from(u8::from(status.is_some())))],
    );
    if let Some(status) = status {
        numbers.agent(status);
        numbers.jails(&status.jails);
        numbers.sources(status);
    }
    let mut text = String::new();
    // It fails where a string cannot grow.
    let _ = encode(&mut text, &registry);
    text
}

struct Numbers<'a> {
    registry: &'a mut Registry,
}

impl Numbers<'_> {
    fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Gauges::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register(name, help, family);
    }

    fn seconds(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Gauges::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register_with_unit(name, help, Unit::Seconds, family);
    }

    fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Counters::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }

    fn agent(&mut self, status: &Status) {
        let one = |value: f64| [(Labels::new(), value)];
        let build = vec![("version", status.version.clone())];
        self.gauge("build_info", "The version that runs", [(build, 1.0)]);
        self.seconds(
            "start_time",
            "When the agent started, since 1970",
            one(seconds(status.started.as_millis())),
        );
        self.gauge(
            "pending_changes",
            "Changes that the kernel has not answered yet",
            one(status.pending as f64),
        );
        self.counter(
            "repairs",
            "How often somebody else changed our table, so that it was put back",
            [(Labels::new(), status.repairs.total)],
        );
        self.gauge(
            "troubles",
            "What is wrong as a whole; the status says it in words",
            one(status.troubles.len() as f64),
        );
        self.gauge("broken_jails", "Jails that cannot run", one(status.broken.len() as f64));
        let audit = status.audited.map_or(0.0, |at| seconds(status.now.since(at).as_millis() as i64));
        let help =
            "How long ago the kernel was last compared with what is believed; 0 while nobody is banned";
        self.seconds("audit_age", help, one(audit));
    }

    fn jails(&mut self, jails: &[JailStatus]) {
        let of = |value: fn(&JailStatus) -> u64| jails.iter().map(move |jail| (name(jail), value(jail)));
        let dropped = |value: fn(&JailStatus) -> Option<u64>| {
            jails.iter().filter_map(move |jail| Some((name(jail), value(jail)?)))
        };
        let gauges = |value: fn(&JailStatus) -> u64| of(value).map(|(labels, value)| (labels, value as f64));
        self.gauge("banned", "Hosts and networks that are banned", gauges(|jail| jail.banned as u64));
        self.gauge(
            "failing",
            "Addresses that failed lately and are not banned for it",
            gauges(|jail| jail.failing as u64),
        );
        self.gauge("paused", "1 where a jail counts nothing for now", gauges(|jail| u64::from(jail.paused)));
        self.counter("bans", "Bans that the kernel took since the start", of(|jail| jail.banned_total));
        self.counter("failures", "Failures that were counted since the start", of(|jail| jail.failed_total));
        self.counter(
            "forgotten",
            "Addresses that were forgotten early, because there were too many",
            of(|jail| jail.forgotten_total),
        );
        self.counter(
            "dropped_packets",
            "Packets that the bans dropped",
            dropped(|jail| jail.dropped.map(|dropped| dropped.packets)),
        );
        self.counter(
            "dropped_bytes",
            "Bytes that the bans dropped",
            dropped(|jail| jail.dropped.map(|dropped| dropped.bytes)),
        );
    }

    fn sources(&mut self, status: &Status) {
        let of = |value: fn(&SourceStatus) -> u64| {
            status.sources.iter().map(move |source| (vec![("source", source.name.clone())], value(source)))
        };
        let read = of(|source| u64::from(source.is_read()));
        self.gauge(
            "source_followed",
            "1 where a source is read",
            read.map(|(labels, value)| (labels, value as f64)),
        );
        self.counter("lines", "Lines that were read since the start", of(|source| source.lines));
        self.counter("lost_lines", "Lines that came faster than they were read", of(|source| source.lost));
        self.counter("overlong_lines", "Lines that were too long to be judged", of(|source| source.overlong));
        let behind = of(|source| source.behind);
        self.gauge(
            "source_behind_bytes",
            "Bytes that are written and not read yet",
            behind.map(|(labels, value)| (labels, value as f64)),
        );
        let age = |source: &SourceStatus| {
            let age = status.now.since(source.last_line?);
            Some((vec![("source", source.name.clone())], seconds(age.as_millis() as i64)))
        };
        self.seconds(
            "source_last_line_age",
            "How long ago the last line came",
            status.sources.iter().filter_map(age),
        );
    }
}

fn name(jail: &JailStatus) -> Labels {
    vec![("jail", jail.name.to_string())]
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Dropped;
    use crate::tell::screen::tests::sample;

    #[test]
    fn every_number_has_a_name_and_no_address() {
        let mut status = sample();
        status.jails[0].dropped = Some(Dropped { packets: 44, bytes: 4_400 });
        status.sources[0].name = "a\"b\\\n{x} 1\u{1b}".to_owned();
        let text = text(Some(&status));
        for line in [
            "nftjail_up{} 1.0",
            "nftjail_build_info{version=\"0.1.0\"} 1.0",
            "nftjail_banned{jail=\"sshd\"} 1.0",
            "nftjail_bans_total{jail=\"sshd\"} 3",
            "nftjail_dropped_packets_total{jail=\"sshd\"} 44",
            "nftjail_source_last_line_age_seconds{source=\"a\\\"b\\\\\\n{x} 1\u{1b}\"} 3.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_silent_agent_is_a_number_too() {
        assert_eq!(
            text(None),
            "# HELP nftjail_up Whether the agent answers.\n# TYPE nftjail_up gauge\nnftjail_up{} 0.0\n# EOF\n"
        );
    }
}
