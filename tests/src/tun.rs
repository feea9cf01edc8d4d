//! A TUN device: packets that the kernel sends through it are read from a file, and what is written there arrives.

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

use crate::sys;

/// A device with this name and address, up, in the calling thread's namespace. Reading from it does not wait.
pub(crate) fn open(name: &str, address: Ipv4Addr) -> Result<File> {
    const PATH: &str = "/dev/net/tun";
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(PATH)
        .with_context(|| format!("cannot open {PATH}: load the module with `modprobe tun`"))?;
    sys::make_tun(&device, name).context("cannot make a TUN device")?;
    sys::add_ipv4(name, address).context("cannot give the TUN device an IPv4 address")?;
    sys::bring_up(name).context("cannot bring the TUN device up")?;
    Ok(device)
}
