//! What a client asks of a response to learn how its NAT behaves (RFC 5780 §7).

use super::{Attribute, ValueError, exactly};
use crate::wire::{AttributeType, TransactionId};

/// From where the response is to come: the address and port the request was sent to, or others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct ChangeRequest {
    /// From the server's other address.
    pub address: bool,
    /// From the server's other port.
    pub port: bool,
}

impl ChangeRequest {
    const ADDRESS: u8 = 0x04;
    const PORT: u8 = 0x02;

    /// Whether it asks for nothing, as many clients do in every request.
    pub const fn is_nothing(self) -> bool {
        !self.address && !self.port
    }
}

impl Attribute<'_> for ChangeRequest {
    const TYPE: AttributeType = AttributeType::CHANGE_REQUEST;

    fn read(value: &[u8], _: &TransactionId) -> Result<Self, ValueError> {
        let [_, _, _, flags] = *exactly::<4>(Self::TYPE, value)?;
        Ok(Self {
            address: flags & Self::ADDRESS != 0,
            port: flags & Self::PORT != 0,
        })
    }

    fn value_len(&self) -> usize {
        4
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        value[3] = if self.address { Self::ADDRESS } else { 0 };
        value[3] |= if self.port { Self::PORT } else { 0 };
    }
}

/// The port of the client's address that the response is to go to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ResponsePort(pub u16);

impl Attribute<'_> for ResponsePort {
    const TYPE: AttributeType = AttributeType::RESPONSE_PORT;

    /// RFC 5780 §7.5: "a 16-bit unsigned integer in network byte order followed by 2 bytes of
    /// padding", which some senders count as part of the value.
    fn read(value: &[u8], _: &TransactionId) -> Result<Self, ValueError> {
        match *value {
            [high, low] | [high, low, _, _] => Ok(Self(u16::from_be_bytes([high, low]))),
            _ => Err(ValueError::Length {
                kind: Self::TYPE,
                len: value.len(),
            }),
        }
    }

    fn value_len(&self) -> usize {
        2
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        value.copy_from_slice(&self.0.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransactionId = TransactionId([1; 12]);

    #[test]
    fn the_flags_of_change_request_are_the_bits_of_rfc_5780() {
        for (address, port, byte) in [
            (false, false, 0),
            (false, true, 2),
            (true, false, 4),
            (true, true, 6),
        ] {
            let request = ChangeRequest { address, port };
            let mut value = [0; 4];
            request.write(&ID, &mut value);
            assert_eq!(value, [0, 0, 0, byte]);
            assert_eq!(ChangeRequest::read(&value, &ID), Ok(request));
            // Bits without a meaning are ignored.
            assert_eq!(
                ChangeRequest::read(&[7, 7, 7, byte | 0xf9], &ID),
                Ok(request)
            );
            assert_eq!(request.is_nothing(), byte == 0);
        }
        assert!(ChangeRequest::read(&[0; 3], &ID).is_err());
    }

    #[test]
    fn response_port_is_read_with_its_padding_counted_and_without() {
        let port = Ok(ResponsePort(0x1234));
        assert_eq!(ResponsePort::read(&[0x12, 0x34], &ID), port);
        assert_eq!(ResponsePort::read(&[0x12, 0x34, 0, 0], &ID), port);
        assert!(ResponsePort::read(&[0x12], &ID).is_err());
        assert!(ResponsePort::read(&[0x12, 0x34, 0], &ID).is_err());
    }
}
