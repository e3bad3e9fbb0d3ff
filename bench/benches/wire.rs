//! The codec's part of a packet's cost: parse, integrity check, build.
#![allow(missing_docs)]

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use towpath_proto::wire::attribute::{
    Data, Nonce, Realm, RequestedTransport, Username, XorMappedAddress, XorPeerAddress,
};
use towpath_proto::wire::{
    ChannelData, ChannelNumber, Class, IntegrityKey, Message, MessageType, MessageWriter, Method,
    TransactionId, WriteError, classify, data_indication,
};

const ID: TransactionId = TransactionId([0x5a; 12]);
const PAYLOAD_BYTES: usize = 1200;

fn peer() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], 9000))
}

fn key() -> IntegrityKey {
    IntegrityKey::new(&[0x17; 16])
}

fn message(
    method: Method,
    class: Class,
    write: impl FnOnce(&mut MessageWriter<'_>) -> Result<(), WriteError>,
) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let mut writer = MessageWriter::new(&mut buffer, MessageType::new(method, class), ID)
        .expect("the buffer is long enough");
    write(&mut writer).expect("the buffer is long enough");
    writer.finish().to_vec()
}

fn allocate_request() -> Vec<u8> {
    message(Method::ALLOCATE, Class::Request, |w| {
        w.put(&RequestedTransport::UDP)?
            .put(&Username("alice"))?
            .put(&Realm("example.org"))?;
        w.put(&Nonce(b"obMatJos2gAAA-sixteen-and-a-few-more"))?;
        w.integrity(&key())?
            .integrity_sha256(&key(), 32)?
            .fingerprint()?;
        Ok(())
    })
}

fn send_indication() -> Vec<u8> {
    message(Method::SEND, Class::Indication, |w| {
        w.put(&XorPeerAddress(peer()))?
            .put(&Data(&[0xa5; PAYLOAD_BYTES]))?;
        Ok(())
    })
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let channel_data = {
        let header = ChannelData::header(ChannelNumber::FIRST, PAYLOAD_BYTES).expect("it fits");
        [&header[..], &[0xa5; PAYLOAD_BYTES]].concat()
    };
    group.bench_function("classify", |b| {
        b.iter(|| classify(black_box(&channel_data)))
    });
    group.bench_function("channel_data", |b| {
        b.iter(|| ChannelData::parse(black_box(&channel_data)).expect("sound"))
    });
    let indication = send_indication();
    group.bench_function("send_indication", |b| {
        b.iter(|| {
            let message = Message::parse(black_box(&indication)).expect("sound");
            let peer: Option<XorPeerAddress> = message.get().expect("sound");
            let data: Option<Data<'_>> = message.get().expect("sound");
            (peer, data.map(|data| data.0.len()))
        })
    });
    let request = allocate_request();
    group.bench_function("allocate_request", |b| {
        b.iter(|| {
            Message::parse(black_box(&request))
                .expect("sound")
                .has_integrity()
        })
    });
    group.finish();
}

fn integrity(c: &mut Criterion) {
    let request = allocate_request();
    let message = Message::parse(&request).expect("sound");
    let key = key();
    let mut group = c.benchmark_group("integrity");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("sha1", |b| {
        b.iter(|| black_box(&message).check_integrity(&key))
    });
    group.bench_function("sha256", |b| {
        b.iter(|| black_box(&message).check_integrity_sha256(&key, 32))
    });
    group.bench_function("fingerprint", |b| {
        b.iter(|| black_box(&message).check_fingerprint())
    });
    group.bench_function("new_key", |b| {
        b.iter(|| IntegrityKey::new(black_box(&[0x17; 16])))
    });
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    group.bench_function("channel_data_header", |b| {
        b.iter(|| ChannelData::header(black_box(ChannelNumber::FIRST), black_box(PAYLOAD_BYTES)))
    });
    group.bench_function("data_indication_prefix", |b| {
        b.iter(|| data_indication(ID, black_box(peer()), black_box(PAYLOAD_BYTES)))
    });
    let mut buffer = [0; 256];
    group.bench_function("binding_response", |b| {
        b.iter(|| {
            let message_type = MessageType::new(Method::BINDING, Class::Success);
            let mut writer = MessageWriter::new(&mut buffer, message_type, black_box(ID))?;
            writer.put(&XorMappedAddress(black_box(peer())))?;
            Ok::<_, WriteError>(writer.finish().len())
        })
    });
    group.finish();
}

criterion_group!(wire, parse, integrity, build);
criterion_main!(wire);
