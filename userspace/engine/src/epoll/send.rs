//! Sends the outbox with as few system calls as its sockets allow.

use std::os::fd::RawFd;

use towpath_proto::Machine;

use crate::Host;
use crate::outbox::Message;
use crate::shard::Shard;
use crate::socket::last_errno;

/// Messages given to the kernel with one system call.
const BATCH: usize = 64;

/// Sorts messages by socket and sends those of one socket together.
pub(super) struct Outlet {
    messages: Vec<u16>,
    /// Socket, place in the outbox's order, message, whether it sets the DF bit.
    sorted: Vec<(u32, u16, u16, bool)>,
    headers: Vec<libc::mmsghdr>,
}

impl Outlet {
    pub(super) fn new() -> Self {
        Self {
            messages: Vec::new(),
            sorted: Vec::new(),
            headers: Vec::with_capacity(BATCH),
        }
    }

    /// Sends what is pending now. What the kernel refuses as a run is pending again afterwards.
    pub(super) fn flush<M: Machine, H: Host<M>>(&mut self, shard: &mut Shard<M, H>) {
        shard.outbox.take_pending(&mut self.messages);
        self.sorted.clear();
        for (place, &message) in self.messages.iter().enumerate() {
            // Datagrams of a flow leave by one socket, so this order keeps theirs.
            let (socket, dont_fragment) = shard.outbox.way_out(message);
            self.sorted
                .push((socket, place as u16, message, dont_fragment));
        }
        self.sorted.sort_unstable();
        let mut rest = &self.sorted[..];
        while let Some(&(socket, _, _, dont_fragment)) = rest.first() {
            let same = rest
                .iter()
                .take(BATCH)
                .take_while(|(of, _, _, whole)| (*of, *whole) == (socket, dont_fragment))
                .count();
            let (batch, later) = rest.split_at(same);
            send_batch(shard, &mut self.headers, socket, batch);
            rest = later;
        }
    }
}

fn send_batch<M: Machine, H: Host<M>>(
    shard: &mut Shard<M, H>,
    headers: &mut Vec<libc::mmsghdr>,
    socket: u32,
    batch: &[(u32, u16, u16, bool)],
) {
    let slot = shard.sockets.slot(socket);
    let fd = slot.map_or(-1, |slot| slot.fd());
    let sets = slot.is_some_and(|slot| slot.sets_dont_fragment());
    if let [(.., dont_fragment), ..] = *batch
        && sets != dont_fragment
    {
        shard.sockets.set_dont_fragment(socket, dont_fragment);
    }
    if let [(_, _, index, _)] = *batch {
        let message = shard.outbox.message(index);
        if let Some(piece) = message.plain {
            return shard.sent(index, send_plain(fd, &message, piece));
        }
    }
    headers.clear();
    for &(_, _, message, _) in batch {
        let header = shard.outbox.message(message).header;
        // SAFETY: the outbox prepared this header and keeps it until the message is complete.
        let msg_hdr = unsafe { *header };
        headers.push(libc::mmsghdr {
            msg_hdr,
            msg_len: 0,
        });
    }
    let mut done = 0;
    while done < batch.len() {
        let rest = &mut headers[done..];
        let count = rest.len() as u32;
        // SAFETY: the headers, and what the outbox made them point to, outlive the call.
        let sent = unsafe { libc::sendmmsg(fd, rest.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        let Ok(sent) = usize::try_from(sent) else {
            // The first message was refused; those behind it have their own chance.
            shard.sent(batch[done].2, -last_errno());
            done += 1;
            continue;
        };
        for index in done..done + sent {
            shard.sent(batch[index].2, headers[index].msg_len as i32);
        }
        done += sent;
    }
}

/// Sends a message of one piece: the kernel then reads no header and no list of pieces. Returns the bytes
/// sent, or a negative error number.
fn send_plain(fd: RawFd, message: &Message, piece: libc::iovec) -> i32 {
    // SAFETY: the outbox keeps the piece and the name until the message is complete.
    let sent = unsafe {
        libc::sendto(
            fd,
            piece.iov_base,
            piece.iov_len,
            libc::MSG_DONTWAIT,
            message.name.cast(),
            message.name_bytes,
        )
    };
    i32::try_from(sent)
        .ok()
        .filter(|&sent| sent >= 0)
        .unwrap_or_else(|| -last_errno())
}
