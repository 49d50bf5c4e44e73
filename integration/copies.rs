//! Copies of a log that a rotator made and emptied, however close together it all was.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use nftjail::acquire::What;
use nftjail::acquire::file::{Follower, Start};
use nftjail::acquire::identity::{Head, Identity, Position};

use crate::follow::{NOW, append, follow, read};

#[test]
fn a_copy_with_the_inode_number_of_a_file_that_was_empty_is_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("log"), dir.path().join("log.1"));
    append(&path, "one\n");
    let mut follower = follow(&path);
    assert_eq!(read(&mut follower).0, ["one"]);
    let mut saved = follower.positions().unwrap();
    drop(follower);
    append(&path, "two\n");
    fs::copy(&path, &copy).unwrap();
    fs::write(&path, "").unwrap();
    let found = fs::metadata(&copy).unwrap();
    let identity = Identity { dev: found.dev(), inode: found.ino(), head: Head::EMPTY };
    saved.open.insert(0, Position { identity, offset: 0 });
    // As where all of it was done within one tick of the clock.
    saved.since = Some(i64::MAX);
    let mut follower = Follower::open(&path, Some(saved), Start::Beginning, NOW).unwrap();
    assert_eq!(read(&mut follower).0, ["two"]);
}

#[test]
fn a_log_that_is_filled_and_copied_and_emptied_between_two_looks_is_read_from_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("log"), dir.path().join("log.1"));
    for next in ["", "three\n"] {
        append(&path, "");
        let mut follower = follow(&path);
        assert_eq!(read(&mut follower).0, [""; 0]);
        let written = || fs::metadata(&path).unwrap().modified().unwrap();
        let before = written();
        // The clock of files ticks every few milliseconds.
        while written() == before {
            fs::write(&path, "one\ntwo\n").unwrap();
        }
        fs::copy(&path, &copy).unwrap();
        fs::write(&path, next).unwrap();
        let expected: Vec<_> = ["one*", "two*", "three*"].into_iter().take(2 + next.len().min(1)).collect();
        assert_eq!(read(&mut follower).0, expected);
        fs::remove_file(&path).unwrap();
        fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn a_copy_that_was_begun_before_the_last_lines_came_is_known_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("log"), dir.path().join("log.1"));
    let written = |path| fs::metadata(path).unwrap().modified().unwrap();
    append(&path, "one\n");
    let mut follower = follow(&path);
    fs::copy(&path, &copy).unwrap();
    while written(&path) <= written(&copy) {
        append(&path, "two\n");
    }
    let twos = read(&mut follower).0.len() - 1;
    append(&path, "three\n");
    append(&copy, "two\n".repeat(twos));
    append(&copy, "three\n");
    fs::write(&path, "four\n").unwrap();
    assert_eq!(read(&mut follower).0, ["three*", "four*"]);
}

#[test]
fn half_a_copy_of_what_is_in_the_log_now_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("log"), dir.path().join("log.1"));
    append(&path, "one\n");
    let mut follower = follow(&path);
    assert_eq!(read(&mut follower).0, ["one"]);
    fs::copy(&path, dir.path().join("log.2")).unwrap();
    fs::write(&path, "two\nthree\n").unwrap();
    append(&copy, "two\n");
    assert_eq!(read(&mut follower).0, ["two*", "three*"]);
}

#[test]
fn a_log_with_two_names_has_not_lost_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (path, dated) = (dir.path().join("log"), dir.path().join("log-20261121"));
    append(&dated, "one\n");
    symlink("log-20261121", &path).unwrap();
    let mut follower = follow(&path);
    assert_eq!(read(&mut follower).0, ["one"]);
    fs::write(&path, "").unwrap();
    append(&path, "two\n");
    assert_eq!(read(&mut follower), (vec!["two*".to_owned()], vec![What::Truncated]));
    append(&path, "three\n");
    assert_eq!(read(&mut follower), (vec!["three*".to_owned()], vec![]));
}
