//! What an action of fail2ban does, by its name or its commands, and what becomes of it here.
#![forbid(unsafe_code)]

use crate::ini::Layers;
use crate::jargon::{Named, ports, words, yaml};

/// What an action is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Keeps the host's packets out.
    Ban(Ban),
    /// Lets the host in instead.
    Allow,
    /// Tells somebody, in a way that we have: the channel as our configuration writes it.
    Tell { channel: String, change: &'static str },
    /// Nothing that a nftables set can do; what to do about it, in words.
    Other(String),
}

/// How an action bans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ban {
    /// As our configuration has them; empty where the action does not say.
    pub ports: Vec<String>,
    /// `drop` or `reject`, where somebody chose.
    pub block: Option<&'static str>,
    /// `forward`, or both hooks, where the chain says so.
    pub hook: Option<&'static str>,
    /// What is otherwise than it was.
    pub changes: Vec<String>,
}

/// Programs that drop packets, by how the names of their actions begin.
const FIREWALLS: [&str; 19] = [
    "nftables",
    "iptables",
    "firewallcmd",
    "ufw",
    "shorewall",
    "apf",
    "csf",
    "symbiosis-blacklist",
    "route",
    "hostsdeny",
    "pf",
    "ipfw",
    "bsd-ipfw",
    "ipfilter",
    "npf",
    "osx-afctl",
    "osx-ipfw",
    "ipset",
    "firewalld",
];
const MAILERS: [&str; 5] = ["sendmail", "mail", "smtp", "apprise", "mwl"];
const REPORTERS: [&str; 7] =
    ["abuseipdb", "blocklist_de", "complain", "dshield", "ipthreat", "mynetwatchman", "xarf-login-attack"];
const EDGES: [&str; 6] = ["cloudflare", "mikrotik", "netscaler", "nsupdate", "nginx-block-map", "bunny"];

const NO_MAIL: &str = "whom it mails is not understood: write notify: {admins: {mail: {to: [root@example.org]}}} into nftjail.yaml";
const NO_REPORT: &str =
    "nftjail reports nobody by itself: notify: {report: {exec: [/path/to/script]}} runs yours at each ban";
const NO_EDGE: &str = "a ban here is in this host's kernel and nowhere else. Behind a proxy the kernel sees only the proxy: \
                       put its networks into trusted_proxies, and block at the proxy itself";
const NO_PROGRAM: &str = "its commands were for a shell, and none reads ours: notify: {hook: {exec: [/path/to/script]}} runs a \
                          program, with the event in its environment; webhook: {url: ...} calls an address";

/// Services whose addresses tell which form they take.
const HOOKS: [(&str, &str); 4] = [
    ("https://discord.com/api/webhooks/", "discord"),
    ("https://discordapp.com/api/webhooks/", "discord"),
    ("https://hooks.slack.com/", "slack"),
    ("https://ntfy.sh/", "ntfy"),
];

/// What an action does; `definition` are its own files, where there are any.
pub fn deed(action: &Named, definition: Option<&Layers>, jail_ports: &[String], chain: &str) -> Deed {
    let name = action.name.as_str();
    let begins = |names: &[&str]| {
        names
            .iter()
            .any(|known| name == *known || name.strip_prefix(known).is_some_and(|rest| rest.starts_with('-')))
    };
    if begins(&FIREWALLS) {
        return ban(action, definition, jail_ports, chain);
    }
    if begins(&MAILERS) {
        return mail(action);
    }
    if begins(&REPORTERS) {
        return Deed::Other(NO_REPORT.to_owned());
    }
    if begins(&EDGES) {
        return Deed::Other(NO_EDGE.to_owned());
    }
    let commands = definition.map(commands).unwrap_or_default();
    let runs = |words: &[&str]| words.iter().any(|word| commands.contains(word));
    if runs(&["api.cloudflare.com"]) {
        Deed::Other(NO_EDGE.to_owned())
    } else if runs(&["iptables", "nft ", "ipset ", "ufw ", "firewall-cmd", "ip route", "blackhole"]) {
        ban(action, definition, jail_ports, chain)
    } else if runs(&["sendmail", "mail ", "msmtp", "mailx"]) {
        Deed::Other(NO_MAIL.to_owned())
    } else {
        hook(&commands).unwrap_or_else(|| Deed::Other(NO_PROGRAM.to_owned()))
    }
}

fn mail(action: &Named) -> Deed {
    let is_address = |text: &&str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "@.-_+".contains(c);
        let sides = text.split_once('@');
        text.chars().all(allowed)
            && sides.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !host.contains('@'))
    };
    let to: Vec<&str> = words(action.option("dest").unwrap_or("root@localhost")).collect();
    if to.is_empty() || !to.iter().all(is_address) {
        return Deed::Other(NO_MAIL.to_owned());
    }
    // The host's name is put in by whoever sends.
    let from = action.option("sender").filter(is_address).map(|from| format!(", from: {}", yaml(from)));
    let to: Vec<String> = to.into_iter().map(yaml).collect();
    let channel = format!("mail: {{to: [{}]{}}}", to.join(", "), from.unwrap_or_default());
    Deed::Tell {
        channel,
        change: "mail comes from notify, one for all bans of a minute, without whois and lines of the log",
    }
}

/// A webhook whose whole address stands in the commands.
fn hook(commands: &str) -> Option<Deed> {
    let (at, template) =
        HOOKS.iter().find_map(|(start, template)| Some((commands.find(start)?, template)))?;
    let url = commands[at..].split(|c: char| c.is_whitespace() || "\"'\\;|&)".contains(c)).next()?;
    let whole = !url.contains(['<', '$', '`']);
    whole.then(|| Deed::Tell {
        channel: format!("webhook: {{url: {}, template: {template}}}", yaml(url)),
        change: "the webhook is called by notify, once for all bans of a minute, in words of nftjail's",
    })
}

fn commands(definition: &Layers) -> String {
    let keys = ["actionstart", "actionban"].into_iter();
    keys.filter_map(|key| definition.raw("Definition", key)).map(|value| value.text.as_str()).collect()
}

fn ban(action: &Named, definition: Option<&Layers>, jail_ports: &[String], chain: &str) -> Deed {
    let name = action.name.as_str();
    let own = |key: &str| {
        let init = definition?.own("Init", key).or_else(|| definition?.own("Definition", key))?;
        // What the distribution ships is nobody's choice.
        init.file().ends_with(".local").then_some(init.text.as_str())
    };
    let option = |key: &str| action.option(key).or_else(|| own(key));
    let mut ban = Ban::default();
    let block = option("blocktype").or_else(|| option("returntype")).unwrap_or_default().to_lowercase();
    if block.contains("return") || block.contains("accept") || block.contains("allow") {
        return Deed::Allow;
    }
    if block.contains("drop") || block.contains("deny") {
        ban.block = Some("drop");
    } else if block.contains("reject") {
        ban.block = Some("reject");
    } else if !block.is_empty() {
        ban.changes.push(format!("packets are dropped: \"{block}\" is nothing that nftjail does"));
    }
    let all = name.contains("allports")
        || action.option("type") == Some("allports")
        || matches!(name, "route" | "hostsdeny" | "ipset" | "ufw" | "csf" | "apf" | "shorewall")
            && action.option("port").is_none();
    ban.ports = match (all, action.option("port")) {
        (true, _) => vec!["all".to_owned()],
        (_, Some(port)) => ports(port, action.option("protocol").unwrap_or("tcp")),
        _ => jail_ports.to_vec(),
    };
    let chain = option("chain_hook").or(option("chain")).unwrap_or(chain).to_lowercase();
    let forward = chain.contains("forward") || chain.contains("docker-user");
    if forward {
        ban.hook = Some(if chain.contains("input") { "[input, forward]" } else { "forward" });
    }
    if name.contains("-log") {
        ban.changes.push("dropped packets are counted (`nftjail status`), not logged".to_owned());
    }
    for (begin, program) in
        [("ufw", "ufw"), ("firewall", "firewalld"), ("shorewall", "shorewall"), ("csf", "csf")]
    {
        if name.starts_with(begin) {
            ban.changes.push(format!(
                "bans are in nftjail's own table, which {program} neither shows nor removes (`nftjail bans`)"
            ));
        }
    }
    if matches!(name, "hostsdeny" | "route") {
        ban.changes.push(format!("packets are dropped by nftables instead of {name}"));
    }
    Deed::Ban(ban)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ini;
    use crate::jargon::named;

    fn of(text: &str) -> Deed {
        deed(&named(text).unwrap(), None, &["ssh".to_owned()], "INPUT")
    }

    #[test]
    fn every_way_to_drop_packets_becomes_a_set() {
        let ban = |text: &str| match of(text) {
            Deed::Ban(ban) => ban,
            other => panic!("{text}: {other:?}"),
        };
        let with = |ports: &[&str], block, hook| {
            (ports.iter().map(|port| port.to_string()).collect::<Vec<_>>(), block, hook)
        };
        for (text, wanted) in [
            ("nftables", with(&["ssh"], None, None)),
            ("nftables-allports", with(&["all"], None, None)),
            ("nftables[type=allports, blocktype=\"counter drop\"]", with(&["all"], Some("drop"), None)),
            (
                "iptables-multiport[port=\"80,443\", protocol=tcp, chain=\"DOCKER-USER\"]",
                with(&["80", "443"], None, Some("forward")),
            ),
            ("nftables[chain_hook=forward]", with(&["ssh"], None, Some("forward"))),
            ("iptables[chain=\"INPUT FORWARD\"]", with(&["ssh"], None, Some("[input, forward]"))),
            ("iptables-ipset-proto6[blocktype=REJECT]", with(&["ssh"], Some("reject"), None)),
            ("ufw[blocktype=reject]", with(&["all"], Some("reject"), None)),
            ("ufw[port=80]", with(&["80"], None, None)),
            ("firewallcmd-rich-rules", with(&["ssh"], None, None)),
            ("route", with(&["all"], None, None)),
        ] {
            let ban = ban(text);
            assert_eq!((ban.ports, ban.block, ban.hook), wanted, "{text}");
        }
        assert!(ban("iptables-multiport-log").changes[0].contains("counted"));
        assert_eq!(of("iptables-multiport[blocktype=RETURN]"), Deed::Allow);
    }

    #[test]
    fn what_is_no_ban_is_named() {
        for (text, piece) in [
            ("sendmail-whois-lines[dest=\"a b\"]", "whom it mails"),
            ("mail[dest=\"<x>@b\"]", "whom it mails"),
            ("abuseipdb", "reports nobody"),
            ("cloudflare-token", "trusted_proxies"),
            ("discord", "for a shell"),
        ] {
            assert!(matches!(of(text), Deed::Other(todo) if todo.contains(piece)), "{text}");
        }
    }

    #[test]
    fn who_was_told_is_told() {
        let told = |deed: Deed| match deed {
            Deed::Tell { channel, .. } => channel,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            told(of("sendmail-whois[dest=\"a@b.org, c@b.org\", sender=\"x@<fq-hostname>\"]")),
            "mail: {to: ['a@b.org', 'c@b.org']}"
        );
        assert_eq!(told(of("mail[sender=x@b.org]")), "mail: {to: ['root@localhost'], from: 'x@b.org'}");
        let hook = |url: &str| hook(&format!("curl -X POST \"{url}\" -d x"));
        let discord = hook("https://discord.com/api/webhooks/1/a-b_c").unwrap();
        assert_eq!(
            told(discord),
            "webhook: {url: 'https://discord.com/api/webhooks/1/a-b_c', template: discord}"
        );
        assert_eq!(hook("https://discord.com/api/webhooks/<token>"), None);
    }

    #[test]
    fn own_actions_are_known_by_their_commands() {
        let own = |command: &str| {
            let file =
                ini::parse("mine.conf", format!("[Definition]\nactionban = {command}\n").as_bytes()).unwrap();
            deed(&named("mine").unwrap(), Some(&file), &["ssh".to_owned()], "INPUT")
        };
        assert!(matches!(own("/usr/sbin/iptables -I x -s <ip> -j DROP"), Deed::Ban(_)));
        assert_eq!(own("curl https://api.cloudflare.com/x"), Deed::Other(NO_EDGE.to_owned()));
        assert_eq!(own("echo | mail -s x root"), Deed::Other(NO_MAIL.to_owned()));
        assert_eq!(own("curl https://hooks.example.org"), Deed::Other(NO_PROGRAM.to_owned()));
    }
}
