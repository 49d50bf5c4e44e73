//! Every example is read as the agent would read it.

use std::path::{Path, PathBuf};

use nftjail::config::Config;
use nftjail::host::Services;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

#[test]
fn every_example_is_in_order() {
    let mut read = 0;
    for entry in std::fs::read_dir(example("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let config = Config::load(Some(&path), &Services::of_this_host());
            assert!(config.is_ok_and(|config| !config.jails.is_empty()), "{}", path.display());
            read += 1;
        }
    }
    assert!(read >= 2);
}

#[test]
fn the_full_example_shows_the_defaults_as_they_are() {
    let services = Services::of_this_host();
    let full = Config::load(Some(&example("full.yaml")), &services).unwrap();
    let minimal = Config::load(Some(&example("minimal.yaml")), &services).unwrap();
    let sshd = |config: &Config| {
        config.jails.iter().find(|jail| jail.terms.name.as_str() == "sshd").cloned().unwrap()
    };
    let (full, minimal) = (sshd(&full), sshd(&minimal));
    assert_eq!(full.terms.maxretry, minimal.terms.maxretry);
    assert_eq!(full.terms.findtime, minimal.terms.findtime);
    assert_eq!(full.terms.bantime, minimal.terms.bantime);
    assert_eq!(full.block, minimal.block);
    assert_eq!(full.hooks, minimal.hooks);
    assert_eq!(full.capacity, minimal.capacity);
    assert_eq!(full.mode, minimal.mode);
}
