//! Delivers a message: by mail, HTTP, a program, a file, the journal. What fails says why and is tried again.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls as SmtpTls, TlsParameters};
use lettre::{SmtpTransport, Transport};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::model::plain;
use crate::notices::{Channel, Post, Tls, Way, read_secret};
use crate::outbox::Batch;
use crate::status::{Happened, News};
use crate::tell::chat::{Call, Envelope};
use crate::tell::digest::{Message, message};
use crate::tell::familiar;

/// Where the journal takes entries (systemd-journald.service(8)).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// So much of an answer is read.
const ANSWER_MAX: u64 = 64 << 10;

/// Delivers a batch, as `host`.
pub fn deliver(channel: &Channel, batch: &Batch, host: &str) -> Result<(), String> {
    let message = || message(&batch.news, batch.missed, host);
    match &channel.way {
        Way::Mail { to, from, by } => mail(to, from.as_deref(), by, &message(), host, channel.timeout),
        Way::Webhook { url, template, token_file, to } => {
            let token = token_file.as_deref().map(read_secret).transpose()?;
            let envelope =
                Envelope { url, token: token.as_deref(), to: to.as_deref(), host, number: batch.number() };
            call(&template.call(&envelope, &batch.news, &message()), channel.timeout)
        }
        Way::Exec(words) => run(words, batch, host, channel.timeout),
        Way::File(path) => append(path, &batch.news),
        Way::Journal => batch.news.iter().try_for_each(journal),
    }
}

fn mail(
    to: &[String],
    from: Option<&str>,
    by: &Post,
    message: &Message,
    host: &str,
    timeout: Duration,
) -> Result<(), String> {
    let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|error| format!("{text}: {error}"));
    let from = from.map_or_else(|| format!("nftjail@{host}"), ToOwned::to_owned);
    let mut mail = lettre::Message::builder()
        .from(mailbox(&from).or_else(|_| mailbox("nftjail@localhost"))?)
        .subject(&message.subject)
        // Nobody's absence is to be told to us (RFC 3834).
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN);
    for address in to {
        mail = mail.to(mailbox(address)?);
    }
    let mail = mail.body(message.body.clone()).map_err(|error| error.to_string())?;
    match by {
        Post::Sendmail(program) => {
            let words: Vec<String> =
                [program.display().to_string(), "-oi".to_owned(), "-t".to_owned()].into();
            run_with(&mut command(&words), &mail.formatted(), timeout, &words[0])
        }
        Post::Smtp { host: server, port, tls, login } => {
            let parameters = || TlsParameters::new(server.clone()).map_err(|error| error.to_string());
            let tls = match tls {
                Tls::Starttls => SmtpTls::Required(parameters()?),
                Tls::Tls => SmtpTls::Wrapper(parameters()?),
                Tls::None => SmtpTls::None,
            };
            let mut smtp =
                SmtpTransport::builder_dangerous(server).port(*port).tls(tls).timeout(Some(timeout));
            if let Some((user, file)) = login {
                smtp = smtp.credentials(Credentials::new(user.clone(), read_secret(file)?));
            }
            smtp.build().send(&mail).map(drop).map_err(|error| told(&error))
        }
    }
}

/// `Auto-Submitted: auto-generated`.
#[derive(Clone)]
struct AutoSubmitted;

impl lettre::message::header::Header for AutoSubmitted {
    fn name() -> lettre::message::header::HeaderName {
        lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> lettre::message::header::HeaderValue {
        lettre::message::header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// An error with what is behind it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(error) = behind {
        if !text.contains(&error.to_string()) {
            text += &format!(": {error}");
        }
        behind = error.source();
    }
    text
}

fn call(call: &Call, timeout: Duration) -> Result<(), String> {
    let roots = ureq::tls::RootCerts::PlatformVerifier;
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        // Who is told is who is configured, and nobody whom it names.
        .max_redirects(0)
        .tls_config(ureq::tls::TlsConfig::builder().root_certs(roots).build())
        .user_agent(concat!("nftjail/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let mut request = if call.put { agent.put(&call.url) } else { agent.post(&call.url) };
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    let mut response = request.send(&call.body).map_err(|error| error.to_string())?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("it answered {status}"));
    }
    // What it says does not matter, that it said it does.
    let mut answer = response.body_mut().with_config().limit(ANSWER_MAX).reader();
    let _ = std::io::copy(&mut answer, &mut std::io::sink());
    Ok(())
}

/// Runs a program with one JSON object for each event on its standard input, and a single event's fields in its
/// environment.
fn run(words: &[String], batch: &Batch, host: &str, timeout: Duration) -> Result<(), String> {
    let mut command = command(words);
    command.env("NFTJAIL_HOST", host).env("NFTJAIL_EVENTS", batch.news.len().to_string());
    if let [only] = batch.news.as_slice() {
        command.envs(fields(only));
    }
    let lines = batch.news.iter().map(|news| serde_json::json!(news).to_string() + "\n");
    run_with(&mut command, lines.collect::<String>().as_bytes(), timeout, &words[0])
}

/// Nothing of ours but a path and a language.
fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear();
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8");
    command
}

/// The fields of an event by the names that scripts and the journal know. Text of others is not among them.
fn fields(news: &News) -> Vec<(&'static str, String)> {
    let target = news.target.map(|target| target.to_string());
    let addr = news.target.map(|target| target.network().to_string());
    let ends = news.ends.map(|ends| ends.to_string());
    let bantime = news.bantime.map(|bantime| bantime.to_string());
    let optional = [
        ("NFTJAIL_JAIL", news.jail.as_ref().map(ToString::to_string)),
        ("NFTJAIL_TARGET", target),
        ("NFTJAIL_ADDR", addr),
        ("NFTJAIL_BANTIME", bantime),
        ("NFTJAIL_ENDS", ends),
    ];
    let always = [("NFTJAIL_EVENT", news.event.name().to_owned()), ("NFTJAIL_AT", news.at.to_string())];
    let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    always.into_iter().chain(optional).collect()
}

fn run_with(command: &mut Command, input: &[u8], timeout: Duration, name: &str) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    let failed = |error: std::io::Error| format!("{name}: {}", plain(&error));
    // A group of its own, so that what it started ends with it.
    let mut child: Child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let group = Pid::from_raw(child.id() as i32);
    let mut stdin = child.stdin.take();
    let (ended, end) = sync_channel(1);
    let waited = thread::scope(|scope| {
        scope.spawn(move || {
            // A program need not read what it is told.
            if let Some(mut stdin) = stdin.take() {
                let _ = stdin.write_all(input);
            }
        });
        scope.spawn(move || {
            let _ = ended.send(child.wait());
        });
        let waited = end.recv_timeout(timeout);
        if matches!(waited, Err(RecvTimeoutError::Timeout))
            && let Some(group) = group
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        waited
    });
    match waited {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{name} ended with {status}")),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(format!("{name} took longer than {} s and was ended", timeout.as_secs_f32())),
    }
}

/// Opened each time, so that a rotator finds it closed.
fn append(path: &Path, news: &[News]) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {}", path.display(), plain(&error));
    let zone = jiff::tz::TimeZone::system();
    let text: String = news.iter().filter_map(|news| familiar::line(news, &zone)).collect();
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

/// The message ids by which the journal's catalog knows our events (journalctl --catalog).
fn message_id(event: Happened) -> &'static str {
    match event {
        Happened::Banned | Happened::Extended => "6d6f2b0c0a4c4d2f9c6f1d1f7b1e5a01",
        Happened::Unbanned => "6d6f2b0c0a4c4d2f9c6f1d1f7b1e5a02",
        Happened::Repaired | Happened::PutBack | Happened::Adopted => "6d6f2b0c0a4c4d2f9c6f1d1f7b1e5a03",
        Happened::Refused => "6d6f2b0c0a4c4d2f9c6f1d1f7b1e5a04",
        _ => "6d6f2b0c0a4c4d2f9c6f1d1f7b1e5a05",
    }
}

/// One entry in the journal's own protocol: NAME=value, a line each. No value of ours has a line feed.
fn journal(news: &News) -> Result<(), String> {
    let priority = match news.event {
        Happened::Refused => 3,
        Happened::Repaired | Happened::PutBack | Happened::Adopted => 4,
        Happened::Banned | Happened::Extended | Happened::Unbanned => 5,
        _ => 6,
    };
    let text = crate::tell::escape::shown(&news.text);
    let mut entry = format!(
        "MESSAGE={text}\nMESSAGE_ID={}\nPRIORITY={priority}\nSYSLOG_IDENTIFIER=nftjail\n",
        message_id(news.event)
    );
    for (name, value) in fields(news) {
        entry += &format!("{name}={value}\n");
    }
    let socket = UnixDatagram::unbound().map_err(|error| plain(&error))?;
    socket
        .send_to(entry.as_bytes(), JOURNAL)
        .map(drop)
        .map_err(|error| format!("{JOURNAL}: {}", plain(&error)))
}
