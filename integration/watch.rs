//! Waiting for files to change: who is woken up by what, and nobody by anything else.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc;

use nftjail::acquire::file::{Follower, QUIET};
use nftjail::acquire::{Aimed, SourceId, Watch, What};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::follow::{ALL, NOW, append, follow, read, share, unprivileged};

const ID: SourceId = SourceId(1, 0);

/// Its name, what is done, and the lines that can be read then.
type Step<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);

/// Reads and aims until there is nothing new, as the daemon does.
fn settle(watch: &mut Watch, follower: &mut Follower) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        lines.extend(read(follower).0);
        match watch.aim(ID, follower) {
            Aimed::Unchanged => return lines,
            Aimed::LookAgain => {}
            Aimed::Blind(blind) => panic!("{blind}"),
        }
    }
}

fn is_woken(watch: &mut Watch) -> bool {
    let woken = watch.wake().unwrap();
    assert!(!woken.overflowed);
    woken.sources.contains(&ID)
}

#[test]
fn every_way_to_change_a_file_wakes_its_follower_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let old = dir.path().join("log.1");
    append(&path, "one\n");
    let mut follower = follow(&path);
    let mut watch = Watch::new().unwrap();
    assert_eq!(settle(&mut watch, &mut follower), ["one"]);
    assert!(!is_woken(&mut watch), "reading wakes nobody");
    append(&dir.path().join("log2"), "other\n");
    fs::remove_file(dir.path().join("log2")).unwrap();
    assert!(!is_woken(&mut watch), "another name wakes nobody");

    let steps: [Step; 9] = [
        ("append", &|| append(&path, "two\n"), &["two*"]),
        ("truncate", &|| fs::write(&path, "").unwrap(), &[]),
        ("rename", &|| fs::rename(&path, &old).unwrap(), &[]),
        ("late line", &|| append(&old, "late\n"), &["late*"]),
        ("create", &|| append(&path, "three\n"), &["three*"]),
        ("later line", &|| append(&old, "later\n"), &["later*"]),
        ("delete the old", &|| fs::remove_file(&old).unwrap(), &[]),
        ("delete", &|| fs::remove_file(&path).unwrap(), &[]),
        ("create again", &|| append(&path, "four\n"), &["four*"]),
    ];
    for (name, step, lines) in steps {
        step();
        assert!(is_woken(&mut watch), "{name}");
        assert_eq!(settle(&mut watch, &mut follower), lines, "{name}");
        let _ = watch.wake().unwrap();
        let _ = settle(&mut watch, &mut follower);
        assert!(!is_woken(&mut watch), "all is quiet after {name}");
    }
    watch.forget(ID);
    append(&path, "five\n");
    assert!(!is_woken(&mut watch), "nobody is there to be woken");
    assert!(watch.needs_polling(ID));
}

#[test]
fn a_path_is_awaited_at_every_level_and_again_when_a_directory_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/log");
    let mut follower = follow(&path);
    let mut watch = Watch::new().unwrap();
    assert_eq!(settle(&mut watch, &mut follower), [""; 0]);
    let at = |name: &str| dir.path().join(name);
    let steps: [Step; 7] = [
        ("first directory", &|| fs::create_dir(at("a")).unwrap(), &[]),
        ("second directory", &|| fs::create_dir(at("a/b")).unwrap(), &[]),
        ("file", &|| append(&path, "one\n"), &["one*"]),
        ("directory moved away", &|| fs::rename(at("a/b"), at("a/c")).unwrap(), &[]),
        ("line in it", &|| append(&at("a/c/log"), "two\n"), &["two*"]),
        ("upper directory moved away", &|| fs::rename(at("a"), at("d")).unwrap(), &[]),
        ("all of it made again", &|| fs::create_dir(at("a")).unwrap(), &[]),
    ];
    for (name, step, lines) in steps {
        step();
        assert!(is_woken(&mut watch), "{name}");
        assert_eq!(settle(&mut watch, &mut follower), lines, "{name}");
    }
    fs::create_dir(at("a/b")).unwrap();
    append(&path, "three\n");
    assert!(is_woken(&mut watch));
    assert_eq!(settle(&mut watch, &mut follower), ["three*"], "made before it could be watched");
}

#[test]
fn a_symbolic_link_is_watched_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (link, data) = (dir.path().join("log"), dir.path().join("data"));
    symlink("data/monday", &link).unwrap();
    let mut follower = follow(&link);
    let mut watch = Watch::new().unwrap();
    let _ = settle(&mut watch, &mut follower);
    fs::create_dir(&data).unwrap();
    assert!(is_woken(&mut watch), "the target's directory");
    let _ = settle(&mut watch, &mut follower);
    append(&data.join("monday"), "one\n");
    assert!(is_woken(&mut watch), "the target");
    assert_eq!(settle(&mut watch, &mut follower), ["one*"]);
    append(&data.join("tuesday"), "two\n");
    fs::remove_file(&link).unwrap();
    symlink("data/tuesday", &link).unwrap();
    assert!(is_woken(&mut watch), "the link");
    assert_eq!(settle(&mut watch, &mut follower), ["two*"]);
}

#[test]
fn two_followers_in_one_directory_are_woken_each_for_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("one"), dir.path().join("two")];
    let mut watch = Watch::new().unwrap();
    let mut followers: BTreeMap<_, _> =
        [1, 2].into_iter().map(|n| (SourceId(n, 0), follow(&paths[n as usize - 1]))).collect();
    for (id, follower) in &mut followers {
        let _ = read(follower);
        let _ = watch.aim(*id, follower);
    }
    append(&paths[1], "line\n");
    assert_eq!(watch.wake().unwrap().sources, [SourceId(2, 0)].into());
    watch.forget(SourceId(2, 0));
    append(&paths[0], "line\n");
    fs::rename(&paths[1], dir.path().join("three")).unwrap();
    assert_eq!(watch.wake().unwrap().sources, [SourceId(1, 0)].into());
}

#[test]
fn lost_events_wake_everybody() {
    let limit: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/log");
    let mut follower = follow(&path);
    let mut watch = Watch::new().unwrap();
    let _ = settle(&mut watch, &mut follower);
    let busy = dir.path().join("busy");
    for _ in 0..=limit / 2 {
        append(&busy, "");
        fs::remove_file(&busy).unwrap();
    }
    fs::create_dir(dir.path().join("a")).unwrap();
    let woken = watch.wake().unwrap();
    assert!(woken.overflowed && woken.sources.contains(&ID));
    let _ = settle(&mut watch, &mut follower);
    append(&path, "line\n");
    assert!(is_woken(&mut watch), "what was made when events were lost is watched");
}

#[test]
fn what_cannot_be_watched_is_said_once_and_polled() {
    let dir = tempfile::tempdir().unwrap();
    let locked = dir.path().join("locked");
    let path = locked.join("log");
    fs::create_dir(&locked).unwrap();
    append(&path, "one\n");
    let mut watch = Watch::new().unwrap();
    share(dir.path(), 0o755);
    // May be passed through but not listed, so that the file in it can be read but its directory not watched.
    share(&locked, 0o711);
    let mut follower = follow(&path);
    let aimed = unprivileged(|| {
        let aimed = [watch.aim(ID, &follower), watch.aim(ID, &follower)];
        assert_eq!(read(&mut follower).0, ["one"]);
        aimed
    });
    let [Aimed::Blind(blind), Aimed::Unchanged] = aimed else { panic!("{aimed:?}") };
    let expected =
        format!("cannot watch {}: permission denied; looking at it once a second", locked.display());
    assert_eq!(blind.to_string(), expected);
    assert!(watch.needs_polling(ID));
    assert_eq!(watch.aim(ID, &follower), Aimed::LookAgain, "it can be watched now");
    assert!(!watch.needs_polling(ID));
}

#[test]
fn a_file_that_becomes_readable_wakes_its_follower() {
    let dir = tempfile::tempdir().unwrap();
    share(dir.path(), 0o755);
    let path = dir.path().join("log");
    append(&path, "one\n");
    share(&path, 0);
    let mut follower = unprivileged(|| follow(&path));
    let mut watch = Watch::new().unwrap();
    let _ = watch.aim(ID, &follower);
    share(&path, 0o644);
    assert!(is_woken(&mut watch));
    assert_eq!(settle(&mut watch, &mut follower), ["one"]);
}

#[test]
fn a_file_that_was_let_go_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    append(&path, "one\n");
    let mut follower = follow(&path);
    let mut watch = Watch::new().unwrap();
    let _ = settle(&mut watch, &mut follower);
    fs::rename(&path, &old).unwrap();
    append(&path, "two\n");
    let _ = settle(&mut watch, &mut follower);
    let _ = follower.read(NOW.plus(QUIET), ALL, &mut |_| {});
    assert_eq!(watch.aim(ID, &follower), Aimed::Unchanged);
    let _ = watch.wake().unwrap();
    append(&old, "too late\n");
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&watch.as_fd(), PollFlags::IN)], Some(&now)).unwrap();
    assert_eq!(ready, 0, "the file is not even watched");
}

/// A writer that rotates as fast as it is noticed and writes to both files, while the reader sleeps between events.
#[test]
fn a_thousand_rotations_lose_nothing_and_no_wake_up_is_missed() {
    const ROTATIONS: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (noticed, notices) = mpsc::channel();
    let mut follower = follow(&path);
    let mut watch = Watch::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| write_and_rotate(&path, ROTATIONS, notices));
        let mut seen = vec![0_usize; ROTATIONS];
        let mut files = 0;
        while seen.iter().any(|count| *count < 30) {
            let progress = follower.read(NOW, ALL, &mut |line| {
                let text = std::str::from_utf8(line.text).unwrap();
                let (file, index) = text.split_once(' ').unwrap();
                let count = &mut seen[file.parse::<usize>().unwrap()];
                assert_eq!(index.parse(), Ok(*count), "{text}");
                *count += 1;
            });
            for notice in &progress.notices {
                if matches!(notice.what, What::Appeared | What::Rotated) {
                    files += 1;
                    noticed.send(()).unwrap();
                }
            }
            if progress.more || watch.aim(ID, &follower) == Aimed::LookAgain {
                continue;
            }
            if seen.iter().all(|count| *count == 30) {
                break;
            }
            // Long enough that only a missed wake-up can come to its end.
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&watch.as_fd(), PollFlags::IN)], Some(&patience)).unwrap();
            assert_eq!(ready, 1, "nobody woke the reader up");
            let _ = watch.wake().unwrap();
        }
        assert_eq!(files, ROTATIONS);
    });
}

/// Each file gets thirty lines, the last ten after the next file has some.
fn write_and_rotate(path: &Path, rotations: usize, notices: mpsc::Receiver<()>) {
    let mut previous: Option<fs::File> = None;
    for file in 0..rotations {
        if previous.is_some() {
            fs::rename(path, path.with_extension("1")).unwrap();
        }
        let mut current = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        let write = |to: &mut fs::File, file: usize, lines: std::ops::Range<usize>| {
            for line in lines {
                to.write_all(format!("{file} {line}\n").as_bytes()).unwrap();
            }
        };
        write(&mut current, file, 0..10);
        if let Some(mut previous) = previous {
            write(&mut previous, file - 1, 20..30);
        }
        write(&mut current, file, 10..20);
        previous = Some(current);
        notices.recv().unwrap();
    }
    write_last(previous, rotations - 1);
}

fn write_last(file: Option<fs::File>, number: usize) {
    for line in 20..30 {
        file.as_ref().unwrap().write_all(format!("{number} {line}\n").as_bytes()).unwrap();
    }
}
