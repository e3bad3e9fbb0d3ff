//! Message headers for `sendmmsg` and `recvmmsg` together with the memory they point to.
//!
//! The buffers are owned by the batch and never move or grow while headers point to them, which is what
//! makes handing the headers to the kernel sound.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::RawFd;

use crate::sys;

/// Datagrams that are received, or prepared and sent, in one system call each.
///
/// ```text
///   slot:  | headroom | received bytes ...            |
///          | any range of the whole buffer can be sent |
/// ```
pub struct Batch {
    buffers: Box<[u8]>,
    buffer_bytes: usize,
    headroom: usize,
    incoming: Headers,
    outgoing: Headers,
    queued: usize,
}

struct Headers {
    names: Box<[libc::sockaddr_in]>,
    vectors: Box<[libc::iovec]>,
    messages: Box<[libc::mmsghdr]>,
}

// SAFETY: the raw pointers point into boxes that the batch itself owns and that move with it.
unsafe impl Send for Batch {}

impl Headers {
    fn new(count: usize) -> Self {
        // SAFETY: all zero is a valid value of this C structure.
        let name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        // SAFETY: as above; a null pointer with length zero.
        let vector: libc::iovec = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Self {
            names: vec![name; count].into_boxed_slice(),
            vectors: vec![vector; count].into_boxed_slice(),
            messages: vec![message; count].into_boxed_slice(),
        }
    }

    fn point(&mut self, slot: usize, buffer: &mut [u8], named: bool) {
        self.vectors[slot] = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let header = &mut self.messages[slot].msg_hdr;
        header.msg_iov = &raw mut self.vectors[slot];
        header.msg_iovlen = 1;
        (header.msg_name, header.msg_namelen) = if named {
            let length = size_of::<libc::sockaddr_in>() as u32;
            ((&raw mut self.names[slot]).cast(), length)
        } else {
            (std::ptr::null_mut(), 0)
        };
    }
}

impl Batch {
    /// A batch of `count` buffers of `buffer_bytes` each; what is received leaves `headroom` bytes free.
    pub fn new(count: usize, buffer_bytes: usize, headroom: usize) -> Self {
        let mut batch = Self {
            buffers: vec![0; count * buffer_bytes].into_boxed_slice(),
            buffer_bytes,
            headroom,
            incoming: Headers::new(count),
            outgoing: Headers::new(count),
            queued: 0,
        };
        for (slot, buffer) in batch.buffers.chunks_mut(buffer_bytes).enumerate() {
            batch.incoming.point(slot, &mut buffer[headroom..], true);
        }
        batch
    }

    /// How many datagrams fit.
    pub fn capacity(&self) -> usize {
        self.incoming.messages.len()
    }

    /// Receives what is there into the slots from `first` on; returns how many.
    pub fn receive(&mut self, socket: RawFd, first: usize) -> io::Result<usize> {
        let messages = &mut self.incoming.messages[first..];
        for message in messages.iter_mut() {
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        }
        sys::receive_messages(socket, messages)
    }

    /// Length of a received datagram.
    pub fn received_bytes(&self, slot: usize) -> usize {
        (self.incoming.messages[slot].msg_len as usize).min(self.buffer_bytes - self.headroom)
    }

    /// The bytes of a received datagram.
    pub fn received(&self, slot: usize) -> &[u8] {
        let start = slot * self.buffer_bytes + self.headroom;
        &self.buffers[start..start + self.received_bytes(slot)]
    }

    /// Who sent a received datagram.
    pub fn source(&self, slot: usize) -> SocketAddrV4 {
        let name = &self.incoming.names[slot];
        let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
        SocketAddrV4::new(ip, u16::from_be(name.sin_port))
    }

    /// The whole buffer of a slot, headroom included.
    pub fn buffer(&mut self, slot: usize) -> &mut [u8] {
        let start = slot * self.buffer_bytes;
        &mut self.buffers[start..start + self.buffer_bytes]
    }

    /// Queues a range of a slot's buffer; to `destination`, or where the socket goes.
    pub fn queue(&mut self, slot: usize, bytes: Range<usize>, destination: Option<SocketAddrV4>) {
        let start = slot * self.buffer_bytes;
        let buffer = &mut self.buffers[start..start + self.buffer_bytes][bytes];
        if let Some(destination) = destination {
            self.outgoing.names[self.queued] = socket_address(destination);
        }
        self.outgoing
            .point(self.queued, buffer, destination.is_some());
        self.queued += 1;
    }

    /// Sends what is queued and empties the queue; returns how many the kernel took.
    pub fn send(&mut self, socket: RawFd) -> io::Result<usize> {
        let queued = std::mem::take(&mut self.queued);
        sys::send_messages(socket, &mut self.outgoing.messages[..queued])
    }
}

fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*address.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}
