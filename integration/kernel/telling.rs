//! Who is told what happens: real mail and web servers that take it, refuse it, hang, and a real Prometheus.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::scene::{Agent, Scene, ask, ask_json, failure};

const JAILS: &str = "jails: {sshd: {logpath: LOG, maxretry: 2, port: 22}}\n";
/// Debian's own, which has Debian's modules.
const PYTHON: &str = "/usr/bin/python3";

/// A program on the server, ended with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(scene: &Scene, command: &mut Command, port: u16) -> Server {
    let log = fs::File::options().create(true).append(true).open(scene.path("agent.log")).unwrap();
    let server = Server(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let wanted = format!("127.0.0.1:{port} ");
    scene.wait_for("the server", || {
        let sockets = scene.on_server("ss").args(["-Hltn"]).output().unwrap();
        String::from_utf8_lossy(&sockets.stdout).contains(&wanted)
    });
    server
}

fn script(scene: &Scene, name: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/kernel/servers").join(name);
    let mut command = scene.on_server(PYTHON);
    command.arg(script);
    command
}

fn text(scene: &Scene, name: &str) -> String {
    fs::read_to_string(scene.path(name)).unwrap_or_default()
}

fn web(scene: &Scene) -> Server {
    start(scene, script(scene, "web.py").arg("8080").arg(scene.path("web")), 8080)
}

/// What a path of the web server was sent.
fn sent(scene: &Scene, path: &str) -> Vec<Value> {
    let all = text(scene, "web");
    let lines = all.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|request| request["path"] == path).collect()
}

fn ban(scene: &Scene, address: &str) {
    for line in [failure(address), failure(address)] {
        scene.log("auth.log", &line.replace("for root", "for \u{1b}[2J<!channel>\"\\"));
    }
    scene.wait_for("the ban", || scene.holds("sshd_v4", address));
}

/// An authority (ca.pem), and a certificate for localhost that it signed.
fn certify(scene: &Scene) {
    let make = |name: &str, more: &[&str]| {
        let made = Command::new("openssl")
            .current_dir(scene.dir.path())
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args([
                "-subj",
                "/CN=localhost",
                "-keyout",
                &format!("{name}-key.pem"),
                "-out",
                &format!("{name}.pem"),
            ])
            .args(more)
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
    };
    make("ca", &[]);
    let leaf = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=DNS:localhost"];
    make("cert", &[&["-CA", "ca.pem", "-CAkey", "ca-key.pem"], &leaf[..]].concat());
}

#[test]
fn mail_goes_out_over_tls_with_a_password_and_nothing_in_it_steers_a_header() {
    let scene = Scene::new();
    certify(&scene);
    let mut smtp = script(&scene, "mail.py");
    smtp.arg("2525").args(["mail", "cert.pem", "cert-key.pem"].map(|name| scene.path(name)));
    let _smtp = start(&scene, &mut smtp, 2525);
    fs::write(scene.path("password"), "s3cret\n").unwrap();
    Command::new("chmod").arg("600").arg(scene.path("password")).status().unwrap();
    let config = format!(
        "{JAILS}notify:\n  root:\n    mail: {{to: root@example.org, from: nftjail@example.org, server: 'localhost:2525', \
         user: nftjail, password_file: {password}}}\n    digest: 1s\n  nobody:\n    mail: {{to: refuse@example.org, \
         server: 'localhost:2525', tls: none}}\n",
        password = scene.path("password").display()
    );
    // The agent trusts whom the host trusts.
    let _agent =
        Agent::start_with(&scene, &config, &[("SSL_CERT_FILE", scene.path("ca.pem").to_str().unwrap())]);
    ban(&scene, "203.0.113.7");
    scene.wait_for("the mail", || text(&scene, "mail").contains("--END--"));
    let mail = text(&scene, "mail").replace("\r\n", "\n");
    assert!(mail.starts_with("AS nftjail TLS True\n"), "{mail}");
    let (head, body) = mail.split_once("\n\n").unwrap();
    assert!(head.contains("\nTo: root@example.org\n"), "{mail}");
    assert!(head.contains("\nAuto-Submitted: auto-generated\n"), "{mail}");
    assert!(head.contains("sshd: banned 203.0.113.7 for 10m"), "{mail}");
    let body = body.replace("=\n", "").replace("=3D", "=");
    assert!(body.contains(r"Failed password for \u{1b}[2J<!channel>"), "{mail}");
    assert!(!mail.contains('\u{1b}'));
    scene.wait_for("the refusal", || {
        text(&scene, "agent.log").contains("nobody could not be told, and is tried again")
    });
    assert!(
        text(&scene, "agent.log").contains("550 nobody here")
            || text(&scene, "agent.log").contains("nobody here")
    );
}

#[test]
fn a_webhook_is_told_once_in_its_own_form_and_no_redirection_is_followed() {
    let scene = Scene::new();
    let _web = web(&scene);
    fs::write(scene.path("token"), "t0ken\n").unwrap();
    Command::new("chmod").arg("600").arg(scene.path("token")).status().unwrap();
    let mut config = format!("{JAILS}notify:\n");
    for (name, path, more) in [
        ("json", "/json", format!("token_file: {}", scene.path("token").display())),
        ("slack", "/slack", "template: slack".to_owned()),
        ("big", "/big", "template: discord".to_owned()),
        ("redirect", "/redirect", "template: json".to_owned()),
        ("broken", "/broken", "template: json".to_owned()),
    ] {
        config +=
            &format!("  {name}: {{webhook: {{url: 'http://127.0.0.1:8080{path}', {more}}}, digest: 1s}}\n");
    }
    config += "  tls: {webhook: {url: 'https://127.0.0.1:8080/'}}\n";
    let _agent = Agent::start(&scene, &config);
    ban(&scene, "203.0.113.7");
    for path in ["/json", "/slack", "/big", "/redirect", "/broken"] {
        scene.wait_for(path, || !sent(&scene, path).is_empty());
    }
    let json = &sent(&scene, "/json")[0];
    assert_eq!(json["authorization"], "Bearer t0ken");
    assert_eq!(json["body"]["news"][0]["event"], "banned");
    assert_eq!(json["body"]["news"][0]["target"], "203.0.113.7");
    assert_eq!(json["body"]["news"][0]["lines"].as_array().unwrap().len(), 2);
    let slack = sent(&scene, "/slack")[0]["body"]["text"].as_str().unwrap().to_owned();
    assert!(slack.contains(r"\u{1b}[2J&lt;!channel&gt;"), "{slack}");
    // What was refused is tried again, what was taken is not.
    scene
        .wait_for("another try", || sent(&scene, "/broken").len() > 1 && sent(&scene, "/redirect").len() > 1);
    assert_eq!((sent(&scene, "/json").len(), sent(&scene, "/big").len()), (1, 1));
    assert!(sent(&scene, "/elsewhere").is_empty());
    scene.wait_for("the word on TLS", || text(&scene, "agent.log").contains("tls could not be told"));
}

#[test]
fn what_waits_outlives_the_agent_and_restored_bans_tell_nobody() {
    let scene = Scene::new();
    let config =
        format!("{JAILS}notify: {{web: {{webhook: {{url: 'http://127.0.0.1:8080/json'}}, digest: 1s}}}}\n");
    let agent = Agent::start(&scene, &config);
    ban(&scene, "203.0.113.7");
    scene.wait_for("the failure", || text(&scene, "agent.log").contains("web could not be told"));
    agent.kill();
    let _agent = Agent::start_again(&scene);
    let _web = web(&scene);
    scene.wait_for("the news", || !sent(&scene, "/json").is_empty());
    ban(&scene, "203.0.113.8");
    scene.wait_for("more news", || sent(&scene, "/json").len() > 1);
    let told: Vec<Value> = sent(&scene, "/json")
        .into_iter()
        .flat_map(|request| request["body"]["news"].as_array().unwrap().clone())
        .collect();
    let targets: Vec<&str> = told.iter().map(|news| news["target"].as_str().unwrap()).collect();
    assert_eq!(
        targets,
        ["203.0.113.7", "203.0.113.8"],
        "each once, though the first was adopted at the start"
    );
}

#[test]
fn a_program_is_run_without_a_shell_and_not_for_ever() {
    let scene = Scene::new();
    let out = scene.path("out");
    let script = scene.path("on-ban");
    let body = format!(
        "#!/bin/sh\nenv | grep -e NFTJAIL -e SECRET >> {0}\necho \"args $*\" >> {0}\ncat >> {0}\n",
        out.display()
    );
    fs::write(&script, body).unwrap();
    let hang = scene.path("hang");
    fs::write(&hang, format!("#!/bin/sh\nsleep 600 & echo $! > {}\nwait\n", scene.path("pid").display()))
        .unwrap();
    for file in [&script, &hang] {
        Command::new("chmod").arg("755").arg(file).status().unwrap();
    }
    let config = format!(
        "{JAILS}notify:\n  good: {{exec: ['{}', '$(id)'], events: [banned]}}\n  bad: {{exec: '{}', timeout: 1s}}\n",
        script.display(),
        hang.display()
    );
    let _agent = Agent::start_with(&scene, &config, &[("SECRET", "x")]);
    ban(&scene, "203.0.113.7");
    scene.wait_for("the program", || text(&scene, "out").contains("\"event\":\"banned\""));
    let told = text(&scene, "out");
    for line in ["NFTJAIL_EVENT=banned", "NFTJAIL_JAIL=sshd", "NFTJAIL_ADDR=203.0.113.7", "args $(id)"] {
        assert!(told.lines().any(|found| found == line), "{line}: {told}");
    }
    assert!(!told.contains("SECRET"));
    scene.wait_for("the end of the other", || {
        text(&scene, "agent.log").contains("took longer than 1 s and was ended")
    });
    let pid = text(&scene, "pid");
    scene.wait_for("its children's end", || !Path::new("/proc").join(pid.trim()).join("exe").exists());
}

#[test]
fn a_file_has_the_lines_that_old_tools_read() {
    let scene = Scene::new();
    let log = scene.path("bans.log");
    let config =
        format!("{JAILS}notify: {{old: {{file: {}, events: [banned, unbanned, ended]}}}}\n", log.display());
    let _agent = Agent::start(&scene, &config);
    ban(&scene, "203.0.113.7");
    scene.wait_for("the line", || text(&scene, "bans.log").ends_with("NOTICE  [sshd] Ban 203.0.113.7\n"));
    fs::rename(&log, scene.path("bans.log.1")).unwrap();
    assert!(ask(&scene, &["unban", "203.0.113.7"]).status.success());
    scene.wait_for("a new file", || text(&scene, "bans.log").ends_with("NOTICE  [sshd] Unban 203.0.113.7\n"));
}

#[test]
fn dead_channels_delay_no_ban() {
    let scene = Scene::new();
    let _web = web(&scene);
    let config = format!(
        "{JAILS}notify:\n  slow: {{webhook: {{url: 'http://127.0.0.1:8080/slow'}}, digest: 1s, timeout: 60s}}\n  \
         dead: {{webhook: {{url: 'http://127.0.0.1:9/'}}, digest: 1s}}\n  \
         silent: {{mail: {{to: root@example.org, server: '127.0.0.1:8080', tls: none}}, timeout: 60s}}\n"
    );
    let _agent = Agent::start(&scene, &config);
    ban(&scene, "203.0.113.7");
    scene.wait_for("all to be stuck", || {
        !sent(&scene, "/slow").is_empty() && text(&scene, "agent.log").contains("dead could not be told")
    });
    for n in 8..40 {
        ban(&scene, &format!("203.0.113.{n}"));
    }
    assert_eq!(ask_json(&scene, &["bans"]).as_array().unwrap().len(), 33);
}

#[test]
fn prometheus_reads_the_metrics_and_the_dashboard_asks_for_nothing_else() {
    let scene = Scene::new();
    let config = format!("{JAILS}metrics: 127.0.0.1:9321\n");
    let _agent = Agent::start(&scene, &config);
    ban(&scene, "203.0.113.7");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let prometheus_config = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: ['{}']\nscrape_configs: [{{job_name: nftjail, static_configs: \
         [{{targets: ['127.0.0.1:9321']}}]}}]\n",
        examples.join("prometheus-alerts.yml").display()
    );
    fs::write(scene.path("prometheus.yaml"), prometheus_config).unwrap();
    let mut prometheus = scene.on_server("prometheus");
    prometheus.arg("--config.file").arg(scene.path("prometheus.yaml"));
    prometheus.arg("--storage.tsdb.path").arg(scene.path("tsdb"));
    let _prometheus =
        start(&scene, prometheus.args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"]), 9090);
    let query = |query: &str| {
        let output = scene
            .on_server("promtool")
            .args(["query", "instant", "http://127.0.0.1:9090", query])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    scene.wait_for("a scrape", || {
        query("nftjail_bans_total")
            .contains("{instance=\"127.0.0.1:9321\", jail=\"sshd\", job=\"nftjail\"} => 1 ")
    });
    assert!(query("up").contains("=> 1 "));

    // Every metric that dashboard and alerts name is there.
    let exposed = scene
        .on_server("promtool")
        .args([
            "query",
            "instant",
            "http://127.0.0.1:9090",
            "count by (__name__) ({__name__=~\"nftjail.*\"})",
        ])
        .output()
        .unwrap();
    let exposed = String::from_utf8_lossy(&exposed.stdout).into_owned();
    let mut named = 0;
    for file in ["grafana-dashboard.json", "prometheus-alerts.yml"] {
        let text = fs::read_to_string(examples.join(file)).unwrap();
        for piece in text.split("nftjail_").skip(1) {
            let rest = piece.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            assert!(
                exposed.contains(&format!("nftjail_{rest} =>")),
                "{file} names nftjail_{rest}, which is not in\n{exposed}"
            );
            named += 1;
        }
    }
    assert!(named > 10);
    serde_json::from_str::<Value>(&fs::read_to_string(examples.join("grafana-dashboard.json")).unwrap())
        .unwrap();
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(examples.join("prometheus-alerts.yml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn the_state_can_be_asked_in_sql() {
    let scene = Scene::new();
    let agent = Agent::start(&scene, JAILS);
    ban(&scene, "203.0.113.7");
    agent.stop();
    let ask = |query: &str| {
        let output =
            Command::new("sqlite3").arg(scene.path("state/nftjail.sqlite3")).arg(query).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask("SELECT jail, target FROM ban"), "sshd|203.0.113.7\n");
    assert_eq!(ask("SELECT event, jail, target FROM history"), "banned|sshd|203.0.113.7\n");
    assert_eq!(ask("PRAGMA integrity_check"), "ok\n");
}
