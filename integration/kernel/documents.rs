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
fn the_commands_for_whoever_comes_from_fail2ban_work_as_written() {
    let scene = Scene::new();
    scene.fail("203.0.113.9", 5);
    let at = |name: &str| scene.path(name).display().to_string();
    fs::create_dir(scene.path("theirs")).unwrap();
    let jail =
        format!("[sshd]\nenabled = true\nport = 22\naction = nftables\nlogpath = {}\n", at("auth.log"));
    fs::write(scene.path("theirs/jail.local"), jail).unwrap();
    let filter = r"[Definition]
failregex = ^\S+ sshd\[\d+\]: Failed password for root from <HOST> port \d+ ssh2$
";
    fs::write(scene.path("own.conf"), filter).unwrap();
    let now = nftjail::host::now().as_millis() / 1_000;
    let database = rusqlite::Connection::open(scene.path("bans.sqlite3")).unwrap();
    let rows = format!(
        "CREATE TABLE bips (ip, jail, timeofban INTEGER, bantime INTEGER, bancount INTEGER);
         INSERT INTO bips VALUES ('203.0.113.8', 'sshd', {now}, 600, 1)"
    );
    database.execute_batch(&rows).unwrap();
    fs::write(scene.path("fail2ban.log"), "").unwrap();
    let mut agent = None;
    let mut ran = 0;
    for command in commands(&document("examples/coming-from-fail2ban.md")) {
        // A folder where other scenes have a file: the scene's agent finds it there.
        let here = command
            .replace("/etc/fail2ban/filter.d/sshd.conf", &at("own.conf"))
            .replace("/etc/fail2ban", &at("theirs"))
            .replace("--output /etc/nftjail", &format!("--output {}", at("nftjail.yaml")))
            .replace("/var/lib/fail2ban/fail2ban.sqlite3", &at("bans.sqlite3"))
            .replace("/var/log/auth.log", &at("auth.log"));
        let mut words: Vec<&str> = here.split_whitespace().collect();
        let (log, state) = (at("fail2ban.log"), at("state"));
        match words.as_slice() {
            // It runs nowhere in this scene.
            ["systemctl", ..] => continue,
            ["nftjail", "run"] => {
                agent = Some(Agent::start_again(&scene));
                continue;
            }
            ["nftjail", "compare", ..] => words.extend(["--fail2ban-log", &log]),
            ["nftjail", "import", "--database", ..] => words.extend(["--state", &state]),
            _ => {}
        }
        let output = ask(&scene, &words[1..]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command}: {told}{}", String::from_utf8_lossy(&output.stderr));
        let must = match words[1..] {
            ["import", "--database", ..] => "1 bans of 1 jails are in the kernel now",
            ["f2b", "status", ..] => "203.0.113.8",
            ["compare", ..] => "1 bans only by nftjail",
            ["match", ..] => "5 count as failures",
            _ => "",
        };
        assert!(told.contains(must), "{command}: {told}");
        ran += 1;
    }
    assert!(agent.is_some() && ran >= 10, "the commands were found: {ran}");
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
