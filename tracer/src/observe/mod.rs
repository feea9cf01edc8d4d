//! Facts from outside the hooks: the kernel's own totals, network namespaces, sysctls, listening sockets and their owners.
//!
//! The only room besides `kernel` that reads /proc and /sys. Where a file is read, its root is a parameter.

pub mod listeners;
pub mod namespaces;
pub mod netstat;
pub mod owners;
pub mod ports;
mod sock_diag;
pub mod sysctl;

pub use listeners::{Listening, Scan};
pub use namespaces::{Namespace, in_namespace};
pub use owners::Owner;
pub use ports::PortsInUse;
pub use sysctl::Sysctls;
