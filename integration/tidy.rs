//! The house is in order: who may import whom, what stays pure, how long is too long.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms it may import. A stage imports the nouns and nothing else.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("time", &[]),
    ("target", &[]),
    ("model", &["time", "target"]),
    ("status", &["model"]),
    ("yaml", &[]),
    ("netlink", &[]),
    ("sockets", &["model", "netlink"]),
    ("acquire", &["model", "yaml"]),
    ("detect", &["model", "yaml"]),
    ("jail", &["model"]),
    ("nft", &["model"]),
    ("tell", &["model", "status"]),
    ("host", &["model", "netlink"]),
    ("bell", &[]),
    ("probe", &["model"]),
    ("secret", &["model"]),
    ("evidence", &["model"]),
    ("engine", &["model", "detect", "evidence", "jail", "probe", "proxied", "secret"]),
    ("proxied", &["engine", "jail"]),
    ("enforcer", &["model", "nft", "held"]),
    ("held", &["enforcer", "model", "nft"]),
    ("sources", &["status", "model", "acquire", "bell"]),
    ("history", &["model", "state", "status"]),
    ("state", &["history", "model", "status"]),
    ("never", &["model", "yaml", "host"]),
    ("ports", &["model", "yaml", "host"]),
    ("words", &["model", "yaml", "jail"]),
    ("sheet", &["acquire", "model", "notices", "yaml", "host", "detect", "jail", "never", "ports", "words"]),
    ("service", &["acquire", "model"]),
    (
        "resolve",
        &[
            "acquire", "status", "model", "yaml", "host", "detect", "jail", "never", "ports", "service",
            "sheet", "words",
        ],
    ),
    (
        "config",
        &[
            "acquire", "status", "model", "yaml", "host", "detect", "jail", "never", "notices", "resolve",
            "sheet",
        ],
    ),
    ("notices", &["model", "status", "tell", "yaml"]),
    ("outbox", &["model", "status"]),
    ("post", &["model", "notices", "outbox", "status", "tell"]),
    ("scrape", &["control", "model", "notices", "tell"]),
    ("keeper", &["daemon", "model"]),
    (
        "teller",
        &[
            "config", "control", "host", "model", "notices", "outbox", "post", "scrape", "status", "tell",
            "yaml",
        ],
    ),
    ("control", &["status", "model"]),
    ("server", &["control", "model", "status"]),
    ("lab", &["model", "netlink"]),
    (
        "daemon",
        &[
            "acquire", "model", "yaml", "detect", "jail", "nft", "tell", "bell", "engine", "enforcer",
            "sources", "sockets", "state", "config", "control", "host", "answers", "never", "spare",
            "repair", "audit", "saving", "server", "status", "keeper", "knocks",
        ],
    ),
    ("knocks", &["daemon", "engine", "held", "host", "jail", "model"]),
    ("diagnosis", &["host", "model", "nft", "status"]),
    ("doctor", &["config", "control", "diagnosis", "host", "model", "nft", "status", "yaml"]),
    ("tun", &["lab", "model"]),
    (
        "selftest",
        &["acquire", "resolve", "config", "control", "detect", "host", "model", "nft", "tun", "yaml"],
    ),
    ("audit", &["daemon", "enforcer", "host", "jail", "model", "nft"]),
    ("announce", &["daemon", "evidence", "host", "model", "status", "tell"]),
    (
        "why",
        &[
            "control", "daemon", "enforcer", "evidence", "held", "history", "host", "jail", "model", "nft",
            "resolve", "status",
        ],
    ),
    ("top", &["control", "model", "status", "tell"]),
    ("ini", &["yaml"]),
    ("jargon", &["time"]),
    ("dialect", &["detect"]),
    ("shapes", &["detect", "dialect"]),
    ("draft", &["detect", "jargon", "shapes"]),
    ("failregex", &["dialect", "draft", "shapes"]),
    ("filters", &["dialect", "ini", "jargon", "shapes", "yaml"]),
    ("deeds", &["ini", "jargon"]),
    ("terms", &["ini", "jargon", "never", "yaml"]),
    ("serving", &["detect", "dialect", "failregex", "filters", "ini", "jargon", "shapes", "theirs", "yaml"]),
    ("theirs", &["acquire", "deeds", "detect", "filters", "ini", "jargon", "serving", "terms", "yaml"]),
    ("translate", &["filters", "ini", "jargon", "terms", "theirs", "yaml"]),
    (
        "import",
        &[
            "config",
            "detect",
            "failregex",
            "filters",
            "host",
            "jargon",
            "model",
            "ports",
            "shapes",
            "terms",
            "theirs",
            "translate",
            "yaml",
        ],
    ),
    ("takeover", &["config", "control", "host", "jargon", "model", "never", "nft", "state", "yaml"]),
    ("habits", &["control", "model", "never", "status"]),
    ("compare", &["acquire", "config", "detect", "engine", "jail", "jargon", "model"]),
    (
        "moving",
        &[
            "cli", "compare", "config", "detect", "habits", "host", "import", "matching", "model", "never",
            "takeover", "yaml",
        ],
    ),
    ("verbs", &["control", "detect", "model", "moving", "never"]),
    ("saving", &["config", "daemon", "host", "jail", "state"]),
    ("repair", &["control", "daemon", "enforcer", "engine", "host", "jail", "model", "nft", "status"]),
    (
        "reload",
        &["daemon", "config", "control", "enforcer", "host", "model", "never", "sources", "tell", "yaml"],
    ),
    ("spare", &["daemon", "config", "control", "enforcer", "model", "jail", "never", "nft", "status"]),
    (
        "answers",
        &[
            "status", "model", "yaml", "jail", "tell", "engine", "resolve", "control", "held", "host",
            "daemon", "server", "why",
        ],
    ),
    ("trial", &["status", "model", "detect", "nft", "tell", "config", "control", "host", "lab"]),
    ("check", &["acquire", "config", "host", "model", "tell", "yaml"]),
    ("matching", &["acquire", "detect", "host"]),
    ("replay", &["status", "model", "acquire", "detect", "engine", "config", "resolve"]),
    (
        "cli",
        &[
            "check", "matching", "replay", "model", "yaml", "acquire", "detect", "tell", "config", "control",
            "host", "daemon", "trial", "doctor", "nft", "selftest", "status", "teller", "top", "verbs",
            "moving",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// The stages of the pipeline, which are the only folders.
const STAGES: [&str; 5] = ["acquire", "detect", "jail", "nft", "tell"];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found.sort();
    found
}

fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// What comes before the unit tests: they may do as they like.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

/// Every `crate::room` that a text names, in `use` or in passing.
fn imports(text: &str) -> Vec<&str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap())
        .collect()
}

#[test]
fn rooms_import_only_what_they_may() {
    let may: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut seen = 0;
    for (path, text) in sources(&root().join("src")) {
        let room = room(&path);
        let allowed = may.get(room.as_str()).unwrap_or_else(|| panic!("{room} is not in the table of rooms"));
        for import in imports(product(&text)) {
            seen += 1;
            let fine = import == room || allowed.contains(&import);
            assert!(fine, "{} imports {import}: {room} may import {allowed:?}", path.display());
        }
    }
    assert!(seen > 30, "imports are found at all");
}

#[test]
fn the_folders_are_the_stages() {
    let mut folders: Vec<String> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(folders, STAGES, "a folder is a stage; anything else is a file beside them");
}

#[test]
fn the_top_level_is_as_fixed() {
    let known =
        ["Cargo.toml", "Cargo.lock", "README.md", "Vagrantfile", "src", "rules", "examples", "integration"];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let fine = known.contains(&name.as_str()) || name.starts_with('.') || name.starts_with("LICENSE");
        assert!(fine || name == "target", "{name} does not belong at the top level");
    }
}

#[test]
fn every_file_says_what_it_is_and_is_one_thing() {
    for dir in ["src", "integration", "rules"] {
        for (path, text) in sources(&root().join(dir)) {
            assert!(text.starts_with("//! "), "{} does not open with a sentence", path.display());
            let lines = product(&text).lines().count();
            assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn functions_fit_on_a_screen() {
    for (path, text) in sources(&root().join("src")) {
        let mut start: Option<(usize, usize, &str)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let code = line.trim_start();
            let is_head =
                ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "pub(super) fn "]
                    .iter()
                    .any(|head| code.starts_with(head));
            if is_head && start.is_none() && !code.ends_with(';') {
                start = Some((number, indent, code));
            }
            if let Some((first, at, head)) = start
                && indent == at
                && (code == "}" || (number == first && code.ends_with('}')))
            {
                let lines = number - first + 1;
                assert!(
                    lines <= FUNCTION_LINES_MAX,
                    "{}:{} has {lines} lines: {head}",
                    path.display(),
                    first + 1
                );
                start = None;
            }
        }
    }
}

#[test]
fn deciding_code_touches_neither_clock_nor_world() {
    let worldly = [
        "std::fs",
        "std::net::Tcp",
        "std::process",
        "SystemTime",
        "Instant::now",
        "tokio",
        "rustix::fs",
        "File::",
    ];
    for (path, text) in sources(&root().join("src")) {
        let text = product(&text);
        if !text.contains("#![forbid(unsafe_code)]") {
            continue;
        }
        for word in worldly {
            assert!(!text.contains(word), "{} is marked pure but names {word}", path.display());
        }
    }
    for file in [
        "model.rs",
        "target.rs",
        "engine.rs",
        "jail/mod.rs",
        "jail/window.rs",
        "jail/allow.rs",
        "tell/message.rs",
    ] {
        let text = fs::read_to_string(root().join("src").join(file)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{file} is to be pure");
    }
}

#[test]
fn nothing_names_this_machine() {
    let forbidden = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut files: Vec<(PathBuf, String)> = sources(&root().join("src"));
    files.extend(sources(&root().join("integration")));
    for name in ["README.md", "src/README.md", "integration/README.md"] {
        files.push((root().join(name), fs::read_to_string(root().join(name)).unwrap()));
    }
    for (path, text) in files {
        for word in forbidden {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

/// Licences under which a dependency may be part of a binary that is MIT or Apache-2.0.
const LICENCES: [&str; 10] = [
    "0BSD",
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unlicense",
    "Unicode-3.0",
    "Zlib",
];

#[test]
fn every_dependency_may_be_shipped() {
    let metadata = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // What only other systems need is neither built nor fetched.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50);
    for package in packages {
        let licence =
            package["license"].as_str().unwrap_or_default().replace(['(', ')'], "").replace('/', " OR ");
        let mut names = licence.split(" OR ").flat_map(|some| some.split(" AND "));
        let allowed = |name: &str| LICENCES.contains(&name.trim());
        // Where several hold at once, all that are named must do.
        let fine = if licence.contains(" AND ") { names.all(allowed) } else { names.any(allowed) };
        assert!(fine, "{} is under \"{licence}\"", package["name"]);
    }
}
