//! A packet socket on a host's interface: sees every frame, and sends any.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use towpath_bench::sys;

use crate::frame::{Content, Mac, read};
use crate::lab::Host;

/// Room for what a test waits to look at.
const BUFFER_BYTES: i32 = 64 << 20;

/// One interface, seen from beside the network stack.
#[derive(Debug)]
pub struct Wire {
    socket: UnixDatagram,
    mac: Mac,
}

impl Wire {
    /// Opens it. Frames count from here on.
    pub fn open(host: &Host, interface: &str) -> Self {
        let socket = host.inside(|| {
            let index = sys::interface_index(interface).expect("the interface exists");
            let every = u16::try_from(libc::ETH_P_ALL).expect("a protocol number");
            sys::packet_socket(index, every).expect("root may open a packet socket")
        });
        let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
        sys::set_option(socket.as_raw_fd(), level, name, BUFFER_BYTES)
            .expect("root may have a large buffer");
        // The standard library has no packet socket, but what is asked of it is the same: to send and
        // receive whole messages.
        let socket = UnixDatagram::from(socket);
        Self {
            socket,
            mac: host.mac(interface),
        }
    }

    /// The interface's own address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Puts a frame on the wire.
    pub fn send(&self, frame: &[u8]) {
        let sent = self.socket.send(frame).expect("the interface is up");
        assert_eq!(sent, frame.len());
    }

    /// What has come in for this interface and was not looked at yet; an error for whatever is wrong on
    /// the wire.
    pub fn received(&self) -> Vec<Result<Content, String>> {
        self.socket
            .set_nonblocking(true)
            .expect("a socket can be made so");
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(bytes) if buffer[..6] == self.mac => frames.push(read(&buffer[..bytes])),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("the packet socket: {error}"),
            }
        }
    }

    /// Waits for the first frame from which `find` takes something; `None` where none comes within
    /// `limit`. Those before it are forgotten.
    ///
    /// # Panics
    ///
    /// Where something is wrong on the wire.
    pub fn find<T>(&self, limit: Duration, find: impl Fn(Content) -> Option<T>) -> Option<T> {
        self.socket
            .set_nonblocking(false)
            .expect("a socket can be made so");
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .expect("the timeout is not zero");
            let Ok(bytes) = self.socket.recv(&mut buffer) else {
                continue;
            };
            if buffer[..6] != self.mac {
                continue;
            }
            let content = read(&buffer[..bytes]).unwrap_or_else(|error| panic!("{error}"));
            if let Some(found) = find(content) {
                return Some(found);
            }
        }
    }
}
