//! What the program is told, word by word.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use towpath_ebpf_common::route::{LAYOUT, Settings, flag};

use crate::map::{Mapped, Shared};

/// [`Settings`] in memory that the program reads.
#[derive(Debug)]
#[repr(C)]
struct Words {
    layout: AtomicU32,
    ports: AtomicU32,
    flags: AtomicU32,
    reserved: AtomicU32,
    global: AtomicU64,
    heartbeat: AtomicU64,
    unused: [AtomicU64; 4],
}

const _: () = {
    assert!(size_of::<Words>() == size_of::<Settings>());
    assert!(std::mem::offset_of!(Words, layout) == std::mem::offset_of!(Settings, layout));
    assert!(std::mem::offset_of!(Words, ports) == std::mem::offset_of!(Settings, ports));
    assert!(std::mem::offset_of!(Words, flags) == std::mem::offset_of!(Settings, flags));
    assert!(std::mem::offset_of!(Words, global) == std::mem::offset_of!(Settings, global));
    assert!(std::mem::offset_of!(Words, heartbeat) == std::mem::offset_of!(Settings, heartbeat));
};

// SAFETY: atomics alone, and no padding: four u32 and six u64.
unsafe impl Shared for Words {}

/// The settings of the program. What is written holds from the next packet on.
#[derive(Debug)]
pub struct SettingsMap {
    words: Mapped<Words>,
}

impl SettingsMap {
    pub(crate) fn new(fd: std::os::fd::OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            words: Mapped::new(fd, 1)?,
        })
    }

    /// All of them, each as it is now.
    pub fn read(&self) -> Settings {
        let words = self.words();
        Settings {
            layout: words.layout.load(Ordering::Relaxed),
            ports: words.ports.load(Ordering::Relaxed),
            flags: words.flags.load(Ordering::Relaxed),
            reserved: words.reserved.load(Ordering::Relaxed),
            global: words.global.load(Ordering::Relaxed),
            heartbeat: words.heartbeat.load(Ordering::Relaxed),
            unused: [0; 4],
        }
    }

    /// The limit of the relay as a whole, as the word the program reads; 0 for none.
    pub fn set_global(&self, limit: u64) {
        self.words().global.store(limit, Ordering::Relaxed);
    }

    /// The word of the limit of the relay as a whole.
    pub(crate) fn global(&self) -> &AtomicU64 {
        &self.words().global
    }

    /// Says that the daemon is alive at `now`, in nanoseconds of CLOCK_MONOTONIC.
    pub fn beat(&self, now: u64) {
        self.words().heartbeat.store(now, Ordering::Relaxed);
    }

    /// Which ports are relayed ports.
    pub(crate) fn set_ports(&self, min: u16, max: u16) {
        let word = Settings::ports(min, max);
        self.words().ports.store(word, Ordering::Relaxed);
    }

    /// Lets the program relay, or has it pass everything.
    pub(crate) fn set_forwarding(&self, forward: bool) {
        let words = self.words();
        words.layout.store(LAYOUT, Ordering::Relaxed);
        let flags = if forward { flag::FORWARD } else { 0 };
        words.flags.store(flags, Ordering::Relaxed);
    }

    fn words(&self) -> &Words {
        &self.words[0]
    }
}
