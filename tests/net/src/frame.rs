//! Frames as they are on the wire: built in any shape, and read with every checksum summed anew.
//!
//! Written apart from the relay's own arithmetic, so that it does not share its mistakes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A UDP datagram in a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Who put the frame on the link.
    pub source_mac: Mac,
    /// Whom it is for.
    pub destination_mac: Mac,
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// TTL, or hop limit.
    pub hops: u8,
    /// DSCP and ECN: type of service, or traffic class.
    pub traffic_class: u8,
    /// Whether it has the DF bit; IPv6 has none.
    pub dont_fragment: bool,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What a frame holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A whole UDP datagram.
    Udp(Datagram),
    /// A fragment of something.
    Fragment,
    /// An ICMP or ICMPv6 message: its type and code.
    Icmp(u8, u8),
    /// Something else.
    Other,
}

/// How a datagram is put into a frame when it is not the plain way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// With this many words of IPv4 options that do nothing.
    pub option_words: u8,
    /// Without a UDP checksum.
    pub no_udp_checksum: bool,
    /// With bytes behind the datagram, as short frames have.
    pub trailing_bytes: usize,
}

impl Datagram {
    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        self.shaped(Shape::default())
    }

    /// The frame, in this shape.
    pub fn shaped(&self, shape: Shape) -> Vec<u8> {
        let udp = self.udp(shape);
        let mut frame = [self.destination_mac, self.source_mac].concat();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(IPV4.to_be_bytes());
                let words = 5 + shape.option_words;
                let mut header = vec![0; usize::from(words) * 4];
                header[20..].fill(1);
                header[0] = 0x40 | words;
                header[1] = self.traffic_class;
                let bytes = u16::try_from(header.len() + udp.len()).expect("a packet's length");
                header[2..4].copy_from_slice(&bytes.to_be_bytes());
                header[6] = if self.dont_fragment { 0x40 } else { 0 };
                header[8] = self.hops;
                header[9] = UDP;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let checksum = !sum(&[&header]);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(IPV6.to_be_bytes());
                let class = u32::from(self.traffic_class);
                frame.extend((6 << 28 | class << 20).to_be_bytes());
                let bytes = u16::try_from(udp.len()).expect("a packet's length");
                frame.extend(bytes.to_be_bytes());
                frame.extend([UDP, self.hops]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("from {} to {}: two families", self.source, self.destination)
            }
        }
        frame.extend(udp);
        frame.extend(vec![0xEE; shape.trailing_bytes]);
        frame
    }

    fn udp(&self, shape: Shape) -> Vec<u8> {
        let bytes = u16::try_from(UDP_BYTES + self.payload.len()).expect("a datagram's length");
        let mut udp = [
            self.source.port().to_be_bytes(),
            self.destination.port().to_be_bytes(),
            bytes.to_be_bytes(),
            [0; 2],
        ]
        .concat();
        udp.extend(&self.payload);
        if !shape.no_udp_checksum {
            let pseudo = pseudo_header(self.source.ip(), self.destination.ip(), UDP, &udp);
            let checksum = match !sum(&[&pseudo, &udp]) {
                0 => 0xffff,
                checksum => checksum,
            };
            udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        udp
    }
}

/// Reads a frame. An error says what on the wire is wrong: a checksum or a length.
pub(crate) fn read(frame: &[u8]) -> Result<Content, String> {
    let header = frame.get(..ETHERNET_BYTES).ok_or("no Ethernet header")?;
    let ip = &frame[ETHERNET_BYTES..];
    match u16::from_be_bytes([header[12], header[13]]) {
        IPV4 => read_v4(frame, ip),
        IPV6 => read_v6(frame, ip),
        _ => Ok(Content::Other),
    }
}

fn read_v4(frame: &[u8], ip: &[u8]) -> Result<Content, String> {
    let first = *ip.first().ok_or("no IPv4 header")?;
    let header_bytes = usize::from(first & 15) * 4;
    let header = ip
        .get(..header_bytes)
        .filter(|header| header.len() >= 20)
        .ok_or("an IPv4 header that is cut short")?;
    if sum(&[header]) != 0xffff {
        return Err(format!("bad IPv4 header checksum: {header:02x?}"));
    }
    let bytes = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let body = ip
        .get(header_bytes..bytes)
        .ok_or_else(|| format!("IPv4 length {bytes} in a frame of {}", frame.len()))?;
    if u16::from_be_bytes([header[6] & 0x3f, header[7]]) != 0 {
        return Ok(Content::Fragment);
    }
    let octets = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes");
    let source = IpAddr::V4(Ipv4Addr::from(octets(12)));
    let destination = IpAddr::V4(Ipv4Addr::from(octets(16)));
    match header[9] {
        UDP => {
            let marks = (header[8], header[1], header[6] & 0x40 != 0);
            read_udp(frame, (source, destination), marks, body)
        }
        ICMP if sum(&[body]) != 0xffff => Err("bad ICMP checksum".to_owned()),
        ICMP => Ok(Content::Icmp(body[0], body[1])),
        _ => Ok(Content::Other),
    }
}

fn read_v6(frame: &[u8], ip: &[u8]) -> Result<Content, String> {
    let header = ip
        .get(..40)
        .filter(|header| header[0] >> 4 == 6)
        .ok_or("no IPv6 header")?;
    let bytes = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let body = ip
        .get(40..40 + bytes)
        .ok_or_else(|| format!("IPv6 length {bytes} in a frame of {}", frame.len()))?;
    let octets = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes");
    let source = IpAddr::V6(Ipv6Addr::from(octets(8)));
    let destination = IpAddr::V6(Ipv6Addr::from(octets(24)));
    let traffic_class = header[0] << 4 | header[1] >> 4;
    match header[6] {
        UDP => read_udp(
            frame,
            (source, destination),
            (header[7], traffic_class, false),
            body,
        ),
        ICMPV6 => {
            let pseudo = pseudo_header(source, destination, ICMPV6, body);
            if sum(&[&pseudo, body]) != 0xffff {
                return Err("bad ICMPv6 checksum".to_owned());
            }
            Ok(Content::Icmp(body[0], body[1]))
        }
        44 => Ok(Content::Fragment),
        _ => Ok(Content::Other),
    }
}

fn read_udp(
    frame: &[u8],
    (source, destination): (IpAddr, IpAddr),
    (hops, traffic_class, dont_fragment): (u8, u8, bool),
    udp: &[u8],
) -> Result<Content, String> {
    let header = udp.get(..UDP_BYTES).ok_or("a UDP header cut short")?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let datagram = Datagram {
        source_mac: frame[6..12].try_into().expect("six bytes"),
        destination_mac: frame[..6].try_into().expect("six bytes"),
        source: SocketAddr::new(source, word(0)),
        destination: SocketAddr::new(destination, word(2)),
        hops,
        traffic_class,
        dont_fragment,
        payload: udp[UDP_BYTES..].to_vec(),
    };
    let (from, to) = (datagram.source, datagram.destination);
    if usize::from(word(4)) != udp.len() {
        let length = word(4);
        return Err(format!(
            "{from} to {to}: UDP length {length}, not {}",
            udp.len()
        ));
    }
    let pseudo = pseudo_header(source, destination, UDP, udp);
    let good = match word(6) {
        0 => source.is_ipv4(),
        _ => sum(&[&pseudo, udp]) == 0xffff,
    };
    if !good {
        let checksum = word(6);
        return Err(format!("{from} to {to}: bad UDP checksum {checksum:#06x}"));
    }
    Ok(Content::Udp(datagram))
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    let bytes = u32::try_from(body.len()).expect("a packet's length");
    pseudo.extend(bytes.to_be_bytes());
    pseudo.extend(u32::from(protocol).to_be_bytes());
    pseudo
}

/// The ones' complement sum; all parts but the last have an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("it was folded")
}

#[cfg(test)]
mod tests {
    use super::{Content, Datagram, Shape, read};

    fn datagram(source: &str, destination: &str) -> Datagram {
        Datagram {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            hops: 63,
            traffic_class: 0xB9,
            dont_fragment: source.contains('.'),
            payload: b"an odd length".to_vec(),
        }
    }

    #[test]
    fn what_is_built_is_read_back() {
        for datagram in [
            datagram("10.0.0.1:5000", "10.0.0.2:3478"),
            datagram("[fd00::1]:5000", "[fd00::2]:3478"),
        ] {
            assert_eq!(read(&datagram.frame()), Ok(Content::Udp(datagram)));
        }
    }

    #[test]
    fn every_turned_bit_of_a_packet_is_a_bad_checksum_or_another_packet() {
        for datagram in [
            datagram("10.0.0.1:5000", "10.0.0.2:3478"),
            datagram("[fd00::1]:5000", "[fd00::2]:3478"),
        ] {
            let frame = datagram.frame();
            for bit in 14 * 8..frame.len() * 8 {
                let mut turned = frame.clone();
                turned[bit / 8] ^= 1 << (bit % 8);
                let same = Ok(Content::Udp(datagram.clone()));
                // IPv6 has a flow label, which nobody sums or reads here.
                let in_label =
                    (15 * 8..15 * 8 + 4).contains(&bit) || bit / 8 == 16 || bit / 8 == 17;
                let flow_label = frame[12] == 0x86 && in_label;
                assert!(flow_label || read(&turned) != same, "bit {bit}");
            }
        }
    }

    #[test]
    fn options_and_trailing_bytes_do_not_hide_a_datagram() {
        let datagram = datagram("10.0.0.1:5000", "10.0.0.2:3478");
        let shape = Shape {
            option_words: 2,
            no_udp_checksum: true,
            trailing_bytes: 5,
        };
        assert_eq!(read(&datagram.shaped(shape)), Ok(Content::Udp(datagram)));
    }
}
