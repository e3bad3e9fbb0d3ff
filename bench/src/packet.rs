//! Ethernet frames with IPv4 and UDP, built and read by hand, and the stamp in the bench's payloads.

use std::net::SocketAddrV4;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// First bytes of every payload of the bench.
pub const MAGIC: [u8; 4] = *b"twpt";

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

/// Where the UDP payload begins in a frame.
pub const UDP_PAYLOAD_OFFSET: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;

/// Length of a ChannelData header.
pub const CHANNEL_DATA_HEADER_BYTES: usize = 4;

/// What the payload of a sampled packet carries. Each word is followed by its complement, so that
/// writing one leaves the UDP checksum as it is.
///
/// ```text
///   0      4        8        12          20           28
///   magic  number   ~number  scheduled   ~scheduled   filling
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp {
    /// Number of the sample; 0 marks a packet that is only counted.
    pub number: u32,
    /// When the packet was due, by CLOCK_MONOTONIC.
    pub scheduled_ns: u64,
}

impl Stamp {
    /// Length of a stamp.
    pub const BYTES: usize = 28;
    /// Where the magic word is.
    pub const MAGIC_OFFSET: usize = 0;
    /// Where the number is.
    pub const NUMBER_OFFSET: usize = 4;
    /// Where the scheduled time is.
    pub const SCHEDULED_OFFSET: usize = 12;

    /// Writes the stamp to the beginning of a payload.
    pub fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&MAGIC);
        payload[4..8].copy_from_slice(&self.number.to_ne_bytes());
        payload[8..12].copy_from_slice(&(!self.number).to_ne_bytes());
        payload[12..20].copy_from_slice(&self.scheduled_ns.to_ne_bytes());
        payload[20..28].copy_from_slice(&(!self.scheduled_ns).to_ne_bytes());
    }
}

/// Who sends a frame to whom.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The sender's link address.
    pub source_mac: Mac,
    /// The receiver's link address.
    pub destination_mac: Mac,
    /// The sender.
    pub source: SocketAddrV4,
    /// The receiver.
    pub destination: SocketAddrV4,
}

/// A whole frame with both checksums.
pub fn udp_frame(route: &Route, payload: &[u8]) -> Vec<u8> {
    let udp_bytes = UDP_BYTES + payload.len();
    let mut frame = vec![0; UDP_PAYLOAD_OFFSET];
    frame[0..6].copy_from_slice(&route.destination_mac);
    frame[6..12].copy_from_slice(&route.source_mac);
    frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
    let ip = &mut frame[ETHERNET_BYTES..ETHERNET_BYTES + IPV4_BYTES];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IPV4_BYTES + udp_bytes) as u16).to_be_bytes());
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&route.source.ip().octets());
    ip[16..20].copy_from_slice(&route.destination.ip().octets());
    let checksum = !fold(sum(ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = &mut frame[ETHERNET_BYTES + IPV4_BYTES..];
    udp[0..2].copy_from_slice(&route.source.port().to_be_bytes());
    udp[2..4].copy_from_slice(&route.destination.port().to_be_bytes());
    udp[4..6].copy_from_slice(&(udp_bytes as u16).to_be_bytes());
    frame.extend_from_slice(payload);
    let pseudo_header = sum(&frame[26..34]) + 17 + udp_bytes as u32;
    let checksum = match !fold(pseudo_header + sum(&frame[ETHERNET_BYTES + IPV4_BYTES..])) {
        0 => 0xffff,
        checksum => checksum,
    };
    let at = ETHERNET_BYTES + IPV4_BYTES + 6;
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The UDP datagram in a frame: sender, receiver, payload. `None` where there is none.
pub fn parse_udp(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let header = frame.get(..UDP_PAYLOAD_OFFSET)?;
    if header[12..14] != [0x08, 0x00] || header[14] != 0x45 || header[23] != 17 {
        return None;
    }
    let address = |at: usize| {
        <[u8; 4]>::try_from(&header[at..at + 4])
            .map(Into::into)
            .ok()
    };
    let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let source = SocketAddrV4::new(address(26)?, number(34));
    let destination = SocketAddrV4::new(address(30)?, number(36));
    let payload_bytes = usize::from(number(38)).checked_sub(UDP_BYTES)?;
    let payload = frame.get(UDP_PAYLOAD_OFFSET..UDP_PAYLOAD_OFFSET + payload_bytes)?;
    Some((source, destination, payload))
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low)))
        .sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Route {
        Route {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: "10.0.0.1:5000".parse().expect("an address"),
            destination: "10.0.0.2:3478".parse().expect("an address"),
        }
    }

    fn udp_sum(frame: &[u8]) -> u16 {
        let udp = &frame[34..];
        fold(sum(&frame[26..34]) + 17 + udp.len() as u32 + sum(udp))
    }

    #[test]
    fn a_built_frame_is_read_back_with_its_addresses_and_payload() {
        let frame = udp_frame(&route(), b"towpath");
        let (source, destination, payload) = parse_udp(&frame).expect("a datagram");
        assert_eq!((source, destination), (route().source, route().destination));
        assert_eq!(payload, b"towpath");
    }

    #[test]
    fn checksums_of_a_frame_sum_to_all_ones() {
        let frame = udp_frame(&route(), &[0x5a; 173]);
        assert_eq!(fold(sum(&frame[14..34])), 0xffff);
        assert_eq!(udp_sum(&frame), 0xffff);
    }

    #[test]
    fn a_stamp_leaves_the_checksum_valid() {
        let mut payload = [0x5a; 172];
        Stamp::default().write(&mut payload);
        let mut frame = udp_frame(&route(), &payload);
        Stamp {
            number: 77,
            scheduled_ns: 0x0123_4567_89ab_cdef,
        }
        .write(&mut frame[42..]);
        assert_eq!(udp_sum(&frame), 0xffff);
    }

    #[test]
    fn frames_that_are_cut_short_are_no_datagrams() {
        let frame = udp_frame(&route(), b"towpath");
        for length in 0..frame.len() {
            assert!(parse_udp(&frame[..length]).is_none());
        }
    }
}
