//! The output of a program that runs for as long as we do: started by its argument vector, and again when it ends.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, Child, ChildStderr, ChildStdout, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open};

use crate::model::{Span, Timestamp, plain};

use super::What;
use super::splitter::Splitter;
use super::stream::{Kind, Left, is_readable, take, waiting};
use super::tail::Reading;

pub(super) struct Command {
    argv: Vec<String>,
    running: Option<Running>,
    /// Why it does not run, and when it is started again.
    ended: Option<(String, Timestamp)>,
    /// How long it waits when it ends.
    wait: Duration,
    /// When the last lines of its standard error were passed on.
    said: VecDeque<Timestamp>,
}

struct Running {
    /// The leader of a process group of its own; none when it was waited for.
    child: Option<Child>,
    /// Readable when the child has ended: pidfd_open(2).
    pidfd: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    out: Splitter,
    err: Splitter,
    since: Timestamp,
    /// It closed its output: then it is to end, by now or by force.
    kill_at: Option<Timestamp>,
}

const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a program may take to end after it closed its output.
const GRACE: Duration = Duration::from_secs(1);
/// So many lines of standard error are passed on within a minute.
const SAID_MAX: usize = 10;
const SAID_FOR: Duration = Duration::from_secs(60);
const STDERR_BYTES: usize = 16 << 10;
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Command {
    pub(super) fn new(argv: &[String]) -> Command {
        Command { argv: argv.to_owned(), running: None, ended: None, wait: WAIT_MIN, said: VecDeque::new() }
    }

    /// Notes that it does not run, and says so.
    fn end(&mut self, why: &str, now: Timestamp) -> String {
        if self.running.take().is_some_and(|running| now.since(running.since) >= WAIT_MAX) {
            self.wait = WAIT_MIN;
        }
        let why = format!("{why}; it is started again after {}", Span(self.wait));
        self.ended = Some((why.clone(), now.plus(self.wait)));
        self.wait = (self.wait * 2).min(WAIT_MAX);
        why
    }

    /// Passes on what it says on standard error, but not more than a person can read.
    fn listen(&mut self, reading: &mut Reading) {
        let Command { running: Some(running), said, .. } = self else { return };
        let Some(stderr) = &running.stderr else { return };
        let (now, notices) = (reading.now, &mut reading.notices);
        while said.front().is_some_and(|at| now.since(*at) >= SAID_FOR) {
            said.pop_front();
        }
        let mut pass_on = |line: super::Line<'_>| {
            if said.len() < SAID_MAX {
                said.push_back(now);
                notices.push(What::Says(String::from_utf8_lossy(line.text).escape_debug().to_string()));
            }
        };
        let left = take(stderr, &mut running.err, &mut Reading::fresh(now, STDERR_BYTES, &mut pass_on));
        if !matches!(left, Ok(Left::Empty | Left::More)) {
            running.stderr = None;
        }
    }
}

impl Kind for Command {
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String> {
        let now = reading.now;
        if self.running.is_none() {
            if let Some((why, at)) = &self.ended
                && now < *at
            {
                return Err(why.clone());
            }
            match Running::start(&self.argv, now) {
                Ok(running) => self.running = Some(running),
                Err(error) => return Err(self.end(&format!("it cannot be started: {}", plain(&error)), now)),
            }
        }
        self.listen(reading);
        let Some(running) = &mut self.running else { return Ok(false) };
        // Before the output is read, so that nothing comes behind it.
        let has_ended = is_readable(&running.pidfd);
        let left = match &running.stdout {
            Some(stdout) => take(stdout, &mut running.out, reading).unwrap_or(Left::Ended),
            None => Left::Ended,
        };
        match left {
            Left::More => return Ok(true),
            _ if has_ended => {
                let why = running.wait();
                return Err(self.end(&why, now));
            }
            Left::Empty => {}
            Left::Ended => {
                running.stdout = None;
                if running.kill_at.is_some_and(|at| at <= now) {
                    running.kill();
                    running.kill_at = None;
                }
                running.kill_at.get_or_insert(now.plus(GRACE));
            }
        }
        Ok(false)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let Some(running) = &self.running else { return Vec::new() };
        let stdout = running.stdout.as_ref().map(AsFd::as_fd);
        let stderr = running.stderr.as_ref().map(AsFd::as_fd);
        [Some(running.pidfd.as_fd()), stdout, stderr].into_iter().flatten().collect()
    }

    fn outlook(&self) -> Result<&'static str, String> {
        let program = Path::new(&self.argv[0]);
        let mut dirs = PATH.split(':').map(Path::new);
        // Joined to a path from the root, a directory is left out.
        match dirs.any(|dir| fs::metadata(dir.join(program)).is_ok_and(|found| found.is_file())) {
            true => Ok("ok"),
            false => Err(format!("there is no program {}", program.display())),
        }
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        match &self.running {
            Some(running) => running.kill_at,
            None => self.ended.as_ref().map(|(_, at)| *at),
        }
    }

    fn behind(&self) -> u64 {
        self.running.as_ref().and_then(|running| running.stdout.as_ref()).map_or(0, waiting)
    }
}

impl Running {
    fn start(argv: &[String], now: Timestamp) -> io::Result<Running> {
        let mut command = process::Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .envs(std::env::var_os("HOME").map(|home| ("HOME", home)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Running {
            child: Some(child),
            pidfd,
            stdout,
            stderr,
            out: Splitter::new(0),
            err: Splitter::new(0),
            since: now,
            kill_at: None,
        })
    }

    /// Ends it and whatever it started in its process group. It has nothing to lose.
    fn kill(&self) {
        // Until it is waited for, its number is nobody else's.
        if let Some(child) = &self.child {
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
        }
    }

    /// How it ended, of one that did.
    fn wait(&mut self) -> String {
        self.kill();
        match self.child.take().map(|mut child| child.wait()) {
            Some(Ok(status)) => ending(status),
            Some(Err(error)) => plain(&error),
            None => "it ended".to_owned(),
        }
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit status {code}"),
        (None, signal) => format!("it was ended by signal {}", signal.unwrap_or_default()),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if let Some(mut child) = self.child.take() {
            // It may take its time, in a system call; we do not.
            std::thread::spawn(move || child.wait());
        }
    }
}

/// The kernel ends the program when we end, however that comes about: PR_SET_PDEATHSIG(2const).
#[expect(unsafe_code, reason = "what runs between fork and exec must not allocate or lock")]
fn die_with_us(command: &mut process::Command) {
    let us = Pid::from_raw(process::id().cast_signed());
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have ended before it asked.
        if getppid() == us { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: these are two system calls, with nothing allocated and nothing locked.
    unsafe { command.pre_exec(ask) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acquire::Notice;
    use crate::acquire::place::Channel;
    use crate::acquire::stream::Stream;

    /// What does not come in so many milliseconds never does.
    const ROUNDS_MAX: usize = 30_000;

    /// A stream of a command, and all that comes of it.
    struct Scene {
        stream: Stream,
        lines: Vec<String>,
        notices: Vec<Notice>,
    }

    impl Scene {
        fn new(argv: &[&str]) -> Scene {
            let argv = argv.iter().map(|word| (*word).to_owned()).collect();
            let stream = Stream::of(&Channel::Command(argv), "command".to_owned());
            Scene { stream, lines: Vec::new(), notices: Vec::new() }
        }

        fn read(&mut self, now: i64) {
            let lines = &mut self.lines;
            let progress = self.stream.read(Timestamp::from_millis(now), 1 << 20, &mut |line| {
                lines.push(String::from_utf8_lossy(line.text).into_owned());
            });
            self.notices.extend(progress.notices);
        }

        fn read_until(&mut self, now: i64, is_there: impl Fn(&Scene) -> bool) {
            for round in 0.. {
                if is_there(self) {
                    return;
                }
                assert!(round < ROUNDS_MAX, "{:?} {:?}", self.lines, self.notices);
                self.read(now);
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        fn trouble(&self) -> String {
            self.stream.trouble().map(|notice| notice.to_string()).unwrap_or_default()
        }
    }

    #[test]
    fn a_program_that_ends_is_started_again_later_each_time() {
        let mut scene = Scene::new(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
        let mut now = 0;
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            scene.read_until(now, |scene| !scene.trouble().is_empty());
            let text = Span(Duration::from_secs(wait)).to_string();
            let wanted = "cannot read command: it ended with exit status 3; it is started again after";
            assert_eq!(scene.trouble(), format!("{wanted} {text}"));
            now += i64::try_from(wait).unwrap() * 1_000;
            assert_eq!(scene.stream.poll_timeout(), Some(Timestamp::from_millis(now)));
            let lines = scene.lines.len();
            scene.read(now - 1);
            assert_eq!(scene.lines.len(), lines, "it is not started before its time");
            scene.read(now);
        }
        assert!(scene.lines.iter().all(|line| line == "out"));
        let said = scene.notices.iter().find(|notice| matches!(notice.what, What::Says(_))).unwrap();
        assert_eq!(said.to_string(), "command says: err");
    }

    #[test]
    fn arguments_are_no_business_of_a_shell_and_little_of_our_environment_is_passed_on() {
        let mut scene = Scene::new(&["echo", "$HOME; `id` *"]);
        scene.read_until(0, |scene| !scene.lines.is_empty());
        assert_eq!(scene.lines, ["$HOME; `id` *"]);
        let mut scene = Scene::new(&["env"]);
        scene.read_until(0, |scene| !scene.trouble().is_empty());
        let names: Vec<&str> = scene.lines.iter().map(|line| line.split('=').next().unwrap()).collect();
        assert!(names.iter().all(|name| ["PATH", "LC_ALL", "HOME"].contains(name)), "{names:?}");
    }

    #[test]
    fn a_program_that_is_not_there_is_said_so() {
        let mut scene = Scene::new(&["no-such-program"]);
        assert_eq!(scene.stream.outlook().unwrap_err(), "there is no program no-such-program");
        scene.read(0);
        let wanted = "cannot read command: it cannot be started: no such file or directory; it is started again after 1s";
        assert_eq!(scene.trouble(), wanted);
        assert_eq!(Scene::new(&["sh"]).stream.outlook(), Ok("ok"));
        assert_eq!(Scene::new(&["/bin/sh"]).stream.outlook(), Ok("ok"));
    }

    #[test]
    fn what_it_says_on_standard_error_is_passed_on_harmless_and_rarely() {
        let mut scene =
            Scene::new(&["sh", "-c", "printf 'a\\033[2Jb\\n' >&2; seq 2000 >&2; echo out; exec sleep 600"]);
        scene.read_until(0, |scene| !scene.lines.is_empty());
        scene.read_until(0, |scene| scene.notices.len() >= SAID_MAX);
        scene.read(0);
        assert_eq!(scene.notices.len(), SAID_MAX);
        assert_eq!(scene.notices[0].to_string(), "command says: a\\u{1b}[2Jb");
    }

    #[test]
    fn a_program_that_goes_on_without_an_output_is_ended() {
        let mut scene = Scene::new(&["sh", "-c", "echo $$; exec sleep 600 >&- 2>&-"]);
        scene.read_until(0, |scene| scene.stream.poll_timeout().is_some());
        assert_eq!(scene.stream.poll_timeout(), Some(Timestamp::from_millis(1_000)));
        scene.read_until(1_000, |scene| !scene.trouble().is_empty());
        assert!(scene.trouble().contains("it was ended by signal 9"), "{}", scene.trouble());
    }

    #[test]
    fn a_program_ends_with_its_source_and_so_does_what_it_started() {
        let mut scene = Scene::new(&["sh", "-c", "sleep 600 & echo $!; echo $$; wait"]);
        scene.read_until(0, |scene| scene.lines.len() == 2);
        let pids: Vec<String> = std::mem::take(&mut scene.lines);
        drop(scene);
        for pid in pids {
            let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let is_gone = || stat().split(") ").nth(1).is_none_or(|rest| rest.starts_with('Z'));
            let wait = || std::thread::sleep(Duration::from_millis(1));
            assert!(
                (0..ROUNDS_MAX).any(|_| is_gone() || {
                    wait();
                    false
                }),
                "{pid} lives"
            );
        }
    }
}
