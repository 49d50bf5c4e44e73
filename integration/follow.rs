//! Following a file: what else is put in its place, where to begin, and what it may cost.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nftjail::acquire::bisect::Age;
use nftjail::acquire::file::{AgeOf, Follower, QUIET, QUIET_WITHOUT_NAME, Start};
use nftjail::acquire::{Progress, What};
use nftjail::model::Timestamp;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::thread::{Uid, set_thread_res_uid};

pub const ALL: usize = usize::MAX;
pub const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

pub fn follow(path: &Path) -> Follower {
    Follower::open(path, None, Start::Beginning, NOW).unwrap()
}

/// Reads everything; each line is marked `*` where it is fresh.
pub fn read(follower: &mut Follower) -> (Vec<String>, Vec<What>) {
    let (lines, progress) = read_at(follower, NOW, ALL);
    assert!(!progress.more);
    (lines, progress.notices.into_iter().map(|notice| notice.what).collect())
}

fn read_at(follower: &mut Follower, now: Timestamp, budget: usize) -> (Vec<String>, Progress) {
    let mut lines = Vec::new();
    let progress = follower.read(now, budget, &mut |line| {
        let mark = if line.fresh { "*" } else { "" };
        lines.push(String::from_utf8_lossy(line.text).into_owned() + mark);
    });
    assert_eq!(progress.lines, lines.len() as u64);
    (lines, progress)
}

pub fn append(path: &Path, bytes: impl AsRef<[u8]>) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(bytes.as_ref()).unwrap();
}

pub fn share(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Runs as a user to whom permissions apply, which they do not to root. Only this thread changes its user.
pub fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        if rustix::process::geteuid().is_root() {
            let nobody = Uid::from_raw(65_534);
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn what_is_not_a_file_is_refused_and_a_file_in_its_place_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    type Put = (&'static str, fn(&Path));
    let puts: [Put; 4] = [
        ("a FIFO", |path| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a device", |path| symlink("/dev/zero", path).unwrap()),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
    ];
    for (kind, put) in puts {
        put(&path);
        let mut follower = follow(&path);
        let (lines, notices) = read(&mut follower);
        assert_eq!((lines.len(), notices), (0, vec![What::NotAFile(kind)]));
        let text = follower.trouble().unwrap().to_string();
        assert_eq!(text, format!("cannot read {}: it is {kind}, not a file", path.display()));
        assert_eq!(read(&mut follower).1, [], "{kind} is reported once");
        if kind == "a FIFO" {
            // fifo(7): ENXIO says that nobody has opened it for reading.
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let error = OpenOptions::new().write(true).custom_flags(flags).open(&path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()));
        }
        fs::rename(&path, dir.path().join(kind)).unwrap();
        append(&path, "line\n");
        assert_eq!(read(&mut follower), (vec!["line".to_owned()], vec![What::Appeared]));
        assert!(follower.trouble().is_none());
        fs::remove_file(&path).unwrap();
    }
}

/// A directory that belongs to an unprivileged user, as that of a web application's logs does.
fn foreign_dir(root: &Path) -> PathBuf {
    let dir = root.join("foreign");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    dir
}

const NOBODY: u32 = 65_534;

#[test]
fn nobody_who_may_write_beside_a_log_has_us_read_a_file_of_others() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = foreign_dir(root.path());
    let secrets = root.path().join("secrets");
    fs::create_dir(&secrets).unwrap();
    append(&secrets.join("log"), "secret\n");
    let path = dir.join("log");
    let own = dir.join("own");
    append(&own, "own\n");
    chown(&own, Some(NOBODY), None).unwrap();
    type Put<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);
    let link = |to: &Path, owner: u32| {
        symlink(to, &path).unwrap();
        lchown(&path, Some(owner), None).unwrap();
    };
    let puts: [Put; 6] = [
        ("a link to the file", &|| link(&secrets.join("log"), NOBODY), &[]),
        ("a link to a device", &|| link(Path::new("/dev/zero"), NOBODY), &[]),
        ("a link to shadow", &|| link(Path::new("/etc/shadow"), NOBODY), &[]),
        ("a second name of the file", &|| fs::hard_link(secrets.join("log"), &path).unwrap(), &[]),
        ("a link to a file of its owner", &|| link(&own, NOBODY), &["own"]),
        ("a link that root made", &|| link(&secrets.join("log"), 0), &["secret"]),
    ];
    for (name, put, lines) in puts {
        put();
        let mut follower = follow(&path);
        assert_eq!(read(&mut follower).0, lines, "{name}");
        assert_eq!(follower.trouble().is_none(), !lines.is_empty(), "{name}");
        fs::remove_file(&path).unwrap();
    }

    // Also where the link is further up.
    let (logs, path) = (dir.join("logs"), dir.join("logs/log"));
    symlink(&secrets, &logs).unwrap();
    lchown(&logs, Some(NOBODY), None).unwrap();
    let mut follower = follow(&path);
    assert_eq!(read(&mut follower).0, [""; 0]);
    let text = follower.trouble().unwrap().to_string();
    let expected = format!(
        "not reading {}: the symbolic link {} belongs to user 65534 and leads to a file of user 0: give the link to \
         root, or name that file itself",
        path.display(),
        logs.display()
    );
    assert_eq!(text, expected);
    fs::remove_file(&logs).unwrap();
    fs::create_dir(&logs).unwrap();
    append(&path, "line\n");
    assert_eq!(read(&mut follower).0, ["line"], "what takes its place is read");
}

#[test]
fn a_log_that_is_swapped_for_a_link_while_it_is_read_gives_nothing_away() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = foreign_dir(root.path());
    let (secret, path, new) = (root.path().join("secret"), dir.join("log"), dir.join("new"));
    append(&secret, "secret\n");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..4_000 {
                match round % 3 {
                    0 => symlink(&secret, &new).unwrap(),
                    1 => rustix::fs::mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0).unwrap(),
                    _ => append(&new, "line\n"),
                }
                lchown(&new, Some(NOBODY), None).unwrap();
                fs::rename(&new, &path).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut follower = follow(&path);
        while !done.load(Ordering::Relaxed) {
            assert!(read(&mut follower).0.iter().all(|line| line.starts_with("line")));
        }
    });
}

#[test]
fn a_file_that_gives_way_to_something_else_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "one\n");
    let mut follower = follow(&path);
    assert_eq!(read(&mut follower), (vec!["one".to_owned()], vec![]));
    append(&path, "two\n");
    fs::rename(&path, dir.path().join("log.1")).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(read(&mut follower), (vec!["two*".to_owned()], vec![What::NotAFile("a directory")]));
}

#[test]
fn a_path_without_a_directory_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/log");
    let mut follower = Follower::open(&path, None, Start::End, NOW).unwrap();
    assert_eq!(read(&mut follower), (vec![], vec![What::Missing]));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert_eq!(read(&mut follower), (vec![], vec![]));
    append(&path, "all of it is new\n");
    assert_eq!(read(&mut follower), (vec!["all of it is new*".to_owned()], vec![What::Appeared]));
}

#[test]
fn an_unreadable_file_is_told_once_and_read_when_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    share(dir.path(), 0o755);
    let path = dir.path().join("log");
    append(&path, "one\n");
    share(&path, 0);
    let denied = What::Unreadable("permission denied".to_owned());
    let mut follower = unprivileged(|| {
        let mut follower = Follower::open(&path, None, Start::End, NOW).unwrap();
        assert_eq!(read(&mut follower), (vec![], vec![denied]));
        assert_eq!(read(&mut follower), (vec![], vec![]));
        follower
    });
    let text = follower.trouble().unwrap().to_string();
    assert_eq!(text, format!("cannot read {}: permission denied", path.display()));
    assert_eq!(follower.positions(), None, "where to begin is not decided yet");
    share(&path, 0o644);
    assert_eq!(read(&mut follower), (vec![], vec![What::Appeared]));
    append(&path, "two\n");
    assert_eq!(read(&mut follower).0, ["two*"]);

    fs::rename(&path, dir.path().join("log.1")).unwrap();
    append(&path, "three\n");
    share(&path, 0);
    append(&dir.path().join("log.1"), "rest\n");
    let lines = unprivileged(|| read(&mut follower).0);
    assert_eq!(lines, ["rest*"], "the old file is read though the new one cannot be");
    assert!(follower.poll_timeout().is_some(), "and let go some time");
    share(&path, 0o644);
    assert_eq!(read(&mut follower).0, ["three*"]);
}

#[test]
fn a_saved_position_outlives_a_time_when_the_file_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    share(dir.path(), 0o755);
    let path = dir.path().join("log");
    append(&path, "one\n");
    let mut follower = follow(&path);
    let _ = read(&mut follower);
    let saved = follower.positions();
    append(&path, "two\n");
    share(&path, 0);
    let again = |saved| Follower::open(&path, saved, Start::Beginning, NOW).unwrap();
    let mut follower = unprivileged(|| again(saved.clone()));
    assert_eq!(follower.positions(), saved);
    share(&path, 0o644);
    assert_eq!(read(&mut follower).0, ["two"]);
}

#[test]
fn a_file_that_is_not_found_again_is_said_to_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "one\n");
    let mut follower = follow(&path);
    let _ = read(&mut follower);
    let saved = follower.positions();
    drop(follower);
    fs::remove_file(&path).unwrap();
    append(&path, "other\n");
    let mut follower = Follower::open(&path, saved, Start::End, NOW).unwrap();
    assert_eq!(read(&mut follower), (vec!["other".to_owned()], vec![What::Lost]));
}

#[test]
fn a_reused_inode_number_does_not_make_a_strangers_file_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "");
    let saved = serde_json::to_string(&follow(&path).positions()).unwrap();
    let inode = |path: &Path| format!("\"inode\":{}", fs::metadata(path).unwrap().ino());
    for (name, lines) in [("stranger", &[""; 0][..]), ("log.1", &["line"])] {
        let other = dir.path().join(name);
        append(&other, "line\n");
        let saved = saved.replace(&inode(&path), &inode(&other));
        let saved = serde_json::from_str(&saved).unwrap();
        let mut follower = Follower::open(&path, saved, Start::Beginning, NOW).unwrap();
        assert_eq!(read(&mut follower).0, lines, "{name}");
    }
}

#[test]
fn symbolic_links_are_followed_and_both_ends_may_rotate() {
    let dir = tempfile::tempdir().unwrap();
    let (link, data) = (dir.path().join("log"), dir.path().join("data"));
    fs::create_dir(&data).unwrap();
    symlink("data/monday", &link).unwrap();
    append(&data.join("monday"), "one\n");
    let mut follower = follow(&link);
    assert_eq!(read(&mut follower).0, ["one"]);
    append(&data.join("monday"), "two\n");
    append(&data.join("tuesday"), "three\n");
    let saved = follower.positions();
    fs::remove_file(&link).unwrap();
    symlink("data/tuesday", &link).unwrap();
    assert_eq!(read(&mut follower), (vec!["two*".to_owned(), "three*".to_owned()], vec![What::Rotated]));
    let mut follower = Follower::open(&link, saved, Start::End, NOW).unwrap();
    assert_eq!(read(&mut follower), (vec!["two".to_owned(), "three".to_owned()], vec![]));
    fs::rename(data.join("tuesday"), data.join("tuesday.1")).unwrap();
    append(&data.join("tuesday"), "four\n");
    assert_eq!(read(&mut follower), (vec!["four*".to_owned()], vec![What::Rotated]));
}

#[test]
fn without_a_saved_position_the_caller_says_where_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "1\n2\n3\nunfin");
    let age: AgeOf = Box::new(|line| if *line < b"2"[..] { Age::Before } else { Age::Wanted });
    for (start, expected) in [
        (Start::Beginning, &["1", "2", "3", "unfinished*"][..]),
        (Start::Since(age), &["2", "3", "unfinished*"]),
        (Start::End, &["unfinished*"]),
    ] {
        fs::write(&path, "1\n2\n3\nunfin").unwrap();
        let mut follower = Follower::open(&path, None, start, NOW).unwrap();
        let mut lines = read(&mut follower).0;
        append(&path, "ished\n");
        lines.extend(read(&mut follower).0);
        assert_eq!(lines, expected);
    }
}

#[test]
fn the_lines_of_the_last_minutes_of_a_million_are_found_by_looking_at_few() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    (0..1_000_000).for_each(|n| writeln!(file, "{n:07} sshd: something happened").unwrap());
    drop(file);
    let asked = Arc::new(AtomicU32::new(0));
    for wanted in [0, 1, 654_321, 999_999, 1_000_000] {
        let counter = asked.clone();
        let age: AgeOf = Box::new(move |line| {
            counter.fetch_add(1, Ordering::Relaxed);
            let time: u32 = std::str::from_utf8(&line[..7]).unwrap().parse().unwrap();
            if time < wanted { Age::Before } else { Age::Wanted }
        });
        let mut follower = Follower::open(&path, None, Start::Since(age), NOW).unwrap();
        let mut first = None;
        let progress = follower.read(NOW, ALL, &mut |line| {
            first.get_or_insert_with(|| line.text[..7].to_vec());
        });
        assert_eq!(progress.lines, u64::from(1_000_000 - wanted));
        assert_eq!(first, (wanted < 1_000_000).then(|| format!("{wanted:07}").into_bytes()));
    }
    // The last 64 KiB of each search are read line by line.
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked < 5 * 2_200, "{asked} lines were asked for their time");
}

#[test]
fn any_bytes_are_passed_on_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let bytes = b"\xff\xfe\0n\0u\0l\n\x1b[31mred\r\r\n\n\xe2\x80\xaertl\n";
    append(&path, bytes);
    let mut lines = Vec::new();
    let progress = follow(&path).read(NOW, ALL, &mut |line| lines.push(line.text.to_vec()));
    assert_eq!(lines, [&b"\xff\xfe\0n\0u\0l"[..], b"\x1b[31mred\r", b"", b"\xe2\x80\xaertl"]);
    assert_eq!((progress.bytes, progress.overlong), (bytes.len() as u64, 0));
}

#[test]
fn a_hundred_mebibytes_without_a_newline_cost_no_memory_and_hide_no_line() {
    let resident_kib = || -> u64 {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "before\n");
    File::options().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
    append(&path, "\nafter\n");
    let mut follower = follow(&path);
    let before_kib = resident_kib();
    let (lines, progress) = read_at(&mut follower, NOW, ALL);
    assert_eq!((lines, progress.overlong), (["before", "", "after"].map(str::to_owned).to_vec(), 1));
    // Other tests run in this process meanwhile, but none of them needs as much as the line is long.
    assert!(resident_kib().saturating_sub(before_kib) < 90 * 1024);
}

#[test]
fn a_rotated_file_is_let_go_when_nothing_more_can_come_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let is_open = |name: &str| {
        let wanted = dir.path().join(name);
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target == wanted)
    };
    append(&path, "one\n");
    let mut follower = follow(&path);
    assert_eq!(read(&mut follower).0, ["one"]);

    fs::rename(&path, dir.path().join("log.1")).unwrap();
    append(&path, "two\n");
    assert_eq!(read(&mut follower).0, ["two*"]);
    assert_eq!(follower.poll_timeout(), Some(NOW.plus(QUIET)));
    assert!(is_open("log.1"));
    let later = NOW.plus(Duration::from_secs(60));
    append(&dir.path().join("log.1"), "late\n");
    assert_eq!(read_at(&mut follower, later, ALL).0, ["late*"]);
    assert_eq!(follower.poll_timeout(), Some(later.plus(QUIET)));
    let _ = read_at(&mut follower, later.plus(QUIET), ALL);
    assert_eq!(follower.poll_timeout(), None);
    assert!(!is_open("log.1"), "after five quiet minutes");

    fs::rename(&path, dir.path().join("log.2")).unwrap();
    append(&path, "three\n");
    let _ = read(&mut follower);
    assert!(is_open("log.2"));
    fs::rename(&path, dir.path().join("log.3")).unwrap();
    append(&path, "four\n");
    let _ = read(&mut follower);
    assert!(is_open("log.3") && !is_open("log.2"), "after another rotation");

    fs::remove_file(dir.path().join("log.3")).unwrap();
    let _ = read(&mut follower);
    assert!(is_open("log.3 (deleted)"), "a daemon may still write to it");
    let _ = read_at(&mut follower, NOW.plus(QUIET_WITHOUT_NAME), ALL);
    assert!(!is_open("log.3 (deleted)"), "after it was deleted and ten quiet seconds");
}

#[test]
fn a_file_that_gets_its_name_back_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "one\n");
    let mut follower = follow(&path);
    let _ = read(&mut follower);
    fs::rename(&path, dir.path().join("aside")).unwrap();
    let _ = read(&mut follower);
    let _ = read_at(&mut follower, NOW.plus(QUIET), ALL);
    assert_eq!(follower.poll_timeout(), None, "it was let go");
    append(&dir.path().join("aside"), "two\n");
    fs::rename(dir.path().join("aside"), &path).unwrap();
    assert_eq!(read(&mut follower), (vec!["two*".to_owned()], vec![What::Appeared]));
}

#[test]
fn a_budget_is_kept_and_the_rest_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, "0123456\n".repeat(1_000));
    let mut follower = follow(&path);
    for _ in 0..80 {
        let (lines, progress) = read_at(&mut follower, NOW, 100);
        assert_eq!((progress.bytes, progress.more), (100, true));
        assert!((12..=13).contains(&lines.len()));
    }
    let (lines, progress) = read_at(&mut follower, NOW, 100);
    assert_eq!((lines.len(), progress.more), (0, false));
}

#[test]
fn a_file_whose_size_is_a_lie_does_not_hold_the_reader() {
    // procfs(5): regular files of size 0, with something else in them at each read.
    let mut follower = follow(Path::new("/proc/self/io"));
    let progress = follower.read(NOW, ALL, &mut |_| {});
    assert!(!progress.more);
}
