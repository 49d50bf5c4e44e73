//! Every command and every configuration that a document shows is run here, as it stands there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::scene::{Agent, Scene, ask, nftjail};

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Lines indented by four, which Markdown shows as code: what people copy.
fn commands(text: &str) -> Vec<String> {
    let code = text.lines().filter_map(|line| line.strip_prefix("    "));
    let outside_yaml = code.filter(|line| !line.contains(": "));
    outside_yaml.map(|line| line.split("  #").next().unwrap().trim().to_owned()).collect()
}

#[test]
fn the_commands_of_the_readme_work_as_written() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22}}\n");
    scene.fail("203.0.113.7", 2);
    let mut ran = 0;
    for command in commands(&document("README.md")) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let output = match words.as_slice() {
            ["cargo", "run", "--release", "--", "try"] => {
                Command::new(env!("CARGO_BIN_EXE_nftjail")).arg("try").output()
            }
            // This is what runs now.
            ["integration/run"] => continue,
            ["cargo", "install", "--path", "."] => {
                assert!(document("Cargo.toml").contains("name = \"nftjail\""));
                continue;
            }
            // The scene's agent was started by it.
            ["nftjail", "run"] => continue,
            ["nftjail", arguments @ .., "/var/log/auth.log"] => {
                nftjail(&scene, arguments).arg(scene.path("auth.log")).output()
            }
            ["nftjail", arguments @ ..] => Ok(ask(&scene, arguments)),
            other => panic!("the README shows {other:?}, which no test runs"),
        };
        let output = output.unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        ran += 1;
    }
    assert!(ran >= 8, "the commands were found: {ran}");
}

#[test]
fn the_configuration_of_the_readme_is_in_order() {
    let text = document("README.md");
    let blocks: Vec<&str> =
        text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty());
    let scene = Scene::new();
    for block in blocks {
        fs::write(scene.path("nftjail.yaml"), block).unwrap();
        let checked = ask(&scene, &["check"]);
        assert!(checked.status.success(), "{block}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn the_trial_shows_the_whole_way_and_leaves_nothing_behind() {
    let ruleset =
        || Command::new("nft").args(["list", "table", "inet", "nftjail"]).output().unwrap().status.success();
    let before = ruleset();
    let output = Command::new(env!("CARGO_BIN_EXE_nftjail")).arg("try").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    for piece in [
        "failed (1 of 5)",
        "sshd: banned 198.51.100.66 for",
        "table inet nftjail {",
        "clean",
        ": connected",
        "no answer",
        "is free again",
        "Done.",
    ] {
        assert!(shown.contains(piece), "{piece} is not in:\n{shown}");
    }
    assert_eq!(shown.matches(": connected").count(), 2, "the clean one, and the unbanned one:\n{shown}");
    assert!(before == ruleset(), "the host is as it was");
}

#[test]
fn the_trial_needs_no_root_where_plain_users_may_have_namespaces() {
    let scene = Scene::new();
    fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = scene.path("nftjail");
    fs::copy(env!("CARGO_BIN_EXE_nftjail"), &program).unwrap();
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("try");
    let output = user.env("TMPDIR", "/tmp").current_dir("/").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => assert!(String::from_utf8_lossy(&output.stdout).contains("no answer")),
        false => assert!(told.contains("no namespaces for plain users here"), "{told}"),
    }
}
