//! Credentials: any text is refused or makes a key, and a user's hash and key do not depend on when
//! they are made.

use towpath_proto::credentials::{LongTermKey, check_username, userhash};
use towpath_proto::wire::attribute::Algorithm;

use crate::bytes::Bytes;

pub(crate) fn fuzz(data: &[u8]) {
    let mut input = Bytes(data);
    let (name, realm, password) = (input.text(), input.text(), input.text());
    let md5 = LongTermKey::derive(Algorithm::Md5, &name, &realm, &password);
    let sha256 = LongTermKey::derive(Algorithm::Sha256, &name, &realm, &password);
    assert_eq!(md5.err(), sha256.err());
    if md5.is_ok() {
        assert_eq!(check_username(&name), Ok(()));
        assert!(userhash(&name, &realm).is_ok());
        assert!(!password.chars().any(char::is_control));
    }
}
