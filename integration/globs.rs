//! Following all files of a pattern: names come, go and are given from file to file, and each line is read once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nftjail::acquire::file::QUIET;
use nftjail::acquire::place::Place;
use nftjail::model::Timestamp;
use nftjail::sources::{DateOf, Sources};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::{Builder, Runtime};

use crate::follow::append;

const HOUR: Duration = Duration::from_secs(3_600);

/// An agent's sources, all of one pattern in a folder.
struct Pattern {
    dir: PathBuf,
    place: Place,
    runtime: Runtime,
    sources: Option<Sources>,
    saved: Vec<(String, String)>,
    lines: Vec<String>,
    now: Timestamp,
}

impl Pattern {
    fn new(dir: &Path, pattern: &str) -> Pattern {
        let mut pattern = Pattern {
            dir: dir.to_owned(),
            place: dir.join(pattern).to_str().unwrap().parse().unwrap(),
            runtime: Builder::new_current_thread().enable_all().build().unwrap(),
            sources: None,
            saved: Vec::new(),
            lines: Vec::new(),
            now: Timestamp::from_millis(1_000_000_000),
        };
        pattern.start();
        pattern
    }

    /// Lines bear their time, in seconds, where they bear one.
    fn start(&mut self) {
        let date_of: DateOf = Arc::new(|_, line: &[u8]| {
            let seconds = line.strip_prefix(b"at ")?.split(|byte| *byte == b' ').next()?;
            Some(Timestamp::from_millis(std::str::from_utf8(seconds).ok()?.parse::<i64>().ok()? * 1_000))
        });
        let _in_runtime = self.runtime.enter();
        let places = std::slice::from_ref(&self.place);
        self.sources = Some(Sources::open(places, &self.saved, HOUR, self.now, &date_of).unwrap());
        self.read();
    }

    fn stop(&mut self) {
        self.saved = self.sources.take().unwrap().positions();
    }

    fn read(&mut self) {
        let (sources, lines, now) = (self.sources.as_mut().unwrap(), &mut self.lines, self.now);
        sources.poll(now);
        while sources
            .read(now, 4_096, |_, line| lines.push(String::from_utf8_lossy(line.text).into_owned()))
            .more
        {}
    }

    /// Reads what events tell of until so many lines were read.
    fn wait(&mut self, count: usize) -> &[String] {
        self.read();
        while self.lines.len() < count {
            let changed = self.sources.as_mut().unwrap().changed();
            let patience = Duration::from_secs(60);
            let woken = self.runtime.block_on(async { tokio::time::timeout(patience, changed).await });
            assert!(woken.is_ok(), "nobody was woken: {:?}", self.lines);
            self.read();
        }
        &self.lines
    }

    fn append(&self, name: &str, text: &str) {
        append(&self.dir.join(name), text);
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.dir.join(from), self.dir.join(to)).unwrap();
    }

    fn state(&self) -> String {
        self.sources.as_ref().unwrap().status()[0].state.clone()
    }
}

#[test]
fn a_new_name_is_read_at_once_and_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Pattern::new(dir.path(), "app-*.log");
    assert_eq!(logs.state(), "no file matches: waiting for one");
    logs.append("app-2026-11-20.log", "one\n");
    logs.append("other.log", "other\n");
    assert_eq!(logs.wait(1), ["one"]);
    assert_eq!(logs.state(), "following 1 file");
    logs.append("app-2026-11-21.log", "two\n");
    logs.append("app-2026-11-20.log", "late\n");
    logs.wait(3).iter().for_each(|line| assert!(["one", "two", "late"].contains(&line.as_str())));
    assert_eq!(logs.state(), "following 2 files");
    fs::remove_file(dir.path().join("app-2026-11-20.log")).unwrap();
    logs.append("app-2026-11-21.log", "three\n");
    assert_eq!(logs.wait(4)[3], "three");
    assert_eq!(logs.state(), "following 1 file", "who is gone is let go");
}

#[test]
fn folders_come_and_go_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Pattern::new(dir.path(), "*/logs/*.log");
    fs::create_dir_all(dir.path().join("one/logs")).unwrap();
    logs.append("one/logs/a.log", "one\n");
    assert_eq!(logs.wait(1), ["one"]);
    fs::create_dir(dir.path().join("two")).unwrap();
    logs.read();
    fs::create_dir(dir.path().join("two/logs")).unwrap();
    logs.append("two/logs/a.log", "two\n");
    assert_eq!(logs.wait(2)[1], "two");
    logs.rename("one", "old");
    fs::create_dir_all(dir.path().join("one/logs")).unwrap();
    logs.append("one/logs/a.log", "three\n");
    assert_eq!(logs.wait(3)[2], "three");
}

#[test]
fn at_the_first_start_only_the_last_findtime_is_read_and_then_everything() {
    let dir = tempfile::tempdir().unwrap();
    append(&dir.path().join("a.log"), "at 1 old\nat 999000 young\n");
    append(&dir.path().join("b.log"), "at 2 old\n");
    let mut logs = Pattern::new(dir.path(), "*.log");
    assert_eq!(logs.lines, ["at 999000 young"]);
    logs.append("b.log", "at 3 appended\n");
    logs.append("c.log", "at 4 new\n");
    assert_eq!(logs.wait(3)[1..], ["at 3 appended", "at 4 new"]);
    logs.stop();
    logs.append("a.log", "at 5 while away\n");
    logs.append("d.log", "at 6 new while away\n");
    logs.start();
    assert_eq!(logs.wait(5)[3..], ["at 5 while away", "at 6 new while away"]);
}

#[test]
fn what_a_rotator_put_aside_is_read_by_who_reads_the_log_and_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    append(&dir.path().join("a.log.1"), "at 999000 put aside before\n");
    append(&dir.path().join("a.log"), "at 999001 one\n");
    append(&dir.path().join("a.log.2.gz"), "compressed\n");
    let mut logs = Pattern::new(dir.path(), "*");
    assert_eq!(logs.lines, ["at 999001 one"]);
    for (round, name) in ["a.log.1", "a.log-20261121", "a.log.old", "a-20261121.log"].iter().enumerate() {
        logs.append("a.log", &format!("rest {round}\n"));
        logs.rename("a.log", name);
        logs.append("a.log", &format!("next {round}\n"));
        let read = logs.wait(3 + 2 * round);
        assert_eq!(read[1 + 2 * round..], [format!("rest {round}"), format!("next {round}")], "{name}");
    }
    assert_eq!(logs.state(), "following 1 file");
    fs::copy(dir.path().join("a.log"), dir.path().join("a.log.1")).unwrap();
    File::create(dir.path().join("a.log")).unwrap();
    logs.append("a.log", "after\n");
    assert_eq!(logs.wait(10)[9..], ["after"], "the copy is not read");
    logs.stop();
    logs.start();
    logs.append("a.log", "end\n");
    assert_eq!(logs.wait(11)[10..], ["end"], "nor are any after a restart");
}

#[test]
fn what_a_rotator_made_of_a_log_is_its_own_also_when_the_log_has_been_gone_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Pattern::new(dir.path(), "*");
    for line in ["one\n", "two\n"] {
        let _ = fs::rename(dir.path().join("a.log.1"), dir.path().join("a.log.2"));
        let _ = fs::rename(dir.path().join("a.log"), dir.path().join("a.log.1"));
        logs.append("a.log", line);
        logs.wait(logs.lines.len() + 1);
        logs.now = logs.now.plus(QUIET);
        logs.read();
    }
    logs.rename("a.log.1", "a.log.2");
    logs.rename("a.log", "a.log.1");
    logs.append("b.log", "other\n");
    logs.wait(3);
    logs.now = logs.now.plus(QUIET);
    logs.read();
    assert_eq!(logs.state(), "following 1 file", "the rotated ones were let go");
    for restarted in [false, true] {
        if restarted {
            logs.stop();
            logs.start();
        }
        logs.rename("a.log.2", "a.log.3");
        logs.append("b.log", "other\n");
        logs.wait(4 + usize::from(restarted));
        logs.rename("a.log.3", "a.log.2");
    }
    logs.append("a.log", "three\n");
    assert_eq!(logs.wait(6), ["one", "two", "other", "other", "other", "three"]);
    assert_eq!(logs.state(), "following 2 files");
}

#[test]
fn what_was_read_as_a_log_is_read_on_by_who_reads_the_log_that_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Pattern::new(dir.path(), "*");
    logs.append("a.log.1", "one\n");
    assert_eq!(logs.wait(1), ["one"]);
    logs.append("a.log.1", "two\n");
    logs.append("a.log", "three\n");
    assert_eq!(logs.wait(3), ["one", "two", "three"]);
    assert_eq!(logs.state(), "following 1 file");
}

#[test]
fn a_file_that_changes_its_name_is_read_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Pattern::new(dir.path(), "*.log");
    logs.append("a.log", "one\n");
    logs.append("b.log", "two\n");
    logs.wait(2);
    logs.rename("a.log", "c.log");
    logs.append("c.log", "three\n");
    assert_eq!(logs.wait(3)[2], "three");
    logs.rename("c.log", "b.log");
    logs.append("b.log", "four\n");
    assert_eq!(logs.wait(4)[3], "four", "also over another");
    logs.stop();
    logs.rename("b.log", "d.log");
    logs.append("d.log", "five\n");
    logs.start();
    assert_eq!(logs.wait(5)[4], "five", "also while nobody reads");
    logs.append("d.log", "six\n");
    assert_eq!(logs.wait(6)[5], "six");
}

#[test]
fn a_file_with_several_names_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    append(&dir.path().join("day1.log"), "at 999000 one\n");
    symlink("day1.log", dir.path().join("current.log")).unwrap();
    let mut logs = Pattern::new(dir.path(), "*.log");
    logs.append("day1.log", "two\n");
    assert_eq!(logs.wait(2), ["at 999000 one", "two"]);
    logs.append("day2.log", "three\n");
    symlink("day2.log", dir.path().join("new")).unwrap();
    logs.rename("new", "current.log");
    logs.append("current.log", "four\n");
    assert_eq!(logs.wait(4)[2..], ["three", "four"]);
    fs::hard_link(dir.path().join("day2.log"), dir.path().join("also.log")).unwrap();
    logs.append("day2.log", "five\n");
    assert_eq!(logs.wait(5)[4..], ["five"]);
    fs::remove_file(dir.path().join("day2.log")).unwrap();
    logs.append("also.log", "six\n");
    assert_eq!(logs.wait(6)[5..], ["six"]);
}

#[test]
fn more_files_than_can_be_followed_are_told_and_the_youngest_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..1_003 {
        append(&dir.path().join(format!("{number}.log")), "at 999000 x\n");
    }
    for number in [0, 500, 1_002] {
        let file = OpenOptions::new().write(true).open(dir.path().join(format!("{number}.log"))).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    let logs = Pattern::new(dir.path(), "*.log");
    assert_eq!(logs.state(), "following 1000 files of more that match");
    assert_eq!(logs.lines.len(), 1_000);
}

fn is_filled(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() > 0)
}

/// What writers and rotators do among three names that match.
#[derive(Clone, Debug)]
enum Action {
    Write(usize),
    Rotate(usize),
    Rename(usize, usize),
    CopyTruncate(usize),
    Delete(usize),
    Read,
    Restart,
}

const NAMES: [&str; 3] = ["a.log", "b.log", "c.log"];

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let name = || 0..NAMES.len();
    let action = prop_oneof![
        12 => name().prop_map(Action::Write),
        3 => name().prop_map(Action::Rotate),
        2 => (name(), name()).prop_map(|(from, to)| Action::Rename(from, to)),
        1 => name().prop_map(Action::CopyTruncate),
        1 => name().prop_map(Action::Delete),
        6 => Just(Action::Read),
        2 => Just(Action::Restart),
    ];
    prop::collection::vec(action, 1..30)
}

#[test]
fn whatever_is_done_to_the_names_each_line_is_read_once() {
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::XorShift);
    let result = TestRunner::new_with_rng(config, rng).run(&actions(), |actions| {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Pattern::new(dir.path(), "*.log");
        let path = |name: usize| dir.path().join(NAMES[name]);
        let mut written = Vec::new();
        for action in actions {
            match action {
                Action::Write(name) => {
                    let line = format!("{:06}", written.len());
                    logs.append(NAMES[name], &format!("{line}\n"));
                    written.push(line);
                }
                Action::Rotate(name) => {
                    for number in (1..30).rev() {
                        let _ = fs::rename(
                            path(name).with_extension(format!("log.{number}")),
                            path(name).with_extension(format!("log.{}", number + 1)),
                        );
                    }
                    let _ = fs::rename(path(name), path(name).with_extension("log.1"));
                    append(&path(name), "");
                }
                // What is not read yet when it is overwritten or deleted is lost, whoever reads.
                // Of an empty file there is nothing to know it by again under another name.
                Action::Rename(from, to) if from != to && is_filled(&path(from)) => {
                    logs.wait(written.len());
                    let _ = fs::rename(path(from), path(to));
                }
                Action::CopyTruncate(name) => {
                    logs.wait(written.len());
                    if fs::copy(path(name), dir.path().join("copy")).is_ok() {
                        File::create(path(name)).unwrap();
                    }
                }
                Action::Delete(name) => {
                    logs.wait(written.len());
                    let _ = fs::remove_file(path(name));
                }
                Action::Read => logs.read(),
                Action::Restart => {
                    logs.stop();
                    logs.start();
                }
                Action::Rename(..) => {}
            }
        }
        for name in NAMES {
            logs.append(name, &format!("{name} ends\n"));
            written.push(format!("{name} ends"));
        }
        let mut read = logs.wait(written.len()).to_vec();
        read.sort();
        written.sort();
        prop_assert_eq!(read, written);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// A writer that appends as fast as it can while names are given from file to file.
#[test]
fn nothing_is_lost_or_doubled_while_files_change_their_names_under_the_reader() {
    const FILES: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let mut logs = Pattern::new(dir.path(), "app-*.log");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..FILES {
                let path = dir.path().join(format!("app-{number:04}.log"));
                let mut file = OpenOptions::new().append(true).create_new(true).open(&path).unwrap();
                for line in 0..20 {
                    writeln!(file, "{number:04} {line:02}").unwrap();
                    if line == 10 {
                        fs::rename(&path, dir.path().join(format!("app-{number:04}.done.log"))).unwrap();
                    }
                }
            }
        });
        logs.wait(FILES * 20);
    });
    logs.append("app-end.log", "end\n");
    let mut read = logs.wait(FILES * 20 + 1).to_vec();
    read.sort();
    let expected = (0..FILES).flat_map(|number| (0..20).map(move |line| format!("{number:04} {line:02}")));
    let expected: Vec<String> = expected.chain(["end".to_owned()]).collect();
    assert_eq!(read, expected);
}
