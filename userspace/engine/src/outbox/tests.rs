use std::net::IpAddr;

use towpath_proto::machine::{ListenerId, Socket};

use super::*;
use crate::address::Control;
use crate::buffers::Class;

const NOW: Timestamp = Timestamp::from_nanos(1);

/// An outbox with buffers whose content can be read back.
struct Fixture {
    outbox: Outbox,
    buffers: Buffers,
    counters: EngineCounters,
}

impl Fixture {
    fn new() -> Self {
        Self {
            outbox: Outbox::new(64, 8, true),
            buffers: Buffers::new(32, 2, 8).unwrap(),
            counters: EngineCounters::default(),
        }
    }

    /// Queues `payload` behind `prefix` as a receive of its own.
    fn push(&mut self, to: &str, prefix: &[u8], payload: &[u8]) -> Option<Queued> {
        self.push_marked(Marks::default(), to, prefix, payload)
    }

    fn push_marked(
        &mut self,
        marks: Marks,
        to: &str,
        prefix: &[u8],
        payload: &[u8],
    ) -> Option<Queued> {
        let buffer = self.buffers.take_released(Class::Small).unwrap();
        self.buffers.hold_first(buffer);
        let lent = self.buffers.kernel_area(buffer);
        // SAFETY: small buffers are longer than the payloads of these tests.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), lent, payload.len()) };
        let place = Place {
            lent,
            room_before: 64,
            end_of_room: payload.len() + 4,
            buffer,
            following: 0,
        };
        let transmit = transmit(to, prefix, 0..payload.len());
        let egress = Egress { marks, ..EGRESS };
        let queued = self
            .outbox
            .push(NOW, egress, &transmit, place, &mut self.buffers);
        self.buffers.release(buffer);
        queued
    }

    /// Queues the datagrams of one merged receive, each behind the prefix `prefix` makes for it, and
    /// without the first `strip` bytes.
    fn push_merged(
        &mut self,
        to: impl Fn(usize) -> &'static str,
        prefix: impl Fn(usize) -> Vec<u8>,
        strip: usize,
        datagrams: &[Vec<u8>],
    ) {
        let buffer = self.buffers.take_released(Class::Big).unwrap();
        self.buffers.hold_first(buffer);
        let area = self.buffers.kernel_area(buffer);
        let mut begin = 0;
        for datagram in datagrams {
            // SAFETY: big buffers are longer than what these tests put into them.
            let target = unsafe { area.add(100 + begin) };
            // SAFETY: the same.
            unsafe { std::ptr::copy_nonoverlapping(datagram.as_ptr(), target, datagram.len()) };
            begin += datagram.len();
        }
        let mut used = area.wrapping_sub(Class::Big.headroom());
        begin = 0;
        for (index, datagram) in datagrams.iter().enumerate() {
            let lent = area.wrapping_add(100 + begin);
            begin += datagram.len();
            let following = datagrams.len() - index - 1;
            let place = Place {
                lent,
                room_before: lent as usize - used as usize,
                end_of_room: datagram.len() + if following == 0 { 4 } else { 0 },
                buffer,
                following,
            };
            let transmit = transmit(to(index), &prefix(index), strip..datagram.len());
            let queued = self
                .outbox
                .push(NOW, EGRESS, &transmit, place, &mut self.buffers);
            used = queued.unwrap().end;
        }
        self.buffers.release(buffer);
    }

    /// What would be given to the kernel now: bytes, segment size, pieces.
    fn messages(&mut self) -> Vec<(u16, Vec<u8>, Option<u16>, usize)> {
        let mut pending = Vec::new();
        self.outbox.take_pending(&mut pending);
        pending
            .into_iter()
            .map(|index| self.message(index))
            .collect()
    }

    fn message(&mut self, index: u16) -> (u16, Vec<u8>, Option<u16>, usize) {
        let message = self.outbox.message(index);
        // SAFETY: the outbox has just prepared it.
        let header = unsafe { &*message.header };
        // SAFETY: the outbox made the header point to as many pieces.
        let iovecs = unsafe { std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen) };
        let mut bytes = Vec::new();
        for iovec in iovecs {
            let base = iovec.iov_base.cast::<u8>().cast_const();
            // SAFETY: the pieces lie in buffers and blocks that are held.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(base, iovec.iov_len) });
        }
        let segment = (header.msg_controllen > 0).then(|| {
            let control = header.msg_control.cast::<u8>().cast_const();
            // SAFETY: control data of a segment size alone is 24 bytes.
            let control = unsafe { std::slice::from_raw_parts(control, 24) };
            u16::from_ne_bytes([control[16], control[17]])
        });
        (index, bytes, segment, iovecs.len())
    }

    fn complete(&mut self, index: u16, result: i32) -> Option<u32> {
        self.outbox
            .complete(NOW, index, result, &mut self.buffers, &self.counters)
    }

    fn all_buffers_are_free(&self) -> bool {
        self.buffers.released(Class::Small) == 32 && self.buffers.released(Class::Big) == 2
    }
}

const EGRESS: Egress = Egress {
    socket: 3,
    source: None,
    marks: Marks {
        traffic_class: TrafficClass::ORDINARY,
        dont_fragment: false,
    },
};

fn transmit(to: &str, prefix: &[u8], payload: std::ops::Range<usize>) -> Transmit {
    Transmit {
        socket: Socket::Listener(ListenerId(0)),
        source: None,
        destination: to.parse().unwrap(),
        prefix: Prefix::new(prefix).unwrap(),
        payload,
        padding: 0,
        traffic_class: TrafficClass::ORDINARY,
        dont_fragment: false,
    }
}

#[test]
fn interleaved_flows_become_one_run_each_and_keep_their_order() {
    let mut fixture = Fixture::new();
    for round in 0..4u8 {
        for to in ["192.0.2.1:1", "192.0.2.2:2", "[2001:db8::3]:3"] {
            fixture.push(to, b"", &[round; 10]).unwrap();
        }
    }
    let messages = fixture.messages();
    assert_eq!(messages.len(), 3);
    for (index, bytes, segment, pieces) in messages {
        assert_eq!(bytes, [[0; 10], [1; 10], [2; 10], [3; 10]].concat());
        assert_eq!((segment, pieces), (Some(10), 4));
        assert_eq!(fixture.complete(index, 40), Some(3));
    }
    assert!(fixture.all_buffers_are_free());
    assert_eq!(fixture.counters.value(Counter::DatagramsSent), 12);
    assert_eq!(fixture.counters.value(Counter::GsoSends), 3);
}

#[test]
fn a_shorter_datagram_ends_a_run_and_a_longer_one_starts_another() {
    let mut fixture = Fixture::new();
    for length in [10, 10, 7, 10, 12, 12] {
        fixture
            .push("192.0.2.1:1", b"", &vec![length; usize::from(length)])
            .unwrap();
    }
    let messages = fixture.messages();
    let lengths: Vec<_> = messages.iter().map(|(_, bytes, ..)| bytes.len()).collect();
    assert_eq!(lengths, [27, 10, 24]);
    let segments: Vec<_> = messages.iter().map(|(_, _, segment, _)| *segment).collect();
    assert_eq!(segments, [Some(10), None, Some(12)]);
}

#[test]
fn an_empty_datagram_is_a_message_of_its_own() {
    let mut fixture = Fixture::new();
    for payload in [&b""[..], b"", b"x"] {
        fixture.push("192.0.2.1:1", b"", payload).unwrap();
    }
    assert_eq!(fixture.messages().len(), 3);
}

#[test]
fn datagrams_of_another_class_or_with_the_df_bit_are_no_part_of_a_run() {
    let mut fixture = Fixture::new();
    let marks = [
        (0, false),
        (0, false),
        (0xb9, false),
        (0xb9, true),
        (0xb9, true),
    ];
    for (class, dont_fragment) in marks {
        let marks = Marks {
            traffic_class: TrafficClass(class),
            dont_fragment,
        };
        fixture
            .push_marked(marks, "192.0.2.1:1", b"", &[class; 10])
            .unwrap();
    }
    let mut pending = Vec::new();
    fixture.outbox.take_pending(&mut pending);
    let messages: Vec<_> = pending
        .into_iter()
        .map(|index| {
            let message = fixture.outbox.message(index);
            // SAFETY: the outbox has just prepared it.
            let header = unsafe { &*message.header };
            let control = match header.msg_controllen {
                0 => Control::default(),
                // SAFETY: the outbox has written as many bytes of control data.
                bytes => Control::parse(unsafe {
                    std::slice::from_raw_parts(header.msg_control.cast(), bytes)
                }),
            };
            let bytes = fixture.message(index).1.len();
            (bytes, control.traffic_class.0, message.dont_fragment)
        })
        .collect();
    assert_eq!(
        messages,
        [(20, 0, false), (10, 0xb9, false), (20, 0xb9, true)]
    );
}

#[test]
fn an_ordinary_datagram_is_sent_without_control_data() {
    let mut fixture = Fixture::new();
    fixture.push("192.0.2.1:1", b"", b"x").unwrap();
    let mut pending = Vec::new();
    fixture.outbox.take_pending(&mut pending);
    assert!(fixture.outbox.message(pending[0]).plain.is_some());
}

#[test]
fn a_message_is_tried_again_as_often_as_is_allowed() {
    let mut fixture = Fixture::new();
    fixture.push("192.0.2.1:1", b"", b"x").unwrap();
    let mut pending = Vec::new();
    fixture.outbox.take_pending(&mut pending);
    assert!(fixture.outbox.try_again(pending[0], 1));
    fixture.outbox.take_pending(&mut pending);
    assert!(fixture.outbox.message(pending[0]).is_awaited);
    assert!(!fixture.outbox.try_again(pending[0], 1));
    assert!(!fixture.outbox.has_pending());
    assert_eq!(fixture.complete(pending[0], -libc::ECONNREFUSED), Some(3));
    assert!(fixture.all_buffers_are_free());
}

#[test]
fn another_source_address_is_another_flow() {
    let mut fixture = Fixture::new();
    let buffer = fixture.buffers.take_released(Class::Small).unwrap();
    fixture.buffers.hold_first(buffer);
    let lent = fixture.buffers.kernel_area(buffer);
    for host in [1u8, 2] {
        let source = Some(IpAddr::from([127, 0, 0, host]));
        let place = Place {
            lent,
            room_before: 0,
            end_of_room: 8,
            buffer,
            following: 0,
        };
        let transmit = transmit("192.0.2.1:1", b"", 0..8);
        let egress = Egress { source, ..EGRESS };
        fixture
            .outbox
            .push(NOW, egress, &transmit, place, &mut fixture.buffers)
            .unwrap();
    }
    assert_eq!(fixture.messages().len(), 2);
}

#[test]
fn merged_datagrams_leave_as_one_piece_with_a_header_in_front_of_each() {
    let mut fixture = Fixture::new();
    let datagrams: Vec<_> = (0..64u8).map(|index| vec![index; 50]).collect();
    fixture.push_merged(|_| "192.0.2.1:1", |_| b"head".to_vec(), 0, &datagrams);
    let messages = fixture.messages();
    let [(index, bytes, Some(54), 1)] = &messages[..] else {
        panic!("{messages:?}")
    };
    let expected: Vec<u8> = datagrams
        .iter()
        .flat_map(|datagram| [b"head", &datagram[..]].concat())
        .collect();
    assert_eq!(*bytes, expected);
    fixture.complete(*index, bytes.len() as i32);
    assert!(fixture.all_buffers_are_free());
}

#[test]
fn merged_datagrams_leave_as_one_piece_without_the_headers_they_came_with() {
    let mut fixture = Fixture::new();
    let datagrams: Vec<_> = (0..20u8)
        .map(|index| [vec![0xff; 4], vec![index; 50]].concat())
        .collect();
    fixture.push_merged(|_| "192.0.2.1:1", |_| Vec::new(), 4, &datagrams);
    let messages = fixture.messages();
    let [(_, bytes, Some(50), 1)] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!(
        *bytes,
        (0..20u8).flat_map(|index| [index; 50]).collect::<Vec<_>>()
    );
}

#[test]
fn merged_datagrams_for_different_destinations_do_not_overwrite_each_other() {
    for prefix in [&b""[..], b"head", &[9; 48]] {
        let mut fixture = Fixture::new();
        let datagrams: Vec<_> = (0..40u8).map(|index| vec![index; 60]).collect();
        let to = |index: usize| ["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"][index * index % 3];
        fixture.push_merged(to, |_| prefix.to_vec(), 0, &datagrams);
        let mut seen = Vec::new();
        for (_, bytes, ..) in fixture.messages() {
            for datagram in bytes.chunks(60 + prefix.len()) {
                assert_eq!(&datagram[..prefix.len()], prefix);
                let payload = &datagram[prefix.len()..];
                assert!(
                    payload.iter().all(|byte| *byte == payload[0]),
                    "{payload:?}"
                );
                seen.push(payload[0]);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..40).collect::<Vec<_>>());
    }
}

#[test]
fn a_datagram_behind_padding_that_had_no_room_is_a_piece_of_its_own() {
    let mut fixture = Fixture::new();
    let buffer = fixture.buffers.take_released(Class::Big).unwrap();
    fixture.buffers.hold_first(buffer);
    let lent = fixture.buffers.kernel_area(buffer);
    // SAFETY: big buffers are longer.
    unsafe { std::ptr::write_bytes(lent, 7, 16) };
    let place = |begin: usize, room_before| Place {
        lent: lent.wrapping_add(begin),
        room_before,
        end_of_room: 8,
        buffer,
        following: 1,
    };
    let mut padded = transmit("192.0.2.1:1", b"head", 0..8);
    padded.padding = 2;
    let (outbox, buffers) = (&mut fixture.outbox, &mut fixture.buffers);
    outbox
        .push(NOW, EGRESS, &padded, place(0, 0), buffers)
        .unwrap();
    let bare = transmit("192.0.2.1:1", b"", 0..8);
    outbox
        .push(NOW, EGRESS, &bare, place(8, 0), buffers)
        .unwrap();
    fixture.buffers.release(buffer);
    let messages = fixture.messages();
    let [(_, bytes, Some(14), 4)] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!(*bytes, [&b"head"[..], &[7; 8], &[0; 2], &[7; 8]].concat());
}

#[test]
fn long_prefixes_that_differ_are_gathered_where_there_is_no_room() {
    let mut fixture = Fixture::new();
    let datagrams: Vec<_> = (0..30u8).map(|index| vec![index; 100]).collect();
    fixture.push_merged(
        |_| "192.0.2.1:1",
        |index| vec![index as u8; 48],
        0,
        &datagrams,
    );
    let all: Vec<u8> = fixture
        .messages()
        .into_iter()
        .flat_map(|(_, bytes, ..)| bytes)
        .collect();
    let expected: Vec<u8> = (0..30u8).flat_map(|index| [index; 148]).collect();
    assert_eq!(all, expected);
}

#[test]
fn a_refused_run_is_sent_again_one_by_one_and_that_destination_is_remembered() {
    for merged in [false, true] {
        let mut fixture = Fixture::new();
        let datagrams: Vec<_> = (0..5u8)
            .map(|index| vec![index; 20 - usize::from(index / 4)])
            .collect();
        if merged {
            fixture.push_merged(|_| "192.0.2.1:1", |_| b"head".to_vec(), 0, &datagrams);
        } else {
            for datagram in &datagrams {
                fixture.push("192.0.2.1:1", b"head", datagram).unwrap();
            }
        }
        let [(index, ..)] = fixture.messages()[..] else {
            panic!("one run")
        };
        assert_eq!(fixture.complete(index, -libc::EMSGSIZE), None);
        for datagram in &datagrams {
            let again = fixture.messages();
            let [(index, bytes, None, _)] = &again[..] else {
                panic!("{again:?}")
            };
            assert_eq!(*bytes, [b"head", &datagram[..]].concat());
            let is_last = datagram[0] == 4;
            let done = fixture.complete(*index, bytes.len() as i32);
            assert_eq!(done.is_some(), is_last);
        }
        assert!(fixture.all_buffers_are_free());
        assert_eq!(fixture.counters.value(Counter::GsoFallbacks), 1);
        assert_eq!(fixture.counters.value(Counter::DatagramsSent), 5);
        fixture.push("192.0.2.1:1", b"head", &[7; 20]).unwrap();
        fixture.push("192.0.2.1:1", b"head", &[7; 20]).unwrap();
        assert_eq!(fixture.messages().len(), 2);
    }
}

#[test]
fn every_refusal_has_a_counter_of_its_own_reason() {
    let reasons = [
        (libc::EAGAIN, Counter::DropSendWouldBlock),
        (libc::ENOBUFS, Counter::DropSendNoBuffers),
        (libc::EPERM, Counter::DropSendForbidden),
        (libc::ENETUNREACH, Counter::DropSendUnreachable),
        (libc::EMSGSIZE, Counter::DropSendTooLong),
        (libc::EBADF, Counter::DropSendOther),
    ];
    for (errno, counter) in reasons {
        let mut fixture = Fixture::new();
        fixture.push("192.0.2.1:1", b"", b"x").unwrap();
        let [(index, ..)] = fixture.messages()[..] else {
            panic!("one message")
        };
        assert_eq!(fixture.complete(index, -errno), Some(3));
        assert_eq!(fixture.counters.value(counter), 1);
        assert!(fixture.all_buffers_are_free());
    }
}

#[test]
fn without_a_free_slot_a_datagram_is_refused_and_its_buffer_freed() {
    let mut fixture = Fixture::new();
    fixture.outbox = Outbox::new(2, 1, true);
    assert!(fixture.push("192.0.2.1:1", b"", b"x").is_some());
    assert!(fixture.push("192.0.2.2:1", b"", b"x").is_some());
    assert!(fixture.push("192.0.2.3:1", b"", b"x").is_none());
    assert_eq!(fixture.buffers.released(Class::Small), 30);
    // A run still grows: it needs a block, of which there is one.
    assert!(fixture.push("192.0.2.1:1", b"", b"y").is_some());
    assert_eq!(fixture.messages().len(), 2);
}

#[test]
fn a_run_is_at_most_what_one_ip_packet_carries() {
    let mut fixture = Fixture::new();
    let datagrams: Vec<_> = (0..45u8).map(|index| vec![index; 1450]).collect();
    fixture.push_merged(|_| "192.0.2.1:1", |_| b"0123456789".to_vec(), 0, &datagrams);
    let lengths: Vec<_> = fixture
        .messages()
        .iter()
        .map(|(_, bytes, ..)| bytes.len())
        .collect();
    assert_eq!(lengths.iter().sum::<usize>(), 45 * 1460);
    assert!(
        lengths
            .iter()
            .all(|length| *length <= MAX_RUN_BYTES as usize),
        "{lengths:?}"
    );
}
