//! What rotators call the files that they have put aside.
#![forbid(unsafe_code)]

use std::cmp::Reverse;

/// How compressed files end; their lines were read before they were compressed.
const COMPRESSED: [&str; 9] = [".gz", ".xz", ".bz2", ".zst", ".lz4", ".lzma", ".br", ".Z", ".zip"];

/// Whether this is the name of a compressed file.
pub fn is_compressed(name: &str) -> bool {
    COMPRESSED.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether a file of this name is what became of a file that was called `of`.
pub fn is_rotated(name: &str, of: &str) -> bool {
    name.len() > of.len() && originals(name).any(|original| original == of)
}

/// What the file may have been called before a rotator named it so: `log.1`, `log.old`, `log-20261121` and
/// `log.2026-11-21` were `log`, and `app.1.log` and `app-20261121.log` were `app.log`. Compressed files are no
/// concern of ours.
pub fn originals(name: &str) -> impl Iterator<Item = String> {
    let cuts = if is_compressed(name) { "" } else { name };
    cuts.match_indices(['.', '-', '_']).filter(|(at, _)| *at > 0).filter_map(move |(at, _)| {
        let rest = &name[at + 1..];
        let mark = rest.find(|c: char| !(c.is_ascii_digit() || "-_:T".contains(c))).unwrap_or(rest.len());
        match &rest[mark..] {
            "old" if mark == 0 => Some(name[..at].to_owned()),
            // `log-20261121`, and what is rotated a second time that day: `log-20261121.1`.
            after if mark > 0 && (after.is_empty() || after.starts_with('.')) => {
                let counted = after.strip_prefix('.').is_some_and(|count| {
                    !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit())
                });
                Some(format!("{}{}", &name[..at], if counted { "" } else { after }))
            }
            _ => None,
        }
    })
}

/// What sorts the rotated names of one log from the oldest to the youngest: dates go up, while counts go up with age.
pub fn order(name: &str) -> impl Ord + use<> {
    let count =
        name.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty()).unwrap_or_default();
    let is_count = count.len() <= 5 && name.ends_with(count);
    match count.parse::<u32>() {
        Ok(count) if is_count => (true, Reverse(count), String::new()),
        _ => (false, Reverse(0), name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_name_tells_what_it_was() {
        for (name, of) in [
            ("auth.log.1", "auth.log"),
            ("auth.log.12", "auth.log"),
            ("auth.log.old", "auth.log"),
            ("auth.log-20261121", "auth.log"),
            ("auth.log-20261121.1", "auth.log"),
            ("auth.log-2026112114-1795276800", "auth.log"),
            ("auth.log.2026-11-21", "auth.log"),
            ("auth.log.2026-11-21_10:00", "auth.log"),
            ("app-20261121.log", "app.log"),
            ("app.1.log", "app.log"),
            ("access_log.1", "access_log"),
        ] {
            assert!(is_rotated(name, of), "{name}");
        }
    }

    #[test]
    fn the_names_of_rotated_files_tell_their_order() {
        for sorted in [["log.10", "log.2", "log.1"], ["log-20261031", "log-20261101", "log-20261102"]] {
            let mut names = sorted;
            names.sort();
            names.sort_by_key(|name| order(name));
            assert_eq!(names, sorted);
        }
    }

    #[test]
    fn other_names_are_other_logs() {
        for (name, of) in [
            ("auth.log", "auth.log"),
            ("auth.log.1.gz", "auth.log"),
            ("auth.log.error", "auth.log"),
            ("auth.log.1x", "auth.log"),
            ("auth.log.", "auth.log"),
            ("auth.log2", "auth.log"),
            ("old.auth.log", "auth.log"),
            ("other.log.1", "auth.log"),
            ("1", ""),
            (".1", ""),
            ("", ""),
        ] {
            assert!(!is_rotated(name, of), "{name}");
        }
    }
}
