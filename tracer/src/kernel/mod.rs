//! A read-only view of the running kernel: its layouts, symbols and version. No program is loaded here.

mod host;
mod layout;
mod types;

#[cfg(test)]
pub(crate) mod tests;

pub use host::Host;
pub use layout::{DropReasons, Layout, Signatures};

/// Why this kernel cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel has no type information.
    #[error(
        "cannot read {path}: {source}; the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (every Debian, Ubuntu, Fedora \
         and RHEL kernel of the last years is)"
    )]
    NoBtf {
        /// The file.
        path: String,
        /// What opening it said.
        source: std::io::Error,
    },
    /// The type information is damaged.
    #[error("cannot use the type information (BTF) in {path}: {reason}")]
    BadBtf {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A structure does not look as expected.
    #[error("this kernel's struct {strukt} has no field {field}, which tracer reads; please report it with `uname -r`")]
    NoField {
        /// The structure.
        strukt: &'static str,
        /// The path of the field.
        field: &'static str,
    },
    /// An enumerator is missing.
    #[error("this kernel has no {0}, whose changes tracer reads")]
    NoEnumerator(&'static str),
    /// A function's address is not known.
    #[error("cannot find the address of {symbol} in {path}: {problem}")]
    NoSymbol {
        /// The function.
        symbol: &'static str,
        /// The file.
        path: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// Another file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What reading it said.
        source: std::io::Error,
    },
}
