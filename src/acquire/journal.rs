//! A journal is followed by a child of ours, journalctl(1), for all who want some of its entries.
//!
//! journald gathers changes before it tells of them: whoever follows a journal sees an entry 250 to 500 ms after it was
//! written (measured with systemd 252, and for any reader).

use std::env;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::export::{Export, Fields, Malformed, Pieces};
use super::journalmatch::Matches;
use super::place::Origin;
use super::{Line, Notice, Progress, SourceId, What};
use crate::model::{Timestamp, plain};

const JOURNALCTL: &str = "journalctl";
/// How long to wait before the child is started again: doubled each time until an entry comes.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(64);
const CHUNK_BYTES: usize = 64 * 1024;
/// So much of what the child complains about is kept, in bytes.
const COMPLAINT_BYTES_MAX: usize = 400;

/// How journalctl begins to say that a journal file is damaged where it would go on. It ends then.
const UNREADABLE: [&str; 2] = ["Failed to get ", "Failed to iterate "];

/// Begins a saved position whose entry is one of the source's own.
const OWN: &str = "+";

/// One source that is made of a journal's entries.
struct Want {
    id: SourceId,
    matches: Matches,
    /// The last entry that was looked at for it; none where it is to have the backlog.
    after: Option<Arc<Cursor>>,
    /// It was one of its own.
    is_own: bool,
    /// Entries are coming that are behind `after`.
    caught_up: bool,
}

/// Who gets what of the entries that come.
struct Wants {
    all: Vec<Want>,
    /// The only machine whose entries count; none where any does.
    machine: Option<String>,
    pieces: Pieces,
    /// The entry that is to come first; none once one came.
    first: Option<Arc<Cursor>>,
    /// Another came first.
    is_gap: bool,
    /// One came that nobody had read.
    is_new: bool,
}

/// One journal that is followed.
pub struct Journal {
    origin: Origin,
    wants: Wants,
    /// Older entries are not wanted by those who have read none yet.
    since: Timestamp,
    running: Option<Running>,
    retry_at: Option<Timestamp>,
    retry_after: Duration,
    /// So much is passed over, because there is an entry that cannot be read; doubled until others come.
    skip: Duration,
    /// What went wrong last, and nothing new came since.
    trouble: Option<String>,
}

struct Running {
    child: Child,
    export: Export,
    complaint: Vec<u8>,
}

impl Journal {
    /// A journal of which each of these wants what it names, behind its saved position, or from `since` on.
    pub fn open(
        origin: Origin,
        wants: Vec<(SourceId, Matches, Option<String>)>,
        since: Timestamp,
    ) -> Journal {
        let wants = wants.into_iter().map(|(id, matches, saved)| {
            let saved = saved.as_deref().unwrap_or_default();
            let (is_own, text) = saved.strip_prefix(OWN).map_or((false, saved), |text| (true, text));
            let after = Cursor::read(text).map(Arc::new);
            Want { id, matches, caught_up: after.is_none(), is_own, after }
        });
        let machine = match origin {
            Origin::Directory(_) => None,
            Origin::System | Origin::Namespace(_) => machine_id(),
        };
        Journal {
            origin,
            wants: Wants {
                all: wants.collect(),
                machine,
                pieces: Pieces::default(),
                first: None,
                is_gap: false,
                is_new: false,
            },
            since,
            running: None,
            retry_at: None,
            retry_after: RETRY_FIRST,
            skip: Duration::ZERO,
            trouble: None,
        }
    }

    /// What to wait for: readable when [`Journal::read`] has something to do.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let child = self.running.iter().map(|running| &running.child);
        child.flat_map(|child| {
            let out = child.stdout.as_ref().map(AsFd::as_fd);
            out.into_iter().chain(child.stderr.as_ref().map(AsFd::as_fd))
        })
    }

    /// Reads up to `budget` bytes, starting the child where none runs, and hands each entry to those who want it.
    pub fn read(
        &mut self,
        now: Timestamp,
        budget: usize,
        sink: &mut dyn FnMut(SourceId, Line<'_>),
    ) -> Progress {
        let mut progress = Progress::default();
        if self.running.is_none() && self.retry_at.is_none_or(|at| at <= now) {
            self.start(now, &mut progress);
        }
        let Some(running) = &mut self.running else { return progress };
        let ended = running.read(budget, &mut self.wants, &mut progress, sink);
        if std::mem::take(&mut self.wants.is_new) {
            self.retry_after = RETRY_FIRST;
            self.skip = Duration::ZERO;
            self.trouble = None;
        }
        if std::mem::take(&mut self.wants.is_gap) {
            progress.notices.push(self.notice(What::Gap));
        }
        if let Err(why) = ended {
            self.stop();
            if UNREADABLE.iter().any(|words| why.starts_with(words)) {
                self.skip = (self.skip * 2).max(self.retry_after);
                progress.notices.push(self.notice(What::Gap));
            }
            self.retry(now, format!("{JOURNALCTL} ended: {why}"), &mut progress);
        }
        progress
    }

    fn start(&mut self, now: Timestamp, progress: &mut Progress) {
        for want in &mut self.wants.all {
            want.caught_up = want.after.is_none();
        }
        let (seek, first) = self.seek();
        self.wants.first = first;
        let mut command = Command::new(JOURNALCTL);
        command.args(["--follow", "--output=export", "--all", "--no-tail", "--quiet", "--no-pager"]);
        // Without it the entries of earlier boots are left out, and nothing is read where the boot is not known.
        command.arg("--merge").args(self.origin.argument()).arg(seek);
        command.arg("--").args(Matches::arguments(self.wants.all.iter().map(|want| &want.matches)));
        command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path)));
        // It ends by itself when nobody is left to read what it writes.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn().and_then(Running::of) {
            Ok(running) => self.running = Some(running),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = format!("{JOURNALCTL} is not installed: it is in the package systemd");
                self.retry(now, why, progress);
            }
            Err(error) => self.retry(now, format!("{JOURNALCTL} cannot be run: {}", plain(&error)), progress),
        }
    }

    /// Where the child is to begin, and the entry that it must give first. That is the last one that was read, not the
    /// one after it: where it is gone, journalctl --after-cursor leaves out the one that stands in its place.
    fn seek(&self) -> (String, Option<Arc<Cursor>>) {
        let cursors: Option<Vec<&Arc<Cursor>>> =
            self.wants.all.iter().map(|want| want.after.as_ref()).collect();
        if self.skip.is_zero()
            && let Some([first, rest @ ..]) = cursors.as_deref()
            && rest.iter().all(|cursor| cursor == first)
        {
            let is_asked_for = self.wants.all.iter().any(|want| want.is_own);
            return (format!("--cursor={}", first.text), is_asked_for.then(|| Arc::clone(first)));
        }
        let known = self.wants.all.iter().filter_map(|want| want.after.as_ref()).map(|cursor| cursor.at);
        let backlog = cursors.is_none().then_some(self.since);
        let since = known.chain(backlog).min().unwrap_or(self.since).plus(self.skip);
        (format!("--since=@{}", since.as_millis().max(0) / 1_000), None)
    }

    fn retry(&mut self, now: Timestamp, why: String, progress: &mut Progress) {
        self.retry_at = Some(now.plus(self.retry_after));
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
        if self.trouble.as_ref() != Some(&why) {
            progress.notices.push(self.notice(What::Unreadable(why.clone())));
            self.trouble = Some(why);
        }
    }

    /// When to read though nothing came.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.retry_at.filter(|_| self.running.is_none())
    }

    /// Why it is not followed now, if it is not.
    pub fn trouble(&self) -> Option<Notice> {
        let why = self.trouble.clone().filter(|_| self.running.is_none())?;
        Some(self.notice(What::Unreadable(why)))
    }

    fn notice(&self, what: What) -> Notice {
        Notice { path: self.origin.to_string().into(), what }
    }

    /// How far it was read for each source, for [`Journal::open`].
    pub fn positions(&self) -> impl Iterator<Item = (SourceId, String)> {
        let own = |want: &Want| if want.is_own { OWN } else { "" };
        self.wants
            .all
            .iter()
            .filter_map(move |want| Some((want.id, format!("{}{}", own(want), want.after.as_ref()?.text))))
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn of(child: Child) -> io::Result<Running> {
        for pipe in [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)] {
            rustix::io::ioctl_fionbio(pipe.ok_or(io::ErrorKind::BrokenPipe)?, true)?;
        }
        Ok(Running { child, export: Export::default(), complaint: Vec::new() })
    }

    /// Reads up to `budget` bytes; `progress` says whether there is more.
    ///
    /// # Errors
    /// It ended, and why, in words.
    fn read(
        &mut self,
        budget: usize,
        wants: &mut Wants,
        progress: &mut Progress,
        sink: &mut dyn FnMut(SourceId, Line<'_>),
    ) -> Result<(), String> {
        self.listen();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut left = budget.max(1);
        while left > 0 {
            let Some(stdout) = &mut self.child.stdout else { return Ok(()) };
            match stdout.read(&mut buffer[..left.min(CHUNK_BYTES)]) {
                Ok(0) => return Err(self.end()),
                Ok(count) => {
                    left -= count;
                    progress.bytes += count as u64;
                    let fed =
                        self.export.feed(&buffer[..count], |entry| wants.hand_on(entry, progress, sink));
                    fed.map_err(|Malformed| "it wrote what cannot be understood".to_owned())?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(&error)),
            }
        }
        progress.more = true;
        Ok(())
    }

    /// Takes what it complains about. Only the last words are kept.
    fn listen(&mut self) {
        let Some(stderr) = &mut self.child.stderr else { return };
        let mut buffer = [0; COMPLAINT_BYTES_MAX];
        while let Ok(count) = stderr.read(&mut buffer) {
            if count == 0 {
                // Closed for good: it must not wake anybody again.
                self.child.stderr = None;
                return;
            }
            self.complaint.extend_from_slice(&buffer[..count]);
            let surplus = self.complaint.len().saturating_sub(COMPLAINT_BYTES_MAX);
            self.complaint.drain(..surplus);
        }
    }

    /// Its last words, or how it ended.
    fn end(&mut self) -> String {
        // Who closed the output and does not end is ended.
        let _ = self.child.kill();
        let status = self.child.wait();
        self.listen();
        let words = String::from_utf8_lossy(&self.complaint);
        let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
        match (last, status) {
            (Some(last), _) if last.contains("insufficient permissions") => {
                "it may not read the journal: the agent's user needs the group systemd-journal".to_owned()
            }
            (Some(last), _) => last.escape_debug().to_string(),
            (None, Ok(status)) => ExitStatus::to_string(&status),
            (None, Err(error)) => plain(&error),
        }
    }
}

impl Wants {
    /// Hands an entry to those who want it and have not had it.
    fn hand_on(
        &mut self,
        fields: &Fields,
        progress: &mut Progress,
        sink: &mut dyn FnMut(SourceId, Line<'_>),
    ) {
        let text = fields.get("__CURSOR").and_then(|text| std::str::from_utf8(text).ok());
        let Some(cursor) = text.and_then(Cursor::read).map(Arc::new) else { return };
        self.is_gap |= self.first.take().is_some_and(|first| first != cursor);
        let machine = self.machine.as_deref().map(str::as_bytes);
        let is_ours = machine.is_none() || fields.get("_MACHINE_ID") == machine;
        let entry = fields.entry(cursor.at).filter(|_| self.pieces.is_whole(fields));
        let mut is_missed = false;
        for want in &mut self.all {
            want.caught_up |= want.after.as_ref().is_none_or(|after| cursor.is_after(after));
            if !want.caught_up {
                continue;
            }
            want.after = Some(Arc::clone(&cursor));
            self.is_new = true;
            want.is_own = is_ours && want.matches.take(fields);
            if !want.is_own {
                continue;
            }
            match entry {
                Some(entry) => {
                    progress.lines += 1;
                    sink(want.id, Line { text: entry.message, fresh: true, entry: Some(entry) });
                }
                None => is_missed = fields.dropped > 0,
            }
        }
        progress.overlong += u64::from(is_missed);
    }
}

/// The place of an entry, as sd_journal_get_cursor(3) writes it.
#[derive(Clone, Debug)]
struct Cursor {
    text: String,
    /// Which numbering `number` belongs to.
    series: String,
    number: u64,
    boot: String,
    /// Microseconds since the boot.
    uptime: u64,
    at: Timestamp,
}

impl PartialEq for Cursor {
    fn eq(&self, other: &Cursor) -> bool {
        self.text == other.text
    }
}

impl Cursor {
    fn read(text: &str) -> Option<Cursor> {
        let part = |name: char| {
            let mut parts = text.split(';').filter_map(|part| part.split_once('='));
            parts.find(|(known, _)| known.chars().eq([name])).map(|(_, value)| value)
        };
        let number = |name| u64::from_str_radix(part(name)?, 16).ok();
        let micros = i64::try_from(number('t')?).ok()?;
        Some(Cursor {
            series: part('s')?.to_owned(),
            number: number('i')?,
            boot: part('b')?.to_owned(),
            uptime: number('m')?,
            at: Timestamp::from_millis(micros / 1_000),
            text: text.to_owned(),
        })
    }

    /// In the order in which the journal gives its entries.
    fn is_after(&self, other: &Cursor) -> bool {
        if self.series == other.series {
            self.number > other.number
        } else if self.boot == other.boot {
            self.uptime > other.uptime
        } else {
            self.at > other.at
        }
    }
}

/// Whether there is a journal, and somebody to read it: /var/log or /run/log as journald(8) fills them.
pub fn is_there(origin: &Origin) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    let mut readers = env::split_paths(&paths).map(|dir| dir.join(JOURNALCTL));
    let in_own =
        |name: String| ["/var/log/journal", "/run/log/journal"].map(|dir| Path::new(dir).join(name.clone()));
    let kept: Vec<PathBuf> = match (origin, machine_id()) {
        (Origin::Directory(path), _) => vec![path.clone()],
        (_, None) => Vec::new(),
        (Origin::System, Some(machine)) => in_own(machine).to_vec(),
        (Origin::Namespace(name), Some(machine)) => in_own(format!("{machine}.{name}")).to_vec(),
    };
    kept.iter().any(|dir| dir.is_dir()) && readers.any(|path| path.is_file())
}

/// machine-id(5); none where it is not set.
fn machine_id() -> Option<String> {
    let text = fs::read_to_string("/etc/machine-id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(series: &str, number: u64, boot: &str, uptime: u64, at: u64) -> Cursor {
        Cursor::read(&format!("s={series};i={number:x};b={boot};m={uptime:x};t={at:x};x=0")).unwrap()
    }

    #[test]
    fn cursors_are_in_the_order_of_the_journal() {
        let base = cursor("a", 16, "x", 500, 9_000_000);
        assert_eq!((base.number, base.uptime, base.at), (16, 500, Timestamp::from_millis(9_000)));
        assert!(cursor("a", 17, "y", 0, 0).is_after(&base) && !base.is_after(&base), "its number");
        assert!(cursor("b", 0, "x", 501, 0).is_after(&base), "then its boot's own clock");
        assert!(!cursor("b", 99, "x", 500, u64::MAX >> 1).is_after(&base));
        assert!(cursor("b", 0, "y", 0, 9_001_000).is_after(&base), "then the time");
        for text in ["", "x", "s=a;i=g;b=x;m=1;t=1", "s=a;i=1;b=x;m=1", "s=a;i=1;b=x;m=1;t=ffffffffffffffff"]
        {
            assert!(Cursor::read(text).is_none(), "{text}");
        }
    }

    /// What each of two sources gets of entries that come after `saved`.
    fn handed(saved: [Option<&Cursor>; 2], entries: &str) -> (Vec<String>, u64, bool) {
        let matches = |text: &str| text.parse::<Matches>().unwrap();
        let want = |id, text, after: Option<&Cursor>| Want {
            id: SourceId(id, 0),
            matches: matches(text),
            after: after.cloned().map(Arc::new),
            is_own: false,
            caught_up: after.is_none(),
        };
        let all = vec![want(0, "_UID=0", saved[0]), want(1, "_UID=0 + _UID=7", saved[1])];
        let first = saved[0].cloned().map(Arc::new);
        let mut wants = Wants {
            all,
            machine: Some("m".to_owned()),
            pieces: Pieces::default(),
            first,
            is_gap: false,
            is_new: false,
        };
        let mut progress = Progress::default();
        let mut got = Vec::new();
        let fed = Export::default().feed(entries.as_bytes(), |fields| {
            wants.hand_on(fields, &mut progress, &mut |id, line| {
                got.push(format!("{}:{}", id.0, String::from_utf8_lossy(line.text)));
            });
        });
        fed.unwrap();
        (got, progress.overlong, wants.is_gap)
    }

    fn text(number: u64, uid: u32, message: &str) -> String {
        let cursor = cursor("a", number, "x", number, number).text;
        format!("__CURSOR={cursor}\n_MACHINE_ID=m\n_UID={uid}\nMESSAGE={message}\n\n")
    }

    #[test]
    fn each_gets_what_it_wants_and_nothing_twice() {
        let all = [text(1, 0, "one"), text(2, 7, "two"), text(3, 0, "three"), text(4, 9, "four")].concat();
        assert_eq!(handed([None, None], &all).0, ["0:one", "1:one", "1:two", "0:three", "1:three"]);
        let one = cursor("a", 1, "x", 1, 1);
        let got = ["1:one", "1:two", "0:three", "1:three"].map(str::to_owned).to_vec();
        assert_eq!(handed([Some(&one), None], &all), (got, 0, false));
        let (got, _, is_gap) = handed([Some(&one), Some(&one)], &text(3, 0, "three"));
        assert!(got.len() == 2 && is_gap, "what was to come first is gone");
        let foreign = text(5, 0, "five").replace("_MACHINE_ID=m", "_MACHINE_ID=other");
        assert!(handed([None, None], &foreign).0.is_empty(), "of another machine");
    }

    #[test]
    fn a_message_that_is_too_long_is_counted_once_where_somebody_wanted_it() {
        let long = "x".repeat(super::super::splitter::LINE_BYTES_MAX + 1);
        let (got, overlong, _) =
            handed([None, None], &(text(1, 0, &long) + &text(2, 9, &long) + &text(3, 7, "fine")));
        assert_eq!((got, overlong), (vec!["1:fine".to_owned()], 1));
    }
}
