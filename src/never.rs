//! Whom no jail bans, from every source: what `ignoreip` lists, its files and names, and what this host stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::{self, Metadata};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use crate::host;
use crate::model::plain;
use crate::yaml::Fault;

/// One entry of `ignoreip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An address, a network, or a range as the networks it consists of.
    Nets(Vec<IpNet>),
    /// What it stands for is found elsewhere, and may change.
    Of(Source),
}

/// Where an entry has its networks from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A file with an address, a network or a range on each line; `#` and `;` begin a comment.
    File(PathBuf),
    /// The name of a host.
    Name(String),
}

/// What a source says now, or why it says nothing.
pub type News = (Source, Result<Vec<IpNet>, String>);

/// A larger list is a mistake: it would not fit into a kernel set within a second.
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILE_NETS_MAX: usize = 100_000;
/// So many faults of one file are told.
const FAULTS_MAX: usize = 10;
/// So many addresses of one name are taken: whoever answers for it must not spare the world.
const NAME_ADDRESSES_MAX: usize = 64;
/// A file is read when it was the same in two looks, so that none is read while it is written.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_UP_EVERY: Duration = Duration::from_secs(300);
/// So long the agent waits at its start for names to be looked up.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(2);

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Entry::Of(Source::File(path))),
                false => {
                    Err(format!("\"{text}\" does not name a file from the root: write file:/path/to/it"))
                }
            };
        }
        match nets(text) {
            Err(_) if is_name(text) => Ok(Entry::Of(Source::Name(text.to_ascii_lowercase()))),
            Err(why) => Err(why),
            Ok(nets) => Ok(Entry::Nets(nets)),
        }
    }
}

impl Entry {
    /// What it is where it does not say so itself: `file:/path` or the name of a host.
    pub fn elsewhere(&self) -> Option<String> {
        match self {
            Entry::Nets(_) => None,
            Entry::Of(Source::File(path)) => Some(format!("file:{}", path.display())),
            Entry::Of(Source::Name(name)) => Some(name.clone()),
        }
    }

    /// The file that it names, if it names one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Entry::Of(Source::File(path)) => Some(path),
            _ => None,
        }
    }
}

/// The networks of an address, of a network, or of a range such as `192.0.2.10-192.0.2.20`.
fn nets(text: &str) -> Result<Vec<IpNet>, String> {
    let addr = |text: &str| text.trim().parse::<IpAddr>().ok();
    if let Some((first, last)) = text.split_once('-')
        && let Some(first) = addr(first)
    {
        let last = addr(last).ok_or_else(|| format!("\"{text}\" is a range without a last address"))?;
        return range(first, last)
            .ok_or_else(|| format!("\"{text}\" does not go from a lower address to a higher"));
    }
    match net(text) {
        Ok(net) => Ok(vec![net]),
        Err(why) if text.contains('/') => Err(why),
        Err(why) => Err(why + ", nor a range such as 192.0.2.10-192.0.2.20"),
    }
}

/// An address or a network; an IPv4 address in IPv6 clothes counts as what it is.
pub fn net(text: &str) -> Result<IpNet, String> {
    let addr = || text.trim().parse::<IpAddr>().ok().map(|addr| IpNet::from(addr.to_canonical()));
    let net = text.parse::<IpNet>().ok().or_else(addr);
    let net =
        net.ok_or_else(|| format!("\"{text}\" is neither an address nor a network such as 192.0.2.0/24"))?;
    match net.trunc() == net {
        true => Ok(net),
        false => Err(format!("{net} has bits beyond its prefix: write {}", net.trunc())),
    }
}

fn range(first: IpAddr, last: IpAddr) -> Option<Vec<IpNet>> {
    let subnets = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            IpSubnets::from(Ipv4Subnets::new(first, last, 0))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            IpSubnets::from(Ipv6Subnets::new(first, last, 0))
        }
        _ => return None,
    };
    Some(subnets.collect())
}

/// Whether this can name a host (RFC 1123, 2.1). What ends in a number or a single letter is a mistyped address.
fn is_name(text: &str) -> bool {
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(fits)
        && last.len() > 1
        && last.starts_with(|first: char| first.is_ascii_alphabetic())
}

/// The networks that a file lists, or all that is wrong with it.
pub fn read(path: &Path) -> Result<Vec<IpNet>, Vec<Fault>> {
    let name = path.display().to_string();
    let whole = |why: String| vec![Fault::whole(&name, why)];
    let unreadable = |error: io::Error| whole(format!("cannot be read: {}", plain(&error)));
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(whole("is not a file".to_owned()));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(whole(format!("is larger than {} KiB", FILE_BYTES_MAX >> 10)));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| whole("is not UTF-8 text".to_owned()))?;
    list(&name, &text)
}

fn list(file: &str, text: &str) -> Result<Vec<IpNet>, Vec<Fault>> {
    let (mut listed, mut faults) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let entry = line.split(['#', ';']).next().unwrap_or_default();
        let start = entry.len() - entry.trim_start().len();
        if entry.trim().is_empty() {
            continue;
        }
        match nets(entry.trim()) {
            Ok(more) => listed.extend(more),
            Err(message) => faults.push(Fault {
                file: file.to_owned(),
                line: number,
                column: start + 1,
                message,
                source: line.to_owned(),
            }),
        }
        if listed.len() > FILE_NETS_MAX {
            faults.push(Fault::whole(file, format!("lists more than {FILE_NETS_MAX} networks")));
        }
        if faults.len() == FAULTS_MAX || listed.len() > FILE_NETS_MAX {
            break;
        }
    }
    if faults.is_empty() { Ok(IpNet::aggregate(&listed)) } else { Err(faults) }
}

/// The addresses that a name has now. It may take half a minute.
fn look_up(name: &str) -> Result<Vec<IpNet>, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| plain(&error))?;
    let addresses: BTreeSet<IpNet> =
        found.map(|found| IpNet::from(found.ip().to_canonical())).take(NAME_ADDRESSES_MAX).collect();
    match addresses.is_empty() {
        true => Err("the name has no address".to_owned()),
        false => Ok(addresses.into_iter().collect()),
    }
}

/// What files and names are known to stand for. The last good word is kept until there is a better one.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<Source, Kept>);

#[derive(Clone, Debug, Default)]
struct Kept {
    nets: Vec<IpNet>,
    trouble: Option<String>,
    /// Whether it was asked at all.
    heard: bool,
}

impl Known {
    /// Reads the files that these entries name. Names are looked up later, by [`Watch`].
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Known {
        let mut known = Known::default();
        for entry in entries {
            let Entry::Of(source) = entry else { continue };
            known.0.insert(source.clone(), Kept::default());
            if let Source::File(path) = source {
                known.learn((source.clone(), read(path).map_err(first_fault)));
            }
        }
        known
    }

    /// The networks of these entries, as far as they are known.
    pub fn nets(&self, entries: &[Entry]) -> Vec<IpNet> {
        let nets = entries.iter().flat_map(|entry| match entry {
            Entry::Nets(nets) => nets.as_slice(),
            Entry::Of(source) => self.0.get(source).map_or(&[][..], |kept| &kept.nets),
        });
        nets.copied().collect()
    }

    /// Takes in what a source says. True where that is something else than before.
    pub fn learn(&mut self, (source, told): News) -> bool {
        // Somebody may still speak of what an earlier configuration named.
        let Some(kept) = self.0.get_mut(&source) else { return false };
        kept.heard = true;
        match told {
            Ok(nets) => {
                kept.trouble = None;
                let changed = nets != kept.nets;
                kept.nets = nets;
                changed
            }
            Err(why) => {
                let place = match &source {
                    Source::File(path) => path.display().to_string(),
                    Source::Name(name) => name.clone(),
                };
                let still = if kept.nets.is_empty() { "" } else { "; what it said before holds on" };
                let trouble = format!("never banned: {place}: {why}{still}");
                if kept.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("{trouble}");
                }
                kept.trouble = Some(trouble);
                false
            }
        }
    }

    /// Takes over what is known of names already.
    pub fn inherit(&mut self, older: &Known) {
        for (source, kept) in &mut self.0 {
            if let (Source::Name(_), Some(old)) = (source, older.0.get(source)) {
                *kept = old.clone();
            }
        }
    }

    pub fn troubles(&self) -> impl Iterator<Item = &String> {
        self.0.values().filter_map(|kept| kept.trouble.as_ref())
    }
}

/// Without the file's name, which is told already.
fn first_fault(faults: Vec<Fault>) -> String {
    let told = |fault: &Fault| match fault.line {
        0 => fault.message.clone(),
        line => format!("line {line}: {}", fault.message),
    };
    faults.first().map(told).unwrap_or_default()
}

/// Looks at files and looks names up, on a thread for each kind, and only where there are any: neither a slow
/// disk nor a slow resolver comes between a line and a ban.
pub struct Watch {
    news: UnboundedReceiver<News>,
    /// The threads end when these go.
    _stay: Vec<Sender<Infallible>>,
}

impl Watch {
    pub fn over(known: &Known) -> Watch {
        let (tell, news) = unbounded_channel();
        let (mut files, mut names) = (Vec::new(), Vec::new());
        for source in known.0.keys() {
            match source {
                Source::File(path) => files.push(path.clone()),
                Source::Name(name) => names.push(name.clone()),
            }
        }
        let mut stay = Vec::new();
        if !files.is_empty() {
            let tell = tell.clone();
            stay.push(start("lists", move |stop| watch_files(&files, stop, &tell)));
        }
        if !names.is_empty() {
            stay.push(start("names", move |stop| watch_names(&names, stop, &tell)));
        }
        Watch { news, _stay: stay }
    }

    /// What a source says; none where there is nothing to watch.
    pub async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Waits until every name was looked up once, but not for long: an office that mistyped its password must
    /// not be banned because the agent was restarted, nor may a dead resolver keep the agent from starting.
    pub async fn first_word(&mut self, known: &mut Known) {
        let deadline = Instant::now() + FIRST_WORD_WITHIN;
        while known.0.values().any(|kept| !kept.heard)
            && let Ok(Some(news)) = timeout_at(deadline, self.news()).await
        {
            known.learn(news);
        }
    }
}

fn start(name: &str, run: impl FnOnce(&Receiver<Infallible>) + Send + 'static) -> Sender<Infallible> {
    let (stay, stop) = channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || run(&stop)).expect("a thread can be started");
    stay
}

/// Sleeps; false where it is time to end.
fn rest(stop: &Receiver<Infallible>, length: Duration) -> bool {
    matches!(stop.recv_timeout(length), Err(RecvTimeoutError::Timeout))
}

/// By what a change of a file shows: device, inode, size, and the nanosecond of its last change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let of = |file: Metadata| (file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec());
    fs::metadata(path).ok().map(of)
}

fn watch_files(paths: &[PathBuf], stop: &Receiver<Infallible>, tell: &UnboundedSender<News>) {
    let mut last: Vec<Option<Stamp>> = vec![None; paths.len()];
    let mut told = last.clone();
    loop {
        for (index, path) in paths.iter().enumerate() {
            let now = Some(stamp(path));
            if now == last[index] && now != told[index] {
                told[index] = now;
                // Whoever does not hear it any more ends this thread in a moment.
                let _ = tell.send((Source::File(path.clone()), read(path).map_err(first_fault)));
            }
            last[index] = now;
        }
        if !rest(stop, LOOK_EVERY) {
            return;
        }
    }
}

fn watch_names(names: &[String], stop: &Receiver<Infallible>, tell: &UnboundedSender<News>) {
    loop {
        for name in names {
            if tell.send((Source::Name(name.clone()), look_up(name))).is_err() {
                return;
            }
        }
        if !rest(stop, LOOK_UP_EVERY) {
            return;
        }
    }
}

/// Whom this host cannot do without: itself, its gateways and resolvers, and, unless those are banned like all
/// others, the hosts of its local networks. Those are the private ones that an interface is directly in.
pub fn of_this_host(ban_local: bool) -> io::Result<Vec<IpNet>> {
    let own = host::own_addresses()?;
    let local = own.iter().map(|own| own.network).filter(|net| !ban_local && is_private(*net));
    let gateways = host::gateways().unwrap_or_else(|error| {
        tracing::warn!("the gateways cannot be asked for, so they are not spared: {}", plain(&error));
        Vec::new()
    });
    let helpers = gateways.into_iter().chain(host::resolvers()).filter(|addr| !addr.is_unspecified());
    let alone = own.iter().map(|own| own.addr).chain(helpers).map(IpNet::from);
    let all: BTreeSet<IpNet> = alone.chain(local).collect();
    Ok(all.into_iter().collect())
}

/// RFC 1918 and RFC 4193, as a whole: other people's hosts are in every other network, on-link or not.
fn is_private(net: IpNet) -> bool {
    let private = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    private(net.network()) && private(net.broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        match text.parse() {
            Ok(Entry::Nets(nets)) => nets.iter().map(ToString::to_string).collect(),
            Ok(Entry::Of(Source::File(path))) => vec![format!("file {}", path.display())],
            Ok(Entry::Of(Source::Name(name))) => vec![format!("name {name}")],
            Err(why) => vec![why],
        }
    }

    #[test]
    fn an_entry_is_an_address_a_network_a_range_a_file_or_a_name() {
        for (text, wanted) in [
            ("192.0.2.1", &["192.0.2.1/32"][..]),
            ("2001:db8::/32", &["2001:db8::/32"]),
            ("192.0.2.10-192.0.2.20", &["192.0.2.10/31", "192.0.2.12/30", "192.0.2.16/30", "192.0.2.20/32"]),
            ("192.0.2.0 - 192.0.2.255", &["192.0.2.0/24"]),
            ("2001:db8::1-2001:db8::2", &["2001:db8::1/128", "2001:db8::2/128"]),
            ("0.0.0.0-255.255.255.255", &["0.0.0.0/0"]),
            ("file:/etc/office.txt", &["file /etc/office.txt"]),
            ("Office.example.org", &["name office.example.org"]),
            ("my-host.example.org.", &["name my-host.example.org."]),
        ] {
            assert_eq!(told(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_mistyped_is_said_and_is_no_name() {
        for (text, wanted) in [
            ("10.0.0/8", "\"10.0.0/8\" is neither an address nor a network"),
            ("10.0.0.1/8", "10.0.0.1/8 has bits beyond its prefix: write 10.0.0.0/8"),
            ("192.0.2.256", "\"192.0.2.256\" is neither an address"),
            ("192.0.2.x", "\"192.0.2.x\" is neither an address"),
            ("fe80::g", "\"fe80::g\" is neither an address"),
            ("a..example", "\"a..example\" is neither an address"),
            ("-a.example", "\"-a.example\" is neither an address"),
            ("", "\"\" is neither an address"),
            ("192.0.2.20-192.0.2.10", "does not go from a lower address to a higher"),
            ("192.0.2.1-2001:db8::1", "does not go from a lower address to a higher"),
            ("192.0.2.1-20", "is a range without a last address"),
            ("file:list.txt", "does not name a file from the root"),
        ] {
            assert!(told(text)[0].contains(wanted), "{text}: {:?}", told(text));
        }
    }

    #[test]
    fn a_list_is_read_line_by_line() {
        let text = "# office\n192.0.2.1\n\n  192.0.2.8/29 ; SBL1\r\n2001:db8::1-2001:db8::1 # home\n";
        let wanted = ["192.0.2.1/32", "192.0.2.8/29", "2001:db8::1/128"];
        assert_eq!(list("a.txt", text).unwrap(), wanted.map(|net| net.parse().unwrap()));
        let faults = list("a.txt", "192.0.2.1\n  office.example.org # who?\n192.0.2.1/8\n").unwrap_err();
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(
            told[0].starts_with("a.txt:2:3: \"office.example.org\" is neither an address"),
            "{}",
            told[0]
        );
        assert!(told[0].ends_with("2 |   office.example.org # who?\n   |   ^"), "{}", told[0]);
        assert!(told[1].starts_with("a.txt:3:1: 192.0.2.1/8 has bits beyond its prefix"), "{}", told[1]);
        assert_eq!(list("a.txt", &"x\n".repeat(99)).unwrap_err().len(), FAULTS_MAX);
        let wide = "1::-fffe::fffe\n".repeat(FILE_NETS_MAX);
        assert!(list("a.txt", &wide).unwrap_err()[0].message.contains("more than 100000 networks"));
    }

    #[test]
    fn the_last_good_word_is_kept_until_there_is_a_better_one() {
        let entries = ["192.0.2.1".parse().unwrap(), "office.example.org".parse().unwrap()];
        let name = Source::Name("office.example.org".to_owned());
        let office: IpNet = "198.51.100.7/32".parse().unwrap();
        let mut known = Known::new(&entries);
        assert_eq!(known.nets(&entries), ["192.0.2.1/32".parse().unwrap()]);
        assert!(!known.learn((name.clone(), Err("no such name".to_owned()))));
        assert_eq!(known.troubles().collect::<Vec<_>>(), ["never banned: office.example.org: no such name"]);
        assert!(known.learn((name.clone(), Ok(vec![office]))));
        assert!(!known.learn((name.clone(), Ok(vec![office]))), "nothing new");
        assert_eq!(known.troubles().count(), 0);
        assert!(!known.learn((name.clone(), Err("no such name".to_owned()))));
        assert_eq!(known.nets(&entries)[1..], [office]);
        assert!(known.troubles().next().unwrap().ends_with("what it said before holds on"));
        let mut next = Known::new(&entries);
        next.inherit(&known);
        assert_eq!(next.nets(&entries)[1..], [office], "over a reload too");
        assert!(!known.learn((Source::Name("other.example.org".to_owned()), Ok(vec![office]))));
    }

    #[test]
    fn local_networks_are_private_ones() {
        for (net, private) in [
            ("192.168.1.0/24", true),
            ("172.16.0.0/12", true),
            ("fd00::/64", true),
            ("192.168.0.0/15", false),
            ("100.64.0.0/10", false),
            ("203.0.113.0/24", false),
            ("2001:db8::/64", false),
        ] {
            assert_eq!(is_private(net.parse().unwrap()), private, "{net}");
        }
    }
}
