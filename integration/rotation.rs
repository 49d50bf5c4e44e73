//! Logs that the real logrotate rotates under a fast writer: no line is lost and none is doubled.
//! The long run, which prints what it measured: `cargo test --test integration -- --ignored --nocapture rotation`,
//! with `ROUNDS` in the environment for another number of rotations of each kind than 1,000.

#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use nftjail::host;
use nftjail::sources::{DateOf, Sources};
use tokio::runtime::Builder;

/// A way to rotate.
struct Kind {
    name: &'static str,
    /// What logrotate is told.
    told: &'static str,
    /// It copies and truncates, so that what is written in between is in no file.
    copies: bool,
    /// What it puts aside can be found by who was not there: uncompressed, and beside the log.
    keeps: bool,
}

const KINDS: [Kind; 7] = [
    Kind { name: "create", told: "create\nrotate 200", copies: false, keeps: true },
    Kind { name: "nocreate", told: "nocreate\nrotate 200", copies: false, keeps: true },
    Kind { name: "gzip at once", told: "create\nrotate 200\ncompress", copies: false, keeps: false },
    Kind {
        name: "gzip the next time",
        told: "create\nrotate 200\ncompress\ndelaycompress",
        copies: false,
        keeps: false,
    },
    Kind { name: "another folder", told: "create\nrotate 200\nolddir old", copies: false, keeps: false },
    Kind { name: "copytruncate", told: "copytruncate\nrotate 10000", copies: true, keeps: true },
    Kind {
        name: "copytruncate, gzip the next time",
        told: "copytruncate\nrotate 10000\ncompress\ndelaycompress",
        copies: true,
        keeps: false,
    },
];

/// So many lines a second are written.
const LINES_PER_SECOND: u32 = 5_000;

struct Run<'a> {
    dir: &'a Path,
    pattern: &'a str,
    kind: &'a Kind,
    rounds: usize,
}

#[derive(Default)]
struct Writer {
    written: AtomicUsize,
    /// Set when the log is to be opened again, as a daemon does when logrotate tells it.
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Set when somebody reads.
    is_read: AtomicBool,
    read: AtomicUsize,
}

impl Writer {
    /// Writes numbers to the log, each once and in order.
    fn write(&self, log: &Path) {
        let open = || OpenOptions::new().append(true).create(true).open(log).unwrap();
        let mut file = open();
        while !self.is_read.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let started = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if self.reopen.swap(false, Ordering::AcqRel) {
                file = open();
            }
            let number = self.written.load(Ordering::Relaxed);
            file.write_all(format!("{number} {:x<60}\n", "").as_bytes()).unwrap();
            self.written.store(number + 1, Ordering::Release);
            let due = Duration::from_secs(number as u64) / LINES_PER_SECOND;
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
}

impl Run<'_> {
    /// The numbers that were read, and how many were written.
    fn run(&self) -> (Vec<usize>, usize) {
        let log = self.dir.join("app.log");
        fs::create_dir(self.dir.join("old")).unwrap();
        let config = format!("{} {{\nsu root root\nmissingok\n{}\n}}\n", log.display(), self.kind.told);
        fs::write(self.dir.join("logrotate.conf"), config).unwrap();
        File::create(&log).unwrap();
        let (writer, done) = (Writer::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            let read = scope.spawn(|| self.read(&writer, &done));
            scope.spawn(|| writer.write(&log));
            for _ in 0..self.rounds {
                while !writer.is_read.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                // Where nothing could be found again, the reader must not be a whole rotation behind.
                let before = writer.written.load(Ordering::Acquire);
                while !self.kind.keeps && writer.read.load(Ordering::Acquire) < before {
                    thread::yield_now();
                }
                self.rotate();
                let lines = writer.written.load(Ordering::Acquire);
                writer.reopen.store(true, Ordering::Release);
                // A daemon opens its log again before the next rotation.
                while writer.written.load(Ordering::Acquire) < lines + 2 {
                    thread::yield_now();
                }
            }
            writer.stop.store(true, Ordering::Relaxed);
            done.store(true, Ordering::Release);
            (read.join().unwrap(), writer.written.load(Ordering::Acquire))
        })
    }

    fn rotate(&self) {
        let mut logrotate = Command::new("logrotate");
        logrotate.arg("-f").arg("-s").arg(self.dir.join("state")).arg(self.dir.join("logrotate.conf"));
        let output = logrotate.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Reads as the agent does, until all is read that is there after the last rotation.
    fn read(&self, writer: &Writer, done: &AtomicBool) -> Vec<usize> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let place = self.dir.join(self.pattern).to_str().unwrap().parse().unwrap();
        let date_of: DateOf = Arc::new(|_, _| None);
        let mut read = Vec::new();
        runtime.block_on(async {
            let mut sources = Sources::open(&[place], &[], Duration::ZERO, host::now(), &date_of).unwrap();
            while sources.read(host::now(), 1, |_, _| {}).more {}
            writer.is_read.store(true, Ordering::Release);
            loop {
                let last = done.load(Ordering::Acquire).then(|| writer.written.load(Ordering::Acquire));
                sources.poll(host::now());
                let turn = sources.read(host::now(), 1 << 20, |_, line| {
                    let text = String::from_utf8_lossy(line.text);
                    read.push(text.split(' ').next().unwrap().parse().expect("a whole line"));
                });
                writer.read.store(read.last().map_or(0, |last| last + 1), Ordering::Release);
                if turn.more {
                    continue;
                }
                if last.is_some_and(|written| read.last() == Some(&(written - 1))) {
                    return;
                }
                // Nobody wakes us once the writer has ended, and the last line is there by then.
                let _ = tokio::time::timeout(Duration::from_millis(100), sources.changed()).await;
            }
        });
        read
    }
}

/// The numbers in all files of the log that are still there.
fn on_disk(dir: &Path) -> BTreeSet<usize> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("app.log") {
            let (mut text, file) = (String::new(), File::open(entry.path()).unwrap());
            match name.ends_with(".gz") {
                true => MultiGzDecoder::new(file).read_to_string(&mut text).unwrap(),
                false => (&file).read_to_string(&mut text).unwrap(),
            };
            numbers
                .extend(text.lines().map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap()));
        }
    }
    numbers
}

fn rotate_all(rounds: usize) {
    let mut wrong = Vec::new();
    for pattern in ["app.log", "app*"] {
        for kind in &KINDS {
            let dir = tempfile::tempdir().unwrap();
            let started = Instant::now();
            let (read, written) = Run { dir: dir.path(), pattern, kind, rounds }.run();
            let unordered = read.windows(2).filter(|pair| pair[0] >= pair[1]).count();
            let distinct: BTreeSet<usize> = read.iter().copied().collect();
            let doubled = read.len() - distinct.len();
            // What is written between the copying and the truncating is in no file.
            let there = if kind.copies { on_disk(dir.path()) } else { (0..written).collect() };
            let lost = there.difference(&distinct).count();
            println!(
                "{}, as {pattern}: {rounds} rotations, {written} lines in {:.1} s, {lost} lost, {doubled} doubled, \
                 {unordered} out of order, {} destroyed by logrotate",
                kind.name,
                started.elapsed().as_secs_f64(),
                (0..written).filter(|number| !there.contains(number) && !distinct.contains(number)).count()
            );
            if (lost, doubled) != (0, 0) {
                wrong.push(format!("{}, as {pattern}: {lost} lost, {doubled} doubled", kind.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
#[ignore = "on a busy machine a file can be made, filled and taken away before anybody looked"]
fn logrotate_and_a_fast_writer_lose_nothing_and_double_nothing() {
    rotate_all(5);
}

#[test]
#[ignore = "runs for minutes"]
fn a_thousand_rotations_of_each_kind() {
    rotate_all(std::env::var("ROUNDS").map_or(1_000, |rounds| rounds.parse().expect("a number")));
}

#[test]
#[ignore = "measures"]
fn how_long_a_line_takes_from_the_writer_to_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("app.log");
    File::create(&log).unwrap();
    let started = Instant::now();
    let micros = || started.elapsed().as_micros();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut latencies = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).open(&log).unwrap();
            for _ in 0..2_000 {
                thread::sleep(Duration::from_millis(2));
                file.write_all(format!("{}\n", micros()).as_bytes()).unwrap();
            }
        });
        runtime.block_on(async {
            let (place, date_of): (_, DateOf) =
                (log.to_str().unwrap().parse().unwrap(), Arc::new(|_, _| None));
            let mut sources = Sources::open(&[place], &[], Duration::ZERO, host::now(), &date_of).unwrap();
            while latencies.len() < 2_000 {
                let turn = sources.read(host::now(), 1 << 20, |_, line| {
                    let written: u128 = std::str::from_utf8(line.text).unwrap().parse().unwrap();
                    latencies.push(micros() - written);
                });
                if !turn.more && latencies.len() < 2_000 {
                    sources.changed().await;
                }
            }
        });
    });
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    println!("median {} us, p99 {} us, most {} us", at(50), at(99), at(100));
}
