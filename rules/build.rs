//! Writes the list of rule files that the binary carries, so that it always has the rules its tests proved.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let rules = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("rules");
    println!("cargo::rerun-if-changed={}", rules.display());
    let mut names: Vec<String> = fs::read_dir(&rules)
        .expect("rules/ is part of the source")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    let list: String = names
        .iter()
        .map(|name| format!("    ({name:?}, include_str!({:?})),\n", rules.join(name).display().to_string()))
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("rules.rs");
    fs::write(out, format!("[\n{list}]\n")).expect("OUT_DIR is writable");
}
