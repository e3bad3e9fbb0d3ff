//! ChannelData: what is read is written again as the same bytes, padding aside.

use towpath_proto::wire::{CHANNEL_DATA_HEADER_BYTES, ChannelData, Kind, classify};

pub(crate) fn fuzz(data: &[u8]) {
    let Ok(message) = ChannelData::parse(data) else {
        return;
    };
    assert_eq!(classify(data), Kind::ChannelData);
    let len = CHANNEL_DATA_HEADER_BYTES + message.data.len();
    assert!(data.len() - len < 4, "more than padding was dropped");
    let mut buffer = vec![0; len];
    assert_eq!(message.write(&mut buffer), Some(&data[..len]));
    assert_eq!(message.write(&mut buffer[1..]), None);
}
