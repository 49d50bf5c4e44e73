//! A packet as if it had come from outside: through an interface of our own that exists for that moment.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;

use crate::lab::{link_index, set_up};
use crate::model::Protocol;

/// A TUN interface, gone with this value. What is written to it the kernel takes for received.
pub struct Tun(File);

const NAME: &str = "nftjailtest";
/// `struct ifreq` of linux/if.h on 64 bits: 16 bytes of name, then a union whose first two are the flags here.
const REQUEST_BYTES: usize = 40;
// Of linux/if_tun.h.
const TUNSETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 202);
const IFF_TUN: u16 = 0x1;
const IFF_NO_PI: u16 = 0x1000;

impl Tun {
    /// # Errors
    /// Without CAP_NET_ADMIN or /dev/net/tun; EBUSY while another self-test has it.
    #[expect(unsafe_code, reason = "rustix leaves requests that only one driver knows to its caller")]
    pub fn open() -> io::Result<Tun> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let mut request = [0; REQUEST_BYTES];
        request[..NAME.len()].copy_from_slice(NAME.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
        // SAFETY: the kernel reads and writes one `struct ifreq`, which is as long as this array.
        unsafe {
            let request = rustix::ioctl::Updater::<TUNSETIFF, [u8; REQUEST_BYTES]>::new(&mut request);
            rustix::ioctl::ioctl(&file, request)?;
        }
        set_up(link_index(NAME)?)?;
        Ok(Tun(file))
    }

    /// A packet from `from` to a port. It is for an address that no route leads to from outside, so that it goes
    /// nowhere where it is not dropped.
    pub fn send(&mut self, from: Ipv4Addr, protocol: Protocol, port: u16) -> io::Result<()> {
        self.0.write_all(&packet(from, protocol, port))
    }
}

/// An IPv4 header (RFC 791), then source and destination port, where TCP, UDP and SCTP all have them.
fn packet(from: Ipv4Addr, protocol: Protocol, port: u16) -> Vec<u8> {
    const BYTES: u8 = 40;
    let mut packet = vec![0x45, 0, 0, BYTES, 0, 0, 0, 0, 1, protocol as u8, 0, 0];
    packet.extend(from.octets());
    packet.extend(Ipv4Addr::LOCALHOST.octets());
    let words = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(4242u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.resize(usize::from(BYTES), 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_over_a_header_with_its_checksum_is_all_ones() {
        for port in [22, 65_535] {
            let packet = packet(Ipv4Addr::new(192, 0, 2, 213), Protocol::Tcp, port);
            let sum: u32 =
                packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }
}
