//! Options of sockets that only few scenarios need.

use std::ffi::c_int;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::sys;

/// Sets an integer option of TCP, by its name in libc.
///
/// # Errors
/// Fails when the kernel refuses it.
pub fn set_tcp_option(socket: &impl AsFd, name: c_int, value: c_int) -> Result<()> {
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, name, value)
        .with_context(|| format!("cannot set TCP option {name} to {value}"))
}
