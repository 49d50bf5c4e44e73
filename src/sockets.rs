//! Ends the connections that banned hosts still have, so that a hanging log-in dies at once.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};

use crate::model::{JailName, Ports, Protocol, Target, plain};
use crate::netlink;

/// Whom to cut off, and from which ports.
#[derive(Clone, Debug)]
pub struct Cut {
    pub jail: JailName,
    pub target: Target,
    pub ports: Ports,
}

/// Works on a thread of its own, so that no ban waits for it. Sockets in other network namespaces, such as those of
/// containers, are not reached: their packets are dropped all the same.
pub struct Cutter {
    cuts: Sender<Vec<Cut>>,
}

impl Cutter {
    pub fn start() -> Cutter {
        let (cuts, work) = channel();
        thread::Builder::new()
            .name("sockets".to_owned())
            .spawn(move || run(&work))
            .expect("a thread can be started");
        Cutter { cuts }
    }

    /// Asks for connections to be ended.
    pub fn cut(&self, cuts: Vec<Cut>) {
        if !cuts.is_empty() {
            self.cuts.send(cuts).expect("the thread lives as long as its handle");
        }
    }
}

fn run(work: &Receiver<Vec<Cut>>) {
    while let Ok(mut cuts) = work.recv() {
        // One look at all sockets does for all bans that came meanwhile.
        cuts.extend(work.try_iter().flatten());
        if let Err(error) = end(&cuts) {
            tracing::error!("connections of banned hosts are not ended: {}", plain(&error));
        }
    }
}

fn end(cuts: &[Cut]) -> io::Result<()> {
    let (nets, hosts): (BTreeSet<Target>, BTreeSet<Target>) =
        cuts.iter().map(|cut| cut.target).partition(|target| target.is_network());
    let is_banned = |host: Target| hosts.contains(&host) || nets.iter().any(|net| net.covers(host));
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let states = StateFlags::ESTABLISHED | StateFlags::SYN_RECV | StateFlags::CLOSE_WAIT;
        let found = netlink::sockets(request(family, states.clone(), any), |answer| match answer {
            SockDiagMessage::InetResponse(socket) => {
                Some(socket.header.socket_id).filter(|id| is_banned(Target::of(id.destination_address)))
            }
            _ => None,
        })?;
        for id in found {
            let target = Target::of(id.destination_address);
            let hit = |cut: &&Cut| cut.target.covers(target) && closes(&cut.ports, id.source_port);
            let Some(cut) = cuts.iter().find(hit) else { continue };
            let (addr, port) = (id.destination_address, id.source_port);
            match netlink::destroy(request(family, states.clone(), id)) {
                Ok(()) => tracing::info!("{}: ended a connection of {addr} to port {port}", cut.jail),
                // It ended by itself meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    let (protocol, extensions) = (IPPROTO_TCP, ExtensionFlags::empty());
    SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states, socket_id })
}

fn closes(ports: &Ports, port: u16) -> bool {
    match ports {
        Ports::All => true,
        Ports::Some(ports) => ports.contains(&(Protocol::Tcp, port)),
    }
}
