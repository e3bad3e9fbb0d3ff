//! What happened: a hash over all of it, and its last lines for the reader of a failure.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

use towpath_proto::Timestamp;

/// Lines kept for the reader.
const KEPT_LINES: usize = 200;

/// The record of a run.
#[derive(Debug)]
pub struct Trace {
    hash: Fnv,
    lines: u64,
    last: VecDeque<Line>,
}

/// One thing that happened to a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// The datagram's source.
    pub source: SocketAddr,
    /// The datagram's destination.
    pub destination: SocketAddr,
    /// Its length.
    pub len: usize,
    /// A hash over its bytes.
    pub digest: u64,
    /// Its first bytes.
    pub head: [u8; 8],
}

/// What happened to a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A host sent it.
    Sent,
    /// A host's socket received it.
    Delivered,
    /// The network lost it.
    Lost,
    /// The network lost it because of a partition.
    Partitioned,
    /// The network made a second one of it.
    Duplicated,
    /// The network changed a bit of it.
    Corrupted,
    /// No host has the destination.
    NoHost,
    /// The host has no socket there.
    NoSocket,
}

impl Trace {
    /// A record of nothing.
    pub fn new() -> Self {
        Self {
            hash: Fnv::new(),
            lines: 0,
            last: VecDeque::with_capacity(KEPT_LINES),
        }
    }

    /// Adds what happened to a datagram.
    pub fn add(
        &mut self,
        at: Timestamp,
        what: What,
        (source, destination): (SocketAddr, SocketAddr),
        payload: &[u8],
    ) {
        let mut digest = Fnv::new();
        digest.write(payload);
        let mut head = [0; 8];
        let shown = payload.len().min(head.len());
        head[..shown].copy_from_slice(&payload[..shown]);
        let len = payload.len();
        let digest = digest.finish();
        self.hash.write(&at.as_nanos().to_be_bytes());
        self.hash.write(&[what as u8]);
        self.hash.write_address(source);
        self.hash.write_address(destination);
        self.hash.write(&digest.to_be_bytes());
        self.lines += 1;
        if self.last.len() == KEPT_LINES {
            self.last.pop_front();
        }
        self.last.push_back(Line {
            at,
            what,
            source,
            destination,
            len,
            digest,
            head,
        });
    }

    /// A hash over everything that happened.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// How many things happened.
    pub fn lines(&self) -> u64 {
        self.lines
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} lines, hash {:016x}; the last ones:",
            self.lines,
            self.hash()
        )?;
        for line in &self.last {
            let Line {
                at,
                what,
                source,
                destination,
                len,
                digest,
                head,
            } = line;
            write!(
                f,
                "{at:?} {what:?} {source} > {destination} {len} B {digest:016x} "
            )?;
            for byte in &head[..(*len).min(head.len())] {
                write!(f, "{byte:02x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The FNV-1a hash of 64 bits: small, and the same on every machine and in every release.
#[derive(Clone, Debug)]
pub struct Fnv(u64);

impl Fnv {
    /// The hash of no bytes.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds an address and a port.
    pub fn write_address(&mut self, address: SocketAddr) {
        match address {
            SocketAddr::V4(v4) => self.write(&v4.ip().octets()),
            SocketAddr::V6(v6) => self.write(&v6.ip().octets()),
        }
        self.write(&address.port().to_be_bytes());
    }

    /// The hash of all bytes added.
    pub fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Fnv {
    fn default() -> Self {
        Self::new()
    }
}
