//! ChannelData (RFC 8656 §12.4).
//!
//! ```text
//!  0                   1                   2                   3
//! |         channel number        |            length             |
//! |                    application data …            (padding)    |
//! ```

use std::fmt;

use thiserror::Error;

use super::padded;

/// A channel number a peer may be bound to.
///
/// RFC 8656 §12 gives 0x4000 to 0x4FFF and reserves the rest, RFC 5766 §11 gave 0x4000 to 0x7FFF. The
/// clients in the field (coturn's before 4.16, everything of RFC 5766) draw from the whole old range,
/// and nothing else arrives at a relay's port with these first bytes, so the old range is accepted;
/// our own client stays in the new one ([`ChannelNumber::LAST_ISSUED`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// The first channel number.
    pub const FIRST: Self = Self(0x4000);
    /// The last channel number accepted.
    pub const LAST: Self = Self(0x7fff);
    /// The last channel number our own client uses.
    pub const LAST_ISSUED: Self = Self(0x4fff);

    /// A channel by its number; `None` outside the accepted range.
    #[inline]
    pub const fn new(number: u16) -> Option<Self> {
        if number >= Self::FIRST.0 && number <= Self::LAST.0 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The channel's number.
    #[inline]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for ChannelNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

impl fmt::Display for ChannelNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Length of a ChannelData header.
pub const CHANNEL_DATA_HEADER_BYTES: usize = 4;

/// A ChannelData message from one datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelData<'a> {
    /// The channel it came on.
    pub channel: ChannelNumber,
    /// The application data, padding left off. May be empty.
    pub data: &'a [u8],
}

/// Why a datagram is no ChannelData message. The sender is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ChannelDataError {
    /// Less than a header.
    #[error("{len} bytes are less than a ChannelData header")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// Outside the range of channel numbers.
    #[error("{number:#06x} is no channel number")]
    Channel {
        /// Bytes 0 and 1.
        number: u16,
    },
    /// The datagram is shorter than the length it claims.
    #[error("header says {claimed} bytes of data, {present} are there")]
    Truncated {
        /// The header's length field.
        claimed: usize,
        /// Bytes behind the header.
        present: usize,
    },
    /// More follows than padding to a multiple of four.
    #[error("{present} bytes follow the header, {claimed} and its padding were announced")]
    Trailing {
        /// The header's length field.
        claimed: usize,
        /// Bytes behind the header.
        present: usize,
    },
}

impl<'a> ChannelData<'a> {
    /// Reads a ChannelData message from a whole UDP payload.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ChannelDataError> {
        let Some((&[n0, n1, l0, l1], rest)) = datagram.split_first_chunk() else {
            return Err(ChannelDataError::Short {
                len: datagram.len(),
            });
        };
        let number = u16::from_be_bytes([n0, n1]);
        // RFC 8656 §12.6: a message with a reserved channel number is silently discarded.
        let Some(channel) = ChannelNumber::new(number) else {
            return Err(ChannelDataError::Channel { number });
        };
        let claimed = usize::from(u16::from_be_bytes([l0, l1]));
        let present = rest.len();
        // RFC 8656 §12.6: a message is silently discarded where its datagram is too short for the
        // length it claims.
        let Some(data) = rest.get(..claimed) else {
            return Err(ChannelDataError::Truncated { claimed, present });
        };
        // RFC 8656 §12.5: "Over UDP, the padding is not required but MAY be included." Nothing allows
        // more than that, so a longer datagram is not a ChannelData message.
        if present > padded(claimed) {
            return Err(ChannelDataError::Trailing { claimed, present });
        }
        Ok(Self { channel, data })
    }

    /// The header in front of `data_bytes` bytes of data; `None` above what its length field holds.
    #[inline]
    pub fn header(
        channel: ChannelNumber,
        data_bytes: usize,
    ) -> Option<[u8; CHANNEL_DATA_HEADER_BYTES]> {
        let [n0, n1] = channel.0.to_be_bytes();
        let [l0, l1] = u16::try_from(data_bytes).ok()?.to_be_bytes();
        Some([n0, n1, l0, l1])
    }

    /// Writes the message into `buffer`, without padding (UDP); `None` where it does not fit.
    pub fn write<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let header = Self::header(self.channel, self.data.len())?;
        let message = buffer.get_mut(..header.len() + self.data.len())?;
        message[..header.len()].copy_from_slice(&header);
        message[header.len()..].copy_from_slice(self.data);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(number: u16) -> ChannelNumber {
        ChannelNumber::new(number).unwrap()
    }

    #[test]
    fn channel_numbers_of_both_rfcs_are_accepted_and_no_others() {
        assert_eq!(ChannelNumber::new(0x3fff), None);
        assert_eq!(channel(0x4000), ChannelNumber::FIRST);
        assert_eq!(channel(0x4fff), ChannelNumber::LAST_ISSUED);
        assert_eq!(channel(0x7fff), ChannelNumber::LAST);
        assert_eq!(ChannelNumber::new(0x8000), None);
    }

    #[test]
    fn channel_data_over_udp_may_be_padded_and_may_be_unpadded() {
        let unpadded = [0x40, 0x01, 0, 1, 9];
        let data = ChannelData {
            channel: channel(0x4001),
            data: &[9],
        };
        assert_eq!(ChannelData::parse(&unpadded), Ok(data));
        for padding in 1..=3 {
            let mut padded = unpadded.to_vec();
            padded.resize(unpadded.len() + padding, 0xee);
            assert_eq!(ChannelData::parse(&padded), Ok(data));
        }
        let mut longer = unpadded.to_vec();
        longer.resize(unpadded.len() + 4, 0);
        let trailing = ChannelDataError::Trailing {
            claimed: 1,
            present: 5,
        };
        assert_eq!(ChannelData::parse(&longer), Err(trailing));
    }

    #[test]
    fn channel_data_shorter_than_it_claims_is_discarded() {
        let truncated = ChannelDataError::Truncated {
            claimed: 2,
            present: 1,
        };
        assert_eq!(ChannelData::parse(&[0x40, 0, 0, 2, 9]), Err(truncated));
        assert_eq!(
            ChannelData::parse(&[0x40, 0, 0]),
            Err(ChannelDataError::Short { len: 3 })
        );
        let reserved = ChannelDataError::Channel { number: 0x8000 };
        assert_eq!(ChannelData::parse(&[0x80, 0, 0, 0]), Err(reserved));
    }

    #[test]
    fn channel_data_may_be_empty() {
        let empty = ChannelData {
            channel: channel(0x4000),
            data: &[],
        };
        let mut buffer = [0xff; 8];
        assert_eq!(empty.write(&mut buffer), Some(&[0x40, 0, 0, 0][..]));
        assert_eq!(ChannelData::parse(&[0x40, 0, 0, 0]), Ok(empty));
        assert_eq!(empty.write(&mut [0; 3]), None);
        assert_eq!(ChannelData::header(ChannelNumber::FIRST, 65_536), None);
    }
}
