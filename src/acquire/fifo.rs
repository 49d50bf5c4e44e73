//! A named pipe: made where it is missing, refused where others can write to it, opened again when it is replaced.

use std::fs::FileType;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::model::plain;

use super::splitter::Splitter;
use super::stream::{Kind, Left, look, take, waiting};
use super::tail::Reading;

pub(super) struct Fifo {
    path: PathBuf,
    open: Option<Open>,
}

struct Open {
    /// For reading and writing, so that it does not end when a writer goes: fifo(7).
    fd: OwnedFd,
    inode: (u64, u64),
    splitter: Splitter,
}

/// What a fifo holds before its writers wait; as much as anybody may ask for, see pipe(7).
const FIFO_BYTES: usize = 1 << 20;

impl Fifo {
    pub(super) fn new(path: &Path) -> Fifo {
        Fifo { path: path.to_owned(), open: None }
    }

    /// Opens what has the name, unless it is the one we know.
    fn open(&self) -> Result<Option<Open>, String> {
        let told = |error: Errno| plain(&io::Error::from(error));
        let mut found = look(&self.path, "fifo", FileType::is_fifo)?;
        if found.is_none() {
            rustix::fs::mknodat(CWD, &self.path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(|error| format!("it cannot be made: {}", told(error)))?;
            found = look(&self.path, "fifo", FileType::is_fifo)?;
        }
        let (handle, found) = found.ok_or("it vanished")?;
        let inode = (found.dev(), found.ino());
        if self.open.as_ref().is_some_and(|open| open.inode == inode) {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(told)?;
        // Less will do.
        let _ = rustix::pipe::fcntl_setpipe_size(&fd, FIFO_BYTES);
        Ok(Some(Open { fd, inode, splitter: Splitter::new(0) }))
    }
}

impl Kind for Fifo {
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String> {
        match self.open() {
            Ok(None) => {}
            Ok(Some(new)) => {
                // First the rest of the one that had the name; while it does not end, the new one waits.
                if let Some(old) = &mut self.open
                    && old.take(reading)? == Left::More
                {
                    return Ok(true);
                }
                self.open = Some(new);
            }
            Err(why) => {
                self.open = None;
                return Err(why);
            }
        }
        let Some(open) = &mut self.open else { return Ok(false) };
        Ok(open.take(reading)? == Left::More)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.open.iter().map(|open| open.fd.as_fd()).collect()
    }

    fn outlook(&self) -> Result<&'static str, String> {
        Ok(look(&self.path, "fifo", FileType::is_fifo)?.map_or("is not there yet, will be made", |_| "ok"))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn behind(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| waiting(&open.fd))
    }
}

impl Open {
    fn take(&mut self, reading: &mut Reading) -> Result<Left, String> {
        take(&self.fd, &mut self.splitter, reading).map_err(|error| plain(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions, Permissions};
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use super::*;
    use crate::acquire::place::Channel;
    use crate::acquire::stream::Stream;
    use crate::model::Timestamp;

    fn read(stream: &mut Stream) -> Vec<String> {
        let mut lines = Vec::new();
        let now = Timestamp::from_millis(0);
        let _ = stream.read(now, 1 << 20, &mut |line| {
            assert!(line.fresh);
            lines.push(String::from_utf8_lossy(line.text).into_owned());
        });
        lines
    }

    fn writer(path: &Path) -> File {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap()
    }

    fn fifo() -> (tempfile::TempDir, PathBuf, Stream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let stream = Stream::of(&Channel::Fifo(path.clone()), "fifo".to_owned());
        (dir, path, stream)
    }

    fn trouble(stream: &Stream) -> String {
        stream.trouble().map(|notice| notice.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_missing_fifo_is_made_for_nobody_else_and_outlives_its_writers() {
        let (_dir, path, mut stream) = fifo();
        assert_eq!(read(&mut stream), [""; 0]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        writer(&path).write_all(b"one\ntw").unwrap();
        assert_eq!(read(&mut stream), ["one"]);
        writer(&path).write_all(b"o\nthree\n").unwrap();
        assert_eq!(read(&mut stream), ["two", "three"]);
        assert_eq!(trouble(&stream), "");
    }

    #[test]
    fn a_fifo_that_is_replaced_is_read_to_its_end_and_then_the_new_one() {
        let (_dir, path, mut stream) = fifo();
        read(&mut stream);
        writer(&path).write_all(b"old\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&mut stream), ["old"]);
        writer(&path).write_all(b"new\n").unwrap();
        assert_eq!(read(&mut stream), ["new"]);
    }

    #[test]
    fn what_is_no_fifo_is_not_opened_and_waited_out() {
        let (dir, path, mut stream) = fifo();
        let other = dir.path().join("other");
        read(&mut Stream::of(&Channel::Fifo(other.clone()), String::new()));
        read(&mut stream);
        let mut put = |wanted: &str, make: &dyn Fn()| {
            let _ = fs::remove_file(&path);
            make();
            read(&mut stream);
            assert_eq!(trouble(&stream), format!("cannot read fifo: it is {wanted}, not a fifo"));
            assert!(stream.descriptors().is_empty());
        };
        put("a symbolic link", &|| std::os::unix::fs::symlink(&other, &path).unwrap());
        put("a symbolic link", &|| std::os::unix::fs::symlink("/dev/zero", &path).unwrap());
        put("a file", &|| fs::write(&path, "line\n").unwrap());
        put("a socket", &|| drop(std::os::unix::net::UnixDatagram::bind(&path).unwrap()));
        put("a directory", &|| fs::create_dir(&path).unwrap());
        fs::remove_dir(&path).unwrap();
        read(&mut stream);
        assert_eq!(trouble(&stream), "");
    }

    #[test]
    fn a_fifo_that_others_can_write_to_or_replace_is_not_read() {
        let (dir, path, mut stream) = fifo();
        read(&mut stream);
        let mut refused = |loose: &Path, bits: u32, wanted: &str| {
            let strict = fs::metadata(loose).unwrap().permissions();
            fs::set_permissions(loose, Permissions::from_mode(strict.mode() | bits)).unwrap();
            writer(&path).write_all(b"forged\n").unwrap();
            assert_eq!(read(&mut stream), [""; 0]);
            assert!(trouble(&stream).contains(wanted), "{}", trouble(&stream));
            fs::set_permissions(loose, strict).unwrap();
            assert_eq!(read(&mut stream), [""; 0], "what was written meanwhile went with the reader");
            writer(&path).write_all(b"ours\n").unwrap();
            assert_eq!(read(&mut stream), ["ours"]);
        };
        refused(&path, 0o002, "everybody may write to it");
        refused(dir.path(), 0o1002, "put another in its place");
    }

    #[test]
    fn a_fifo_of_somebody_else_is_not_read() {
        let (_dir, path, mut stream) = fifo();
        read(&mut stream);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            read(&mut stream);
            assert!(trouble(&stream).contains("it belongs to user 65534"), "{}", trouble(&stream));
        }
    }
}
