//! Packets built from scratch, every length and checksum computed from the whole.

use std::net::{IpAddr, SocketAddr};

/// A hardware address.
pub type Mac = [u8; 6];

/// The VLAN tag's EtherType.
pub const VLAN: u16 = 0x8100;
/// The EtherType of a provider's tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// What the UDP checksum is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// What RFC 768 says.
    Right,
    /// Zero: there is none.
    None,
    /// What RFC 768 says, plus this: it must stay as wrong as it is.
    WrongBy(u16),
}

/// A UDP datagram in a frame. Both addresses are of one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Who gets the frame.
    pub destination_mac: Mac,
    /// Who sent the frame.
    pub source_mac: Mac,
    /// The tags, outermost first: EtherType and the rest.
    pub tags: Vec<(u16, u16)>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// IPv4 identification.
    pub identification: u16,
    /// IPv4 Don't Fragment.
    pub dont_fragment: bool,
    /// TTL or hop limit.
    pub time_to_live: u8,
    /// The UDP checksum.
    pub checksum: Checksum,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// Bytes behind the IP packet.
    pub trailer: Vec<u8>,
}

impl Datagram {
    /// An ordinary datagram.
    pub fn new(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "two families");
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 1],
            source_mac: [0x02, 0, 0, 0, 0, 2],
            tags: Vec::new(),
            source,
            destination,
            traffic_class: 0,
            flow_label: 0,
            identification: 0,
            dont_fragment: true,
            time_to_live: 64,
            checksum: Checksum::Right,
            payload: payload.to_vec(),
            trailer: Vec::new(),
        }
    }

    /// Where the IP header begins.
    pub fn ip_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the UDP header begins.
    pub fn udp_offset(&self) -> usize {
        self.ip_offset() + if self.source.is_ipv4() { 20 } else { 40 }
    }

    /// The frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (ethertype, tag) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        let udp = self.udp();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(0x0800_u16.to_be_bytes());
                let header = frame.len();
                frame.extend([0x45, self.traffic_class]);
                frame.extend((20 + udp.len() as u16).to_be_bytes());
                frame.extend(self.identification.to_be_bytes());
                frame.extend([if self.dont_fragment { 0x40 } else { 0 }, 0]);
                frame.extend([self.time_to_live, 17, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                fill_ipv4_checksum(&mut frame[header..header + 20]);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(0x86dd_u16.to_be_bytes());
                let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
                frame.extend(first.to_be_bytes());
                frame.extend((udp.len() as u16).to_be_bytes());
                frame.extend([17, self.time_to_live]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => unreachable!("two families"),
        }
        frame.extend(udp);
        frame.extend(&self.trailer);
        frame
    }

    /// Reads a frame back: [`to_bytes`](Self::to_bytes) makes the same bytes of what it returns.
    /// `None` where there is no datagram of that kind.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let mut tags = Vec::new();
        let mut at = 12;
        while let ethertype @ (VLAN | SERVICE_VLAN) = word(at)? {
            tags.push((ethertype, word(at + 2)?));
            at += 4;
        }
        let ip = at + 2;
        let address = |at: usize, bytes: usize| match *frame.get(at..at + bytes)? {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
            ref bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        };
        let is_ipv4 = word(at)? == 0x0800;
        let (header, addresses, size) = if is_ipv4 { (20, 12, 4) } else { (40, 8, 16) };
        let udp = ip + header;
        let udp_end = udp + usize::from(word(udp + 4)?);
        let first = u32::from(word(ip)?) << 16 | u32::from(word(ip + 2)?);
        let mut datagram = Self {
            destination_mac: frame.get(..6)?.try_into().ok()?,
            source_mac: frame.get(6..12)?.try_into().ok()?,
            tags,
            source: SocketAddr::new(address(ip + addresses, size)?, word(udp)?),
            destination: SocketAddr::new(address(ip + addresses + size, size)?, word(udp + 2)?),
            traffic_class: (first >> if is_ipv4 { 16 } else { 20 }) as u8,
            flow_label: if is_ipv4 { 0 } else { first & 0xf_ffff },
            identification: if is_ipv4 { word(ip + 4)? } else { 0 },
            dont_fragment: !is_ipv4 || word(ip + 6)? & 0x4000 != 0,
            time_to_live: *frame.get(ip + if is_ipv4 { 8 } else { 7 })?,
            checksum: Checksum::Right,
            payload: frame.get(udp + 8..udp_end)?.to_vec(),
            trailer: frame.get(udp_end..)?.to_vec(),
        };
        let checksum = word(udp + 6)?;
        let right = u16::from_be_bytes(datagram.udp()[6..8].try_into().ok()?);
        if checksum == 0 {
            datagram.checksum = Checksum::None;
        } else if checksum != right {
            let wrong = sum(&[(!checksum).to_be_bytes(), right.to_be_bytes()].concat());
            datagram.checksum = Checksum::WrongBy(wrong);
        }
        Some(datagram)
    }

    fn udp(&self) -> Vec<u8> {
        let length = (8 + self.payload.len()) as u16;
        let mut udp = Vec::new();
        udp.extend(self.source.port().to_be_bytes());
        udp.extend(self.destination.port().to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        let mut covered = Vec::new();
        for address in [self.source.ip(), self.destination.ip()] {
            match address {
                IpAddr::V4(address) => covered.extend(address.octets()),
                IpAddr::V6(address) => covered.extend(address.octets()),
            }
        }
        covered.extend([0, 17]);
        covered.extend(length.to_be_bytes());
        covered.extend(&udp);
        let right = match !sum(&covered) {
            0 => 0xffff,
            checksum => checksum,
        };
        let checksum = match self.checksum {
            Checksum::Right => right,
            Checksum::None => 0,
            Checksum::WrongBy(wrong) => {
                // In one's complement, as the error is carried along.
                let checksum = !sum(&[(!right).to_be_bytes(), wrong.to_be_bytes()].concat());
                if checksum == 0 { 0xffff } else { checksum }
            }
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        udp
    }
}

/// Puts the checksum into an IPv4 header.
pub fn fill_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !sum(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// RFC 1071, in network byte order.
fn sum(bytes: &[u8]) -> u16 {
    let mut total: u64 = 0;
    for (index, byte) in bytes.iter().enumerate() {
        total += u64::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// ChannelData with this padding.
pub fn channel_data(channel: u16, data: &[u8], padding: &[u8]) -> Vec<u8> {
    let mut message = channel.to_be_bytes().to_vec();
    message.extend((data.len() as u16).to_be_bytes());
    message.extend(data);
    message.extend(padding);
    message
}
