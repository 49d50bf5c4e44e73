//! The verb `import`: reads a configuration of fail2ban, writes one of ours into a new folder, and says what became of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::{self, Config};
use crate::detect::{Library, Rule};
use crate::failregex;
use crate::filters;
use crate::host::Services;
use crate::jargon::{self, Named};
use crate::model::plain;
use crate::ports;
use crate::shapes::Filter;
use crate::terms::Notes;
use crate::theirs::{Imported, World};
use crate::translate;
use crate::yaml::{self, Fault};

/// Where fail2ban keeps its configuration when nothing else is said.
pub const FAIL2BAN_DIR: &str = "/etc/fail2ban";
/// What the report is called, in the new folder.
const REPORT: &str = "report.txt";
/// More than this is no configuration; one byte more is read, so that the reader can say so.
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1_000;

/// Reads the configuration below `from`, writes what it becomes into `to`, and returns the report.
///
/// # Errors
/// All that is wrong with it. Then nothing is written.
pub fn run(from: &Path, to: &Path) -> Result<String, String> {
    let free = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(format!("cannot write to {}: {}", to.display(), plain(&error))),
    };
    if !free {
        return Err(format!(
            "{} is not empty: name a folder that is not there yet; nothing was written",
            to.display()
        ));
    }
    let imported = read(from)?;
    let report = report(from, to, &imported);
    let mut files: Vec<(PathBuf, &str)> =
        imported.files.iter().map(|(name, text)| (PathBuf::from(name), text.as_str())).collect();
    files.push((REPORT.into(), &report));
    write(to, &files)?;
    Ok(report)
}

fn read(from: &Path) -> Result<Imported, String> {
    if !from.is_dir() {
        return Err(format!(
            "{} is not a folder: name the one that has jail.conf or jail.local",
            from.display()
        ));
    }
    let services = Services::of_this_host();
    let library = Library::shipped();
    let read = |name: &str| read_file(from, name);
    let list = |folder: &str, end: &str| list(from, folder, end);
    let wrong_port = |port: &str| ports::ports(&[port.to_owned()], &services).err();
    let world = World { read: &read, list: &list, library: &library, wrong_port: &wrong_port };
    translate::translate(&world).map_err(|faults| {
        let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
        format!("{} cannot be imported; nothing was written\n{}", from.display(), texts.join("\n"))
    })
}

/// One file below a folder; none where it is not there. Whatever a symbolic link leads to must be a file too.
fn read_file(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let path = dir.join(name);
    let told = |error: io::Error| Fault::whole(name, format!("cannot be read: {}", plain(&error)));
    let about = match fs::metadata(&path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(error)),
    };
    // A device or a FIFO would hold us.
    if !about.is_file() {
        return Err(Fault::whole(name, "is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(told)?;
    Ok(Some(bytes))
}

fn list(dir: &Path, folder: &str, end: &str) -> Result<Vec<String>, Fault> {
    let told = |error: io::Error| Fault::whole(folder, format!("cannot be read: {}", plain(&error)));
    let entries = match fs::read_dir(dir.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(told(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(told)?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(end) && !name.starts_with('.') {
            names.push(format!("{folder}/{name}"));
        }
        if names.len() > FILES_MAX {
            return Err(Fault::whole(folder, format!("has more than {FILES_MAX} files")));
        }
    }
    names.sort();
    Ok(names)
}

/// Writes all files into a folder beside, reads them as the agent would, and only then gives it its name.
fn write(to: &Path, files: &[(PathBuf, &str)]) -> Result<(), String> {
    let told = |error: io::Error| {
        format!("cannot write to {}: {}; nothing was written", to.display(), plain(&error))
    };
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(told)?;
    let draft = tempfile::Builder::new().prefix(".nftjail-import-").tempdir_in(parent).map_err(told)?;
    for (name, text) in files {
        let path = draft.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(draft.path())).map_err(told)?;
        fs::write(&path, text).map_err(told)?;
    }
    let checked =
        Config::load(Some(draft.path()), &Services::of_this_host()).map_err(|faults| yaml::told(&faults));
    let sound = checked.and_then(|_| {
        let library =
            config::library(&config::rules_dir(Some(draft.path()))).map_err(|fault| fault.to_string())?;
        let own = files.iter().filter_map(|(name, _)| name.strip_prefix("rules").ok()?.file_stem()?.to_str());
        let bad: Vec<String> =
            own.filter_map(|rule| library.check_rule(rule).err()).map(|bad| bad.to_string()).collect();
        if bad.is_empty() { Ok(()) } else { Err(bad.join("\n")) }
    });
    sound.map_err(|why| {
        format!("what it becomes is not in order, which is a fault of nftjail; nothing was written\n{why}")
    })?;
    // An empty folder is replaced.
    fs::rename(draft.path(), to).map_err(told)?;
    // It has another name now.
    let _ = draft.keep();
    Ok(())
}

/// The rule that somebody means who tests a filter: one of ours by its name, a filter of fail2ban by its name or file
/// with options or not, or a pattern.
///
/// # Errors
/// Why it cannot be one, with the pattern and a caret.
pub fn rule_of(
    text: &str,
    ignoreregex: Option<&str>,
    mode: &str,
    fail2ban: &Path,
    library: &Library,
) -> Result<Rule, String> {
    if let Ok(wanted) = jargon::named(text) {
        if library.has(&wanted.name) {
            let mode = wanted.option("mode").unwrap_or(mode);
            return library.compile(&wanted.name, Some(mode)).map_err(|bad| bad.to_string());
        }
        let path = Path::new(&wanted.name);
        let file = match path.is_file() {
            true => path.to_owned(),
            false => fail2ban.join("filter.d").join(&wanted.name).with_extension("conf"),
        };
        if file.is_file()
            && let (Some(dir), Some(name)) = (file.parent(), file.file_stem().and_then(|name| name.to_str()))
        {
            let read = |name: &str| read_file(dir, name.trim_start_matches("./"));
            let layers = filters::layers(".", name, &read).map_err(|fault| fault.to_string())?;
            let wanted = Named { name: name.to_owned(), ..wanted };
            let filter = filters::filter(name, &wanted, &layers.unwrap_or_default(), &|_| Ok(None));
            return made(filter.map_err(|fault| fault.to_string())?);
        }
    }
    made(Filter {
        name: "given".to_owned(),
        from: "a pattern that was given".to_owned(),
        failregex: text.lines().map(str::to_owned).collect(),
        ignoreregex: ignoreregex.into_iter().map(str::to_owned).collect(),
        ..Filter::default()
    })
}

fn made(filter: Filter) -> Result<Rule, String> {
    let translated = failregex::translate(&filter);
    let refused: Vec<String> =
        translated.refused.iter().map(|(pattern, why)| format!("{pattern}\n{why}")).collect();
    let Some(text) = translated.rule else {
        return Err(if refused.is_empty() { "it has no failregex".to_owned() } else { refused.join("\n") });
    };
    refused.iter().for_each(|why| eprintln!("left out: {why}"));
    let mut library = Library::default();
    library.add(&format!("{}.yaml", filter.name), &text);
    library.compile(&filter.name, None).map_err(|bad| bad.to_string())
}

fn report(from: &Path, to: &Path, imported: &Imported) -> String {
    let Imported { files, notes: Notes { done, changed, left }, .. } = imported;
    let count = |folder: &str| files.keys().filter(|name| name.starts_with(folder)).count();
    let (jails, rules) = (count("nftjail.d/"), count("rules/"));
    let mut text = format!("{} became {}: {jails} jails, {rules} own rules\n", from.display(), to.display());
    for (title, notes) in [
        ("TRANSLATED", done),
        ("TRANSLATED WITH A CHANGE", changed),
        ("NOT TRANSLATED, AND WHAT TO DO", left),
    ] {
        text += &format!("\n{title}\n");
        if notes.is_empty() {
            text += "  nothing\n";
        }
        for (about, note) in notes {
            text += &format!("  {about}: {}\n", note.replace('\n', "\n    "));
        }
    }
    let to = to.display();
    text + &format!("\nNEXT\n  nftjail --config {to} check\n  nftjail --config {to} compare\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    type Files<'f> = &'f [(&'f str, &'f [u8])];

    fn import(files: Files) -> (Result<String, String>, bool) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("fail2ban"), dir.path().join("out"));
        fs::create_dir(&from).unwrap();
        for (name, bytes) in files {
            fs::create_dir_all(from.join(name).parent().unwrap()).unwrap();
            fs::write(from.join(name), bytes).unwrap();
        }
        let result = run(&from, &to);
        let rest = fs::read_dir(dir.path()).unwrap().count();
        (result, rest > 1)
    }

    #[test]
    fn hostile_configuration_is_one_clear_error_and_nothing_is_written() {
        let long = [b"[sshd]\nenabled = true\nport = ".to_vec(), vec![b'1'; 10 << 20]].concat();
        let loops = b"[sshd]\nenabled = true\nport = %(a)s\na = %(b)s\nb = %(a)s\naction = nftables\n";
        let cases: [(Files, &str); 8] = [
            (
                &[("jail.local", loops)],
                "jail.local:5:5: goes round in circles: port refers to a refers to b refers to a",
            ),
            (&[("jail.local", b"\x7fELF\0\0")], "jail.local: is not text: it holds zero bytes"),
            (&[("jail.local", &long)], "jail.local: is larger than 1024 KiB"),
            (&[("jail.local", b"[sshd\n")], "jail.local:1:1: no section begins"),
            (&[("jail.local", b"[INCLUDES]\nbefore = jail.local\n")], "includes itself"),
            (
                &[("jail.local", b"[sshd]\nenabled = true\nbantime = soon\naction = nftables\n")],
                "jail.local:3:11: \"soon\"",
            ),
            (
                &[("jail.local", b"[sshd]\nenabled = true\naction = nftables[\n")],
                "jail.local:3:10: the options of nftables",
            ),
            (&[("filter.d/x.conf", b"")], "neither this nor jail.local is there"),
        ];
        for (files, wanted) in cases {
            let (result, written) = import(files);
            let told = result.unwrap_err();
            assert!(told.contains(wanted) && told.len() < 2_000, "{wanted} is not in {told}");
            assert!(!written, "{told}");
        }
    }

    #[test]
    fn links_and_devices_hold_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("fail2ban"), dir.path().join("out"));
        fs::create_dir(&from).unwrap();
        let local = from.join("jail.local");
        symlink("/dev/zero", &local).unwrap();
        assert!(run(&from, &to).unwrap_err().contains("jail.local: is not a file"));
        fs::remove_file(&local).unwrap();
        symlink("jail.local", &local).unwrap();
        assert!(run(&from, &to).unwrap_err().contains("jail.local: cannot be read"));
        fs::remove_file(&local).unwrap();
        // What administrators do: the file is kept elsewhere.
        let elsewhere = dir.path().join("kept");
        fs::write(&elsewhere, "[sshd]\nenabled = true\naction = nftables\n").unwrap();
        symlink(&elsewhere, &local).unwrap();
        symlink(dir.path(), &to).unwrap();
        assert!(run(&from, &to).unwrap_err().contains("is not empty"));
        fs::remove_file(&to).unwrap();
        fs::create_dir(&to).unwrap();
        assert!(run(&from, &to).is_ok(), "an empty folder is as good as none");
        assert!(run(&from, &to).unwrap_err().contains("is not empty"));
    }
}
