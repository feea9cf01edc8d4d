//! The binary interface between the programs in the kernel and the collector.

mod cause;
mod config;
mod counters;
mod ender;
mod event;
mod kfunc;
mod listener;
pub mod places;
mod tuple;
pub mod verdict;
mod watch;

pub use cause::{CAUSES, Cause, Stage};
pub use config::{Config, Control, ControlOp, Offsets, Phase, Reasons, TCP_RULES};
pub use counters::{COUNTERS, Counter, Deltas, Global, NetCounters};
pub use ender::{ENDERS, Ender};
pub use event::{Event, EventKind, TASK_COMM_LEN, flag};
pub use kfunc::{KFUNCS, Kfunc};
pub use listener::{
    Group, GroupKey, ListenerInfo, MEMBERS, NO_LISTENER, Port, PortKey, RIVALS, SlotCounters, UNTOLD_COOKIE,
    WAIT_BUCKETS, wait_bucket, wait_bucket_floor_us,
};
pub use tuple::{Address, Tuple};
pub use watch::{Process, Watch, state};
