//! The one firewall rule that the scenarios need, told to the kernel's nf_tables
//! by netlink, so that no firewall program has to be installed.

use std::ffi::c_int;
use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

// From linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NESTED: u16 = 0x8000;

/// Tells the kernel's nf_tables to drop every packet for the calling thread's
/// namespace: a table with one chain at `input` whose policy is to drop.
pub(crate) fn drop_input() -> io::Result<()> {
    let local_in = 1_u32.to_be_bytes();
    let priority = 0_u32.to_be_bytes();
    let drop = (libc::NF_DROP as u32).to_be_bytes();
    let hook = [attribute(NFTA_HOOK_HOOKNUM, &local_in), attribute(NFTA_HOOK_PRIORITY, &priority)].concat();
    let chain = [
        attribute(NFTA_CHAIN_TABLE, b"closed\0"),
        attribute(NFTA_CHAIN_NAME, b"door\0"),
        attribute(NFTA_CHAIN_HOOK | NESTED, &hook),
        attribute(NFTA_CHAIN_POLICY, &drop),
        attribute(NFTA_CHAIN_TYPE, b"filter\0"),
    ]
    .concat();
    let table = attribute(NFTA_TABLE_NAME, b"closed\0");
    let of_nf_tables = |message| (SUBSYSTEM << 8) | message;
    let batch = [
        nfnetlink(BATCH_BEGIN, libc::AF_UNSPEC, &[]),
        nfnetlink(of_nf_tables(NEW_TABLE), libc::AF_INET, &table),
        nfnetlink(of_nf_tables(NEW_CHAIN), libc::AF_INET, &chain),
        nfnetlink(BATCH_END, libc::AF_UNSPEC, &[]),
    ]
    .concat();
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(&batch)?;
    // Both messages asked for an acknowledgement: an error message with 0.
    for _ in 0..2 {
        let mut answer = [0; 1024];
        let length = (&socket).read(&mut answer)?;
        let code = answer
            .get(16..20)
            .filter(|_| length >= 20)
            .map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        match code {
            Some(0) => {}
            Some(error) => return Err(io::Error::from_raw_os_error(-error)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(())
}

/// A netlink message for nfnetlink, which asks for an acknowledgement unless it
/// only frames a batch.
fn nfnetlink(kind: u16, family: c_int, attributes: &[u8]) -> Vec<u8> {
    let frame = kind < 0x100;
    let flags = libc::NLM_F_REQUEST | if frame { 0 } else { libc::NLM_F_ACK | libc::NLM_F_CREATE };
    let resource = if frame { SUBSYSTEM } else { 0 };
    let mut message = Vec::new();
    message.extend((20 + attributes.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
