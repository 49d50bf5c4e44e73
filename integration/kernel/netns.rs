//! A network namespace for each test, the real `nft` inside it, and what the tests have in common.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nftjail::model::{
    Ban, Bantime, Block, Cell, Change, Hook, JailName, Knock, Layout, Ports, Protocol, Target, Timestamp,
};
use nftjail::nft::netlink::Netlink;
use nftjail::nft::table::{Standing, Table};
use nftjail::nft::transaction::Transaction;
use nftjail::nft::{Firewall, plan};
use regex::Regex;
use serde_json::Value;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs the test on a thread of its own in a new network namespace; both end with it.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a new network namespace leaves memory and file descriptors as they are.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("run these tests as root");
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What a command in this thread's namespace prints; it must succeed.
pub fn run(command: &[&str]) -> String {
    feed(command, "").unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// As `run`, with input; a failing command's complaint is the error.
pub fn feed(command: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("it is piped");
    thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).map_err(|error| error.to_string())?),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    })
}

pub const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub const LIST: [&str; 5] = ["nft", "list", "table", "inet", "nftjail"];

pub fn jail(name: &str) -> JailName {
    name.parse().unwrap()
}

pub fn cell(name: &str, ports: &[(Protocol, u16)], capacity: u32) -> Cell {
    let ports = if ports.is_empty() { Ports::All } else { Ports::Some(ports.iter().copied().collect()) };
    Cell {
        jail: jail(name),
        ports,
        block: Block::Drop,
        hooks: [Hook::Prerouting].into(),
        capacity,
        knock: Knock::default(),
    }
}

/// The jails of `layout.nft`.
pub fn layout() -> Layout {
    use Protocol::Tcp;
    let cells = vec![
        cell("sshd", &[(Tcp, 22)], 1 << 20),
        cell("web", &[(Tcp, 80), (Tcp, 443)], 1 << 20),
        cell("recidive", &[], 1 << 20),
    ];
    Layout { cells, owned: false, never: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()] }
}

pub fn ban(name: &str, addr: &str, seconds: u64) -> Change {
    let bantime = if seconds == 0 { Bantime::Forever } else { Bantime::For(Duration::from_secs(seconds)) };
    Change::Ban(Ban { jail: jail(name), target: target(addr), at: NOW, bantime })
}

pub fn release(name: &str, addr: &str) -> Change {
    Change::Release { jail: jail(name), target: target(addr) }
}

pub fn target(text: &str) -> Target {
    text.parse().unwrap()
}

/// `count` different addresses, each banned by sshd for an hour.
pub fn many(count: u32) -> Vec<Change> {
    let addr = |index: u32| IpAddr::V4((0x0a00_0000 + index).into()).to_string();
    (0..count).map(|index| ban("sshd", &addr(index), 3_600)).collect()
}

pub fn installed(layout: &Layout) -> Netlink {
    let mut netlink = Netlink::open().unwrap();
    install(&mut netlink, layout, &[]);
    netlink
}

/// Installs over what is there, and checks that a second time nothing is left to do.
pub fn install(netlink: &mut Netlink, layout: &Layout, standing: &[Standing]) {
    let found = netlink.table(true).unwrap();
    netlink.commit(&plan::install(layout, found.as_ref(), standing)).unwrap();
    let found = netlink.table(true).unwrap();
    assert_eq!(plan::install(layout, found.as_ref(), standing), Transaction::default());
}

pub fn apply(netlink: &mut Netlink, changes: &[Change]) {
    netlink.commit(&plan::apply(changes, NOW)).unwrap();
}

pub fn remaining(netlink: &mut Netlink, name: &str, addr: &str) -> Option<Standing> {
    netlink.remaining(&jail(name), target(addr)).unwrap()
}

pub fn left(netlink: &mut Netlink, name: &str, addr: &str) -> Duration {
    remaining(netlink, name, addr).expect("it is banned").expires.expect("for a time")
}

/// Time left, as the kernel's clock has moved on since it was set.
pub fn assert_about(left: Duration, seconds: u64) {
    let whole = Duration::from_secs(seconds);
    assert!(left <= whole && left + Duration::from_secs(1) >= whole, "{left:?} is not about {seconds} s");
}

pub fn masked(listing: &str) -> String {
    let expires = Regex::new("expires [0-9dhms]+").unwrap();
    expires.replace_all(listing, "expires *").into_owned()
}

/// What `nft -j` lists, without what differs from one programming to the next.
pub fn listed_objects() -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(strip),
            Value::Object(fields) => {
                for volatile in ["handle", "expires", "metainfo"] {
                    fields.remove(volatile);
                }
                fields.values_mut().for_each(strip);
            }
            _ => {}
        }
    }
    let mut objects = serde_json::from_str(&run(&["nft", "-j", "list", "table", "inet", "nftjail"])).unwrap();
    strip(&mut objects);
    objects
}

/// The table reads back, prints as nft prints it, and nft loads what it printed.
pub fn assert_prints_as_nft_does(netlink: &mut Netlink) -> Table {
    let listing = run(&LIST);
    let table = netlink.table(true).unwrap().unwrap();
    assert_eq!(masked(&table.to_string()), masked(&listing));
    feed(&["nft", "-c", "-f", "-"], &listing).unwrap();
    let again = in_namespace(|| {
        feed(&["nft", "-f", "-"], &listing).unwrap();
        run(&LIST)
    });
    assert_eq!(masked(&again), masked(&listing));
    table
}
