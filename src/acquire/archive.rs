//! Old logs from their first line to their last: plain, gzip (RFC 1952) or Zstandard (RFC 8878), or standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::splitter::LINE_BYTES_MAX;
use crate::model::plain;

/// A log that is read once.
pub struct Archive {
    lines: Box<dyn BufRead>,
    taken: Arc<AtomicU64>,
    /// The size of the file as it lies on the disk, in bytes; none for standard input.
    pub size: Option<u64>,
}

/// Counts what is taken from the file itself, before it is unpacked.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Archive {
    /// Opens a log, or standard input for `-`. How it is packed is told by its first bytes, not by its name.
    ///
    /// # Errors
    /// What open(2) says, with the path, in words.
    pub fn open(path: &Path) -> Result<Archive, String> {
        let told = |error: io::Error| format!("cannot read {}: {}", path.display(), plain(&error));
        let taken = Arc::new(AtomicU64::new(0));
        if path == Path::new("-") {
            return Ok(Archive { lines: Box::new(io::stdin().lock()), taken, size: None });
        }
        let file = File::open(path).map_err(told)?;
        let size = Some(file.metadata().map_err(told)?.len());
        let mut raw = BufReader::with_capacity(1 << 16, Counted(file, taken.clone()));
        let head = raw.fill_buf().map_err(told)?;
        let lines: Box<dyn BufRead> = if head.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw)))
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let unpacked = StreamingDecoder::new(raw).map_err(|error| told(io::Error::other(error)))?;
            Box::new(BufReader::with_capacity(1 << 16, unpacked))
        } else {
            Box::new(raw)
        };
        Ok(Archive { lines, taken, size })
    }

    /// How many bytes of the file were taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Puts the next line into `line`, without its newline and carriage return; one that is too long to be looked
    /// at comes back empty, so that lines can still be counted. False at the end.
    pub fn next_line(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        let mut any = false;
        let mut overlong = false;
        loop {
            let chunk = self.lines.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            any = true;
            let (piece, used, ended) = match memchr::memchr(b'\n', chunk) {
                Some(at) => (&chunk[..at], at + 1, true),
                None => (chunk, chunk.len(), false),
            };
            overlong |= line.len() + piece.len() > LINE_BYTES_MAX;
            if !overlong {
                line.extend_from_slice(piece);
            }
            self.lines.consume(used);
            if ended {
                break;
            }
        }
        if overlong {
            line.clear();
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        let mut archive = Archive::open(&path).unwrap();
        let (mut line, mut all) = (Vec::new(), Vec::new());
        while archive.next_line(&mut line).unwrap() {
            all.push(String::from_utf8_lossy(&line).into_owned());
        }
        assert_eq!(archive.taken(), archive.size.unwrap());
        all
    }

    #[test]
    fn a_log_is_read_however_it_is_packed() {
        let text = b"one\r\n\ntwo\nlast";
        let wanted = ["one", "", "two", "last"];
        assert_eq!(lines(text), wanted);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        assert_eq!(lines(&gzip.finish().unwrap()), wanted);
        let zstd = ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(lines(&zstd), wanted);
    }

    #[test]
    fn an_overlong_line_is_one_empty_line() {
        let text = [&vec![b'x'; 3 * LINE_BYTES_MAX][..], b"\ngood\n"].concat();
        assert_eq!(lines(&text), ["", "good"]);
        let fits = vec![b'y'; LINE_BYTES_MAX];
        assert_eq!(lines(&fits)[0].len(), LINE_BYTES_MAX);
    }

    #[test]
    fn what_cannot_be_read_is_said_in_words() {
        let missing = Archive::open(Path::new("/nonexistent/log")).err().unwrap();
        assert_eq!(missing, "cannot read /nonexistent/log: no such file or directory");
    }
}
