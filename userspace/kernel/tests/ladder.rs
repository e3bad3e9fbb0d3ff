//! Which rung an interface gets, and the reason for it.

mod lab;

use lab::{ip, on_a_host, xdp};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use towpath_kernel::{Kernel, KernelConfig, KernelError, Mode, Rung};

/// Names the directory of pins for the process in another time.
const SHIFTED: &str = "TOWPATH_TEST_SHIFTED_PIN_DIRECTORY";

const NATIVE: u64 = 1;
const GENERIC: u64 = 2;

fn impossible(error: KernelError) -> String {
    match error {
        KernelError::Impossible { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn an_interface_with_native_xdp_gets_it() {
    on_a_host("an_interface_with_native_xdp_gets_it", |lab| {
        let kernel = Kernel::start(&lab.config(Mode::Auto, &["near"])).expect("auto never fails");
        let rung = &kernel.rungs()[0];
        assert_eq!((rung.rung, rung.reason.as_deref()), (Rung::Native, None));
        assert_eq!(kernel.unpinned(), None);
        assert!(kernel.forwards());
        assert_eq!(xdp("near").map(|(mode, _)| mode), Some(NATIVE));
    });
}

#[test]
fn an_interface_without_native_xdp_gets_generic_and_the_reason() {
    on_a_host("an_interface_without_native_xdp_gets_generic", |lab| {
        let kernel = Kernel::start(&lab.config(Mode::Auto, &["lo"])).expect("auto never fails");
        let rung = &kernel.rungs()[0];
        assert_eq!(rung.rung, Rung::Generic);
        let reason = rung.reason.as_deref().expect("there is a reason");
        assert!(reason.contains("the driver has no native XDP"), "{reason}");
        assert_eq!(xdp("lo").map(|(mode, _)| mode), Some(GENERIC));
    });
}

#[test]
fn native_asked_for_where_there_is_none_is_an_error_that_leaves_nothing() {
    on_a_host("native_asked_for_where_there_is_none", |lab| {
        let config = lab.config(Mode::Native, &["near", "lo"]);
        let reason = impossible(Kernel::start(&config).expect_err("lo has no native XDP"));
        assert!(
            reason.contains("lo: the driver has no native XDP"),
            "{reason}"
        );
        assert_eq!(xdp("near"), None, "the interface before it is left alone");
    });
}

#[test]
fn generic_asked_for_is_generic_also_where_native_works() {
    on_a_host("generic_asked_for_is_generic", |lab| {
        let kernel = Kernel::start(&lab.config(Mode::Generic, &["near"])).expect("generic works");
        assert_eq!(kernel.rungs()[0].rung, Rung::Generic);
        assert_eq!(xdp("near").map(|(mode, _)| mode), Some(GENERIC));
    });
}

#[test]
fn off_touches_nothing() {
    on_a_host("off_touches_nothing", |lab| {
        let kernel = Kernel::start(&lab.config(Mode::Off, &["near"])).expect("off never fails");
        assert_eq!(kernel.rungs()[0].rung, Rung::Userspace);
        assert_eq!(xdp("near"), None);
        assert!(!lab.pins().exists());
        assert!(kernel.slots().is_none() && kernel.routes().is_none());
    });
}

#[test]
fn a_frame_size_that_native_cannot_have_leads_to_generic_and_says_the_mtu() {
    on_a_host("a_frame_size_that_native_cannot_have", |lab| {
        ip("link set near mtu 9000");
        lab.far("link set far mtu 9000");
        let kernel = Kernel::start(&lab.config(Mode::Auto, &["near"])).expect("auto never fails");
        let rung = &kernel.rungs()[0];
        assert_eq!(rung.rung, Rung::Generic);
        let reason = rung.reason.as_deref().expect("there is a reason");
        assert!(reason.contains("MTU of 9000"), "{reason}");
    });
}

#[test]
fn a_cable_that_would_lose_frames_is_not_native() {
    on_a_host("a_cable_that_would_lose_frames", |lab| {
        lab.receive_by_gro("off");
        let kernel = Kernel::start(&lab.config(Mode::Auto, &["near"])).expect("auto never fails");
        let rung = &kernel.rungs()[0];
        assert_eq!(rung.rung, Rung::Generic);
        let reason = rung.reason.as_deref().expect("there is a reason");
        assert!(reason.contains("native: the far end"), "{reason}");
        drop(kernel);
        let error = Kernel::start(&lab.config(Mode::Native, &["near"]));
        let reason = impossible(error.expect_err("it would lose frames"));
        assert!(reason.contains("GRO"), "{reason}");
        lab.receive_by_gro("on");
        Kernel::start(&lab.config(Mode::Native, &["near"])).expect("it loses none now");
    });
}

#[test]
fn a_clock_that_is_not_the_programs_keeps_everything_in_userspace() {
    on_a_host("a_clock_that_is_not_the_programs", |lab| {
        let shifted = std::process::Command::new("unshare")
            .args(["--time", "--monotonic", "1000"])
            .arg(std::env::current_exe().expect("we run"))
            .args(["--exact", "in_a_shifted_time", "--ignored", "--nocapture"])
            .env(SHIFTED, lab.pins())
            .output()
            .expect("unshare is installed");
        let said = String::from_utf8_lossy(&shifted.stdout);
        assert!(shifted.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
        assert_eq!(xdp("near"), None);
        assert!(!lab.pins().exists());
    });
}

/// Run by the test above in a time namespace.
#[test]
#[ignore = "another test runs it, in another time"]
fn in_a_shifted_time() {
    let Some(directory) = std::env::var_os(SHIFTED) else {
        return;
    };
    let mut config = KernelConfig::new(Mode::Auto, vec!["near".to_owned()]);
    config.pin_directory = directory.into();
    let kernel = Kernel::start(&config).expect("auto never fails");
    let rung = &kernel.rungs()[0];
    assert_eq!(rung.rung, Rung::Userspace);
    let reason = rung.reason.as_deref().expect("there is a reason");
    assert!(reason.contains("is 1000 s and 0 ns off"), "{reason}");
    assert!(kernel.slots().is_none(), "nor is the bucket shared");
}

#[test]
fn somebody_elses_program_is_named_and_left_where_it_is() {
    on_a_host("somebody_elses_program_is_named", |lab| {
        let mut other = lab.config(Mode::Native, &["near"]);
        other.pin_directory = lab.bpffs().join("other");
        let other = Kernel::start(&other).expect("native works");
        let theirs = xdp("near").expect("it is there");
        let kernel = Kernel::start(&lab.config(Mode::Auto, &["near"])).expect("auto never fails");
        let rung = &kernel.rungs()[0];
        assert_eq!(rung.rung, Rung::Userspace);
        let reason = rung.reason.as_deref().expect("there is a reason");
        for part in [
            "native: another program is there",
            "generic: another program is there",
            "\"towpath_relay\"",
            &format!("id {}", theirs.1),
        ] {
            assert!(reason.contains(part), "{part} is not in: {reason}");
        }
        assert_eq!(xdp("near"), Some(theirs));
        assert!(kernel.routes().is_none(), "nothing forwards");
        assert!(kernel.slots().is_some(), "peers are metered all the same");
        let error = Kernel::start(&lab.config(Mode::Native, &["near"]));
        drop(kernel);
        let reason = impossible(error.expect_err("the pins are taken, too"));
        assert!(
            reason.contains("another process holds the pins"),
            "{reason}"
        );
        let error = Kernel::start(&lab.config(Mode::Native, &["near"]));
        let reason = impossible(error.expect_err("there is a program"));
        assert!(reason.contains("another program is there"), "{reason}");
        drop(other);
    });
}

#[test]
fn without_a_bpffs_the_program_goes_with_the_process() {
    on_a_host("without_a_bpffs_the_program_goes", |lab| {
        let mut config = lab.config(Mode::Auto, &["near"]);
        config.pin_directory = lab.directory().join("no-bpffs");
        let kernel = Kernel::start(&config).expect("auto never fails");
        assert_eq!(kernel.rungs()[0].rung, Rung::Native);
        let reason = kernel.unpinned().expect("there is a reason");
        assert!(reason.contains("is not on a mounted bpffs"), "{reason}");
        drop(kernel);
        lab::wait_until("the program to leave", || xdp("near").is_none());
        assert!(!config.pin_directory.exists());
    });
}

#[test]
fn an_interface_that_is_not_there_is_an_error_in_every_mode() {
    on_a_host("an_interface_that_is_not_there", |lab| {
        for mode in [Mode::Auto, Mode::Native, Mode::Generic] {
            let error = Kernel::start(&lab.config(mode, &["nowhere"]));
            let expected = KernelError::UnknownInterface("nowhere".into());
            assert_eq!(error.expect_err("it is not there"), expected);
        }
    });
}

#[test]
fn missing_capabilities_are_named() {
    on_a_host("missing_capabilities_are_named", |lab| {
        for (missing, name) in [
            (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN is missing"),
            (CapabilitySet::BPF, "CAP_BPF is missing"),
            (CapabilitySet::PERFMON, "CAP_PERFMON is missing"),
        ] {
            std::thread::scope(|scope| {
                let without = scope.spawn(|| {
                    let mut sets = capabilities(None).expect("a thread may ask");
                    let gone = missing | CapabilitySet::SYS_ADMIN;
                    sets.effective.remove(gone);
                    sets.permitted.remove(gone);
                    set_capabilities(None, sets).expect("capabilities may be given up");
                    let auto = Kernel::start(&lab.config(Mode::Auto, &["near"]));
                    let native = Kernel::start(&lab.config(Mode::Native, &["near"]));
                    let kernel = auto.expect("auto never fails");
                    assert_eq!(kernel.rungs()[0].rung, Rung::Userspace);
                    assert_eq!(kernel.rungs()[0].reason.as_deref(), Some(name));
                    assert_eq!(impossible(native.expect_err("it cannot")), name);
                });
                without.join().expect("the checks hold");
            });
        }
        assert_eq!(xdp("near"), None);
    });
}

#[test]
fn impossible_configurations_name_value_and_rule() {
    let mut config = towpath_kernel::KernelConfig::new(Mode::Auto, Vec::new());
    config.max_peers = 0;
    let error = Kernel::start(&config).expect_err("no peers at all");
    assert_eq!(
        error.to_string(),
        "max_peers is 0, but must lie within 1 and 16777216"
    );
    config.max_peers = 1;
    config.listeners = vec!["192.0.2.1:50000".parse().expect("an address")];
    let error = Kernel::start(&config).expect_err("the port is a relayed one");
    assert!(error.to_string().contains("port 50000"), "{error}");
    config.listeners.clear();
    config.mode = Mode::Native;
    let error = Kernel::start(&config).expect_err("no interface");
    assert_eq!(error, KernelError::NoInterfaces);
}
