//! Socket addresses and control messages as the kernel reads and writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use towpath_proto::machine::TrafficClass;

/// Length of `sockaddr_in`.
pub(crate) const NAME_BYTES_V4: usize = 16;

/// Length of `sockaddr_in6`, the longer of the two.
pub(crate) const NAME_BYTES: usize = 28;

/// Length of a control message's header.
const CMSG_HEADER_BYTES: usize = 16;

/// Room for what is sent with a datagram: a segment size, an IPv6 source address and a traffic class.
pub(crate) const SEND_CONTROL_BYTES: usize = cmsg_space(2) + cmsg_space(20) + cmsg_space(4);

/// Room for the segment size of a merged datagram.
pub(crate) const GRO_CONTROL_BYTES: usize = cmsg_space(4);

/// Room for the address an IPv4 datagram was sent to.
pub(crate) const PKTINFO_V4_BYTES: usize = cmsg_space(12);

/// Room for the address an IPv6 datagram was sent to.
pub(crate) const PKTINFO_V6_BYTES: usize = cmsg_space(20);

/// Room for a traffic class: one byte over IPv4, an integer over IPv6.
pub(crate) const TRAFFIC_CLASS_BYTES: usize = cmsg_space(4);

/// The most control data a datagram is received with.
pub(crate) const RECEIVE_CONTROL_BYTES: usize =
    GRO_CONTROL_BYTES + PKTINFO_V6_BYTES + TRAFFIC_CLASS_BYTES;

const _: () = assert!(std::mem::size_of::<libc::sockaddr_in>() == NAME_BYTES_V4);
const _: () = assert!(std::mem::size_of::<libc::sockaddr_in6>() == NAME_BYTES);
const _: () = assert!(std::mem::size_of::<libc::cmsghdr>() == CMSG_HEADER_BYTES);
const _: () = assert!(cmsg_space(1) == TRAFFIC_CLASS_BYTES);

/// Bytes a control message with `payload` bytes takes, its alignment included.
pub(crate) const fn cmsg_space(payload: usize) -> usize {
    CMSG_HEADER_BYTES + payload.next_multiple_of(8)
}

/// A socket address as the kernel wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub(crate) struct Name {
    bytes: [u8; NAME_BYTES],
    len: u32,
}

impl Name {
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; NAME_BYTES],
        len: 0,
    };

    pub(crate) fn new(address: SocketAddr) -> Self {
        let mut name = Self::EMPTY;
        let bytes = &mut name.bytes;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                name.len = NAME_BYTES_V4 as u32;
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                name.len = NAME_BYTES as u32;
            }
        }
        name
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.len == NAME_BYTES as u32
    }
}

/// The address in a name the kernel wrote; `None` where it is neither IPv4 nor IPv6.
pub(crate) fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk::<2>()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk::<2>()?);
    if family == libc::AF_INET as u16 {
        let octets = *name.get(4..)?.first_chunk::<4>()?;
        return Some(SocketAddr::V4(SocketAddrV4::new(
            Ipv4Addr::from(octets),
            port,
        )));
    }
    if family == libc::AF_INET6 as u16 {
        let octets = *name.get(8..)?.first_chunk::<16>()?;
        let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk::<4>()?);
        return Some(SocketAddr::V6(SocketAddrV6::new(
            Ipv6Addr::from(octets),
            port,
            0,
            scope,
        )));
    }
    None
}

/// What the control data of a received datagram said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Control {
    /// The address it was sent to.
    pub(crate) local: Option<IpAddr>,
    /// Length of the datagrams merged into it; 0 where it is one datagram.
    pub(crate) segment_bytes: usize,
    /// DSCP and ECN. The kernel merges only datagrams that have them in common.
    pub(crate) traffic_class: TrafficClass,
}

impl Control {
    /// Walks control data; what is not known is skipped, what is cut off ends the walk.
    pub(crate) fn parse(mut control: &[u8]) -> Self {
        let mut parsed = Self::default();
        while let Some((level, kind, value, rest)) = next_cmsg(control) {
            parsed.take(level, kind, value);
            control = rest;
        }
        parsed
    }

    fn take(&mut self, level: i32, kind: i32, value: &[u8]) {
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_TOS) {
            if let Some(&class) = value.first() {
                self.traffic_class = TrafficClass(class);
            }
        } else if (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) {
            if let Some(&bytes) = value.first_chunk::<4>() {
                self.traffic_class = TrafficClass(i32::from_ne_bytes(bytes) as u8);
            }
        } else if (level, kind) == (libc::SOL_UDP, libc::UDP_GRO) {
            if let Some(&bytes) = value.first_chunk::<4>() {
                self.segment_bytes = usize::try_from(i32::from_ne_bytes(bytes)).unwrap_or(0);
            }
        } else if (level, kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            // in_pktinfo: interface, address to answer from, address in the header.
            if let Some(&octets) = value.get(8..).and_then(|rest| rest.first_chunk::<4>()) {
                self.local = Some(IpAddr::V4(Ipv4Addr::from(octets)));
            }
        } else if (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
            && let Some(&octets) = value.first_chunk::<16>()
        {
            self.local = Some(IpAddr::V6(Ipv6Addr::from(octets)));
        }
    }
}

/// The first control message of several: its level, type and value, and those behind it.
pub(crate) fn next_cmsg(control: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(*control.first_chunk::<8>()?);
    let level = i32::from_ne_bytes(*control.get(8..)?.first_chunk::<4>()?);
    let kind = i32::from_ne_bytes(*control.get(12..)?.first_chunk::<4>()?);
    let value = control.get(CMSG_HEADER_BYTES..len)?;
    let rest = control.get(len.next_multiple_of(8)..).unwrap_or_default();
    Some((level, kind, value, rest))
}

/// Writes the control messages of a datagram to send and says how long they are.
pub(crate) struct ControlWriter<'a> {
    control: &'a mut [u8; SEND_CONTROL_BYTES],
    len: usize,
}

impl<'a> ControlWriter<'a> {
    pub(crate) fn new(control: &'a mut [u8; SEND_CONTROL_BYTES]) -> Self {
        Self { control, len: 0 }
    }

    /// The kernel cuts the message into datagrams of `bytes`.
    pub(crate) fn segment_bytes(&mut self, bytes: u16) {
        self.put(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }

    /// The datagram leaves from `source`.
    pub(crate) fn source(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(v4) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&v4.octets());
                self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(v6) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&v6.octets());
                self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// The datagram leaves with this traffic class.
    pub(crate) fn traffic_class(&mut self, is_v6: bool, class: TrafficClass) {
        let (level, kind) = match is_v6 {
            true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            false => (libc::IPPROTO_IP, libc::IP_TOS),
        };
        self.put(level, kind, &i32::from(class.0).to_ne_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn put(&mut self, level: i32, kind: i32, value: &[u8]) {
        let room = &mut self.control[self.len..self.len + cmsg_space(value.len())];
        room.fill(0);
        room[..8].copy_from_slice(&(CMSG_HEADER_BYTES + value.len()).to_ne_bytes());
        room[8..12].copy_from_slice(&level.to_ne_bytes());
        room[12..16].copy_from_slice(&kind.to_ne_bytes());
        room[16..16 + value.len()].copy_from_slice(value);
        self.len += cmsg_space(value.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_way_to_the_kernel_and_back() {
        for address in ["192.0.2.7:3478", "[2001:db8::7%3]:49152", "[::1]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            let name = Name::new(address);
            assert_eq!(parse_name(&name.bytes), Some(address));
        }
        assert_eq!(
            Name::new("192.0.2.7:1".parse().unwrap()).len() as usize,
            NAME_BYTES_V4
        );
    }

    #[test]
    fn a_name_of_another_family_or_a_short_one_is_no_address() {
        let mut name = Name::new("192.0.2.7:3478".parse().unwrap());
        assert_eq!(parse_name(&name.bytes[..6]), None);
        name.bytes[0] = libc::AF_UNIX as u8;
        assert_eq!(parse_name(&name.bytes), None);
    }

    #[test]
    fn control_data_is_read_whatever_its_order_and_length() {
        let mut bytes = [0; SEND_CONTROL_BYTES];
        let mut writer = ControlWriter::new(&mut bytes);
        writer.source("2001:db8::9".parse().unwrap());
        writer.traffic_class(true, TrafficClass(0xb9));
        writer.segment_bytes(1200);
        let len = writer.len();
        assert_eq!(len, SEND_CONTROL_BYTES);
        let parsed = Control::parse(&bytes[..len]);
        assert_eq!(parsed.local, Some("2001:db8::9".parse().unwrap()));
        assert_eq!(parsed.traffic_class, TrafficClass(0xb9));
        // A segment size to send (UDP_SEGMENT) is not one that was received (UDP_GRO).
        assert_eq!(parsed.segment_bytes, 0);
        for cut in 0..len {
            let _ = Control::parse(&bytes[..cut]);
        }
    }

    #[test]
    fn a_received_segment_size_and_ipv4_address_are_understood() {
        let mut bytes = [0u8; 64];
        bytes[..8].copy_from_slice(&20usize.to_ne_bytes());
        bytes[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&libc::UDP_GRO.to_ne_bytes());
        bytes[16..20].copy_from_slice(&1000i32.to_ne_bytes());
        bytes[24..32].copy_from_slice(&28usize.to_ne_bytes());
        bytes[32..36].copy_from_slice(&libc::IPPROTO_IP.to_ne_bytes());
        bytes[36..40].copy_from_slice(&libc::IP_PKTINFO.to_ne_bytes());
        bytes[48..52].copy_from_slice(&[127, 0, 0, 2]);
        let parsed = Control::parse(&bytes[..56]);
        assert_eq!(parsed.segment_bytes, 1000);
        assert_eq!(parsed.local, Some("127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn a_traffic_class_over_ipv4_is_one_byte() {
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&17usize.to_ne_bytes());
        bytes[8..12].copy_from_slice(&libc::IPPROTO_IP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&libc::IP_TOS.to_ne_bytes());
        bytes[16..].fill(0xee);
        bytes[16] = 0x2b;
        assert_eq!(Control::parse(&bytes).traffic_class, TrafficClass(0x2b));
    }

    #[test]
    fn a_control_message_that_claims_no_length_ends_the_walk() {
        assert_eq!(Control::parse(&[0; 64]), Control::default());
        assert_eq!(Control::parse(&[0xff; 64]), Control::default());
    }
}
