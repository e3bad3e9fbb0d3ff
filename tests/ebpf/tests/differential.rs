//! Every packet the program relays, the machine relays just so; the rest is passed as it came.

use towpath_ebpf_tests::packet::{
    Checksum, Datagram, SERVICE_VLAN, VLAN, channel_data, fill_ipv4_checksum,
};
use towpath_ebpf_tests::twin::{Agreed, Disagreement, Twin};

fn twin() -> Option<Twin> {
    let twin = Twin::new().expect("program and machine start");
    if twin.is_none() {
        towpath_net::skip("loading programs into the kernel needs root");
    }
    twin
}

#[track_caller]
fn agreed(outcome: Result<Agreed, Disagreement>) -> Agreed {
    outcome.unwrap_or_else(|Disagreement(how)| panic!("{how}"))
}

#[test]
fn program_and_machine_agree_about_every_shape() {
    let Some(mut twin) = twin() else { return };
    let mut relayed = 0;
    for flow in twin.flows.clone() {
        for to_peer in [true, false] {
            for length in [0, 1, 2, 3, 4, 5, 6, 7, 18, 19, 160, 161, 1000, 1399] {
                let data: Vec<u8> = (0..length).map(|index| (index * 3) as u8).collect();
                for tags in [vec![], vec![(VLAN, 7)], vec![(SERVICE_VLAN, 8)]] {
                    for checksum in [Checksum::Right, Checksum::None, Checksum::WrongBy(77)] {
                        for trailer in [0, 3] {
                            let datagram = Datagram {
                                tags: tags.clone(),
                                checksum,
                                trailer: vec![0xee; trailer],
                                traffic_class: length as u8,
                                identification: length as u16,
                                dont_fragment: length % 2 == 0,
                                ..flow.datagram(to_peer, &data)
                            };
                            let same_ipv4 = flow.client.is_ipv4() && flow.peer.is_ipv4();
                            let expected = if checksum == Checksum::None && !same_ipv4 {
                                Agreed::Passed
                            } else {
                                relayed += 1;
                                Agreed::Relayed
                            };
                            let outcome = agreed(twin.compare(&datagram.to_bytes()));
                            assert_eq!(outcome, expected, "{datagram:?}");
                        }
                    }
                }
            }
        }
    }
    assert!(relayed > 1000, "{relayed}");
}

#[test]
fn program_and_machine_agree_about_padding() {
    let Some(mut twin) = twin() else { return };
    for flow in twin.flows.clone() {
        for length in 0..12 {
            for tail in 0..12 {
                let payload = channel_data(0x4001, &vec![9; length], &vec![0xa5; tail]);
                let datagram = Datagram {
                    payload,
                    ..flow.datagram(true, &[])
                };
                let padding = length.next_multiple_of(4) - length;
                let expected = if tail <= padding {
                    Agreed::Relayed
                } else {
                    Agreed::Passed
                };
                let outcome = agreed(twin.compare(&datagram.to_bytes()));
                assert_eq!(outcome, expected, "{length} and {tail}");
            }
        }
    }
}

#[test]
fn program_and_machine_agree_about_a_packet_with_any_bit_turned() {
    let Some(mut twin) = twin() else { return };
    for flow in twin.flows.clone() {
        for to_peer in [true, false] {
            let datagram = flow.datagram(to_peer, b"some data");
            let frame = datagram.to_bytes();
            let mut relayed = 0;
            for bit in 0..frame.len() * 8 {
                let mut frame = frame.clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                let checksum_kept = twin.compare(&frame);
                relayed += u32::from(agreed(checksum_kept) == Agreed::Relayed);
                if datagram.source.is_ipv4() {
                    fill_ipv4_checksum(&mut frame[14..34]);
                    relayed += u32::from(agreed(twin.compare(&frame)) == Agreed::Relayed);
                }
            }
            // At least what only changes the data, the source's hardware address or the checksum.
            assert!(relayed > 100, "{relayed}");
        }
    }
}

#[test]
fn program_and_machine_agree_about_data_wrapped_any_number_of_times() {
    let Some(mut twin) = twin() else { return };
    for flow in twin.flows.clone() {
        let mut data = b"data".to_vec();
        for wrappings in 0..20 {
            let outcome = agreed(twin.compare(&flow.datagram(false, &data).to_bytes()));
            let expected = if wrappings <= 4 {
                Agreed::Relayed
            } else {
                Agreed::Passed
            };
            assert_eq!(outcome, expected, "{wrappings}");
            data = channel_data(0x4001, &data, &[]);
        }
    }
}
