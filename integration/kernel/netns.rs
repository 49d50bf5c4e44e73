//! A network namespace for each test, and the real `nft` inside it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

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
