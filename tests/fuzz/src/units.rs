//! Limits as people write them: whatever is read is printed so that it reads as the same, and what may
//! be set is what the packet path can count.

use towpath_ebpf_common::rate::LimitWord;
use towpath_server::limit::{Class, LimitChange};
use towpath_server::limits::Target;
use towpath_server::units::{Rate, Size};

pub(crate) fn fuzz(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    let mut lines = input.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (rate, burst, target) = (line(), line(), line());
    let rate = rate.parse::<Rate>().ok();
    let burst = burst.parse::<Size>().ok();
    if let Some(rate) = rate {
        assert_eq!(rate.to_string().parse(), Ok(rate));
    }
    if let Some(burst) = burst {
        assert_eq!(burst.to_string().parse(), Ok(burst));
    }
    let change = LimitChange {
        up: rate,
        burst,
        ..LimitChange::default()
    };
    if let (Ok(()), Some(Rate::BitsPerSecond(rate)), Some(Size(burst))) =
        (change.check(), rate, burst)
    {
        let word = LimitWord::new(rate, burst);
        assert!(word.is_ok_and(|word| !word.is_unlimited()), "{change:?}");
    }
    for realm in [None, Some("example.org")] {
        if let Ok(known) = Target::parse(target, realm) {
            let shown = known.to_string();
            assert_eq!(Target::parse(&shown, None), Ok(known), "{shown:?}");
        }
    }
    if let Ok(class) = target.parse::<Class>() {
        assert_eq!(class.name(), target);
    }
}
