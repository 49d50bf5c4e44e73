//! An event as one line of text. Nothing from a log stands in it but what we parsed, and names only escaped.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::model::Event;

pub fn text(event: &Event) -> String {
    match event {
        Event::Failed { jail, addr, count, maxretry, .. } => {
            format!("{jail}: {addr} failed ({count} of {maxretry})")
        }
        Event::Series { jail, addr, user, addrs } => {
            let user = user.escape_debug();
            format!(
                "{jail}: {addr} is to be banned at once: user \"{user}\" was tried from {addrs} addresses before"
            )
        }
        Event::Ignored { jail, addr } => format!("{jail}: {addr} failed, but is never banned"),
        Event::Overdue { ban } => {
            format!("{}: {} earned a ban that is over by now ({})", ban.jail, ban.target, ban.bantime)
        }
        Event::Banned { ban } => format!("{}: banned {} for {}", ban.jail, ban.target, ban.bantime),
        Event::Extended { ban } => {
            format!("{}: {} stays banned, again for {}", ban.jail, ban.target, ban.bantime)
        }
        Event::Knocked { ban } => {
            let until = ban.end().unwrap_or(ban.at);
            format!("{}: {} still tries, and stays banned until {until} at least", ban.jail, ban.target)
        }
        Event::PutBack { ban } => {
            format!(
                "{}: {} was taken out of the kernel or changed there, and is banned as before",
                ban.jail, ban.target
            )
        }
        Event::Repaired { by } => {
            format!("{by} removed or changed our table or a part of it: it is back, with every ban")
        }
        Event::Adopted { ban, by } => {
            format!("{}: {} was banned in the kernel by {by}, and is believed", ban.jail, ban.target)
        }
        Event::Restored { ban } => format!("{}: {} is still banned", ban.jail, ban.target),
        Event::Released { jail, target } => format!("{jail}: unbanned {target}"),
        Event::Ended { ban } => format!("{}: the ban of {} is over", ban.jail, ban.target),
        Event::Refused { jail, target, why } => format!("{jail}: {target} is NOT banned: {why}"),
    }
}

/// A log that names only a proxy, and what to do about it.
pub fn proxied(log: &str, addr: IpAddr, trusted: bool) -> String {
    let who = if trusted { "your proxy:" } else { "which is never banned: if that is a proxy," };
    format!(
        "every failure in {log} comes from {addr}, {who} log the real client (nginx: set_real_ip_from and \
         real_ip_header; apache: mod_remoteip), or nobody can be banned"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ban, Bantime, Target, Timestamp};
    use std::time::Duration;

    #[test]
    fn a_ban_is_told_in_the_words_of_the_configuration() {
        let ban = Ban {
            jail: "sshd".parse().unwrap(),
            target: "2001:db8::1".parse::<Target>().unwrap(),
            at: Timestamp::from_millis(0),
            bantime: Bantime::For(Duration::from_secs(5_400)),
        };
        assert_eq!(text(&Event::Banned { ban }), "sshd: banned 2001:db8::/64 for 1h30m");
    }

    #[test]
    fn a_name_that_an_attacker_chose_stays_within_its_quotes_and_its_line() {
        let (jail, addr) = ("sshd".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let series = Event::Series { jail, addr, user: "a\" b\nsshd: c".to_owned(), addrs: 8 };
        let wanted = r#"sshd: 192.0.2.1 is to be banned at once: user "a\" b\nsshd: c" was tried from 8 addresses before"#;
        assert_eq!(text(&series), wanted);
    }
}
