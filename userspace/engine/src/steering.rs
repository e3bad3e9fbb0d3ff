//! Which shard a client belongs to: a keyed hash of its address and port.
//!
//! The same hash is computed twice: by [`Steering::shard_of`], and by a classic BPF program on the
//! reuseport group of each listening address, which picks the socket of that shard. So a client's
//! shard survives restarts and changes of the group, and can be computed anywhere.
//!
//! Per 32-bit word `w` of the source (address words, then the port):
//! `h = (h ^ w) * MULTIPLIER; h ^= h >> 15`, starting from a word of the key. The shard is `h`
//! modulo the number of shards.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use towpath_proto::machine::ShardId;

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

/// Offset of the source port behind an IPv6 header without extensions.
const V6_PORT: u32 = 40;

/// Computes the shard of a client.
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    key: [u32; 4],
    shards: u16,
}

impl Steering {
    /// Spreads over `shards` (at least 1) with the hash keyed by `key`.
    pub fn new(key: [u8; 16], shards: u16) -> Self {
        let (words, _) = key.as_chunks::<4>();
        let mut key = [0; 4];
        for (word, bytes) in key.iter_mut().zip(words) {
            *word = u32::from_be_bytes(*bytes);
        }
        Self {
            key,
            shards: shards.max(1),
        }
    }

    /// The shard `client` belongs to.
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

    /// The hash as a classic BPF program that runs with the packet's data at the UDP payload.
    fn program(&self, v6: bool) -> Vec<libc::sock_filter> {
        let mut code = Vec::with_capacity(40);
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
        let steering = Steering::new(KEY, 4);
        let other = Steering::new([7; 16], 4);
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

    /// Sends from many sources to a reuseport group and checks who got what.
    fn kernel_agrees(local: SocketAddr, sources: impl Iterator<Item = IpAddr>) {
        let steering = Steering::new(KEY, 3);
        let first = open_listener(local, false, 1 << 20).unwrap();
        first.set_reuse_port(true).unwrap();
        let target = first.local_addr().unwrap().as_socket().unwrap();
        let mut group = vec![first];
        for _ in 1..3 {
            group.push(open_listener(target, true, 1 << 20).unwrap());
        }
        steering
            .attach(group[1].as_raw_fd(), local.is_ipv6())
            .unwrap();
        let mut expected = HashMap::new();
        // Kept open, so that no source comes twice.
        let mut clients = Vec::new();
        for ip in sources {
            for _ in 0..8 {
                let socket = UdpSocket::bind((ip, 0)).unwrap();
                let client = socket.local_addr().unwrap();
                expected.insert(client, steering.shard_of(client));
                socket.send_to(b"x", target).unwrap();
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
        kernel_agrees("127.0.0.1:0".parse().unwrap(), sources);
    }

    #[test]
    fn the_kernel_steers_ipv6_clients_as_computed() {
        let sources = std::iter::repeat_n(IpAddr::V6(Ipv6Addr::LOCALHOST), 40);
        kernel_agrees("[::1]:0".parse().unwrap(), sources);
    }
}
