//! Incremental update of a UDP checksum (RFC 1624): what a relay changes is taken out of the sum and
//! what it writes is put in, so the payload is never read.
//!
//! Sums are of 16-bit words as they lie in memory; one's complement addition gives the same bytes in
//! either byte order (RFC 1071 §2). An IPv4 address is summed in its IPv4-mapped form: the prefix
//! adds 0xffff, which is zero in one's complement, so one formula serves all pairs of families.

/// Adds the carries of `sum` until it fits 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// One's complement sum of `bytes`; a last odd byte counts as if a zero followed it.
pub const fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0;
    let mut index = 0;
    while index < bytes.len() {
        let second = if index + 1 < bytes.len() {
            bytes[index + 1]
        } else {
            0
        };
        total = fold(total as u32 + u16::from_ne_bytes([bytes[index], second]) as u32);
        index += 2;
    }
    total
}

/// What a relayed packet's UDP checksum changes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// What is the same for all packets of a route: see [`constant`].
    pub constant: u16,
    /// UDP length that arrived.
    pub old_udp_bytes: u16,
    /// UDP length that leaves.
    pub new_udp_bytes: u16,
    /// Length field of the ChannelData header that arrived; 0 where there was none.
    pub old_channel_bytes: u16,
    /// Length field of the ChannelData header that leaves; 0 where there is none.
    pub new_channel_bytes: u16,
    /// [`padding`] of the bytes left out behind the ChannelData message; 0 where there are none.
    pub padding: u16,
}

impl Change {
    /// The checksum that leaves for the `checksum` that arrived, both as they lie in memory. The
    /// checksum that arrived must not be 0, which says that there is none.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        let old_udp = self.old_udp_bytes.to_be();
        let new_udp = self.new_udp_bytes.to_be();
        // RFC 768: the length is in the UDP header and in the pseudo header.
        let total = !checksum as u32
            + self.constant as u32
            + 2 * new_udp as u32
            + 2 * !old_udp as u32
            + self.new_channel_bytes.to_be() as u32
            + !self.old_channel_bytes.to_be() as u32
            + !self.padding as u32;
        // RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
        match !fold(total) {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The part of the change that is the same for all packets of a route: the sums of what leaves put
/// in, of what arrived taken out. Each slice has an even length.
pub const fn constant(arrives: &[&[u8]], leaves: &[&[u8]]) -> u16 {
    let mut total = 0;
    let mut index = 0;
    while index < leaves.len() {
        total = fold(total as u32 + sum(leaves[index]) as u32);
        index += 1;
    }
    index = 0;
    while index < arrives.len() {
        total = fold(total as u32 + !sum(arrives[index]) as u32);
        index += 1;
    }
    total
}

/// Sum of up to three bytes of padding that are left out behind a ChannelData message of
/// `message_bytes` bytes, header included. Missing bytes are 0.
#[inline(always)]
pub const fn padding(message_bytes: u16, bytes: [u8; 3]) -> u16 {
    let words = if message_bytes.is_multiple_of(2) {
        [[bytes[0], bytes[1]], [bytes[2], 0]]
    } else {
        [[0, bytes[0]], [bytes[1], bytes[2]]]
    };
    fold(u16::from_ne_bytes(words[0]) as u32 + u16::from_ne_bytes(words[1]) as u32)
}

/// Checksum of an IPv4 header (RFC 791) of `words`, as they lie in memory, the checksum field zero.
#[inline(always)]
pub const fn ipv4_header(words: [u32; 5]) -> u16 {
    !ipv4_sum(words)
}

/// Whether an IPv4 header of `words`, checksum included, is intact.
#[inline(always)]
pub const fn ipv4_header_is_intact(words: [u32; 5]) -> bool {
    ipv4_sum(words) == 0xffff
}

#[inline(always)]
const fn ipv4_sum(words: [u32; 5]) -> u16 {
    let total =
        words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64 + words[4] as u64;
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    fold(((total & 0xffff) + (total >> 16)) as u32)
}

#[cfg(test)]
mod tests;
