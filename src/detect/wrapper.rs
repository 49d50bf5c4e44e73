//! What a container runtime puts around each line of a container, and how it is taken off again.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::LINE_BYTES_MAX;
use super::date::Stamp;
use super::header::split_word;

/// Who wraps the lines of a source.
#[derive(Clone, Copy, Debug)]
enum Runtime {
    /// Docker's json-file driver: `{"log":"…\n","stream":"stdout","time":"…"}`. A line that does not end in a
    /// newline goes on in the next one of its stream; Docker breaks lines after 16 KiB.
    Docker,
    /// The Container Runtime Interface, as containerd, CRI-O and podman write it: `TIME STREAM TAG TEXT`. The tag
    /// `P` says that the line goes on in the next one of its stream (kubernetes/cri-api, proposal on log format).
    Cri,
}

/// Takes the wrapper off each line of one source, and joins lines that the runtime broke. Only the outermost is
/// taken off: what is inside was written in the container.
///
/// A runtime wraps every line, so its first line tells what a source is. The first line without a wrapper shows
/// that a program wrote the source, which may quote anybody; it is never unwrapped again. After many wrapped
/// lines the source is known for certain, and a line without a wrapper is a damaged one: nobody's.
#[derive(Debug, Default)]
pub struct Unwrapper {
    runtime: Option<Runtime>,
    is_plain: bool,
    /// How many wrapped lines were seen.
    wrapped: u32,
    /// The beginnings of unfinished lines of stdout and stderr.
    held: [Held; 2],
}

#[derive(Debug, Default)]
struct Held {
    text: Vec<u8>,
    /// Something of the line is missing: the rest of it alone would be a line that nobody wrote.
    is_lost: bool,
}

/// A line as it was written, before any wrapper.
#[derive(Debug, PartialEq, Eq)]
pub struct Inner<'a> {
    pub text: Cow<'a, [u8]>,
    /// When the runtime says it was written.
    pub written: Option<Stamp<'a>>,
}

/// So many wrapped lines in a row leave no doubt.
const CERTAIN: u32 = 16;

impl Unwrapper {
    /// None where there is no whole line yet.
    pub fn open<'a>(&mut self, line: &'a [u8]) -> Option<Inner<'a>> {
        let plain = Inner { text: Cow::Borrowed(line), written: None };
        if self.is_plain {
            return Some(plain);
        }
        let (runtime, part) = match self.runtime {
            Some(Runtime::Docker) => (Runtime::Docker, docker(line)),
            Some(Runtime::Cri) => (Runtime::Cri, cri(line)),
            None => match cri(line) {
                Ok(part) => (Runtime::Cri, Ok(part)),
                Err(_) => (Runtime::Docker, docker(line)),
            },
        };
        match part {
            Ok(part) => {
                self.runtime = Some(runtime);
                self.wrapped = self.wrapped.saturating_add(1);
                self.held[usize::from(part.is_stderr)].join(part)
            }
            Err(Unlike::Damaged) if self.runtime.is_none() => Some(plain),
            Err(Unlike::Plain) if self.wrapped < CERTAIN => {
                *self = Unwrapper { is_plain: true, ..Unwrapper::default() };
                Some(plain)
            }
            Err(_) => {
                self.held = [(); 2].map(|()| Held { text: Vec::new(), is_lost: true });
                None
            }
        }
    }
}

impl Held {
    fn join<'a>(&mut self, part: Part<'a>) -> Option<Inner<'a>> {
        let Part { text, ends, written, .. } = part;
        self.is_lost |= self.text.len() + text.len() > LINE_BYTES_MAX;
        if self.is_lost {
            *self = Held { text: Vec::new(), is_lost: !ends };
            return None;
        }
        if ends && self.text.is_empty() {
            return Some(Inner { text, written: Some(written) });
        }
        self.text.extend_from_slice(&text);
        ends.then(|| Inner { text: Cow::Owned(std::mem::take(&mut self.text)), written: Some(written) })
    }
}

/// When the runtime says a line was written; none where it has no wrapper.
pub fn written(line: &[u8]) -> Option<Stamp<'_>> {
    cri(line).or_else(|_| docker(line)).ok().map(|part| part.written)
}

/// One wrapped line, taken apart.
struct Part<'a> {
    text: Cow<'a, [u8]>,
    is_stderr: bool,
    /// Whether this is the end of a line.
    ends: bool,
    written: Stamp<'a>,
}

/// Why a line is not a wrapped one.
enum Unlike {
    /// A program may have written it.
    Plain,
    /// It was wrapped, perhaps, before something was lost: it tells nothing about its source.
    Damaged,
}

impl Unlike {
    /// Where a machine went down there are NULs; where a line was too long to be read there is none of it.
    fn of(line: &[u8]) -> Unlike {
        if line.is_empty() || line.contains(&0) { Unlike::Damaged } else { Unlike::Plain }
    }
}

fn docker(line: &[u8]) -> Result<Part<'_>, Unlike> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wrapper<'a> {
        log: String,
        stream: &'a str,
        time: &'a str,
        /// Labels of the container, where Docker is told to write them.
        #[serde(rename = "attrs")]
        _attrs: Option<IgnoredAny>,
    }
    if !line.starts_with(br#"{"log":""#) {
        return Err(Unlike::of(line));
    }
    let text = std::str::from_utf8(line).map_err(|_| Unlike::Damaged)?;
    let wrapper: Wrapper = serde_json::from_str(text)
        .map_err(|error| if error.is_data() { Unlike::Plain } else { Unlike::Damaged })?;
    let (written, is_stderr) =
        written_to(wrapper.time.as_bytes(), wrapper.stream.as_bytes()).ok_or(Unlike::Plain)?;
    let mut text = wrapper.log.into_bytes();
    let ends = text.pop_if(|last| *last == b'\n').is_some();
    Ok(Part { text: Cow::Owned(text), is_stderr, ends, written })
}

fn cri(line: &[u8]) -> Result<Part<'_>, Unlike> {
    let read = || {
        let (time, rest) = split_word(line);
        let (stream, rest) = split_word(rest.strip_prefix(b" ")?);
        let (tags, rest) = split_word(rest.strip_prefix(b" ")?);
        let (written, is_stderr) = written_to(time, stream)?;
        // Further tags may follow the first one.
        let ends = match tags {
            [b'F'] | [b'F', b':', ..] => true,
            [b'P'] | [b'P', b':', ..] => false,
            _ => return None,
        };
        let text = Cow::Borrowed(rest.strip_prefix(b" ").unwrap_or_default());
        Some(Part { text, is_stderr, ends, written })
    };
    read().ok_or_else(|| Unlike::of(line))
}

/// When, and whether to stderr. Runtimes write RFC 3339 with a zone.
fn written_to<'a>(time: &'a [u8], stream: &[u8]) -> Option<(Stamp<'a>, bool)> {
    let is_stderr = match stream {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let (stamp, rest) = Stamp::find_syslog(time)?;
    (rest.is_empty() && time.get(10) == Some(&b'T') && stamp.names_zone()).then_some((stamp, is_stderr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIME: &str = "2026-11-21T10:00:00.123456789Z";

    fn docker(text: &str, stream: &str) -> String {
        let log = serde_json::to_string(text).unwrap();
        format!(r#"{{"log":{log},"stream":"{stream}","time":"{TIME}"}}"#)
    }

    fn cri(tag: &str, text: &str) -> String {
        format!("{TIME} stdout {tag} {text}")
    }

    /// What comes out of each line.
    fn opened(lines: &[&str]) -> Vec<Option<String>> {
        let mut unwrapper = Unwrapper::default();
        let open = |line: &&str| {
            unwrapper.open(line.as_bytes()).map(|inner| String::from_utf8(inner.text.into_owned()).unwrap())
        };
        lines.iter().map(open).collect()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn the_wrapper_of_each_runtime_is_taken_off() {
        let labelled = docker("c\n", "stderr").replace(r#","time"#, r#","attrs":{"a":"b"},"time"#);
        for (lines, expected) in [
            ([docker("a \"b\"\n", "stdout"), labelled], ["a \"b\"", "c"]),
            ([cri("F", "a  b"), cri("F:x", "")], ["a  b", ""]),
            ([cri("F", "a").replace('Z', "+02:00"), format!("{TIME} stderr F")], ["a", ""]),
        ] {
            assert_eq!(opened(&[&lines[0], &lines[1]]), expected.map(some));
        }
        let line = cri("F", "a");
        let inner = Unwrapper::default().open(line.as_bytes()).unwrap().written.unwrap();
        assert_eq!(inner.text(), TIME.as_bytes());
        assert_eq!(written(docker("a\n", "stdout").as_bytes()).unwrap().text(), TIME.as_bytes());
    }

    #[test]
    fn what_looks_like_a_wrapper_inside_a_wrapper_stays() {
        let (forged_docker, forged_cri) = (docker("x\n", "stdout"), cri("F", "x"));
        for forged in [&forged_docker, &forged_cri] {
            let lines = [docker(&format!("{forged}\n"), "stdout"), cri("F", forged)];
            for line in &lines {
                assert_eq!(opened(&[line]), [some(forged)]);
            }
        }
    }

    #[test]
    fn what_a_program_writes_is_never_unwrapped() {
        let (forged_docker, forged_cri) = (docker("x\n", "stdout"), cri("F", "x"));
        for forged in [forged_docker.as_str(), &forged_cri] {
            for plain in
                ["Nov 21 10:00:00 h sshd[1]: x", "{\"log\":\"app\",\"level\":\"info\"}", "hello", "{\"a\":1}"]
            {
                assert_eq!(opened(&[plain, forged]), [some(plain), some(forged)], "{plain}");
            }
            // Even where the forged line comes first, it does not stay so.
            assert_eq!(opened(&[forged, "hello", forged]), [some("x"), some("hello"), some(forged)]);
        }
    }

    #[test]
    fn nearly_a_wrapper_is_none() {
        for line in [
            r#"{"log":"x","more":1}"#.to_owned(),
            docker("x\n", "stdin"),
            docker("x\n", "stdout").replace(TIME, "today"),
            docker("x\n", "stdout").replace('Z', ""),
            docker("x\n", "stdout").replace(r#"{"log""#, r#"{ "log""#),
            docker("x\n", "stdout").replace(r#""}"#, r#"","log":"y\n"}"#),
            docker("x\n", "stdout").replace(r#""}"#, r#"","other":"y\n"}"#),
            cri("X", "x"),
            cri("Fx", "x"),
            cri("F", "x").replace('Z', ""),
            cri("F", "x").replace('T', " "),
            cri("F", "x").replace("stdout", "stdin"),
            cri("F", "x").replace("stdout ", "stdout  "),
        ] {
            assert_eq!(opened(&[&line]), [some(&line)]);
        }
    }

    #[test]
    fn lines_that_the_runtime_broke_are_joined_within_their_stream() {
        let lines = [
            docker("Invalid user x", "stdout"),
            docker("other", "stderr"),
            docker(" from 192.0.2.1\n", "stdout"),
            docker("\n", "stderr"),
        ];
        let lines = lines.each_ref().map(String::as_str);
        assert_eq!(opened(&lines), [None, None, some("Invalid user x from 192.0.2.1"), some("other")]);
        let lines = [cri("P", "a "), cri("P", ""), cri("F", "b"), cri("F", "c")];
        assert_eq!(opened(&lines.each_ref().map(String::as_str)), [None, None, some("a b"), some("c")]);
    }

    #[test]
    fn the_rest_of_a_line_that_is_too_long_or_damaged_is_no_line() {
        let long = "x".repeat(LINE_BYTES_MAX / 2 + 1);
        for text in [cri("P", &long), docker(&long, "stdout")] {
            let (rest, next) = match text.starts_with('{') {
                true => (docker("rest\n", "stdout"), docker("next\n", "stdout")),
                false => (cri("F", "rest"), cri("F", "next")),
            };
            assert_eq!(opened(&[&text, &text, &rest, &next]), [None, None, None, some("next")]);
            for damaged in ["", "\0\0\0"] {
                assert_eq!(opened(&[&next, damaged, &rest, &next]), [some("next"), None, None, some("next")]);
            }
        }
        assert_eq!(opened(&["{\"log\":\"cut"]), [some("{\"log\":\"cut")]);
        let line = docker("x\n", "stdout");
        assert_eq!(opened(&["\0", "{\"log\":\"cut", &line]).last().unwrap(), &some("x"));
    }

    #[test]
    fn after_many_wrapped_lines_a_stray_one_is_nobodys() {
        let line = cri("F", "x");
        let mut lines = vec![line.as_str(); CERTAIN as usize];
        lines.extend(["stray", &line, &line]);
        let out = opened(&lines);
        assert_eq!(out[CERTAIN as usize..], [None, None, some("x")]);
    }

    proptest! {
        #[test]
        fn what_is_held_is_bounded_and_nothing_panics(
            lines in prop::collection::vec(
                prop_oneof![
                    (0..LINE_BYTES_MAX).prop_map(|length| cri("P", &"x".repeat(length)).into_bytes()),
                    (0..9usize).prop_map(|length| cri("F", &"x".repeat(length)).into_bytes()),
                    "[{}\":a-z, 0-9TZ-]{0,60}".prop_map(String::into_bytes),
                    prop::collection::vec(any::<u8>(), 0..60),
                ],
                0..12,
            ),
        ) {
            let mut unwrapper = Unwrapper::default();
            for line in &lines {
                let _ = unwrapper.open(line);
                prop_assert!(unwrapper.held.iter().all(|held| held.text.len() <= LINE_BYTES_MAX));
            }
        }
    }
}
