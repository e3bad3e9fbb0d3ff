//! How the NAT in front of a socket maps and filters (RFC 5780 §4.3 and §4.4), without I/O.
//!
//! A is the server's address and P its port, A' and P' are the others that it tells of. Filtering comes
//! before mapping: once something was sent to A', what comes from there passes.
//!
//! ```text
//!   reach       A,P                              our address there; A',P'
//!   filtering   A,P, answered from A',P'    ┐    passes: anybody may send
//!               A,P, answered from A, P'    ┘    passes: any port of an address that was sent to
//!   mapping     A',P                        ┐    another address than at A,P?
//!               A',P'                       ┘    another one than at A',P?
//! ```
//!
//! The tests of one step run at the same time. Everything is sent from one socket, which must not be
//! connected: answers come from four addresses.

use std::net::SocketAddr;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use thiserror::Error;

use crate::Timestamp;
use crate::stun::{Due, Retransmission, Schedule};
use crate::wire::attribute::{
    ChangeRequest, ErrorCode, MappedAddress, OtherAddress, Software, XorMappedAddress,
};
use crate::wire::{
    AttributeType, Class, Code, Message, MessageType, MessageWriter, Method, TransactionId,
};

/// In every request: it makes it so long that a server which bounds answers by requests has room for
/// all it has to say.
const SOFTWARE: &str = "towpath NAT behavior discovery (RFC 5780)";

/// What the tests are made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BehaviorConfig {
    /// The server, which has a second address and port.
    pub server: SocketAddr,
    /// The socket's address, as this machine sees it.
    pub local: SocketAddr,
    /// When requests are sent again. A test that nothing comes back from takes all of it.
    pub schedule: Schedule,
}

/// How a NAT chooses the address and port that others see (RFC 4787 §4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mapping {
    /// The same towards everybody.
    EndpointIndependent,
    /// Another one for each address.
    AddressDependent,
    /// Another one for each address and port.
    AddressAndPortDependent,
}

/// Who may send to a mapping (RFC 4787 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Filtering {
    /// Anybody.
    EndpointIndependent,
    /// Any port of an address that was sent to.
    AddressDependent,
    /// An address and port that was sent to.
    AddressAndPortDependent,
}

/// The names of RFC 3489, which mapping and filtering together stand behind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NatType {
    /// The address is the same on both sides.
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    RestrictedCone,
    /// Endpoint-independent mapping, address and port-dependent filtering.
    PortRestrictedCone,
    /// Another mapping.
    Symmetric,
    /// Not known.
    Unknown,
}

/// What the tests found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behavior {
    /// Our address, as this machine sees it.
    pub local: SocketAddr,
    /// Our address, as the server sees it.
    pub mapped: SocketAddr,
    /// The server's other address and port.
    pub other: SocketAddr,
    /// How mappings are chosen.
    pub mapping: Result<Mapping, TestError>,
    /// Who may send to one.
    pub filtering: Result<Filtering, TestError>,
}

/// Why one of the two questions has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TestError {
    /// Nothing came from the server's other address, even where it was asked itself: nothing follows.
    #[error("the server's other address does not answer")]
    OtherSilent,
    /// The server refused.
    #[error("the server answered {0}")]
    Refused(Code),
    /// The server answered from where it should not have.
    #[error("the server did not answer from its other address or port")]
    NotChanged,
    /// A response without an address.
    #[error("the response is malformed")]
    Malformed,
}

/// Why there is nothing to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BehaviorError {
    /// No response came.
    #[error("no response to {transmissions} requests")]
    TimedOut {
        /// How often the request was sent.
        transmissions: u8,
    },
    /// The server refused.
    #[error("the server answered {0}")]
    Refused(Code),
    /// A response without an address.
    #[error("the response is malformed")]
    Malformed,
    /// The server has no second address and port, or does not tell.
    #[error("the server has no second address and port (it sees {mapped})")]
    NoOtherAddress {
        /// Our address, as the server sees it.
        mapped: SocketAddr,
    },
    /// The server's other address and port are not other ones.
    #[error("the server calls {other} its other address and port, which cannot be")]
    BadOtherAddress {
        /// What it told.
        other: SocketAddr,
    },
}

/// The tests with one server, one after the other.
#[derive(Debug)]
pub struct BehaviorClient {
    config: BehaviorConfig,
    rng: ChaCha8Rng,
    step: Step,
    /// Those of the step.
    tests: Vec<Test>,
    outcome: Option<Result<Behavior, BehaviorError>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Reach,
    Filter {
        mapped: SocketAddr,
        other: SocketAddr,
    },
    Map {
        mapped: SocketAddr,
        other: SocketAddr,
        filtering: Result<Filtering, TestError>,
    },
}

/// One Binding request and what came of it.
#[derive(Debug)]
struct Test {
    id: TransactionId,
    destination: SocketAddr,
    change: ChangeRequest,
    /// Where the response has to come from.
    expected: SocketAddr,
    request: Retransmission,
    result: Option<Answer>,
}

/// What came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Silence,
    Mapped {
        mapped: SocketAddr,
        other: Option<SocketAddr>,
    },
    Failed(TestError),
}

impl BehaviorClient {
    /// Tests that begin at `now`. `seed` must be random: transaction ids come from it.
    pub fn new(now: Timestamp, config: BehaviorConfig, seed: [u8; 32]) -> Self {
        let mut client = Self {
            config,
            rng: ChaCha8Rng::from_seed(seed),
            step: Step::Reach,
            tests: Vec::new(),
            outcome: None,
        };
        client.begin(now, config.server, ChangeRequest::default(), config.server);
        client
    }

    /// Writes the next due request into `buffer` (128 bytes are enough); returns where it goes and its
    /// length.
    pub fn poll_transmit(
        &mut self,
        now: Timestamp,
        buffer: &mut [u8],
    ) -> Option<(SocketAddr, usize)> {
        let is_due =
            |test: &&mut Test| test.result.is_none() && test.request.due(now) == Due::Transmit;
        let test = self.tests.iter_mut().find(is_due)?;
        let message_type = MessageType::new(Method::BINDING, Class::Request);
        let mut writer = MessageWriter::new(buffer, message_type, test.id).ok()?;
        let change = (!test.change.is_nothing()).then_some(test.change);
        writer.put(&Software(SOFTWARE)).ok()?;
        writer.put_some(change.as_ref()).ok()?;
        writer.fingerprint().ok()?;
        test.request.sent(now);
        Some((test.destination, writer.finish().len()))
    }

    /// Takes a datagram; returns whether it is a response to one of the tests.
    pub fn handle_datagram(&mut self, now: Timestamp, remote: SocketAddr, bytes: &[u8]) -> bool {
        let Ok(message) = Message::parse(bytes) else {
            return false;
        };
        let is_response = matches!(message.class(), Class::Success | Class::Error);
        if !is_response
            || message.method() != Method::BINDING
            || (message.has_fingerprint() && message.check_fingerprint().is_err())
        {
            return false;
        }
        let id = message.transaction_id();
        let asked = |test: &&mut Test| test.id == id && test.result.is_none();
        let Some(test) = self.tests.iter_mut().find(asked) else {
            return false;
        };
        let answer = read(&message);
        test.result = Some(match answer {
            // A refusal comes from where the request went to.
            Answer::Mapped { .. } if remote != test.expected => {
                Answer::Failed(TestError::NotChanged)
            }
            Answer::Mapped { .. } | Answer::Failed(_) | Answer::Silence => answer,
        });
        self.go_on(now);
        true
    }

    /// Ends the tests that nothing comes back from.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        for test in &mut self.tests {
            if test.result.is_none() && test.request.due(now) == Due::Failed {
                test.result = Some(Answer::Silence);
            }
        }
        self.go_on(now);
    }

    /// When something is due; `None` once there is an outcome.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let open = self.tests.iter().filter(|test| test.result.is_none());
        open.map(|test| test.request.next()).min()
    }

    /// How it ended; `None` while it has not.
    pub fn outcome(&self) -> Option<Result<Behavior, BehaviorError>> {
        self.outcome
    }

    fn begin(
        &mut self,
        now: Timestamp,
        destination: SocketAddr,
        change: ChangeRequest,
        expected: SocketAddr,
    ) {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        self.tests.push(Test {
            id: TransactionId(id),
            destination,
            change,
            expected,
            request: Retransmission::new(now, self.config.schedule),
            result: None,
        });
    }

    /// Begins the next step where this one has told what it can.
    fn go_on(&mut self, now: Timestamp) {
        if self.outcome.is_some() {
            return;
        }
        let answer = |index: usize| self.tests.get(index).and_then(|test: &Test| test.result);
        match self.step {
            Step::Reach => {
                let Some(answer) = answer(0) else { return };
                match self.reached(answer) {
                    Ok((mapped, other)) => self.filter(now, mapped, other),
                    Err(error) => self.end(Err(error)),
                }
            }
            Step::Filter { mapped, other } => {
                let filtering = match (answer(0), answer(1)) {
                    // What passed from another address passes from another port too.
                    (Some(Answer::Mapped { .. }), _) => Ok(Filtering::EndpointIndependent),
                    (Some(both), Some(port)) => filtering_of(both, port),
                    (None, _) | (Some(_), None) => return,
                };
                self.map(now, mapped, other, filtering);
            }
            Step::Map {
                mapped,
                other,
                filtering,
            } => {
                let (Some(address), Some(both)) = (answer(0), answer(1)) else {
                    return;
                };
                let mapping = mapping_of(mapped, address, both);
                let local = self.config.local;
                self.end(Ok(Behavior {
                    local,
                    mapped,
                    other,
                    mapping,
                    filtering: believed(filtering, mapping),
                }));
            }
        }
    }

    fn reached(&self, answer: Answer) -> Result<(SocketAddr, SocketAddr), BehaviorError> {
        let (mapped, other) = match answer {
            Answer::Mapped { mapped, other } => (mapped, other),
            Answer::Silence => {
                let transmissions = self.tests[0].request.transmissions();
                return Err(BehaviorError::TimedOut { transmissions });
            }
            Answer::Failed(TestError::Refused(code)) => return Err(BehaviorError::Refused(code)),
            Answer::Failed(_) => return Err(BehaviorError::Malformed),
        };
        let other = other.ok_or(BehaviorError::NoOtherAddress { mapped })?;
        let server = self.config.server;
        let is_other = other.is_ipv4() == server.is_ipv4()
            && other.ip() != server.ip()
            && other.port() != server.port()
            && other.port() != 0
            && !other.ip().is_unspecified()
            && !other.ip().is_multicast();
        if !is_other {
            return Err(BehaviorError::BadOtherAddress { other });
        }
        Ok((mapped, other))
    }

    fn filter(&mut self, now: Timestamp, mapped: SocketAddr, other: SocketAddr) {
        let server = self.config.server;
        self.step = Step::Filter { mapped, other };
        self.tests.clear();
        let both = ChangeRequest {
            address: true,
            port: true,
        };
        let port = ChangeRequest {
            address: false,
            port: true,
        };
        self.begin(now, server, both, other);
        self.begin(
            now,
            server,
            port,
            SocketAddr::new(server.ip(), other.port()),
        );
    }

    fn map(
        &mut self,
        now: Timestamp,
        mapped: SocketAddr,
        other: SocketAddr,
        filtering: Result<Filtering, TestError>,
    ) {
        self.step = Step::Map {
            mapped,
            other,
            filtering,
        };
        self.tests.clear();
        let same_port = SocketAddr::new(other.ip(), self.config.server.port());
        for server in [same_port, other] {
            self.begin(now, server, ChangeRequest::default(), server);
        }
    }

    fn end(&mut self, outcome: Result<Behavior, BehaviorError>) {
        self.tests.clear();
        self.outcome = Some(outcome);
    }
}

/// RFC 5780 §4.4.
fn filtering_of(both: Answer, port: Answer) -> Result<Filtering, TestError> {
    match (both, port) {
        (Answer::Mapped { .. }, _) => Ok(Filtering::EndpointIndependent),
        (Answer::Failed(error), _) | (Answer::Silence, Answer::Failed(error)) => Err(error),
        (Answer::Silence, Answer::Mapped { .. }) => Ok(Filtering::AddressDependent),
        (Answer::Silence, Answer::Silence) => Ok(Filtering::AddressAndPortDependent),
    }
}

/// Silence of an address that never speaks shows no filter.
fn believed(
    filtering: Result<Filtering, TestError>,
    mapping: Result<Mapping, TestError>,
) -> Result<Filtering, TestError> {
    match (filtering, mapping) {
        (
            Ok(Filtering::AddressDependent | Filtering::AddressAndPortDependent),
            Err(TestError::OtherSilent),
        ) => Err(TestError::OtherSilent),
        (Ok(_) | Err(_), _) => filtering,
    }
}

/// RFC 5780 §4.3. `address` and `both` were sent to the other address.
fn mapping_of(mapped: SocketAddr, address: Answer, both: Answer) -> Result<Mapping, TestError> {
    let seen = |answer: Answer| match answer {
        Answer::Mapped { mapped, .. } => Ok(Some(mapped)),
        Answer::Silence => Ok(None),
        Answer::Failed(error) => Err(error),
    };
    match (seen(address)?, seen(both)?) {
        (None, None) => Err(TestError::OtherSilent),
        (Some(seen), None) | (None, Some(seen)) if seen == mapped => {
            Ok(Mapping::EndpointIndependent)
        }
        // One of the two was lost, and the other does not tell alone.
        (Some(_), None) | (None, Some(_)) => Err(TestError::OtherSilent),
        (Some(address), Some(both)) if address == mapped && both == mapped => {
            Ok(Mapping::EndpointIndependent)
        }
        (Some(address), Some(both)) if address == both => Ok(Mapping::AddressDependent),
        (Some(_), Some(_)) => Ok(Mapping::AddressAndPortDependent),
    }
}

fn read(message: &Message<'_>) -> Answer {
    if message.class() == Class::Error {
        return Answer::Failed(match message.get::<ErrorCode<'_>>() {
            Ok(Some(error)) => TestError::Refused(error.code),
            Ok(None) | Err(_) => TestError::Malformed,
        });
    }
    let is_known =
        |kind| kind == AttributeType::XOR_MAPPED_ADDRESS || kind == AttributeType::MAPPED_ADDRESS;
    if !message.unknown_required(is_known).is_empty() {
        return Answer::Failed(TestError::Malformed);
    }
    let mapped = match (message.get(), message.get()) {
        (Ok(Some(XorMappedAddress(mapped))), _) | (_, Ok(Some(MappedAddress(mapped)))) => mapped,
        (Ok(None) | Err(_), Ok(None) | Err(_)) => return Answer::Failed(TestError::Malformed),
    };
    match message.get::<OtherAddress>() {
        Ok(other) => Answer::Mapped {
            mapped,
            other: other.map(|OtherAddress(other)| other),
        },
        Err(_) => Answer::Failed(TestError::Malformed),
    }
}

impl Behavior {
    /// Whether the server sees another address than this machine does.
    pub fn is_translated(&self) -> bool {
        self.mapped != self.local
    }

    /// The nearest of the old names.
    pub fn nat_type(&self) -> NatType {
        if !self.is_translated() {
            return NatType::None;
        }
        match (self.mapping, self.filtering) {
            (Ok(Mapping::EndpointIndependent), Ok(filtering)) => match filtering {
                Filtering::EndpointIndependent => NatType::FullCone,
                Filtering::AddressDependent => NatType::RestrictedCone,
                Filtering::AddressAndPortDependent => NatType::PortRestrictedCone,
            },
            (Ok(Mapping::AddressDependent | Mapping::AddressAndPortDependent), _) => {
                NatType::Symmetric
            }
            (Ok(Mapping::EndpointIndependent), Err(_)) | (Err(_), _) => NatType::Unknown,
        }
    }
}

impl Mapping {
    /// As the RFCs call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

impl Filtering {
    /// As the RFCs call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

impl NatType {
    /// As RFC 3489 calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full cone",
            Self::RestrictedCone => "restricted cone",
            Self::PortRestrictedCone => "port-restricted cone",
            Self::Symmetric => "symmetric",
            Self::Unknown => "unknown",
        }
    }
}
