//! Limits while they are in force: read and changed in the slots' memory, whether that is this
//! process's own or the kernel path's pinned maps, and kept for the next start.
//!
//! ```text
//!   config < what is kept in the state directory < what was set by hand and is in the maps still
//! ```

mod access;
mod keeper;
mod kept;
mod table;
mod target;
mod totals;
mod view;

pub use access::{AccessError, LimitAccess};
pub(crate) use keeper::LimitKeeper;
pub use kept::KeptError;
pub(crate) use kept::KeptFile;
pub use table::SetError;
pub use target::{NotTarget, Target};
pub(crate) use totals::{DirectionTotal, DirectionTotals, Totals};
pub use view::{Change, Changed, DirectionView, LimitsView, SlotKind, SlotView};
