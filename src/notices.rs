//! Who is told what, and how: the `notify` and `metrics` of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::model::{JailName, Span, plain};
use crate::status::{Happened, News};
use crate::tell::chat::Template;
use crate::yaml::{self, Fault, Many, Spanned, Text};

/// The `notify` of a file as it is written.
pub type Sheet = BTreeMap<String, Spanned<Keys>>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    mail: Option<MailKeys>,
    webhook: Option<WebhookKeys>,
    exec: Option<Many<String>>,
    file: Option<PathBuf>,
    journal: Option<bool>,
    events: Option<Many<Kind>>,
    jails: Option<Many<JailName>>,
    digest: Option<Text<Span>>,
    timeout: Option<Text<Span>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MailKeys {
    to: Many<String>,
    from: Option<String>,
    /// HOST:PORT; the local sendmail where left out.
    server: Option<String>,
    #[serde(default)]
    tls: Tls,
    user: Option<String>,
    password_file: Option<PathBuf>,
    sendmail: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookKeys {
    url: String,
    #[serde(default)]
    template: Template,
    token_file: Option<PathBuf>,
    to: Option<String>,
}

/// How a mail server is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Plain until STARTTLS (RFC 3207), without which nothing is sent.
    #[default]
    Starttls,
    /// TLS from the first byte (RFC 8314).
    Tls,
    /// Never: for a server on this host.
    None,
}

/// A kind of event by its name.
#[derive(Clone, Copy, Debug)]
struct Kind(Happened);

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Happened::ALL.into_iter().find(|(_, name)| *name == text);
        let names = Happened::ALL.map(|(_, name)| name);
        found.map(|(kind, _)| Kind(kind)).ok_or_else(|| yaml::unknown("event", text, &names))
    }
}

/// Everything that is told, and where the numbers are to be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    pub channels: Vec<Channel>,
    pub metrics: Option<Endpoint>,
}

/// One who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    pub name: String,
    pub way: Way,
    pub events: BTreeSet<Happened>,
    /// None: all.
    pub jails: Option<BTreeSet<JailName>>,
    /// At most one message in this time; what happens meanwhile comes in one.
    pub digest: Duration,
    /// So long may one delivery take.
    pub timeout: Duration,
}

impl Channel {
    pub fn wants(&self, news: &News) -> bool {
        let hears = |jails: &BTreeSet<JailName>| news.jail.as_ref().is_none_or(|jail| jails.contains(jail));
        self.events.contains(&news.event) && self.jails.as_ref().is_none_or(hears)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Mail {
        to: Vec<String>,
        from: Option<String>,
        by: Post,
    },
    Webhook {
        url: String,
        template: Template,
        token_file: Option<PathBuf>,
        to: Option<String>,
    },
    /// A program and its arguments; no shell.
    Exec(Vec<String>),
    /// A log in the form that tools know of fail2ban's.
    File(PathBuf),
    Journal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Post {
    Smtp {
        host: String,
        port: u16,
        tls: Tls,
        login: Option<(String, PathBuf)>,
    },
    /// A program that takes a mail as sendmail(8) does.
    Sendmail(PathBuf),
}

/// Where the metrics are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Loopback only.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Endpoint::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(addr) if addr.ip().is_loopback() => Ok(Endpoint::Tcp(addr)),
            Ok(addr) => Err(format!(
                "{addr} is open to the world: name a loopback address, as 127.0.0.1:{}",
                addr.port()
            )),
            Err(_) => Err(format!("\"{text}\" is neither 127.0.0.1:9321 nor unix:/run/nftjail/metrics.sock")),
        }
    }
}

/// What is told where nothing else is said: what changes who gets in, and what needs somebody.
const EVENTS: [Happened; 4] = [Happened::Banned, Happened::Unbanned, Happened::Repaired, Happened::Refused];
const DIGEST: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(10);
const SENDMAIL: &str = "/usr/sbin/sendmail";

/// What the files say, the later over the earlier; `notify` and `metrics` of other keys are nobody's business here.
pub fn load(files: &[PathBuf]) -> Result<Notices, Vec<Fault>> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Part {
        notify: Option<Sheet>,
        metrics: Option<Spanned<String>>,
    }
    let mut notices = Notices::default();
    for path in files {
        let name = path.display().to_string();
        let unread =
            |error: std::io::Error| vec![Fault::whole(&name, format!("cannot be read: {}", plain(&error)))];
        let text = fs::read_to_string(path).map_err(unread)?;
        let part: Option<Part> = yaml::read(&name, &text).map_err(|fault| vec![fault])?;
        let Part { notify, metrics } = part.unwrap_or_default();
        let later = resolve(notify.unwrap_or_default(), metrics, &name, &text)?;
        notices.absorb(later);
    }
    Ok(notices)
}

/// One file's.
pub fn resolve(
    sheet: Sheet,
    metrics: Option<Spanned<String>>,
    file: &str,
    text: &str,
) -> Result<Notices, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut channels = Vec::new();
    for (name, keys) in sheet {
        match channel(name, keys.value) {
            Ok(channel) => channels.push(channel),
            Err(why) => faults.push(Fault::at(file, text, keys.defined, why)),
        }
    }
    let endpoint =
        metrics.map(|key| key.value.parse().map_err(|why: String| Fault::at(file, text, key.defined, why)));
    let metrics = match endpoint.transpose() {
        Ok(endpoint) => endpoint,
        Err(fault) => {
            faults.push(fault);
            None
        }
    };
    if faults.is_empty() { Ok(Notices { channels, metrics }) } else { Err(faults) }
}

impl Notices {
    /// Lays a later file over this one: a channel of the same name replaces the earlier one.
    pub fn absorb(&mut self, later: Notices) {
        for channel in later.channels {
            self.channels.retain(|earlier| earlier.name != channel.name);
            self.channels.push(channel);
        }
        self.metrics = later.metrics.or(self.metrics.take());
    }

    /// Whether there is anybody to tell.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.metrics.is_none()
    }
}

fn channel(name: String, keys: Keys) -> Result<Channel, String> {
    let Keys { mail, webhook, exec, file, journal, events, jails, digest, timeout } = keys;
    let exec = exec.map(|words| words.0);
    let ways = [
        mail.map(mail_way).transpose()?,
        webhook.map(webhook_way).transpose()?,
        exec.map(exec_way).transpose()?,
        file.map(file_way).transpose()?,
        journal.filter(|on| *on).map(|_| Way::Journal),
    ];
    let mut ways = ways.into_iter().flatten();
    let (Some(way), None) = (ways.next(), ways.next()) else {
        return Err("say one of mail, webhook, exec, file, journal: true".to_owned());
    };
    let at_once = matches!(way, Way::Exec(_) | Way::File(_) | Way::Journal);
    Ok(Channel {
        name,
        events: events.map_or(EVENTS.into(), |kinds| kinds.0.into_iter().map(|kind| kind.0).collect()),
        jails: jails.map(|jails| jails.0.into_iter().collect()),
        digest: digest.map_or(if at_once { Duration::ZERO } else { DIGEST }, |span| span.0.0),
        timeout: timeout.map_or(TIMEOUT, |span| span.0.0),
        way,
    })
}

fn mail_way(keys: MailKeys) -> Result<Way, String> {
    let MailKeys { to, from, server, tls, user, password_file, sendmail } = keys;
    if to.0.is_empty() {
        return Err("to needs at least one address".to_owned());
    }
    for address in to.0.iter().chain(&from) {
        address
            .parse::<lettre::message::Mailbox>()
            .map_err(|_| format!("\"{address}\" is no mail address"))?;
    }
    let by = match (server, sendmail) {
        (Some(_), Some(_)) => return Err("server and sendmail exclude each other: keep one".to_owned()),
        (None, sendmail) => Post::Sendmail(sendmail.unwrap_or_else(|| SENDMAIL.into())),
        (Some(server), None) => {
            let port = server.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
            let Some((host, port)) = port else {
                return Err(format!("\"{server}\" is no server: write smtp.example.org:587"));
            };
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let login = match (user, password_file) {
                (Some(user), Some(file)) => Some((user, secret(file)?)),
                (None, None) => None,
                _ => return Err("user and password_file belong together".to_owned()),
            };
            if login.is_some() && tls == Tls::None {
                return Err("tls: none would send the password as plain text".to_owned());
            }
            Post::Smtp { host, port, tls, login }
        }
    };
    Ok(Way::Mail { to: to.0, from, by })
}

fn webhook_way(keys: WebhookKeys) -> Result<Way, String> {
    let WebhookKeys { url, template, token_file, to } = keys;
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err(format!("\"{url}\" is no URL: it begins with https:// or http://"));
    }
    if template.needs_to() && to.is_none() {
        return Err(format!(
            "the template {} needs `to`: the chat or room that is written to",
            template.name()
        ));
    }
    let token_file = token_file.map(secret).transpose()?;
    Ok(Way::Webhook { url, template, token_file, to })
}

fn exec_way(words: Vec<String>) -> Result<Way, String> {
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(Way::Exec(words)),
        _ => Err("exec names a program by its whole path, and each argument by itself: no shell reads it"
            .to_owned()),
    }
}

fn file_way(path: PathBuf) -> Result<Way, String> {
    if path.is_absolute() { Ok(Way::File(path)) } else { Err("file needs a whole path".to_owned()) }
}

/// A file that holds a secret; one that everybody can read holds none.
fn secret(file: PathBuf) -> Result<PathBuf, String> {
    match fs::metadata(&file) {
        Err(error) => Err(format!("{} cannot be read: {}", file.display(), plain(&error))),
        Ok(found) if found.permissions().mode() & 0o004 != 0 => {
            Err(format!("everybody can read {}: chmod o-r it", file.display()))
        }
        Ok(_) => Ok(file),
    }
}

/// What a file with a secret says.
pub fn read_secret(file: &Path) -> Result<String, String> {
    let told = |error: std::io::Error| format!("{}: {}", file.display(), plain(&error));
    fs::read_to_string(file).map(|text| text.trim().to_owned()).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Notices, Vec<Fault>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, text).unwrap();
        load(&[file])
    }

    #[test]
    fn each_way_is_understood() {
        let notices = load_text(
            "jails: {sshd: {port: 22}}\nmetrics: 127.0.0.1:9321\nnotify:\n  a: {mail: {to: root@example.org}}\n  \
             b: {webhook: {url: 'https://example.org/x', template: ntfy}, events: banned, jails: [sshd], digest: 10m}\n  \
             c: {exec: [/bin/true, x], timeout: 3s}\n  d: {journal: true}\n  e: {file: /var/log/bans.log}\n",
        )
        .unwrap();
        let ways: Vec<&Way> = notices.channels.iter().map(|channel| &channel.way).collect();
        let sendmail = Post::Sendmail(SENDMAIL.into());
        assert_eq!(ways[0], &Way::Mail { to: vec!["root@example.org".to_owned()], from: None, by: sendmail });
        let b = &notices.channels[1];
        assert_eq!((b.digest, b.events.len()), (Duration::from_secs(600), 1));
        assert_eq!(b.jails, Some(["sshd".parse().unwrap()].into()));
        assert_eq!(ways[2], &Way::Exec(vec!["/bin/true".to_owned(), "x".to_owned()]));
        assert_eq!((notices.channels[2].digest, notices.channels[2].timeout.as_secs()), (Duration::ZERO, 3));
        assert_eq!(notices.metrics, Some(Endpoint::Tcp("127.0.0.1:9321".parse().unwrap())));
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        for (text, wanted) in [
            (
                "notify: {a: {events: banned}}",
                "a.yaml:1:13: say one of mail, webhook, exec, file, journal: true",
            ),
            ("notify: {a: {journal: true, exec: /bin/true}}", "say one of"),
            ("notify: {a: {journal: true, events: band}}", "unknown event \"band\": did you mean banned?"),
            ("notify: {a: {exec: [rm, -rf]}}", "by its whole path"),
            ("notify: {a: {mail: {to: root}}}", "\"root\" is no mail address"),
            ("notify: {a: {mail: {to: a@example.org, server: mail}}}", "\"mail\" is no server"),
            (
                "notify: {a: {mail: {to: a@example.org, server: 'mail:25', user: a}}}",
                "user and password_file belong together",
            ),
            ("notify: {a: {webhook: {url: ftp://x}}}", "is no URL"),
            ("notify: {a: {webhook: {url: 'https://x', template: telegram}}}", "needs `to`"),
            ("notify: {a: {webhook: {url: 'https://x', token_file: /nonexistent}}}", "cannot be read"),
            ("metrics: 0.0.0.0:9321", "is open to the world: name a loopback address, as 127.0.0.1:9321"),
            ("metrics: here", "is neither"),
        ] {
            let told = load_text(text).unwrap_err()[0].to_string();
            assert!(told.contains(wanted), "{text}: {told}");
        }
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, " s3cret\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let text =
            format!("notify: {{a: {{webhook: {{url: 'https://x', token_file: {}}}}}}}", file.display());
        assert!(load_text(&text).unwrap_err()[0].message.starts_with("everybody can read"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        load_text(&text).unwrap();
        assert_eq!(read_secret(&file).unwrap(), "s3cret");
    }

    #[test]
    fn a_channel_hears_what_it_wants() {
        let notices = load_text("notify: {a: {journal: true, events: banned, jails: sshd}}").unwrap();
        let channel = &notices.channels[0];
        let news = |event, jail: Option<&str>| News {
            schema: 1,
            at: Default::default(),
            event,
            jail: jail.map(|jail| jail.parse().unwrap()),
            target: None,
            bantime: None,
            ends: None,
            lines: Vec::new(),
            text: String::new(),
        };
        assert!(channel.wants(&news(Happened::Banned, Some("sshd"))));
        assert!(!channel.wants(&news(Happened::Banned, Some("web"))));
        assert!(!channel.wants(&news(Happened::Ended, Some("sshd"))));
        assert!(channel.wants(&news(Happened::Banned, None)));
    }
}
