//! Netlink bytes: messages and attributes, written and read; our own, because netlink-packet-netfilter 0.4
//! panics on an empty value inside a `cmp`, a `bitwise` or a set element, and knows no counter objects.
#![forbid(unsafe_code)]

/// Bytes of a netlink message header (`struct nlmsghdr`, include/uapi/linux/netlink.h).
pub const HEADER_BYTES: usize = 16;
/// Bytes of the header that every netfilter message carries after it (`struct nfgenmsg`).
pub const FAMILY_BYTES: usize = 4;

const ATTRIBUTE_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A netlink message header as written: what, how, which one, and for which protocol family.
#[derive(Clone, Copy)]
pub struct Head {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub family: u8,
    pub resource: u16,
}

/// Bytes under construction.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// How many bytes are written so far: where the next message begins.
    pub fn position(&self) -> usize {
        self.0.len()
    }

    pub fn message(&mut self, head: Head, body: impl FnOnce(&mut Writer)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(head.kind.to_ne_bytes());
        self.0.extend(head.flags.to_ne_bytes());
        self.0.extend(head.sequence.to_ne_bytes());
        self.0.extend([0; 4]);
        self.0.extend([head.family, 0]);
        self.0.extend(head.resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.0.len() - start).expect("a message holds at most one nest of 64 KiB");
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.0.extend(value));
    }

    pub fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.0.extend(value.as_bytes());
            writer.0.push(0);
        });
    }

    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute of attributes. Its length is 16 bits wide: callers split what could be longer.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.0.len() - start).expect("callers split what exceeds 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One message as read; its payload follows the header.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes of a netfilter message, after its family header.
    pub fn body(&self) -> &'a [u8] {
        self.payload.get(FAMILY_BYTES..).unwrap_or_default()
    }
}

/// The messages in `bytes`, up to the first malformed one.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = ne32(bytes)? as usize;
        let message = bytes.get(..length)?;
        let payload = message.get(HEADER_BYTES..)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: ne16(&message[4..])?,
            flags: ne16(&message[6..])?,
            sequence: ne32(&message[8..])?,
            payload,
        })
    })
}

/// The attributes in `bytes` with their position in it, up to the first malformed one: (position, kind, value).
pub fn positions(bytes: &[u8]) -> impl Iterator<Item = (usize, u16, &[u8])> {
    let mut position = 0;
    std::iter::from_fn(move || {
        let start = position;
        let rest = bytes.get(start..)?;
        let length = usize::from(ne16(rest)?);
        let kind = ne16(rest.get(2..)?)? & NLA_TYPE_MASK;
        let value = rest.get(ATTRIBUTE_BYTES..length)?;
        position += length.next_multiple_of(4);
        Some((start, kind, value))
    })
}

/// The attributes in `bytes`, up to the first malformed one: (kind, value).
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    positions(bytes).map(|(_, kind, value)| (kind, value))
}

/// The value of the first attribute of that kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub fn find_text(bytes: &[u8], kind: u16) -> Option<String> {
    find(bytes, kind).map(text)
}

pub fn find_be32(bytes: &[u8], kind: u16) -> Option<u32> {
    be32(find(bytes, kind)?)
}

pub fn find_be64(bytes: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(*find(bytes, kind)?.first_chunk()?))
}

/// Text up to the first NUL; bytes that are not UTF-8 are replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// A number in the byte order of this machine, as netlink's own headers hold it.
pub fn ne32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

fn ne16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: Head = Head { kind: 7, flags: 1, sequence: 9, family: 1, resource: 0 };

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.message(HEAD, |writer| {
            writer.text(1, "sshd");
            writer.nest(2, |writer| writer.be64(3, 600_000));
        });
        let bytes = writer.into_bytes();
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!((read.len(), read[0].kind, read[0].sequence), (1, 7, 9));
        assert_eq!(find_text(read[0].body(), 1).as_deref(), Some("sshd"));
        assert_eq!(find_be64(find(read[0].body(), 2).unwrap(), 3), Some(600_000));
    }

    #[test]
    fn a_length_of_zero_ends_the_reading() {
        assert_eq!(attributes(&[0; 32]).count(), 0);
        assert_eq!(messages(&[0; 32]).count(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER_BYTES + 1);
            prop_assert!(positions(&bytes).count() <= bytes.len() / ATTRIBUTE_BYTES + 1);
        }
    }
}
