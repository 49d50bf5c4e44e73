//! Sockets where each datagram is one line: a Unix socket with a name, or UDP from this host.

use std::fs::{self, FileType, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::model::{Timestamp, plain};

use super::splitter::LINE_BYTES_MAX;
use super::stream::{Kind, look};
use super::tail::Reading;
use super::{Line, What};

pub(super) struct Datagram {
    at: At,
    socket: Option<Socket>,
    /// When to say again that strangers are refused.
    refuse_at: Timestamp,
}

enum At {
    Unix(PathBuf),
    Udp(SocketAddr),
}

struct Socket {
    fd: OwnedFd,
    /// Device and inode of its name, where it has one.
    name: Option<(u64, u64)>,
}

/// What UDP may hold for us until we read it; a unix socket makes its writers wait, see unix(7).
const BUFFER_BYTES: usize = 4 << 20;
/// What a datagram costs of the budget beside its bytes, so that small ones end a turn too.
const OVERHEAD_BYTES: usize = 64;

impl Datagram {
    pub(super) fn unix(path: &Path) -> Datagram {
        Datagram { at: At::Unix(path.to_owned()), socket: None, refuse_at: Timestamp::from_millis(0) }
    }

    pub(super) fn udp(address: SocketAddr) -> Datagram {
        Datagram { at: At::Udp(address), socket: None, refuse_at: Timestamp::from_millis(0) }
    }

    fn open(&mut self) -> Result<(), String> {
        let known = self.socket.as_ref();
        let new = match &self.at {
            At::Unix(path) => listen(path, known.and_then(|socket| socket.name)),
            At::Udp(address) if known.is_none() => bind(*address).map(Some),
            At::Udp(_) => Ok(None),
        };
        match new {
            Ok(None) => {}
            Ok(new) => self.socket = new,
            Err(why) => {
                self.socket = None;
                return Err(why);
            }
        }
        Ok(())
    }
}

impl Kind for Datagram {
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String> {
        self.open()?;
        let Some(socket) = &self.socket else { return Ok(false) };
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        while reading.left > 0 {
            let (count, from) = match rustix::net::recvfrom(&socket.fd, &mut reading.buffer[..], flags) {
                // What did not fit in the buffer is longer than a line may be.
                Ok((count, whole, _)) if whole > count => {
                    reading.left = reading.left.saturating_sub(whole + OVERHEAD_BYTES);
                    reading.progress.overlong += 1;
                    continue;
                }
                Ok((count, _, from)) => (count, from),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(plain(&error.into())),
            };
            reading.left = reading.left.saturating_sub(count + OVERHEAD_BYTES);
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            match from.filter(|from| !from.ip().is_loopback()) {
                None => deliver(reading, count),
                Some(from) if reading.now >= self.refuse_at => {
                    self.refuse_at = reading.now.plus(std::time::Duration::from_secs(60));
                    reading.notices.push(What::Stranger(from.ip()));
                }
                Some(_) => {}
            }
        }
        Ok(true)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.socket.iter().map(|socket| socket.fd.as_fd()).collect()
    }

    fn outlook(&self) -> Result<&'static str, String> {
        match &self.at {
            At::Udp(_) => Ok("ok"),
            At::Unix(path) => {
                Ok(look(path, "socket", FileType::is_socket)?
                    .map_or("is not there yet, will be made", |_| "ok"))
            }
        }
    }

    fn path(&self) -> Option<&Path> {
        match &self.at {
            At::Unix(path) => Some(path),
            At::Udp(_) => None,
        }
    }

    fn lost(&self) -> u64 {
        match (&self.at, &self.socket) {
            (At::Udp(address), Some(socket)) => drops(address, &socket.fd).unwrap_or(0),
            _ => 0,
        }
    }
}

/// A newline at the end belongs to nobody; within, it would let a client write a line of its own making.
fn deliver(reading: &mut Reading, count: usize) {
    let text = &mut reading.buffer[..count];
    let end = text.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    let text = &mut text[..end];
    text.iter_mut().filter(|byte| **byte == b'\n').for_each(|newline| *newline = b' ');
    reading.progress.bytes += count as u64;
    if text.len() > LINE_BYTES_MAX {
        reading.progress.overlong += 1;
    } else if !text.is_empty() {
        reading.progress.lines += 1;
        (reading.sink)(Line { text, fresh: reading.fresh, entry: None });
    }
}

fn told(error: Errno) -> String {
    plain(&error.into())
}

fn socket(family: AddressFamily) -> Result<OwnedFd, String> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::DGRAM, flags, None).map_err(told)
}

fn bind(address: SocketAddr) -> Result<Socket, String> {
    let fd = socket(if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 })?;
    // The first goes beyond net.core.rmem_max, and needs CAP_NET_ADMIN.
    if sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&fd, BUFFER_BYTES);
    }
    rustix::net::bind(&fd, &address).map_err(told)?;
    Ok(Socket { fd, name: None })
}

/// Listens under this name, unless we do. A socket that nobody listens at any more is replaced: the new one takes over
/// its group and what its group may do, so that an administrator need not say it again after each start.
fn listen(path: &Path, known: Option<(u64, u64)>) -> Result<Option<Socket>, String> {
    let old = look(path, "socket", FileType::is_socket)?.map(|(_, found)| found);
    if let Some(found) = &old {
        if known == Some((found.dev(), found.ino())) {
            return Ok(None);
        }
        let probe = UnixDatagram::unbound().map_err(|error| plain(&error))?;
        match probe.connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => return Err("another program listens there".to_owned()),
        }
        fs::remove_file(path).map_err(|error| plain(&error))?;
    }
    let fd = socket(AddressFamily::UNIX)?;
    // Its name gets the same mode, from its first moment on.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(told)?;
    let address = SocketAddrUnix::new(path).map_err(told)?;
    rustix::net::bind(&fd, &address).map_err(|error| format!("it cannot be made: {}", told(error)))?;
    if let Some(old) = old {
        std::os::unix::fs::lchown(path, None, Some(old.gid())).map_err(|error| plain(&error))?;
        fs::set_permissions(path, Permissions::from_mode(old.mode() & 0o770))
            .map_err(|error| plain(&error))?;
    }
    let found = fs::symlink_metadata(path).map_err(|error| plain(&error))?;
    Ok(Some(Socket { fd, name: Some((found.dev(), found.ino())) }))
}

/// The last column of /proc/net/udp, proc_net(5): datagrams that found the buffer full.
fn drops(address: &SocketAddr, fd: &OwnedFd) -> Option<u64> {
    let table = if address.is_ipv4() { "/proc/net/udp" } else { "/proc/net/udp6" };
    let inode = rustix::fs::fstat(fd).ok()?.st_ino.to_string();
    let table = fs::read_to_string(table).ok()?;
    let ours = table.lines().find(|line| line.split_whitespace().nth(9) == Some(&inode))?;
    ours.split_whitespace().nth(12)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::acquire::place::Channel;
    use crate::acquire::stream::Stream;

    /// The lines, and how many were too long.
    fn read(stream: &mut Stream) -> (Vec<String>, u64) {
        let mut lines = Vec::new();
        let progress = stream.read(Timestamp::from_millis(0), 1 << 20, &mut |line| {
            lines.push(String::from_utf8_lossy(line.text).into_owned());
        });
        assert_eq!(progress.lines, lines.len() as u64);
        (lines, progress.overlong)
    }

    fn unix() -> (tempfile::TempDir, PathBuf, Stream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.sock");
        let stream = Stream::of(&Channel::Unix(path.clone()), "unix".to_owned());
        (dir, path, stream)
    }

    fn send(path: &Path, text: &[u8]) {
        UnixDatagram::unbound().unwrap().send_to(text, path).unwrap();
    }

    fn trouble(stream: &Stream) -> String {
        stream.trouble().map(|notice| notice.to_string()).unwrap_or_default()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn each_datagram_is_one_line_whatever_is_in_it() {
        let (_dir, path, mut stream) = unix();
        read(&mut stream);
        assert_eq!(mode(&path), 0o600);
        for text in [&b"one"[..], b"two\n", b"three\r\n\0", b"", b"\n\0", b"four\n<38>five\n"] {
            send(&path, text);
        }
        send(&path, &[b'x'; LINE_BYTES_MAX]);
        send(&path, &[b'x'; LINE_BYTES_MAX + 1]);
        let (lines, overlong) = read(&mut stream);
        assert_eq!(lines[..4], ["one", "two", "three", "four <38>five"]);
        assert_eq!((lines[4].len(), lines.len(), overlong), (LINE_BYTES_MAX, 5, 1));
    }

    #[test]
    fn a_socket_that_nobody_listens_at_is_replaced_with_the_rights_of_its_group() {
        let (_dir, path, mut stream) = unix();
        drop(UnixDatagram::bind(&path).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        read(&mut stream);
        assert_eq!((trouble(&stream), mode(&path)), (String::new(), 0o660));
        fs::remove_file(&path).unwrap();
        read(&mut stream);
        send(&path, b"again");
        assert_eq!(read(&mut stream).0, ["again"]);
    }

    #[test]
    fn what_others_have_at_the_name_stays() {
        let (_dir, path, mut stream) = unix();
        let mut refused = |wanted: &str| {
            let inode = fs::symlink_metadata(&path).unwrap().ino();
            assert_eq!(read(&mut stream).0, [""; 0]);
            assert_eq!(trouble(&stream), format!("cannot read unix: {wanted}"));
            assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
        };
        let theirs = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        refused("another program listens there");
        drop(theirs);
        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        refused("another program listens there");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        refused("everybody may write to it, and could have anybody banned: take that away (chmod o-w)");
        drop(theirs);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        refused("it is a file, not a socket");
        fs::remove_file(&path).unwrap();
        read(&mut stream);
        assert_eq!(trouble(&stream), "");
    }

    #[test]
    fn udp_is_read_where_it_is_not_taken() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut stream = Stream::of(&Channel::Udp(address), "udp".to_owned());
        read(&mut stream);
        assert_eq!(trouble(&stream), "cannot read udp: address already in use");
        assert_eq!(stream.poll_timeout(), Some(Timestamp::from_millis(1_000)));
        drop(taken);
        read(&mut stream);
        assert_eq!(trouble(&stream), "");
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"<38>one\n", address).unwrap();
        assert_eq!(read(&mut stream).0, ["<38>one"]);
    }

    #[test]
    fn what_udp_dropped_is_counted_and_told_once_a_minute() {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut stream = Stream::of(&Channel::Udp(address), "udp".to_owned());
        read(&mut stream);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let flood =
            || (0..400).for_each(|_| assert_eq!(sender.send_to(&[b'x'; 60_000], address).unwrap(), 60_000));
        flood();
        let lost = stream.lost();
        assert!((1..400).contains(&lost), "{lost}");
        let mut got = 0;
        let mut notices = Vec::new();
        for now in [1_000, 2_000, 61_000] {
            let progress = stream.read(Timestamp::from_millis(now), usize::MAX, &mut |_| {});
            got += progress.lines;
            notices.extend(progress.notices.into_iter().map(|notice| (now, notice.what)));
            if now == 1_000 {
                assert_eq!(got + lost, 400);
                flood();
            }
        }
        assert_eq!(notices, [(1_000, What::Shed(lost)), (61_000, What::Shed(stream.lost() - lost))]);
    }
}
