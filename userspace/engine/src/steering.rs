//! Which shard a datagram belongs to: what it is marked for, else a keyed hash of its source.
//!
//! The same rule is computed twice: here, and by a classic BPF program on the reuseport group of each
//! listening address, which picks the socket of that shard. So a client's shard survives restarts and
//! changes of the group, and can be computed anywhere.
//!
//! A datagram that passes all tests of a [`ShardMark`] and names a shard that there is belongs to it. For
//! all others the source counts.
//!
//! Per 32-bit word `w` of the source (address words, then the port):
//! `h = (h ^ w) * MULTIPLIER; h ^= h >> 15`, starting from a word of the key. The shard is `h`
//! modulo the number of shards.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use towpath_proto::machine::{ByteTest, ShardId, ShardMark};

/// Multipliers of the rounds: odd, with bits all over.
const MULTIPLIERS: [u32; 5] = [
    0x7feb_352d,
    0x846c_a68b,
    0x9e37_79b1,
    0x85eb_ca6b,
    0xc2b2_ae35,
];

/// Loads from here on count from the network header instead of from the UDP payload.
const NETWORK_HEADER: u32 = -0x10_0000_i32 as u32;

/// Marks that a rule may have, and tests of each: the program has to fit into the kernel's limits.
pub(crate) const MAX_MARKS: usize = 16;
/// See [`MAX_MARKS`].
pub(crate) const MAX_MARK_TESTS: usize = 64;

/// Offset of the source port behind an IPv6 header without extensions.
const V6_PORT: u32 = 40;

/// What tells a datagram's shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SteeringRule {
    /// Its source alone.
    #[default]
    Client,
    /// The first of these marks that it carries with the number of a shard that there is; else its
    /// source.
    Marks(&'static [ShardMark]),
}

impl SteeringRule {
    /// Whether the kernel can follow it.
    pub(crate) fn is_short(self) -> bool {
        let few = |mark: &ShardMark| mark.tests.len() <= MAX_MARK_TESTS;
        self.marks().len() <= MAX_MARKS && self.marks().iter().all(few)
    }

    fn marks(self) -> &'static [ShardMark] {
        match self {
            Self::Client => &[],
            Self::Marks(marks) => marks,
        }
    }
}

/// Computes the shard of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    key: [u32; 4],
    shards: u16,
    marks: &'static [ShardMark],
}

impl Steering {
    /// Spreads over `shards` (at least 1) by `rule`, with the hash keyed by `key`.
    pub fn new(key: [u8; 16], shards: u16, rule: SteeringRule) -> Self {
        let (words, _) = key.as_chunks::<4>();
        let mut key = [0; 4];
        for (word, bytes) in key.iter_mut().zip(words) {
            *word = u32::from_be_bytes(*bytes);
        }
        Self {
            key,
            shards: shards.max(1),
            marks: rule.marks(),
        }
    }

    /// Whether two datagrams of one source may belong to different shards.
    pub(crate) fn looks_inside(&self) -> bool {
        self.shards > 1 && !self.marks.is_empty()
    }

    /// The shard a datagram belongs to.
    pub fn shard_of_datagram(&self, client: SocketAddr, payload: &[u8]) -> ShardId {
        let named = |mark: &ShardMark| mark.shard(payload).filter(|shard| shard.0 < self.shards);
        let marked = self.marks.iter().find_map(named);
        marked.unwrap_or_else(|| self.shard_of(client))
    }

    /// The shard `client` belongs to where nothing that it sends is marked.
    pub fn shard_of(&self, client: SocketAddr) -> ShardId {
        let port = u32::from(client.port());
        let hash = match client.ip() {
            IpAddr::V4(v4) => self.hash(0, &[v4.to_bits(), port]),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                let [a, b, c, d] = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
                self.hash(1, &[a, b, c, d, port])
            }
        };
        ShardId((hash % u32::from(self.shards)) as u16)
    }

    fn hash(&self, family: usize, words: &[u32]) -> u32 {
        let mut hash = self.key[family];
        for (word, multiplier) in words.iter().zip(MULTIPLIERS) {
            hash = (hash ^ word).wrapping_mul(multiplier ^ (self.key[2 + family] & !1));
            hash ^= hash >> 15;
        }
        hash
    }

    /// Makes the kernel choose among the sockets of `fd`'s reuseport group by this hash. The group's
    /// sockets must have been bound in the order of their shards.
    pub(crate) fn attach(&self, fd: RawFd, v6: bool) -> io::Result<()> {
        let mut program = self.program(v6);
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        let bytes = std::mem::size_of::<libc::sock_fprog>() as libc::socklen_t;
        // SAFETY: the pointer is to a program header of the length given; it and the instructions it
        // points to outlive the call, which copies them.
        let result = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const program).cast(),
                bytes,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The rule as a classic BPF program that runs with the packet's data at the UDP payload.
    fn program(&self, v6: bool) -> Vec<libc::sock_filter> {
        let mut code = Vec::with_capacity(40);
        for mark in self.marks {
            add_mark(&mut code, mark, self.shards);
        }
        let family = usize::from(v6);
        // A = key; each round then moves it to X, loads the next word into A and mixes.
        code.push(statement(libc::BPF_LD | libc::BPF_IMM, self.key[family]));
        let address: &[u32] = if v6 { &[8, 12, 16, 20] } else { &[12] };
        let mut multipliers = MULTIPLIERS
            .map(|multiplier| multiplier ^ (self.key[2 + family] & !1))
            .into_iter();
        for &offset in address {
            code.push(statement(libc::BPF_MISC | libc::BPF_TAX, 0));
            let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
            code.push(statement(load, NETWORK_HEADER.wrapping_add(offset)));
            mix(
                &mut code,
                multipliers
                    .next()
                    .expect("there is a multiplier for every word"),
            );
        }
        // The port: X holds the IPv4 header's length while it is loaded, so the hash waits.
        code.push(statement(libc::BPF_ST, 0));
        if v6 {
            let load = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
            code.push(statement(load, NETWORK_HEADER.wrapping_add(V6_PORT)));
        } else {
            code.push(statement(
                libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH,
                NETWORK_HEADER,
            ));
            code.push(statement(
                libc::BPF_LD | libc::BPF_H | libc::BPF_IND,
                NETWORK_HEADER,
            ));
        }
        code.push(statement(libc::BPF_LDX | libc::BPF_MEM, 0));
        mix(
            &mut code,
            multipliers
                .next()
                .expect("there is a multiplier for every word"),
        );
        code.push(statement(
            libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K,
            u32::from(self.shards),
        ));
        code.push(statement(libc::BPF_RET | libc::BPF_A, 0));
        code
    }
}

/// The instructions that return the shard of a datagram with this mark, and go on behind them otherwise.
fn add_mark(code: &mut Vec<libc::sock_filter>, mark: &ShardMark, shards: u16) {
    let end = code.len() + 2 + 3 * mark.tests.len() + 3;
    let jump = |code: &mut Vec<libc::sock_filter>, operator, k, goes_on_if: bool| {
        let rest = u8::try_from(end - code.len() - 1).expect("a mark has few tests");
        let (jt, jf) = if goes_on_if { (0, rest) } else { (rest, 0) };
        let code_of = (libc::BPF_JMP | operator | libc::BPF_K) as u16;
        code.push(libc::sock_filter {
            code: code_of,
            jt,
            jf,
            k,
        });
    };
    // A load behind the end would end the program.
    code.push(statement(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0));
    jump(code, libc::BPF_JGE, mark.least_bytes() as u32, true);
    for test in mark.tests {
        let ByteTest {
            offset,
            mask,
            value,
        } = *test;
        let load = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
        code.push(statement(load, u32::from(offset)));
        let and = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
        code.push(statement(and, u32::from(mask)));
        jump(code, libc::BPF_JEQ, u32::from(value), true);
    }
    let load = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    code.push(statement(load, u32::from(mark.offset)));
    jump(code, libc::BPF_JGE, u32::from(shards), false);
    code.push(statement(libc::BPF_RET | libc::BPF_A, 0));
}

/// `A = (A ^ X) * multiplier; A ^= A >> 15`
fn mix(code: &mut Vec<libc::sock_filter>, multiplier: u32) {
    code.push(statement(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0));
    code.push(statement(
        libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K,
        multiplier,
    ));
    code.push(statement(libc::BPF_MISC | libc::BPF_TAX, 0));
    code.push(statement(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 15));
    code.push(statement(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0));
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;
    use crate::socket::open_listener;

    const KEY: [u8; 16] = *b"a key for tests!";

    #[test]
    fn clients_spread_evenly_and_another_key_spreads_them_differently() {
        let steering = Steering::new(KEY, 4, SteeringRule::Client);
        let other = Steering::new([7; 16], 4, SteeringRule::Client);
        let mut counts = [0u32; 4];
        let mut moved = 0;
        for host in 0..64u32 {
            for port in 0..64u16 {
                let ip = Ipv4Addr::from_bits(0x0a00_0000 + host);
                let client = SocketAddr::from((ip, 40_000 + port));
                counts[usize::from(steering.shard_of(client).0)] += 1;
                moved += u32::from(steering.shard_of(client) != other.shard_of(client));
            }
        }
        // 4096 clients: 1024 expected for each shard, standard deviation 28.
        assert!(
            counts.iter().all(|count| (850..1200).contains(count)),
            "{counts:?}"
        );
        assert!(moved > 2500, "{moved} of 4096 moved");
    }

    /// Two marks, as a protocol with two kinds of headers has them.
    const MARKS: SteeringRule = SteeringRule::Marks(&[
        ShardMark {
            tests: &[test(0, 0xc0, 0x40), test(2, 0xff, 0xff)],
            offset: 3,
        },
        ShardMark {
            tests: &[test(0, 0x80, 0x80), test(5, 0xff, 8), test(7, 0xff, 0xff)],
            offset: 8,
        },
    ]);

    const fn test(offset: u8, mask: u8, value: u8) -> ByteTest {
        ByteTest {
            offset,
            mask,
            value,
        }
    }

    /// Payloads, and the shard of three that each is marked for.
    const PAYLOADS: &[(&[u8], Option<u16>)] = &[
        (b"x", None),
        (b"", None),
        (&[0x41, 7, 0xff, 0, 0], Some(0)),
        (&[0x41, 7, 0xff, 0, 1, 9, 9, 9, 9, 9], Some(1)),
        (&[0x7f, 7, 0xff, 0, 2, 9, 9, 9], Some(2)),
        // There are only three shards.
        (&[0x41, 7, 0xff, 0, 3, 9, 9, 9], None),
        (&[0x41, 7, 0xff, 1, 0, 9, 9, 9], None),
        // Too short, or not marked.
        (&[0x41, 7, 0xff, 0], None),
        (&[0x41, 7, 0xfe, 0, 1, 9, 9, 9], None),
        (&[0x01, 7, 0xff, 0, 1, 9, 9, 9], None),
        (&[0xc1, 0, 0, 0, 1, 8, 7, 0xff, 0, 2, 1, 1], Some(2)),
        (&[0xc1, 0, 0, 0, 1, 8, 7, 0xff, 0, 1], Some(1)),
        (&[0xc1, 0, 0, 0, 1, 8, 7, 0xff, 0], None),
        (&[0xc1, 0, 0, 0, 1, 9, 7, 0xff, 0, 1, 1, 1], None),
        (&[0xc1, 0, 0xff, 0, 1, 8, 7, 0xfe, 0, 1, 1, 1], None),
    ];

    #[test]
    fn a_mark_counts_where_the_shard_exists_else_the_source() {
        let client = "192.0.2.7:999".parse().unwrap();
        let steering = Steering::new(KEY, 3, MARKS);
        let hashed = steering.shard_of(client);
        for (payload, marked) in PAYLOADS {
            let expected = marked.map_or(hashed, ShardId);
            assert_eq!(steering.shard_of_datagram(client, payload), expected);
            let by_client = Steering::new(KEY, 3, SteeringRule::Client);
            assert_eq!(by_client.shard_of_datagram(client, payload), hashed);
        }
        assert!(steering.looks_inside());
        assert!(!Steering::new(KEY, 1, MARKS).looks_inside());
    }

    #[test]
    fn a_rule_the_kernel_could_not_follow_is_none() {
        const TEST: ByteTest = test(0, 0, 0);
        const LONG: ShardMark = ShardMark {
            tests: &[TEST; MAX_MARK_TESTS + 1],
            offset: 1,
        };
        assert!(MARKS.is_short() && SteeringRule::Client.is_short());
        assert!(!SteeringRule::Marks(&[LONG]).is_short());
        const SHORT: ShardMark = ShardMark {
            tests: &[TEST; MAX_MARK_TESTS],
            offset: 1,
        };
        assert!(SteeringRule::Marks(&[SHORT; MAX_MARKS]).is_short());
        assert!(!SteeringRule::Marks(&[SHORT; MAX_MARKS + 1]).is_short());
    }

    /// Sends from many sources to a reuseport group and checks who got what.
    fn kernel_agrees(rule: SteeringRule, local: SocketAddr, sources: impl Iterator<Item = IpAddr>) {
        let steering = Steering::new(KEY, 3, rule);
        let first = open_listener(local, false, 1 << 20, false).unwrap();
        first.set_reuse_port(true).unwrap();
        let target = first.local_addr().unwrap().as_socket().unwrap();
        let mut group = vec![first];
        for _ in 1..3 {
            group.push(open_listener(target, true, 1 << 20, false).unwrap());
        }
        steering
            .attach(group[1].as_raw_fd(), local.is_ipv6())
            .unwrap();
        let mut expected = HashMap::new();
        // Kept open, so that no source comes twice.
        let mut clients = Vec::new();
        for ip in sources {
            for (payload, _) in PAYLOADS {
                let socket = UdpSocket::bind((ip, 0)).unwrap();
                let client = socket.local_addr().unwrap();
                expected.insert(client, steering.shard_of_datagram(client, payload));
                socket.send_to(payload, target).unwrap();
                clients.push(socket);
            }
        }
        let mut seen = 0;
        for (index, socket) in group.into_iter().enumerate() {
            let socket = UdpSocket::from(socket);
            socket.set_nonblocking(false).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            while let Ok((_, client)) = socket.recv_from(&mut [0; 8]) {
                assert_eq!(expected[&client], ShardId(index as u16), "{client}");
                seen += 1;
            }
        }
        assert_eq!(seen, expected.len());
    }

    #[test]
    fn the_kernel_steers_ipv4_clients_as_computed() {
        let sources = (1..40).map(|host| IpAddr::V4(Ipv4Addr::new(127, 7, 0, host)));
        kernel_agrees(
            SteeringRule::Client,
            "127.0.0.1:0".parse().unwrap(),
            sources,
        );
    }

    #[test]
    fn the_kernel_steers_ipv6_clients_as_computed() {
        let sources = std::iter::repeat_n(IpAddr::V6(Ipv6Addr::LOCALHOST), 40);
        kernel_agrees(SteeringRule::Client, "[::1]:0".parse().unwrap(), sources);
    }

    #[test]
    fn the_kernel_steers_marked_ipv4_datagrams_as_computed() {
        let sources = (1..20).map(|host| IpAddr::V4(Ipv4Addr::new(127, 7, 1, host)));
        kernel_agrees(MARKS, "127.0.0.1:0".parse().unwrap(), sources);
    }

    #[test]
    fn the_kernel_steers_marked_ipv6_datagrams_as_computed() {
        let sources = std::iter::repeat_n(IpAddr::V6(Ipv6Addr::LOCALHOST), 20);
        kernel_agrees(MARKS, "[::1]:0".parse().unwrap(), sources);
    }
}
