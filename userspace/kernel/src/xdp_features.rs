//! What drivers say they can do with XDP, by the generic netlink family `netdev` (Linux 6.3).
//!
//! A driver that takes no frames from programs loses them without a trace: neither the program nor a
//! counter of the interface it came in by sees it. Virtual cables (veth) are of that kind unless the
//! far end receives by GRO or has a program itself.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// linux/genetlink.h: the family that names the others.
const CONTROL_FAMILY: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// linux/netdev.h.
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_FEATURES: u16 = 3;
const TAKES_FRAMES: u64 = 1 << 2;

const NETLINK_HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;

/// Whether an interface takes frames that programs hand to it; `None` where the kernel does not say.
pub(crate) fn takes_frames(interface: u32) -> Option<bool> {
    let socket = open().ok()?;
    let name = attribute(FAMILY_NAME, b"netdev\0");
    let answer = ask(&socket, CONTROL_FAMILY, GET_FAMILY, &name).ok()?;
    let family = u16::from_ne_bytes(find(&answer, FAMILY_ID)?.try_into().ok()?);
    let index = attribute(DEVICE_INDEX, &interface.to_ne_bytes());
    let answer = ask(&socket, family, GET_DEVICE, &index).ok()?;
    let features = u64::from_ne_bytes(find(&answer, DEVICE_FEATURES)?.try_into().ok()?);
    Some(features & TAKES_FRAMES != 0)
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    rustix::net::sockopt::set_socket_timeout(
        socket.as_fd(),
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(1)),
    )?;
    Ok(socket)
}

/// The attributes of the answer.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = NETLINK_HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.len();
    let mut message = Vec::with_capacity(length);
    let length = u32::try_from(length).expect("an attribute or two");
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(attributes);
    socket.send(&message, 0)?;
    let mut answer = Vec::with_capacity(16 * 1024);
    socket.recv(&mut answer, 0)?;
    let kind = answer.get(4..6).map(|kind| [kind[0], kind[1]]);
    if kind == Some(ERROR.to_ne_bytes()) || kind.is_none() {
        return Err(io::Error::other("no such family, or no such device"));
    }
    let attributes = answer.get(NETLINK_HEADER_BYTES + GENERIC_HEADER_BYTES..);
    Ok(attributes.unwrap_or_default().to_vec())
}

/// An attribute with its header, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a name or a number");
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let header = attributes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::{attribute, find};

    #[test]
    fn an_attribute_is_found_behind_others_of_odd_lengths() {
        let mut attributes = attribute(7, b"odd");
        attributes.extend(attribute(3, &5u64.to_ne_bytes()));
        assert_eq!(find(&attributes, 3), Some(&5u64.to_ne_bytes()[..]));
        assert_eq!(find(&attributes, 7), Some(&b"odd"[..]));
        assert_eq!(find(&attributes, 1), None);
    }

    #[test]
    fn attributes_that_end_early_or_have_no_length_end_the_search() {
        assert_eq!(find(&[9, 0, 3, 0, 1], 3), None);
        assert_eq!(find(&[0, 0, 3, 0], 3), None);
        assert_eq!(find(&[4], 3), None);
    }
}
