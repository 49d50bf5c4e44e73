//! Where lines come from, as people write it.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::NFLOG_GROUP;
use crate::yaml;

use super::glob::{Glob, is_wild};
use super::journalmatch::Matches;

/// One source of lines. What it prints as is its name: in the status, and for what is saved of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file that is followed through rotation.
    File(PathBuf),
    /// All files that match a pattern, as they come and go.
    Glob(Glob),
    /// Those entries of a journal.
    Journal(Origin, Matches),
    /// What gives each line only once, to whoever reads it.
    Stream(Channel),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// A named pipe, fifo(7).
    Fifo(PathBuf),
    /// A Unix datagram socket of this name, at which we listen.
    Unix(PathBuf),
    /// Datagrams to this loopback address.
    Udp(SocketAddr),
    /// Packets that rules of the firewall tell this group of NFLOG.
    Nflog(u16),
    /// Our standard input; only the command line can ask for it.
    Stdin,
    /// What a program prints: its name and its arguments, for no shell to read.
    Command(Vec<String>),
}

/// The words that stand before a colon.
const KINDS: [&str; 4] = ["fifo", "nflog", "udp", "unix"];
/// The longest name of a socket, in bytes: unix(7).
const SOCKET_BYTES_MAX: usize = 107;

impl Place {
    /// The file of this place, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Place::File(path) => Some(path),
            Place::Glob(_) | Place::Journal(..) | Place::Stream(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Glob(glob) => glob.fmt(f),
            Place::Journal(origin, matches) => write!(f, "{origin} ({matches})"),
            Place::Stream(channel) => channel.fmt(f),
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Fifo(path) => write!(f, "fifo:{}", path.display()),
            Channel::Unix(path) => write!(f, "unix:{}", path.display()),
            Channel::Udp(address) => write!(f, "udp:{address}"),
            Channel::Nflog(group) => write!(f, "nflog:{group}"),
            Channel::Stdin => f.write_str("stdin"),
            Channel::Command(argv) => write!(f, "command:{}", argv.join(" ")),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    /// A path, or a kind and a colon before what it is called. A file with a colon in its name has a slash before it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) if !kind.contains('/') => (kind, rest),
            _ if matches!(text, "stdin" | "-") => {
                return Err(
                    "only the command line can ask for it: nftjail run --stdin --jail NAME".to_owned()
                );
            }
            _ if is_wild(text) => return Glob::parse(text).map(Place::Glob),
            _ => return Ok(Place::File(text.into())),
        };
        match kind {
            "fifo" => absolute(kind, rest).map(|path| Place::Stream(Channel::Fifo(path))),
            "unix" if rest.len() > SOCKET_BYTES_MAX => Err(format!(
                "the name of a socket can have {SOCKET_BYTES_MAX} bytes, this has {}",
                rest.len()
            )),
            "unix" => absolute(kind, rest).map(|path| Place::Stream(Channel::Unix(path))),
            "nflog" => match rest.parse() {
                Ok(group) => Ok(Place::Stream(Channel::Nflog(group))),
                Err(_) => Err(NFLOG_GROUP.to_owned()),
            },
            "udp" => loopback(rest).map(|address| Place::Stream(Channel::Udp(address))),
            _ => Err(yaml::unknown("kind of source", kind, &KINDS)),
        }
    }
}

fn absolute(kind: &str, path: &str) -> Result<PathBuf, String> {
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("{kind}: wants a path from the root, as {kind}:/run/nftjail/log")),
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err("a port is from 1 to 65535".to_owned()),
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(address) => Err(format!(
            "{} can be reached from other hosts, and whoever sends a line can have anybody banned: write 127.0.0.1 or [::1]",
            address.ip()
        )),
        Err(_) => Err("udp: wants an address of this host and a port, as udp:127.0.0.1:5514".to_owned()),
    }
}

/// Which journal is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// That of this machine.
    #[default]
    System,
    /// A namespace of it: `LogNamespace=` in systemd.exec(5).
    Namespace(String),
    /// The journal files of this folder, whichever machine wrote them.
    Directory(PathBuf),
}

impl Origin {
    /// How journalctl(1) is told.
    pub fn argument(&self) -> Option<String> {
        match self {
            Origin::System => None,
            Origin::Namespace(name) => Some(format!("--namespace={name}")),
            Origin::Directory(path) => Some(format!("--directory={}", path.display())),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::System => f.write_str("journal"),
            Origin::Namespace(name) => write!(f, "journal {name}"),
            Origin::Directory(path) => write!(f, "journal {}", path.display()),
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    /// `system`, a folder from the root, or the name of a namespace.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
        match text {
            "system" => Ok(Origin::System),
            path if path.starts_with('/') => Ok(Origin::Directory(path.into())),
            name if !name.is_empty() && name.bytes().all(is_name) => Ok(Origin::Namespace(name.to_owned())),
            _ => Err(format!(
                "\"{text}\" is no journal: write system, a namespace, or a folder: /var/log/journal"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_prints_as_it_is_written() {
        for text in [
            "/var/log/auth.log",
            "/var/log/*/access.log",
            "./odd:name",
            "fifo:/run/nftjail/log",
            "unix:/run/a",
            "udp:127.0.0.1:514",
            "udp:[::1]:514",
            "nflog:5",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("./odd:name".parse::<Place>().unwrap().file(), Some(Path::new("./odd:name")));
    }

    #[test]
    fn a_place_that_cannot_be_is_told_with_what_to_write() {
        for (text, wanted) in [
            ("fifi:/run/x", "unknown kind of source \"fifi\": did you mean fifo?"),
            ("tcp:127.0.0.1:514", "unknown kind of source \"tcp\": there are fifo, nflog, udp, unix"),
            ("fifo:x", "fifo: wants a path from the root, as fifo:/run/nftjail/log"),
            ("unix:log.sock", "unix: wants a path from the root, as unix:/run/nftjail/log"),
            ("udp:localhost:514", "udp: wants an address of this host and a port, as udp:127.0.0.1:5514"),
            ("nflog:70000", "a group of nflog is a number from 0 to 65535, as nflog:5"),
            ("udp:127.0.0.1:0", "a port is from 1 to 65535"),
            (
                "udp:0.0.0.0:514",
                "0.0.0.0 can be reached from other hosts, and whoever sends a line can have anybody banned: write \
                 127.0.0.1 or [::1]",
            ),
            ("stdin", "only the command line can ask for it: nftjail run --stdin --jail NAME"),
        ] {
            assert_eq!(text.parse::<Place>().unwrap_err(), wanted);
        }
    }
}
