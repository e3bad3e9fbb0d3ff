//! Somebody on the network whom the server knows nothing about: sends anything, signed or not, and sees
//! everything that comes back.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use towpath_proto::credentials::LongTermKey;
use towpath_proto::wire::attribute::{
    Algorithm, ErrorCode, Nonce, Realm, RequestedTransport, Username,
};
use towpath_proto::wire::{
    Class, IntegrityKey, Message, MessageType, MessageWriter, Method, TransactionId, WriteError,
};

use crate::lab::Host;
use crate::server::REALM;

/// A Binding request is sent again after this long.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// And given up after this long.
const GIVE_UP: Duration = Duration::from_secs(20);
/// What the transaction ids of a stranger's own Binding requests begin with.
const MARK: [u8; 4] = *b"mark";

/// Adds the attributes of one message.
pub type Fill<'a> = dyn Fn(&mut MessageWriter<'_>) -> Result<(), WriteError> + 'a;

/// A STUN message.
///
/// # Panics
///
/// Where the attributes are more than a datagram holds.
pub fn message(kind: MessageType, id: TransactionId, fill: &Fill<'_>) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let mut writer = MessageWriter::new(&mut buffer, kind, id).expect("the buffer holds a header");
    fill(&mut writer).expect("the buffer holds the attributes");
    writer.finish().to_vec()
}

/// What a request is signed with.
#[derive(Debug)]
pub struct Login {
    user: String,
    key: IntegrityKey,
}

impl Login {
    /// The key that a user's password, right or wrong, gives.
    ///
    /// # Panics
    ///
    /// Where no user can have them.
    pub fn new(user: &str, password: &str) -> Self {
        let key = LongTermKey::derive(Algorithm::Md5, user, REALM, password)
            .unwrap_or_else(|error| panic!("{user:?}, {password:?}: {error}"));
        Self {
            user: user.to_owned(),
            key: IntegrityKey::new(key.as_bytes()),
        }
    }

    /// What answers to it are signed with.
    pub(crate) fn key(&self) -> &IntegrityKey {
        &self.key
    }

    /// Ends a request with credentials.
    pub fn sign(&self, writer: &mut MessageWriter<'_>, nonce: &[u8]) -> Result<(), WriteError> {
        writer
            .put(&Username(&self.user))?
            .put(&Realm(REALM))?
            .put(&Nonce(nonce))?
            .integrity(&self.key)
            .map(drop)
    }
}

/// A socket, and requests from it.
#[derive(Debug)]
pub struct Stranger {
    socket: UdpSocket,
    server: SocketAddr,
    transactions: u64,
    marks: u64,
}

impl Stranger {
    /// On `host`, sending from `local` to `server`.
    pub fn new(host: &Host, local: IpAddr, server: SocketAddr) -> Self {
        Self {
            socket: host.bind_any(local),
            server,
            transactions: 0,
            marks: 0,
        }
    }

    /// Where it sends from.
    pub fn local(&self) -> SocketAddr {
        let local = self.socket.local_addr();
        local.expect("a bound socket has an address")
    }

    /// A request with a transaction of its own.
    pub fn request(&mut self, method: Method, fill: &Fill<'_>) -> Vec<u8> {
        self.message(method, Class::Request, fill)
    }

    /// An Allocate request without credentials.
    pub fn allocate(&mut self) -> Vec<u8> {
        self.request(Method::ALLOCATE, &|writer| {
            writer.put(&RequestedTransport::UDP).map(drop)
        })
    }

    /// As [`Stranger::request`], of any class.
    pub fn message(&mut self, method: Method, class: Class, fill: &Fill<'_>) -> Vec<u8> {
        self.transactions += 1;
        let mut id = [0; 12];
        id[4..].copy_from_slice(&self.transactions.to_be_bytes());
        message(MessageType::new(method, class), TransactionId(id), fill)
    }

    /// Sends bytes that nobody waits to see answered.
    ///
    /// # Panics
    ///
    /// Where the network is down.
    pub fn send(&self, bytes: &[u8]) {
        // A closed port answers the previous datagram with an error that belongs to no one here.
        if self.socket.send_to(bytes, self.server).is_err() {
            let sent = self.socket.send_to(bytes, self.server);
            sent.expect("the laboratory's network is up");
        }
    }

    /// Sends bytes, and gives all that comes back for them: what arrives before the answer to a Binding
    /// request that is sent behind them.
    ///
    /// # Panics
    ///
    /// Where that one is never answered.
    pub fn ask(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.send(bytes);
        self.marks += 1;
        let mut id = [0; 12];
        id[..4].copy_from_slice(&MARK);
        id[4..].copy_from_slice(&self.marks.to_be_bytes());
        let kind = MessageType::new(Method::BINDING, Class::Request);
        let mark = message(kind, TransactionId(id), &|_| Ok(()));
        let mut answers = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < GIVE_UP {
            self.send(&mark);
            let deadline = Instant::now() + RETRANSMIT;
            while let Some(answer) = self.receive(deadline) {
                match answer.get(8..20) {
                    Some(transaction) if *transaction == id => return answers,
                    // A late answer to an earlier mark.
                    Some(transaction) if transaction[..4] == MARK => {}
                    Some(_) | None => answers.push(answer),
                }
            }
        }
        panic!("{} does not answer", self.server);
    }

    /// Sends a request until it is answered, also where that takes the server a while.
    ///
    /// # Panics
    ///
    /// Where it never is.
    pub fn answer_to(&mut self, request: &[u8]) -> Vec<u8> {
        let begin = Instant::now();
        while begin.elapsed() < GIVE_UP {
            self.send(request);
            let deadline = Instant::now() + RETRANSMIT;
            while let Some(answer) = self.receive(deadline) {
                if answer.get(8..20) == request.get(8..20) {
                    return answer;
                }
            }
        }
        panic!("{} does not answer", self.server);
    }

    /// The nonce that this address is given with a refusal.
    ///
    /// # Panics
    ///
    /// Where it is given none.
    pub fn nonce(&mut self) -> Vec<u8> {
        let request = self.allocate();
        let answer = self.answer_to(&request);
        let challenge = Message::parse(&answer).expect("the server writes STUN");
        let nonce = challenge.get::<Nonce<'_>>();
        let Nonce(nonce) = nonce.expect("well-formed").expect("a 401 has a nonce");
        nonce.to_vec()
    }

    fn receive(&self, deadline: Instant) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .expect("the timeout is not zero");
            if let Ok((bytes, source)) = self.socket.recv_from(&mut buffer)
                && source == self.server
            {
                buffer.truncate(bytes);
                return Some(buffer);
            }
        }
    }
}

/// The code of an error response; `None` for any other message.
pub fn error_of(answer: &[u8]) -> Option<u16> {
    let message = Message::parse(answer).ok()?;
    let error = message.get::<ErrorCode<'_>>().ok()??;
    Some(error.code.number())
}
