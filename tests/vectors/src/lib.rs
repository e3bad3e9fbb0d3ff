//! Messages whose bytes others have published, and what they say.
//!
//! RFC 5769 §2 gives four, RFC 8489 appendix B one (here as erratum 6268 corrects it). The tests
//! parse them, check them and build them again; the differential tests hold our codec against two
//! others, stun-types and stun_codec.
#![forbid(unsafe_code)]

pub mod oracle;

/// The software of [`SAMPLE_REQUEST`].
pub const REQUEST_SOFTWARE: &str = "STUN test client";
/// The software of both sample responses.
pub const RESPONSE_SOFTWARE: &str = "test vector";
/// The user of [`SAMPLE_REQUEST`].
pub const SHORT_TERM_USERNAME: &str = "evtj:h6vY";
/// The password, and so the key, of the short-term messages.
pub const SHORT_TERM_PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";
/// The user of the long-term messages.
pub const LONG_TERM_USERNAME: &str = "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}";
/// The password of the long-term messages, as it is after preparation.
pub const LONG_TERM_PASSWORD: &str = "TheMatrIX";
/// The realm of the long-term messages.
pub const LONG_TERM_REALM: &str = "example.org";

/// RFC 5769 §2.1: a Binding request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME (padded with
/// spaces), MESSAGE-INTEGRITY and FINGERPRINT.
pub const SAMPLE_REQUEST: &str = "\
    000100582112a442b7e7a701bc34d686fa87dfae802200105354554e20746573\
    7420636c69656e74002400046e0001ff80290008932ff9b151263b3600060009\
    6576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249\
    c1b571a280280004e57a3bcf";

/// RFC 5769 §2.2: its response, with SOFTWARE (padded with a space) and 192.0.2.1:32853.
pub const SAMPLE_IPV4_RESPONSE: &str = "\
    0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563\
    746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f9\
    2af9ba53f06be7d780280004c07d4c96";

/// RFC 5769 §2.3: the response over IPv6, `[2001:db8:1234:5678:11:2233:4455:6677]:32853`.
pub const SAMPLE_IPV6_RESPONSE: &str = "\
    010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563\
    746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014\
    a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

/// RFC 5769 §2.4: a request with long-term credentials, padded with zeros.
pub const SAMPLE_LONG_TERM_REQUEST: &str = "\
    000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383\
    aae38383e382afe382b900000015001c662f2f3439396b39353464364f4c3334\
    6f4c394653547679363473410014000b6578616d706c652e6f72670000080014\
    f67024656dd64a3e02b8e0712e85c9a28ca89666";

/// The nonce of [`SAMPLE_LONG_TERM_REQUEST`].
pub const LONG_TERM_NONCE: &str = "f//499k954d6OL34oL9FSTvy64sA";

/// RFC 8489 §B.1 with erratum 6268: USERHASH, PASSWORD-ALGORITHM and MESSAGE-INTEGRITY-SHA256,
/// padded with zeros.
pub const SAMPLE_SHA256_REQUEST: &str = "\
    000100902112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bd\
    a952c6780417da0f24819415569e60b205c46e41407f1704001500296f624d61\
    744a6f733241414143662f2f3439396b39353464364f4c33346f4c3946535476\
    79363473410000000014000b6578616d706c652e6f726700001d000400020000\
    001c0020b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278c\
    c6518e65";

/// The nonce of [`SAMPLE_SHA256_REQUEST`].
pub const SHA256_NONCE: &str = "obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA";

/// The bytes that hexadecimal digits stand for.
///
/// # Panics
/// On anything but an even number of hexadecimal digits: these are constants of a test.
pub fn bytes(hex: &str) -> Vec<u8> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "an odd number of hexadecimal digits");
    let digit = |c: u8| char::from(c).to_digit(16).expect("a hexadecimal digit") as u8;
    pairs
        .iter()
        .map(|&[high, low]| digit(high) << 4 | digit(low))
        .collect()
}
