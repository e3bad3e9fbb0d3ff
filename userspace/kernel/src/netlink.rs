//! Questions to the kernel's tables of links, routes and neighbours, and its notices of change.
//!
//! Questions are answered at once: the kernel has put its answer into the socket's queue by the
//! time the question is sent. Nothing here waits for the network.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Longest datagram the kernel writes for routing netlink.
const BUFFER_BYTES: usize = 64 * 1024;

/// Ample for an answer that is there already.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Datagrams read for one question, so that a confused kernel cannot hold us for ever.
const MAX_DATAGRAMS: usize = 64;

/// How packets to a destination leave this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RouteAnswer {
    /// Whether it is an ordinary route to another machine.
    pub(crate) unicast: bool,
    /// The interface; 0 where there is none.
    pub(crate) interface: u32,
    /// Who is asked on that interface: the gateway, or the destination itself.
    pub(crate) neighbour: IpAddr,
    /// A longest packet the route has, of its own or learnt from the path.
    pub(crate) mtu: Option<u32>,
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Up, and with a carrier.
    pub(crate) running: bool,
    /// Ethernet without a tag of its own.
    pub(crate) plain_ethernet: bool,
    /// One end of a virtual cable.
    pub(crate) is_cable: bool,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    pub(crate) xdp: AttachedXdp,
}

/// The XDP programs on an interface, by id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct AttachedXdp {
    pub(crate) native: Option<u32>,
    pub(crate) generic: Option<u32>,
    pub(crate) offloaded: Option<u32>,
}

impl AttachedXdp {
    /// Any of them, and how it is attached.
    pub(crate) fn any(self) -> Option<(u32, &'static str)> {
        self.native
            .map(|id| (id, "native"))
            .or(self.generic.map(|id| (id, "generic")))
            .or(self.offloaded.map(|id| (id, "offloaded")))
    }
}

/// What is known of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Neighbour {
    /// Its address, while the kernel would send to it.
    pub(crate) mac: Option<[u8; 6]>,
    /// The kernel has not heard of it for a while and would ask again before long if it sent.
    pub(crate) stale: bool,
}

/// Something that changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// A link.
    Link(u32),
    /// A neighbour on a link.
    Neighbour(u32, IpAddr),
    /// Routes to the destinations within a prefix.
    Routes(IpAddr, u8),
    /// It cannot be told what: rules, next-hop objects, addresses, or notices that were lost.
    Anything,
}

/// A socket for questions.
pub(crate) struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// Opens it in this thread's network namespace.
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers about one object instead of a dump that is filtered here.
        let _ = socket.set_netlink_get_strict_chk(true);
        rustix::net::sockopt::set_socket_timeout(
            socket.as_fd(),
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_LIMIT),
        )?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// The route a packet from `source` to `destination` takes; `None` where there is none.
    pub(crate) fn route(
        &mut self,
        destination: IpAddr,
        source: IpAddr,
    ) -> io::Result<Option<RouteAnswer>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(destination);
        question.header.destination_prefix_length = full_length(destination);
        question.header.source_prefix_length = full_length(source);
        question.attributes = vec![
            RouteAttribute::Destination(destination.into()),
            RouteAttribute::Source(source.into()),
        ];
        let answer = self.ask(RouteNetlinkMessage::GetRoute(question), 0);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if is_no_route(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answer.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(read_route(&route, destination)),
            _ => None,
        }))
    }

    /// The link with this index; `None` where there is none.
    pub(crate) fn link(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        self.ask_link(question)
    }

    /// The link with this name; `None` where there is none.
    pub(crate) fn link_named(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut question = LinkMessage::default();
        question
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        self.ask_link(question)
    }

    fn ask_link(&mut self, question: LinkMessage) -> io::Result<Option<Link>> {
        let answer = match self.ask(RouteNetlinkMessage::GetLink(question), 0) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answer.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(read_link(&link)),
            _ => None,
        }))
    }

    /// What the kernel knows of a neighbour; `None` for nothing.
    pub(crate) fn neighbour(
        &mut self,
        interface: u32,
        address: IpAddr,
    ) -> io::Result<Option<Neighbour>> {
        let question = neighbour_message(interface, address);
        let answer = match self.ask(RouteNetlinkMessage::GetNeighbour(question), 0) {
            Ok(answer) => answer,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok(answer.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(read_neighbour(&neighbour)),
            _ => None,
        }))
    }

    /// Has the kernel behave as if it sent a packet to a neighbour: it asks for its address where
    /// it has none or an old one. The answer comes as a notice.
    pub(crate) fn use_neighbour(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        let mut message = neighbour_message(interface, address);
        message.header.flags = NeighbourFlags::Use;
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), flags)
            .map(drop)
    }

    fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        for _ in 0..MAX_DATAGRAMS {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            if let Some(answer) = read_answer(&self.buffer, self.sequence)? {
                return Ok(answer);
            }
        }
        Err(io::Error::other("no answer among the kernel's messages"))
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

/// A socket that hears of changes.
pub(crate) struct Notices {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Notices {
    /// Listens in this thread's network namespace, from now on.
    pub(crate) fn new() -> io::Result<Self> {
        /// `RTNLGRP_*` of linux/rtnetlink.h: links, neighbours, then for both families addresses,
        /// routes and rules, then next-hop objects.
        const GROUPS: [u32; 9] = [1, 3, 5, 9, 7, 11, 8, 19, 32];
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in GROUPS {
            match socket.add_membership(group) {
                // Kernels before 5.3 have no next-hop objects.
                Err(error) if group != 32 => return Err(error),
                _ => {}
            }
        }
        socket.set_non_blocking(true)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// Appends what changed and is not read yet, up to a limit. Returns whether more may wait.
    pub(crate) fn read(&mut self, changes: &mut Vec<Change>) -> io::Result<bool> {
        for _ in 0..MAX_DATAGRAMS {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => read_changes(&self.buffer, changes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes.push(Change::Anything);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

/// The messages of a datagram, each with its own length's bytes.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        if length < 16 {
            return None;
        }
        let message = bytes.get(..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The answer to question `sequence`; `None` where the datagram has none.
fn read_answer(bytes: &[u8], sequence: u32) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
    let mut answer = Vec::new();
    let mut complete = false;
    for message in messages(bytes) {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
            .map_err(|error| io::Error::other(format!("unreadable netlink message: {error}")))?;
        if message.header.sequence_number != sequence {
            continue;
        }
        complete = true;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answer.push(inner),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(complete.then_some(answer))
}

fn read_changes(bytes: &[u8], changes: &mut Vec<Change>) {
    for message in messages(bytes) {
        let change = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
            Ok(message) => match message.payload {
                NetlinkPayload::InnerMessage(inner) => read_change(&inner),
                _ => None,
            },
            Err(_) => Some(Change::Anything),
        };
        // What repeats at once need not be looked at twice.
        if let Some(change) = change.filter(|change| changes.last() != Some(change)) {
            changes.push(change);
        }
    }
}

fn read_change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            Some(Change::Link(link.header.index))
        }
        RouteNetlinkMessage::NewNeighbour(neighbour)
        | RouteNetlinkMessage::DelNeighbour(neighbour) => {
            let address = neighbour
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                        Some(IpAddr::V4(*v4))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                        Some(IpAddr::V6(*v6))
                    }
                    _ => None,
                });
            address.map(|address| Change::Neighbour(neighbour.header.ifindex, address))
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            let length = route.header.destination_prefix_length;
            let destination = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Destination(address) => ip(address),
                    _ => None,
                });
            let any = match route.header.address_family {
                AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                _ => return None,
            };
            Some(Change::Routes(destination.unwrap_or(any), length))
        }
        _ => Some(Change::Anything),
    }
}

fn read_route(route: &RouteMessage, destination: IpAddr) -> RouteAnswer {
    let mut answer = RouteAnswer {
        unicast: route.header.kind == RouteType::Unicast,
        interface: 0,
        neighbour: destination,
        mtu: None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => answer.interface = *interface,
            RouteAttribute::Gateway(gateway) => match ip(gateway) {
                Some(gateway) => answer.neighbour = gateway,
                None => answer.unicast = false,
            },
            RouteAttribute::Via(RouteVia::Inet(v4)) => answer.neighbour = (*v4).into(),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => answer.neighbour = (*v6).into(),
            // Tunnels and labels are put around the packet by the stack alone.
            RouteAttribute::Via(_) | RouteAttribute::EncapType(_) => answer.unicast = false,
            RouteAttribute::Metrics(metrics) => {
                answer.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    answer
}

fn read_link(link: &LinkMessage) -> Link {
    let mut read = Link {
        index: link.header.index,
        name: String::new(),
        running: link
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        plain_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        is_cable: false,
        mac: [0; 6],
        mtu: 0,
        xdp: AttachedXdp::default(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => read.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => read.mtu = *mtu,
            LinkAttribute::Address(address) => match address.as_slice().try_into() {
                Ok(mac) => read.mac = mac,
                Err(_) => read.plain_ethernet = false,
            },
            LinkAttribute::LinkInfo(infos) => {
                let tagged = |info: &LinkInfo| {
                    matches!(
                        info,
                        LinkInfo::Kind(InfoKind::Vlan | InfoKind::MacSec | InfoKind::Hsr)
                    )
                };
                read.plain_ethernet &= !infos.iter().any(tagged);
                read.is_cable = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Xdp(attributes) => read.xdp = read_xdp(attributes),
            _ => {}
        }
    }
    read
}

fn read_xdp(attributes: &[LinkXdp]) -> AttachedXdp {
    let mut read = AttachedXdp::default();
    let mut only = (XdpAttached::None, None);
    for attribute in attributes {
        match attribute {
            LinkXdp::DrvProgId(id) => read.native = Some(*id),
            LinkXdp::SkbProgId(id) => read.generic = Some(*id),
            LinkXdp::HwProgId(id) => read.offloaded = Some(*id),
            LinkXdp::Attached(how) => only.0 = *how,
            LinkXdp::ProgId(id) => only.1 = Some(*id),
            _ => {}
        }
    }
    match only.0 {
        XdpAttached::Driver => read.native = read.native.or(only.1),
        XdpAttached::SocketBuffer => read.generic = read.generic.or(only.1),
        XdpAttached::Hardware => read.offloaded = read.offloaded.or(only.1),
        _ => {}
    }
    read
}

fn read_neighbour(neighbour: &NeighbourMessage) -> Neighbour {
    let sends = matches!(
        neighbour.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let mac = neighbour
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(address) => address.as_slice().try_into().ok(),
            _ => None,
        });
    Neighbour {
        mac: mac.filter(|_| sends),
        stale: neighbour.header.state == NeighbourState::Stale,
    }
}

fn neighbour_message(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = interface;
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        }));
    message
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Answers that mean a packet would not leave: no route, a forbidden one, or a source that is not
/// ours.
fn is_no_route(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::ENODEV
                | libc::EADDRNOTAVAIL
        )
    )
}
