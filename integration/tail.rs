//! Following a file: random actions of writers and rotators against a model of what must be read.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nftjail::acquire::file::{Follower, QUIET, Start};
use nftjail::acquire::identity::Position;
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
    /// Only once everything is read: what is unread then is lost, whoever reads.
    CopyTruncate,
    /// Likewise; and at once there is more in it than there was.
    TruncateAndRegrow(usize),
    Delete,
    DeleteAndCreate,
    ReplaceByRename,
    DeleteRotated,
    Wait(u64),
    Read(usize),
    /// Until the next read.
    Stop,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let length = prop_oneof![0..20_usize, 0..600_usize];
    let action = prop_oneof![
        12 => length.clone().prop_map(Action::WriteLine),
        2 => length.clone().prop_map(Action::WritePart),
        3 => prop::bool::ANY.prop_map(|lingering| Action::Rotate { lingering }),
        3 => length.clone().prop_map(Action::WriteLateLine),
        1 => length.clone().prop_map(Action::WriteLatePart),
        1 => Just(Action::MoveAway),
        1 => Just(Action::MoveBack),
        1 => Just(Action::CopyTruncate),
        1 => length.prop_map(Action::TruncateAndRegrow),
        1 => Just(Action::Delete),
        1 => Just(Action::DeleteAndCreate),
        1 => Just(Action::ReplaceByRename),
        1 => Just(Action::DeleteRotated),
        1 => (0..400_u64).prop_map(Action::Wait),
        8 => (1..400_usize).prop_map(Action::Read),
        6 => Just(Action::Read(ALL)),
        2 => Just(Action::Stop),
    ];
    prop::collection::vec(action, 1..40)
}

/// What was written to one file between its creation, or truncation, and its end.
#[derive(Default)]
struct Content {
    written: usize,
    delivered: usize,
    /// It began with a truncation.
    regrown: bool,
    /// The follower has it open.
    open: bool,
    /// The follower has looked at it, so that it is among the saved positions.
    seen: bool,
    deleted: bool,
    /// The follower cannot be asked for what is left of it.
    lost: bool,
}

struct Writer {
    file: File,
    content: usize,
    part: String,
}

struct World {
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
    rotated: Option<(PathBuf, usize)>,
    follower: Option<Follower>,
    saved: Option<String>,
    caught_up: bool,
}

impl World {
    fn new(dir: PathBuf) -> Self {
        World {
            path: dir.join("app.log"),
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
                self.leave(writer.content, false);
                self.away = Some(writer);
            }
            Action::MoveBack => {
                let Some(writer) = self.away.take_if(|_| self.writer.is_none()) else { return };
                fs::rename(self.dir.join("app.log.away"), &self.path).unwrap();
                self.contents[writer.content].lost &= self.contents[writer.content].seen;
                self.writer = Some(writer);
            }
            Action::CopyTruncate => {
                if self.writer.is_some() {
                    self.read_all();
                    let copy = self.new_name();
                    fs::copy(&self.path, copy).unwrap();
                    self.truncate();
                }
            }
            Action::TruncateAndRegrow(length) => {
                if let Some(writer) = &self.writer {
                    let size = writer.file.metadata().unwrap().len();
                    self.read_all();
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
                self.leave(content, true);
            }
            Action::Wait(seconds) => self.now = self.now.plus(Duration::from_secs(seconds)),
            Action::Read(budget) => self.read(budget),
            Action::Stop => self.stop(),
        }
    }

    /// The writer of the followed name, which creates the file where there is none.
    fn take_writer(&mut self) -> Writer {
        self.writer.take().unwrap_or_else(|| {
            // What is moved away now is not given its name back once another file has had it.
            if self.away.take().is_some() {
                fs::rename(self.dir.join("app.log.away"), self.new_name()).unwrap();
            }
            let path = self.path.clone();
            self.create(&path)
        })
    }

    fn create(&mut self, path: &Path) -> Writer {
        self.contents.push(Content::default());
        let file = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        Writer { file, content: self.contents.len() - 1, part: String::new() }
    }

    fn new_name(&mut self) -> PathBuf {
        self.names += 1;
        self.dir.join(format!("app.log.{}", self.names))
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
        self.leave(writer.content, false);
        self.rotated = Some((name, writer.content));
        self.lingering = lingering.then_some((writer, self.now.plus(QUIET)));
        self.writer = Some(self.take_writer());
    }

    fn delete(&mut self) {
        if let Some(writer) = self.writer.take() {
            fs::remove_file(&self.path).unwrap();
            self.leave(writer.content, true);
        }
    }

    fn replace(&mut self) {
        let new = self.dir.join("new");
        let mut replacement = self.create(&new);
        self.write(&mut replacement, 10);
        if let Some(writer) = self.writer.take() {
            self.leave(writer.content, true);
        }
        if self.away.take().is_some() {
            fs::rename(self.dir.join("app.log.away"), self.new_name()).unwrap();
        }
        fs::rename(new, &self.path).unwrap();
        self.writer = Some(replacement);
    }

    fn truncate(&mut self) {
        let writer = self.writer.as_mut().unwrap();
        writer.file.set_len(0).unwrap();
        writer.content = self.contents.len();
        writer.part.clear();
        self.contents.push(Content { regrown: true, open: true, ..Content::default() });
    }

    /// A file loses the followed name, or the name it was rotated to.
    fn leave(&mut self, content: usize, deleted: bool) {
        self.lingering = None;
        let running = self.follower.is_some();
        let content = &mut self.contents[content];
        content.deleted |= deleted;
        content.lost |= !(content.seen || content.open) || (deleted && !running);
    }

    fn stop(&mut self) {
        let Some(follower) = self.follower.take() else { return };
        self.saved = Some(serde_json::to_string(&follower.positions().unwrap()).unwrap());
        let named = self.writer.as_ref().map(|writer| writer.content);
        for (index, content) in self.contents.iter_mut().enumerate() {
            content.open = false;
            content.lost |= content.deleted || (!content.seen && named != Some(index));
        }
    }

    fn start(&mut self) -> Follower {
        self.caught_up = false;
        let saved = self.saved.take().map(|text| serde_json::from_str::<Vec<Position>>(&text).unwrap());
        Follower::open(&self.path, saved, Start::Beginning, self.now).unwrap()
    }

    fn read_all(&mut self) {
        self.read(ALL);
    }

    fn read(&mut self, budget: usize) {
        let mut follower = self.follower.take().unwrap_or_else(|| self.start());
        if let Some(writer) = &self.writer {
            let content = &mut self.contents[writer.content];
            content.open = true;
            content.seen |= !content.regrown;
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
            for content in self.contents.iter().filter(|content| !content.lost) {
                assert_eq!(content.delivered, content.written, "lines were left out");
            }
            if let Some(writer) = &self.writer {
                self.contents[writer.content].seen = true;
            }
        }
    }
}

#[test]
fn whatever_is_done_to_a_file_each_line_is_read_once_and_in_order() {
    let config = Config { cases: 10_000, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::XorShift);
    let delivered = Cell::new(0);
    let lost = Cell::new(0);
    let result = TestRunner::new_with_rng(config, rng).run(&actions(), |actions| {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path().to_owned());
        world.read_all();
        actions.into_iter().for_each(|action| world.act(action));
        world.read_all();
        for content in &world.contents {
            delivered.set(delivered.get() + content.delivered);
            lost.set(lost.get() + content.written - content.delivered);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Otherwise the model excuses too much.
    let (delivered, lost) = (delivered.get(), lost.get());
    assert!(lost * 5 < delivered, "{delivered} lines were read and {lost} may be lost");
}
