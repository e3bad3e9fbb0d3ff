//! A received message: parsing and reading never panic, and a message written again from what was
//! read is read the same.

use towpath_proto::wire::attribute::{
    AdditionalAddressFamily, AddressErrorCode, AlternateDomain, AlternateServer, Attribute,
    ChannelNumberValue, ConnectionId, Data, DontFragment, ErrorCode, EvenPort, IceControlled,
    IceControlling, Icmp, Lifetime, MappedAddress, MobilityTicket, Nonce, PasswordAlgorithm,
    PasswordAlgorithms, Priority, Realm, RequestedAddressFamily, RequestedTransport,
    ReservationToken, Software, UnknownAttributes, UseCandidate, Userhash, Username,
    XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use towpath_proto::wire::{HEADER_BYTES, IntegrityKey, Message, MessageWriter};

pub(crate) fn fuzz(data: &[u8]) {
    let Ok(message) = Message::parse(data) else {
        return;
    };
    assert_eq!(message.as_bytes(), data);
    let read: usize = message
        .attributes()
        .map(|a| 4 + a.value.len().next_multiple_of(4))
        .sum();
    assert!(HEADER_BYTES + read <= data.len());
    read_values(&message);
    check(&message);
    write_again(&message);
}

fn read_values(message: &Message<'_>) {
    value::<AdditionalAddressFamily>(message);
    value::<AddressErrorCode<'_>>(message);
    value::<AlternateDomain<'_>>(message);
    value::<AlternateServer>(message);
    value::<ChannelNumberValue>(message);
    value::<ConnectionId>(message);
    value::<Data<'_>>(message);
    value::<DontFragment>(message);
    value::<ErrorCode<'_>>(message);
    value::<EvenPort>(message);
    value::<IceControlled>(message);
    value::<IceControlling>(message);
    value::<Icmp>(message);
    value::<Lifetime>(message);
    value::<MappedAddress>(message);
    value::<MobilityTicket<'_>>(message);
    value::<Nonce<'_>>(message);
    value::<PasswordAlgorithm>(message);
    value::<PasswordAlgorithms<'_>>(message);
    value::<Priority>(message);
    value::<Realm<'_>>(message);
    value::<RequestedAddressFamily>(message);
    value::<RequestedTransport>(message);
    value::<ReservationToken>(message);
    value::<Software<'_>>(message);
    value::<UnknownAttributes>(message);
    value::<UseCandidate>(message);
    value::<Userhash>(message);
    value::<Username<'_>>(message);
    value::<XorMappedAddress>(message);
    value::<XorPeerAddress>(message);
    value::<XorRelayedAddress>(message);
    if let Ok(Some(algorithms)) = message.get::<PasswordAlgorithms<'_>>() {
        assert!(algorithms.iter().count() <= algorithms.as_bytes().len() / 4);
    }
}

/// A value that can be read can be written into as many bytes as it says.
fn value<'a, A: Attribute<'a>>(message: &Message<'a>) {
    for read in message.get_all::<A>().flatten() {
        let mut value = vec![0; read.value_len()];
        read.write(&message.transaction_id(), &mut value);
    }
}

fn check(message: &Message<'_>) {
    let key = IntegrityKey::new(b"a key nobody has");
    // Whether it matches is chance; that nothing panics is not.
    let _ = message.check_integrity(&key);
    let _ = message.check_integrity_sha256(&key, 16);
    let _ = message.check_fingerprint();
}

fn write_again(message: &Message<'_>) {
    let mut buffer = vec![0xff; message.as_bytes().len()];
    let id = message.transaction_id();
    let mut writer = MessageWriter::new(&mut buffer, message.message_type(), id)
        .expect("the header fitted into the original");
    for attribute in message.attributes() {
        writer
            .put_raw(attribute.kind, attribute.value)
            .expect("it fitted into the original");
    }
    let again = Message::parse(writer.finish()).expect("we wrote it");
    assert_eq!(again.message_type(), message.message_type());
    assert_eq!(again.transaction_id(), id);
    assert!(again.attributes().eq(message.attributes()));
}
