//! What we program through netlink, as `nft` lists it and as packets meet it.

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::Duration;

use nftjail::model::{Block, Layout, Ports, Protocol};
use nftjail::nft::memory::Memory;
use nftjail::nft::netlink::Netlink;
use nftjail::nft::table::Standing;
use nftjail::nft::transaction::{Operation, Transaction};
use nftjail::nft::{Firewall, Refusal, plan};
use regex::Regex;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::netns::*;

#[test]
fn the_layout_as_programmed_is_the_documented_one() {
    let documented = in_namespace(|| {
        feed(&["nft", "-f", "-"], include_str!("layout.nft")).unwrap();
        (listed_objects(), run(&LIST))
    });
    let programmed = in_namespace(|| {
        let mut netlink = installed(&layout());
        let bans = [
            ban("sshd", "192.0.2.10", 600),
            ban("sshd", "198.51.100.7", 3_600),
            ban("sshd", "2001:db8:1::5", 600),
            ban("web", "203.0.113.5", 86_400),
            ban("recidive", "192.0.2.10", 604_800),
            ban("sshd", "203.0.113.0/24", 3_600),
            ban("sshd", "2001:db8:2::/48", 3_600),
        ];
        apply(&mut netlink, &bans);
        (listed_objects(), run(&LIST))
    });
    assert_eq!(programmed.0, documented.0);
    assert_eq!(masked(&programmed.1), masked(&documented.1));
    assert_eq!(masked(&programmed.1), masked(include_str!("layout.nft")));
}

#[test]
fn the_table_read_back_prints_as_nft_prints_it() {
    in_namespace(|| {
        use Protocol::{Sctp, Tcp, Udp};
        let mut layout = layout();
        let ports = [(Tcp, 80), (Tcp, 443), (Tcp, 8080), (Udp, 53), (Sctp, 22), (Tcp, 22), (Tcp, 65_535)];
        layout.cells.push(cell("tcp", &ports, 7));
        layout.cells.push(cell("nginx-http-auth", &[(Tcp, 1)], 1));
        let mut netlink = installed(&layout);
        let bans = [
            ban("sshd", "192.0.2.1", 600),
            ban("sshd", "10.0.0.1", 0),
            ban("sshd", "255.255.255.255", 1),
            ban("sshd", "9.9.9.9", 3 * 86_400 + 4 * 3_600 + 5 * 60 + 6),
            ban("sshd", "0.0.0.0", 61),
            ban("sshd", "::1", 90),
            ban("sshd", "2001:db8::", 0),
            ban("sshd", "fe80::1", 90),
            ban("sshd", "255.255.255.0/24", 60),
            ban("sshd", "203.0.113.0/25", 60),
            ban("sshd", "203.0.113.128/25", 0),
            ban("sshd", "8.0.0.0/8", 90),
            ban("sshd", "2001:db8::/48", 90),
            ban("sshd", "2001:db8:1::/48", 0),
            ban("sshd", "ffff::/16", 90),
        ];
        apply(&mut netlink, &bans);
        let table = assert_prints_as_nft_does(&mut netlink);
        assert_eq!(table.standing().count(), bans.len());
    });
}

#[test]
fn never_banned_networks_reach_the_kernel_merged_and_to_the_last_address() {
    let lists: [(&[&str], &str, &str); 6] = [
        (&["0.0.0.0/0"], "0.0.0.0/0", ""),
        (&["0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "::/0"], "0.0.0.0/0", "::/0"),
        (&["255.255.255.255/32", "10.0.0.1/32", "10.0.0.2/31"], "255.255.255.255", ""),
        (&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"], "10.0.0.0/8", ""),
        (
            &["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "::1:2:3/128"],
            "",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ),
        (&["::/1", "8000::/1", "224.0.0.0/3"], "224.0.0.0/3", "::/0"),
    ];
    for (never, v4, v6) in lists {
        in_namespace(|| {
            let never = never.iter().map(|net| net.parse().unwrap()).collect();
            let mut netlink = installed(&Layout { never, ..layout() });
            let table = assert_prints_as_nft_does(&mut netlink);
            for (set, expected) in [("ignore_v4", v4), ("ignore_v6", v6)] {
                let elements = &table.set(set).unwrap().elements;
                let held = elements.iter().any(|element| element.key.to_string() == expected);
                assert!(if expected.is_empty() { elements.is_empty() } else { held }, "{set}: {elements:?}");
            }
        });
    }
}

#[test]
fn a_long_never_list_is_replaced_at_once() {
    in_namespace(|| {
        let net = |index: u32| format!("10.{}.{}.0/25", index / 256, index % 256).parse().unwrap();
        let mut netlink = installed(&Layout { never: (0..2_500).map(net).collect(), ..layout() });
        install(&mut netlink, &Layout { never: (1_000..4_000).map(net).collect(), ..layout() }, &[]);
        let table = netlink.table(false).unwrap().unwrap();
        assert_eq!(table.set("ignore_v4").unwrap().elements.len(), 3_000);
        assert_eq!(run(&LIST).matches("/25").count(), 3_000);
    });
}

#[test]
fn a_ban_again_extends_even_by_the_same_time() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        for addr in ["192.0.2.1", "2001:db8::1", "192.0.2.0/24", "2001:db8::/48"] {
            apply(&mut netlink, &[ban("sshd", addr, 600)]);
            while left(&mut netlink, "sshd", addr) > Duration::from_secs(599) {
                sleep(Duration::from_millis(50));
            }
            let before = left(&mut netlink, "sshd", addr);
            apply(&mut netlink, &[ban("sshd", addr, 600)]);
            assert!(left(&mut netlink, "sshd", addr) > before);
            apply(&mut netlink, &[ban("sshd", addr, 3_600)]);
            assert_about(left(&mut netlink, "sshd", addr), 3_600);
            apply(&mut netlink, &[ban("sshd", addr, 0)]);
            assert_eq!(remaining(&mut netlink, "sshd", addr).unwrap().timeout, None);
            apply(&mut netlink, &[ban("sshd", addr, 60)]);
            assert_about(left(&mut netlink, "sshd", addr), 60);
        }
    });
}

#[test]
fn releases_release_and_need_no_ban() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        let addrs = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "203.0.113.0/24", "2001:db8::/48"];
        apply(
            &mut netlink,
            &[0, 600, 600, 600, 0].into_iter().zip(addrs).map(|(s, a)| ban("sshd", a, s)).collect::<Vec<_>>(),
        );
        apply(&mut netlink, &[ban("web", addrs[0], 600)]);
        apply(&mut netlink, &addrs.map(|addr| release("sshd", addr)));
        assert!(addrs.iter().all(|addr| remaining(&mut netlink, "sshd", addr).is_none()));
        assert!(remaining(&mut netlink, "web", addrs[0]).is_some());
        apply(&mut netlink, &addrs.map(|addr| release("sshd", addr)));
        apply(
            &mut netlink,
            &[ban("sshd", addrs[0], 600), release("sshd", addrs[0]), ban("sshd", addrs[0], 60)],
        );
        assert_about(left(&mut netlink, "sshd", addrs[0]), 60);
        assert_eq!(remaining(&mut netlink, "nosuch", addrs[0]), None);
    });
}

#[test]
fn a_ban_with_one_millisecond_left_ends() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        let changes = [ban("sshd", "192.0.2.1", 600), ban("sshd", "192.0.2.2", 601)];
        let almost = NOW.plus(Duration::from_millis(599_999));
        let transaction = plan::apply(&changes, almost);
        netlink.commit(&transaction).unwrap();
        assert!(remaining(&mut netlink, "sshd", "192.0.2.2").is_some());
        assert_ne!(remaining(&mut netlink, "sshd", "192.0.2.1").map(|ban| ban.timeout), Some(None));
        while remaining(&mut netlink, "sshd", "192.0.2.1").is_some() {
            sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn ten_thousand_bans_are_one_transaction() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        let changes = many(10_000);
        let transaction = plan::apply(&changes, NOW);
        netlink.commit(&transaction).unwrap();
        let table = netlink.table(true).unwrap().unwrap();
        assert_eq!(table.set("sshd_v4").unwrap().elements.len(), 10_000);
        assert_eq!(run(&LIST).matches("timeout 1h expires").count(), 10_000);
        assert!(netlink.table(false).unwrap().unwrap().set("sshd_v4").unwrap().elements.is_empty());
    });
}

#[test]
fn a_full_set_is_named_with_the_ban_that_did_not_fit() {
    let mut layout = layout();
    layout.cells[0].capacity = 1_500;
    let check = |firewall: &mut dyn Firewall| {
        firewall.commit(&plan::install(&layout, None, &[])).unwrap();
        let changes = many(1_600);
        let transaction = plan::apply(&changes, NOW);
        let refusal = firewall.commit(&transaction).unwrap_err();
        assert_eq!(refusal.to_string(), "set sshd_v4 is full (1500 elements)");
        assert_eq!(refusal.change(&transaction), Some(1_500));
        let held = |firewall: &mut dyn Firewall| firewall.table(true).unwrap().unwrap().standing().count();
        assert_eq!(held(firewall), 0, "a refused transaction changes nothing");
        firewall.commit(&plan::apply(&changes[..1_500], NOW)).unwrap();
        assert_eq!(held(firewall), 1_500);
        // A full set still takes bans that it holds, and bans for the room that releases make.
        firewall.commit(&plan::apply(&changes[..1_500], NOW)).unwrap();
        let swap = [ban("sshd", "192.0.2.1", 60), release("sshd", "10.0.0.0")];
        firewall.commit(&plan::apply(&swap, NOW)).unwrap();
        assert_eq!(held(firewall), 1_500);
        let strange = plan::apply(&[release("sshd", "192.0.2.99")], NOW);
        assert!(matches!(
            firewall.commit(&strange),
            Err(Refusal::Full { operation: 0, element: Some(0), .. })
        ));
    };
    in_namespace(|| check(&mut Netlink::open().unwrap()));
    check(&mut Memory::default());
}

#[test]
fn without_the_capability_the_refusal_says_what_is_missing() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        let refusal = Netlink::open().err().expect("it lacks the capability");
        assert_eq!(refusal, Refusal::NotPermitted);
        assert!(refusal.to_string().contains("CAP_NET_ADMIN"));
        assert_eq!(netlink.commit(&plan::apply(&many(1), NOW)), Err(Refusal::NotPermitted));
    });
}

#[test]
fn a_table_that_somebody_deleted_is_missed_and_can_be_installed_again() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        run(&["nft", "flush", "ruleset"]);
        let refusal = netlink.commit(&plan::apply(&many(1), NOW)).unwrap_err();
        assert!(matches!(refusal, Refusal::Missing { operation: 0, .. }), "{refusal}");
        assert!(refusal.to_string().contains("sshd_v4"), "{refusal}");
        assert_eq!(netlink.table(true), Ok(None));
        assert_eq!(netlink.dropped().unwrap().len(), 0);
        assert_eq!(remaining(&mut netlink, "sshd", "10.0.0.0"), None);
        let standing = Standing {
            jail: jail("sshd"),
            target: target("10.0.0.0"),
            timeout: Some(Duration::from_secs(3_600)),
            expires: Some(Duration::from_secs(1_800)),
        };
        install(&mut netlink, &layout(), std::slice::from_ref(&standing));
        assert_about(left(&mut netlink, "sshd", "10.0.0.0"), 1_800);
        assert_eq!(remaining(&mut netlink, "sshd", "10.0.0.0").unwrap().timeout, standing.timeout);
        let listing = run(&LIST);
        run(&["nft", "delete", "element", "inet", "nftjail", "sshd_v4", "{ 10.0.0.0 }"]);
        run(&["nft", "flush", "chain", "inet", "nftjail", "prerouting"]);
        install(&mut netlink, &layout(), &[standing]);
        assert_eq!(masked(&run(&LIST)), masked(&listing));
    });
}

#[test]
fn another_layout_keeps_the_bans_of_jails_that_stay() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        apply(&mut netlink, &[ban("sshd", "192.0.2.1", 600), ban("web", "192.0.2.2", 600)]);
        let mut other = layout();
        other.cells.remove(1);
        other.cells[0].ports = Ports::Some([(Protocol::Tcp, 2222)].into());
        other.cells[1].ports = Ports::Some([(Protocol::Udp, 53)].into());
        other.cells.insert(0, cell("mail", &[], 10));
        other.never = vec!["192.0.2.128/25".parse().unwrap()];
        install(&mut netlink, &other, &[]);
        assert_about(left(&mut netlink, "sshd", "192.0.2.1"), 600);
        let table = assert_prints_as_nft_does(&mut netlink);
        assert_eq!(table.standing().count(), 1);
        assert!(!run(&LIST).contains("web"));
        install(&mut netlink, &layout(), &[]);
        assert_about(left(&mut netlink, "sshd", "192.0.2.1"), 600);
        assert_prints_as_nft_does(&mut netlink);
    });
}

#[test]
fn another_capacity_keeps_bans_with_their_remaining_time() {
    in_namespace(|| {
        let mut netlink = installed(&layout());
        let bans = [
            ban("sshd", "192.0.2.1", 600),
            ban("sshd", "192.0.2.2", 0),
            ban("sshd", "192.0.2.3", 60),
            ban("sshd", "2001:db8::", 600),
        ];
        apply(&mut netlink, &bans);
        let mut other = layout();
        other.cells[0].capacity = 2;
        install(&mut netlink, &other, &[]);
        assert_about(left(&mut netlink, "sshd", "192.0.2.1"), 600);
        assert_about(left(&mut netlink, "sshd", "2001:db8::"), 600);
        assert_eq!(remaining(&mut netlink, "sshd", "192.0.2.2").unwrap().timeout, None);
        assert_eq!(remaining(&mut netlink, "sshd", "192.0.2.3"), None, "the shortest does not fit");
        assert!(run(&LIST).contains("size 2\n"));
        assert_prints_as_nft_does(&mut netlink);
    });
}

#[test]
fn foreign_things_in_our_table_are_read_and_removed() {
    let strangers = [
        "add quota inet nftjail q { over 10 mbytes }",
        "add chain inet nftjail other { type filter hook input priority 0; }\n\
         add rule inet nftjail other tcp dport { 22, 80 } counter log accept",
        "add rule inet nftjail jail_sshd ip saddr 10.0.0.1 accept",
        "add rule inet nftjail jail_sshd ip saddr != @sshd_v4 counter name sshd_dropped drop",
        "add rule inet nftjail jail_sshd ip6 saddr & ffff:ffff:ffff:ff00:: == @sshd_v6 counter name sshd_dropped drop",
        "add rule inet nftjail jail_sshd ip daddr @sshd_v4 counter name sshd_dropped drop",
        "add rule inet nftjail jail_sshd ip saddr @sshd_v4 counter name sshd_dropped reject",
        "add rule inet nftjail jail_sshd ip saddr @sshd_v4 counter name sshd_dropped reject with icmp host-unreachable",
        "add rule inet nftjail jail_sshd goto jail_web",
        "add map inet nftjail m { type ipv4_addr : verdict; }\n\
         add element inet nftjail m { 10.0.0.1 : jump jail_web }",
        "add set inet nftjail macs { type ether_addr; }",
        "add set inet nftjail wide { type ipv4_addr; flags interval,timeout; }",
        "add counter inet nftjail own",
        "add element inet nftjail sshd_ports { tcp . 25 }",
        "add element inet nftjail ignore_v4 { 10.0.0.1-10.0.0.3 }",
        "add element inet nftjail sshd_v4_nets { 10.0.0.1-10.0.0.3 timeout 1m, 10.0.0.9, 0.0.0.0/5 }",
        "add rule inet nftjail jail_sshd ip6 saddr & ffff:ffff:ffff:ffff:: == @sshd_v6_nets counter name sshd_dropped drop",
        "delete rule inet nftjail prerouting handle HANDLE",
    ];
    let accept = Regex::new("accept # handle ([0-9]+)").unwrap();
    for stranger in strangers {
        in_namespace(|| {
            let mut netlink = installed(&layout());
            apply(&mut netlink, &[ban("sshd", "192.0.2.1", 600)]);
            let before = masked(&run(&LIST));
            let chain = run(&["nft", "-a", "list", "chain", "inet", "nftjail", "prerouting"]);
            let handle = accept.captures(&chain).unwrap()[1].to_owned();
            feed(&["nft", "-f", "-"], &stranger.replace("HANDLE", &handle)).unwrap();
            assert_ne!(masked(&run(&LIST)), before, "{stranger}");
            install(&mut netlink, &layout(), &[]);
            assert_eq!(masked(&run(&LIST)), before, "{stranger}");
            assert_about(left(&mut netlink, "sshd", "192.0.2.1"), 600);
        });
    }
}

#[test]
fn a_table_of_another_make_is_replaced_with_its_bans_and_counts() {
    in_namespace(|| {
        let other = "table inet nftjail {
            counter sshd_dropped { packets 7 bytes 280; }
            set sshd_v4 { type ipv4_addr; flags timeout; elements = { 192.0.2.1 timeout 1h expires 10m, 192.0.2.2 }; }
            set web_v4 { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }
            chain prerouting { type filter hook prerouting priority 0; ip saddr @sshd_v4 counter name sshd_dropped drop; }
        }";
        feed(&["nft", "-f", "-"], other).unwrap();
        let mut netlink = installed(&layout());
        assert_about(left(&mut netlink, "sshd", "192.0.2.1"), 600);
        assert_eq!(remaining(&mut netlink, "sshd", "192.0.2.2").unwrap().timeout, None);
        assert_eq!(netlink.dropped().unwrap()[&jail("sshd")].packets, 7);
        assert_eq!(assert_prints_as_nft_does(&mut netlink).standing().count(), 2);
        assert!(run(&LIST).contains("priority raw - 10"));
    });
}

#[test]
fn the_printed_script_does_what_the_transaction_does() {
    let first = plan::install(&layout(), None, &[]);
    let mut other = layout();
    other.cells.remove(1);
    other.cells[0].capacity = 5;
    other.cells[1].block = Block::Reject;
    let bans =
        [ban("sshd", "192.0.2.1", 604_800), ban("sshd", "2001:db8::", 0), ban("recidive", "192.0.2.1", 1)];
    let (committed, scripts) = in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let mut scripts = Vec::new();
        let mut step = |transaction: Transaction, netlink: &mut Netlink| {
            feed(&["nft", "-c", "-f", "-"], &transaction.to_string()).unwrap();
            netlink.commit(&transaction).unwrap();
            scripts.push(transaction.to_string());
        };
        step(first, &mut netlink);
        step(plan::apply(&bans, NOW), &mut netlink);
        step(plan::apply(&[release("recidive", "192.0.2.1")], NOW), &mut netlink);
        let found = netlink.table(true).unwrap();
        step(plan::install(&other, found.as_ref(), &[]), &mut netlink);
        (run(&LIST), scripts)
    });
    let loaded = in_namespace(|| {
        scripts.iter().for_each(|script| drop(feed(&["nft", "-f", "-"], script).unwrap()));
        run(&LIST)
    });
    assert_eq!(masked(&loaded), masked(&committed));
}

#[test]
fn memory_holds_what_the_kernel_holds() {
    in_namespace(|| {
        let mut memory = Memory::default();
        let mut netlink = Netlink::open().unwrap();
        let mut other = layout();
        other.cells.rotate_left(1);
        other.cells[0].capacity = 9;
        other.cells[1].block = Block::Reject;
        for layout in [layout(), other, Layout::default(), layout()] {
            for firewall in [&mut memory as &mut dyn Firewall, &mut netlink] {
                let found = firewall.table(true).unwrap();
                firewall.commit(&plan::install(&layout, found.as_ref(), &[])).unwrap();
            }
            let (memory, kernel) = (memory.table(true).unwrap(), netlink.table(true).unwrap());
            assert_eq!(memory.unwrap().to_string(), kernel.unwrap().to_string());
        }
        let mut odd = Transaction::default();
        odd.push(Operation::DeleteSet("sshd_v4".to_owned()));
        assert_eq!(memory.commit(&odd), netlink.commit(&odd));
        assert!(memory.commit(&odd).is_err());
    });
}

/// Sends one datagram to a port of this host; whether it arrived.
fn arrives(addr: &str, port: u16) -> bool {
    let receiver = UdpSocket::bind((addr, port)).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let sender = UdpSocket::bind((addr, 0)).unwrap();
    sender.send_to(b"x", (addr, port)).unwrap();
    // Loopback delivers before sendto(2) returns.
    receiver.recv(&mut [0; 8]).is_ok()
}

#[test]
fn packets_of_banned_hosts_are_dropped_counted_and_let_through_again() {
    in_namespace(|| {
        run(&["ip", "link", "set", "lo", "up"]);
        let cells = vec![cell("dns", &[(Protocol::Udp, 5353)], 10), cell("all", &[], 10)];
        let layout = Layout { cells, ..Layout::default() };
        let mut netlink = installed(&layout);
        for (addr, banned) in
            [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "127.0.0.0/24"), ("::1", "::/48")]
        {
            assert!(arrives(addr, 5353) && arrives(addr, 5354));
            apply(&mut netlink, &[ban("dns", banned, 60)]);
            assert!(!arrives(addr, 5353) && arrives(addr, 5354));
            apply(&mut netlink, &[ban("all", banned, 60)]);
            assert!(!arrives(addr, 5353) && !arrives(addr, 5354));
            apply(&mut netlink, &[release("dns", banned)]);
            assert!(!arrives(addr, 5353));
            apply(&mut netlink, &[release("all", banned)]);
            assert!(arrives(addr, 5353) && arrives(addr, 5354));
        }
        let dropped = netlink.dropped().unwrap();
        assert_eq!((dropped[&jail("dns")].packets, dropped[&jail("all")].packets), (8, 8));
        apply(&mut netlink, &[ban("all", "127.0.0.1", 60)]);
        assert!(!arrives("127.0.0.1", 5353));
        let never = vec!["127.0.0.0/8".parse().unwrap()];
        install(&mut netlink, &Layout { never, ..layout }, &[]);
        assert!(arrives("127.0.0.1", 5353), "never banned comes first");
        assert_eq!(netlink.dropped().unwrap()[&jail("all")].packets, 9, "counters survive a new layout");
    });
}
