//! A ban as a line of fail2ban's own log, for tools that read that.
#![forbid(unsafe_code)]

use jiff::tz::TimeZone;

use crate::status::{Happened, News};

/// `2026-11-21 20:00:00,123 fail2ban.actions        [1]: NOTICE  [sshd] Ban 192.0.2.1`, and the like for an unban. An
/// end is an unban, as there. The number in brackets is a process's there; here it says nothing.
pub fn line(news: &News, zone: &TimeZone) -> Option<String> {
    let what = match news.event {
        Happened::Banned => "Ban",
        Happened::Restored => "Restore Ban",
        Happened::Unbanned | Happened::Ended => "Unban",
        _ => return None,
    };
    let (jail, target) = (news.jail.as_ref()?, news.target?);
    let who = if target.is_network() { target.to_string() } else { target.network().to_string() };
    let at = jiff::Timestamp::from_millisecond(news.at.as_millis()).ok()?.to_zoned(zone.clone());
    let at = at.strftime("%Y-%m-%d %H:%M:%S,%3f");
    Some(format!("{at} {:<24}[1]: NOTICE  [{jail}] {what} {who}\n", "fail2ban.actions"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn a_ban_is_written_as_it_was_for_twenty_years() {
        let mut news = News {
            schema: 1,
            at: Timestamp::from_millis(1_500),
            event: Happened::Banned,
            jail: Some("sshd".parse().unwrap()),
            target: Some("2001:db8::/64".parse().unwrap()),
            bantime: None,
            ends: None,
            lines: Vec::new(),
            text: String::new(),
        };
        let wanted = "1970-01-01 00:00:01,500 fail2ban.actions        [1]: NOTICE  [sshd] Ban 2001:db8::\n";
        assert_eq!(line(&news, &TimeZone::UTC).unwrap(), wanted);
        news.event = Happened::Ended;
        assert!(line(&news, &TimeZone::UTC).unwrap().ends_with("[sshd] Unban 2001:db8::\n"));
        news.event = Happened::Failed;
        assert_eq!(line(&news, &TimeZone::UTC), None);
    }
}
