//! Following a file: random actions of writers and rotators against a model of what must be read.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nftjail::acquire::file::{Follower, QUIET, Start};
use nftjail::acquire::identity::Positions;
use nftjail::model::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const ALL: usize = usize::MAX;
const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

/// What writers, rotators and the follower do, one at a time.
#[derive(Clone, Debug)]
enum Action {
    WriteLine(usize),
    /// The beginning of a line; the next line that is written finishes it.
    WritePart(usize),
    /// The writer may keep the old file for a while.
    Rotate {
        lingering: bool,
    },
    WriteLateLine(usize),
    WriteLatePart(usize),
    MoveAway,
    MoveBack,
    CopyTruncate,
    /// What is unread then is lost, whoever reads; and at once there is more in it than there was.
    TruncateAndRegrow(usize),
    Delete,
    DeleteAndCreate,
    ReplaceByRename,
    DeleteRotated,
    Wait(u64),
    Read(usize),
    /// The directory gives way to a new one of its name.
    ReplaceDirectory,
    /// The name becomes a symbolic link to a new file.
    Link,
    Save,
    /// Until the next read, which goes on from what was saved.
    Crash,
    /// Likewise, but saves first.
    Stop,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let length = prop_oneof![0..20_usize, 0..600_usize];
    let action = prop_oneof![
        24 => length.clone().prop_map(Action::WriteLine),
        2 => length.clone().prop_map(Action::WritePart),
        5 => prop::bool::ANY.prop_map(|lingering| Action::Rotate { lingering }),
        3 => length.clone().prop_map(Action::WriteLateLine),
        1 => length.clone().prop_map(Action::WriteLatePart),
        1 => Just(Action::MoveAway),
        1 => Just(Action::MoveBack),
        3 => Just(Action::CopyTruncate),
        1 => length.prop_map(Action::TruncateAndRegrow),
        1 => Just(Action::Delete),
        1 => Just(Action::DeleteAndCreate),
        1 => Just(Action::ReplaceByRename),
        1 => Just(Action::DeleteRotated),
        1 => (0..400_u64).prop_map(Action::Wait),
        12 => (1..400_usize).prop_map(Action::Read),
        12 => Just(Action::Read(ALL)),
        1 => Just(Action::ReplaceDirectory),
        1 => Just(Action::Link),
        4 => Just(Action::Save),
        1 => Just(Action::Crash),
        2 => Just(Action::Stop),
    ];
    prop::collection::vec(action, 1..40)
}

/// What was written to one file between its creation, or truncation, and its end.
#[derive(Default)]
struct Content {
    written: usize,
    delivered: usize,
    /// It began with a truncation, and the follower has not looked at it since.
    regrown: bool,
    /// It began with a truncation.
    emptied: bool,
    /// The follower has it open.
    open: bool,
    /// The follower has looked at it.
    met: bool,
    /// There was something in it then, so that it is known again wherever it goes.
    seen: bool,
    /// What was delivered of it, and whether it was looked at, when the follower saved last.
    saved: (usize, bool),
    /// There is no name of it that the follower could know.
    hidden: bool,
    /// Only those who have it open can read it.
    deleted: bool,
    /// The follower cannot be asked for what is left of it.
    lost: bool,
}

/// What became of a file that lost its name.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// It has the name that a rotator gives.
    Rotated,
    Hidden,
    Deleted,
}

struct Writer {
    file: File,
    content: usize,
    part: String,
}

struct World {
    root: PathBuf,
    dir: PathBuf,
    path: PathBuf,
    now: Timestamp,
    contents: Vec<Content>,
    /// Which line of which content a text is.
    lines: HashMap<Vec<u8>, (usize, usize)>,
    texts: usize,
    names: usize,
    writer: Option<Writer>,
    /// Writes to the file that was rotated last, until this time at most.
    lingering: Option<(Writer, Timestamp)>,
    away: Option<Writer>,
    /// The name of the file that was rotated last, and whether the name is a symbolic link now.
    rotated: Option<(PathBuf, usize)>,
    linked: bool,
    follower: Option<Follower>,
    saved: Option<String>,
    caught_up: bool,
}

impl World {
    fn new(dir: PathBuf) -> Self {
        let root = dir;
        let dir = root.join("logs");
        fs::create_dir(&dir).unwrap();
        World {
            path: dir.join("app.log"),
            root,
            dir,
            now: NOW,
            contents: Vec::new(),
            lines: HashMap::new(),
            texts: 0,
            names: 0,
            writer: None,
            lingering: None,
            away: None,
            rotated: None,
            linked: false,
            follower: None,
            saved: None,
            caught_up: false,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::WriteLine(length) => self.write_line(length),
            Action::WritePart(length) => {
                let mut writer = self.take_writer();
                self.write_part(&mut writer, length);
                self.writer = Some(writer);
            }
            Action::Rotate { lingering } => self.rotate(lingering),
            Action::WriteLateLine(length) => self.write_late(|world, writer| world.write(writer, length)),
            Action::WriteLatePart(length) => {
                self.write_late(|world, writer| world.write_part(writer, length))
            }
            Action::MoveAway => {
                let Some(writer) = self.writer.take() else { return };
                fs::rename(&self.path, self.dir.join("app.log.away")).unwrap();
                self.leave(writer.content, Left::Hidden);
                self.away = Some(writer);
            }
            Action::MoveBack => {
                let Some(writer) = self.away.take_if(|_| self.writer.is_none()) else { return };
                fs::rename(self.dir.join("app.log.away"), &self.path).unwrap();
                let content = &mut self.contents[writer.content];
                content.lost &= content.seen;
                content.hidden = false;
                self.writer = Some(writer);
            }
            Action::CopyTruncate => self.copy_truncate(),
            Action::TruncateAndRegrow(length) => {
                if let Some(writer) = &self.writer {
                    let size = writer.file.metadata().unwrap().len();
                    let content = &mut self.contents[writer.content];
                    content.lost |= content.delivered < content.written;
                    content.deleted = true;
                    self.truncate();
                    while fs::metadata(&self.path).unwrap().len() < size {
                        self.write_line(length);
                    }
                }
            }
            Action::Delete => self.delete(),
            Action::DeleteAndCreate => {
                self.delete();
                self.writer = Some(self.take_writer());
            }
            Action::ReplaceByRename => self.replace(),
            Action::DeleteRotated => {
                let Some((path, content)) = self.rotated.take() else { return };
                fs::remove_file(path).unwrap();
                self.lingering = None;
                self.leave(content, Left::Deleted);
            }
            Action::Wait(seconds) => self.now = self.now.plus(Duration::from_secs(seconds)),
            Action::Read(budget) => self.read(budget),
            Action::ReplaceDirectory => self.replace_directory(),
            Action::Link => self.link(),
            Action::Save => self.save(),
            Action::Crash => self.crash(),
            Action::Stop => {
                self.save();
                self.crash();
            }
        }
    }

    /// The writer of the followed name, which creates the file where there is none.
    fn take_writer(&mut self) -> Writer {
        self.writer.take().unwrap_or_else(|| {
            // What is moved away now is not given its name back once another file has had it.
            self.give_up_away();
            let path = self.path.clone();
            self.linked = false;
            self.create(&path)
        })
    }

    fn give_up_away(&mut self) {
        if let Some(writer) = self.away.take() {
            let gone = self.dir.join(format!("gone{}", writer.content));
            fs::rename(self.dir.join("app.log.away"), gone).unwrap();
        }
    }

    fn create(&mut self, path: &Path) -> Writer {
        self.contents.push(Content::default());
        let file = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        Writer { file, content: self.contents.len() - 1, part: String::new() }
    }

    /// The name that a rotator gives next, after it has counted up all others.
    fn new_name(&mut self) -> PathBuf {
        let name = |number| self.dir.join(format!("app.log.{number}"));
        for number in (1..=self.names).rev() {
            // Some were deleted.
            let _ = fs::rename(name(number), name(number + 1));
        }
        self.names += 1;
        if let Some((path, _)) = &mut self.rotated {
            *path = name(2);
        }
        name(1)
    }

    fn write_line(&mut self, length: usize) {
        let mut writer = self.take_writer();
        self.write(&mut writer, length);
        self.writer = Some(writer);
    }

    fn write(&mut self, writer: &mut Writer, length: usize) {
        self.write_part(writer, length);
        writer.file.write_all(b"\n").unwrap();
        let content = &mut self.contents[writer.content];
        let line = (writer.content, content.written);
        assert!(self.lines.insert(std::mem::take(&mut writer.part).into_bytes(), line).is_none());
        content.written += 1;
    }

    fn write_part(&mut self, writer: &mut Writer, length: usize) {
        let text = format!("{:06} {:x<length$}", self.texts, "");
        self.texts += 1;
        writer.file.write_all(text.as_bytes()).unwrap();
        writer.part += &text;
    }

    fn write_late(&mut self, write: impl FnOnce(&mut World, &mut Writer)) {
        let Some((mut writer, until)) = self.lingering.take() else { return };
        if self.now < until {
            write(self, &mut writer);
            self.lingering = Some((writer, self.now.plus(QUIET)));
        }
    }

    fn rotate(&mut self, lingering: bool) {
        let Some(writer) = self.writer.take() else { return };
        let name = self.new_name();
        fs::rename(&self.path, &name).unwrap();
        self.leave(writer.content, if self.linked { Left::Hidden } else { Left::Rotated });
        self.rotated = Some((name, writer.content)).filter(|_| !self.linked);
        self.lingering = lingering.then_some((writer, self.now.plus(QUIET)));
        self.writer = Some(self.take_writer());
    }

    fn copy_truncate(&mut self) {
        let Some(writer) = &self.writer else { return };
        let index = writer.content;
        if self.contents[index].regrown {
            // Of two truncations between two looks, the copies can be told apart, but not always what came first.
            self.read(ALL);
        }
        let copy = self.new_name();
        fs::copy(&self.path, &copy).unwrap();
        self.rotated = Some((copy, index));
        self.lingering = None;
        // The copy is found when the truncation is.
        let content = &mut self.contents[index];
        content.hidden = false;
        // A file that was empty at each look cannot be seen to have been truncated.
        content.lost |= content.met && !content.seen;
        self.truncate();
        self.contents[index].open = false;
    }

    fn delete(&mut self) {
        if let Some(writer) = self.writer.take() {
            fs::remove_file(&self.path).unwrap();
            self.leave(writer.content, self.replaced());
        }
    }

    /// What becomes of a file when another takes its name.
    fn replaced(&self) -> Left {
        if self.linked { Left::Hidden } else { Left::Deleted }
    }

    fn replace(&mut self) {
        let new = self.dir.join("new");
        let mut replacement = self.create(&new);
        self.write(&mut replacement, 10);
        self.take_name(&new, replacement);
        self.linked = false;
    }

    fn link(&mut self) {
        let target = self.dir.join(format!("day{}", self.contents.len()));
        let mut replacement = self.create(&target);
        self.write(&mut replacement, 10);
        let new = self.dir.join("new");
        symlink(target.file_name().unwrap(), &new).unwrap();
        self.take_name(&new, replacement);
        self.linked = true;
    }

    fn take_name(&mut self, new: &Path, replacement: Writer) {
        if let Some(writer) = self.writer.take() {
            self.leave(writer.content, self.replaced());
        }
        self.give_up_away();
        fs::rename(new, &self.path).unwrap();
        self.writer = Some(replacement);
    }

    fn replace_directory(&mut self) {
        let aside = self.root.join("aside");
        let _ = fs::remove_dir_all(&aside);
        fs::rename(&self.dir, aside).unwrap();
        fs::create_dir(&self.dir).unwrap();
        (self.writer, self.away, self.rotated) = (None, None, None);
        for content in 0..self.contents.len() {
            self.leave(content, Left::Deleted);
        }
    }

    fn truncate(&mut self) {
        let writer = self.writer.as_mut().unwrap();
        writer.file.set_len(0).unwrap();
        let Content { open, .. } = self.contents[writer.content];
        writer.content = self.contents.len();
        writer.part.clear();
        self.contents.push(Content { regrown: true, emptied: true, open, ..Content::default() });
    }

    /// A file loses the followed name, or the name it was rotated to.
    fn leave(&mut self, content: usize, left: Left) {
        self.lingering = None;
        let content = &mut self.contents[content];
        content.deleted |= left == Left::Deleted;
        content.hidden |= left == Left::Hidden;
        content.lost |= !content.open && (content.deleted || content.hidden && !content.seen);
        // Where no name of the file tells, nobody knows which of the copies beside the name came before what is in it.
        content.lost |= left != Left::Rotated && content.emptied && !content.seen;
    }

    fn save(&mut self) {
        let Some(follower) = &self.follower else { return };
        self.saved = Some(serde_json::to_string(&follower.positions().unwrap()).unwrap());
        for content in &mut self.contents {
            content.saved = (content.delivered, content.seen);
        }
    }

    fn crash(&mut self) {
        if self.follower.take().is_none() {
            return;
        }
        for content in &mut self.contents {
            (content.delivered, content.seen) = content.saved;
            content.open = false;
            content.lost |= content.deleted || content.hidden && !content.seen;
        }
    }

    fn start(&mut self) -> Follower {
        self.caught_up = false;
        let saved = self.saved.as_ref().map(|text| serde_json::from_str::<Positions>(text).unwrap());
        Follower::open(&self.path, saved, Start::Beginning, self.now).unwrap()
    }

    fn read(&mut self, budget: usize) {
        let mut follower = self.follower.take().unwrap_or_else(|| self.start());
        // Of an empty file there is nothing to know it by again under another name.
        let is_known = |writer: &Writer| writer.file.metadata().unwrap().len() > 0;
        if let Some(writer) = &self.writer {
            let content = &mut self.contents[writer.content];
            content.seen |= !content.met && !content.regrown && is_known(writer);
            (content.open, content.met) = (true, true);
        }
        let due: Vec<usize> = self.contents.iter().map(|content| content.written).collect();
        let progress = follower.read(self.now, budget, &mut |line| {
            let text = String::from_utf8_lossy(line.text);
            let &(content, index) =
                self.lines.get(line.text).unwrap_or_else(|| panic!("nobody wrote {text}"));
            for (older, due) in self.contents[..content].iter().zip(&due) {
                assert!(older.lost || older.delivered >= *due, "{text} came before older lines");
            }
            let content = &mut self.contents[content];
            assert!(content.lost || content.delivered == index, "{text} is not the next line");
            assert!(content.delivered <= index, "{text} came twice");
            content.delivered = index + 1;
            content.seen = true;
            assert_eq!(line.fresh, self.caught_up);
        });
        self.follower = Some(follower);
        if !progress.more {
            self.caught_up = true;
            // What was put aside before it was ever seen is looked for when a file takes the name again.
            let named = self.writer.is_some();
            for content in self.contents.iter().filter(|content| !content.lost && (named || content.open)) {
                assert_eq!(content.delivered, content.written, "lines were left out");
            }
            if let Some(writer) = &self.writer {
                let content = &mut self.contents[writer.content];
                (content.seen, content.regrown) = (is_known(writer), false);
            }
        }
    }
}

#[test]
fn whatever_is_done_to_a_file_each_line_is_read_once_and_in_order() {
    const THREADS: u32 = 4;
    let (delivered, lost) = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|seed| scope.spawn(move || run(seed, 10_000 / THREADS))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    // Otherwise the model excuses too much.
    assert!(lost * 5 < delivered, "{delivered} lines were read and {lost} may be lost");
}

/// How many lines were delivered, and how many were not but are excused.
fn run(seed: u32, cases: u32) -> (usize, usize) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &[seed as u8 + 1; 16]);
    let (delivered, lost) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new_with_rng(config, rng).run(&actions(), |actions| {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path().to_owned());
        world.read(ALL);
        world.save();
        actions.into_iter().for_each(|action| world.act(action));
        world.write_line(0);
        world.read(ALL);
        for content in &world.contents {
            delivered.set(delivered.get() + content.delivered);
            lost.set(lost.get() + content.written - content.delivered);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    (delivered.get(), lost.get())
}
