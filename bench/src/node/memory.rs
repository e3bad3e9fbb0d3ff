//! Memory of idle connections, at both ends.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::node::contender::Contender;
use crate::node::end::Memory;
use crate::node::pair::Pair;
use crate::node::tally::Cell;

/// What this cell is called.
pub const NAME: &str = "memory";
/// Numbers of connections that memory is read at.
pub const STEPS: [usize; 4] = [1, 100, 1000, 10_000];

/// Handshakes leave things behind that are given up a little later.
const SETTLE: Duration = Duration::from_millis(1500);

/// The memory of both ends at a number of connections.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Point {
    /// Connections that stand.
    pub connections: usize,
    /// The server's memory.
    pub server: Memory,
    /// The client's memory.
    pub client: Memory,
}

/// Fills a fresh pair step by step; the first point is that without connections.
pub fn measure(contender: Contender, steps: &[usize]) -> Result<Vec<Point>> {
    let mut pair = Pair::start(Cell::Idle, contender)?;
    let mut points = vec![point(&mut pair, 0)?];
    for &connections in steps {
        let connected = pair.client.connect(connections);
        connected.with_context(|| format!("making {connections} connections"))?;
        points.push(point(&mut pair, connections)?);
    }
    Ok(points)
}

fn point(pair: &mut Pair, connections: usize) -> Result<Point> {
    thread::sleep(SETTLE);
    Ok(Point {
        connections,
        server: pair.server.memory()?,
        client: pair.client.memory()?,
    })
}

/// Bytes that each connection costs both ends together: `of` at a number of connections, less what it is
/// without any.
pub fn bytes_each(points: &[Point], connections: usize, of: fn(&Memory) -> u64) -> Option<f64> {
    let at = |count| {
        let point = points.iter().find(|point| point.connections == count)?;
        Some((of(&point.server) + of(&point.client)) as f64)
    };
    Some((at(connections)? - at(0)?) / connections as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_without_connections_is_no_cost_of_them() {
        let point = |connections, heap_bytes| Point {
            connections,
            server: Memory {
                heap_bytes,
                ..Memory::default()
            },
            client: Memory {
                heap_bytes: 2 * heap_bytes,
                ..Memory::default()
            },
        };
        let points = [point(0, 1000), point(100, 6000)];
        let heap = |memory: &Memory| memory.heap_bytes;
        assert_eq!(bytes_each(&points, 100, heap), Some(150.0));
        assert_eq!(bytes_each(&points, 10, heap), None);
    }
}
