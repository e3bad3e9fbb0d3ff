//! The ladder: native XDP, generic XDP, userspace. Each interface stands on the best rung it can,
//! and says why it is not a better one.

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramError, Xdp, XdpMode, loaded_programs};

use crate::config::Mode;
use crate::netlink::{AttachedXdp, Link};
use crate::pin_directory::PinDirectory;
use crate::refusal::chain;
use crate::xdp_features::takes_frames;

/// Where packets of an interface are relayed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rung {
    /// In the driver.
    Native,
    /// In the kernel, before the network stack.
    Generic,
    /// In this process.
    Userspace,
}

impl Rung {
    /// Its name in status, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Userspace => "userspace",
        }
    }
}

/// The rung of an interface, and why it is not a better one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceRung {
    /// The interface's name.
    pub interface: String,
    /// Where its packets are relayed.
    pub rung: Rung,
    /// Why not on a better rung; `None` on the best one.
    pub reason: Option<String>,
}

/// A program that was put on an interface.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) rung: Rung,
    pub(crate) reason: Option<String>,
    /// Keeps the program there, where no pin does.
    pub(crate) link: Option<FdLink>,
    /// Whether it was there before.
    pub(crate) taken_over: bool,
}

/// Puts the program on an interface. The error says why no allowed rung could be had.
pub(crate) fn attach(
    program: &mut Xdp,
    link: &Link,
    mode: Mode,
    pins: Option<&PinDirectory>,
) -> Result<Attached, String> {
    let loses_frames = link.is_cable && takes_frames(link.index) == Some(false);
    if let Some(pins) = pins
        && let Some(attached) = take_over(program, link, mode, loses_frames, pins)?
    {
        return Ok(attached);
    }
    let mut attach_native = || {
        if loses_frames {
            return Err(AttachError::LosesFrames);
        }
        attach_fresh(program, link, XdpMode::Driver, pins)
    };
    match mode {
        Mode::Auto => match attach_native() {
            Ok(fd) => Ok(fresh(Rung::Native, None, fd)),
            Err(first) => {
                let first = format!("native: {}", explain(&first, link));
                match attach_fresh(program, link, XdpMode::Skb, pins) {
                    Ok(fd) => Ok(fresh(Rung::Generic, Some(first), fd)),
                    Err(second) => {
                        let second = explain(&second, link);
                        Err(with_occupant(
                            format!("{first}; generic: {second}"),
                            link.xdp,
                        ))
                    }
                }
            }
        },
        Mode::Native => attach_native()
            .map(|fd| fresh(Rung::Native, None, fd))
            .map_err(|error| with_occupant(explain(&error, link), link.xdp)),
        Mode::Generic => attach_fresh(program, link, XdpMode::Skb, pins)
            .map(|fd| {
                let reason = "the configuration asks for it".to_owned();
                fresh(Rung::Generic, Some(reason), fd)
            })
            .map_err(|error| with_occupant(explain(&error, link), link.xdp)),
        Mode::Off => Err("the configuration switches it off".to_owned()),
    }
}

const fn fresh(rung: Rung, reason: Option<String>, link: Option<FdLink>) -> Attached {
    Attached {
        rung,
        reason,
        link,
        taken_over: false,
    }
}

/// Replaces the program of a pinned link, if there is one on this interface in a mode that is
/// allowed: no packet meets an interface without program. A link of any other kind is removed.
fn take_over(
    program: &mut Xdp,
    link: &Link,
    mode: Mode,
    loses_frames: bool,
    pins: &PinDirectory,
) -> Result<Option<Attached>, String> {
    let path = pins.link(link.index);
    if !path.exists() {
        return Ok(None);
    }
    let error = |error: &dyn std::error::Error| {
        format!("the pinned link {}: {}", path.display(), chain(error))
    };
    let pinned = PinnedLink::from_pin(&path).map_err(|cause| error(&cause))?;
    let old = FdLink::from(pinned);
    let attached = old.info().map_err(|cause| error(&cause))?.program_id();
    // A link outlives its interface, and another interface may have got the index since.
    let rung = match mode {
        Mode::Auto | Mode::Native if link.xdp.native == Some(attached) && !loses_frames => {
            Some(Rung::Native)
        }
        Mode::Auto | Mode::Generic if link.xdp.generic == Some(attached) => Some(Rung::Generic),
        Mode::Auto | Mode::Native | Mode::Generic | Mode::Off => None,
    };
    let Some(rung) = rung else {
        std::fs::remove_file(&path).map_err(|cause| error(&cause))?;
        return Ok(None);
    };
    let old = old.try_into().map_err(|cause| error(&cause))?;
    let id = program.attach_to_link(old).map_err(|cause| error(&cause))?;
    // The pin holds it from here on.
    program.take_link(id).map_err(|cause| error(&cause))?;
    let reason = match (mode, rung) {
        (Mode::Generic, _) => Some("the configuration asks for it".to_owned()),
        (_, Rung::Generic) => {
            Some("taken over as it was; native is tried where no link is pinned".to_owned())
        }
        _ => None,
    };
    Ok(Some(Attached {
        rung,
        reason,
        link: None,
        taken_over: true,
    }))
}

/// Attaches by a link of our own, and pins it. What cannot be a link, as in kernels before 5.9, is
/// detached again: it could not be kept nor replaced.
fn attach_fresh(
    program: &mut Xdp,
    link: &Link,
    mode: XdpMode,
    pins: Option<&PinDirectory>,
) -> Result<Option<FdLink>, AttachError> {
    let id = program.attach_to_if_index(link.index, mode)?;
    let attached = program.take_link(id)?;
    let fd = FdLink::try_from(attached).map_err(|_| AttachError::NoLinks)?;
    let Some(pins) = pins else {
        return Ok(Some(fd));
    };
    let path = pins.link(link.index);
    let pinned = fd
        .pin(&path)
        .map_err(|error| AttachError::Pin(chain(&error)))?;
    if let Err(error) = pins.protect(&path) {
        let _ = pinned.unpin();
        return Err(AttachError::Pin(error.to_string()));
    }
    Ok(None)
}

enum AttachError {
    Program(ProgramError),
    NoLinks,
    Pin(String),
    LosesFrames,
}

impl From<ProgramError> for AttachError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

/// What an error of attaching means, in words.
fn explain(error: &AttachError, link: &Link) -> String {
    let program = match error {
        AttachError::NoLinks => {
            return "this kernel attaches programs by netlink only, which cannot be pinned".into();
        }
        AttachError::LosesFrames => {
            return "the far end of this virtual cable takes no frames from programs; it does once it \
                    receives by GRO (ethtool -K DEVICE gro on, there)"
                .into();
        }
        AttachError::Pin(error) => return format!("the link cannot be pinned: {error}"),
        AttachError::Program(error) => error,
    };
    let ProgramError::SyscallError(call) = program else {
        return chain(program);
    };
    match call.io_error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) if link.xdp.any().is_some() => {
            "another program is there".into()
        }
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP".into(),
        Some(libc::ERANGE) => {
            format!(
                "an MTU of {} is more than the driver can do with it",
                link.mtu
            )
        }
        _ => call.io_error.to_string(),
    }
}

/// Names the program that is on an interface already.
fn with_occupant(text: String, xdp: AttachedXdp) -> String {
    let Some((id, how)) = xdp.any() else {
        return text;
    };
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty());
    let name = name.map_or_else(|| "without a name".to_owned(), |name| format!("{name:?}"));
    format!("{text} (somebody else's program {name}, id {id}, {how})")
}
