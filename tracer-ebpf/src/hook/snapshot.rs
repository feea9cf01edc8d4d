//! What exists: before counting, the listeners and half-open requests of one namespace; at the end, the requests whose listener
//! has closed. The kernel removes these when their timers run, and nothing tells whose they are before.
//!
//! `iter/tcp` shows a reader every TCP socket of its own namespace: listeners, then the established hash with its requests.
//! Connections that wait for `accept()` need no entry: they are told by when they were established (`accept::is_earlier`).
//!
//! Read from: net/ipv4/tcp_ipv4.c (`bpf_iter_tcp`, 6.18).

use aya_ebpf::cty::c_void;
use tracer_abi::abi::{Phase, state};

use super::{listener, reqsk_timer};
use crate::{
    kernel::{INET, INET6, Request, Sock, tcp},
    watch,
};

/// `struct bpf_iter__tcp`.
#[repr(C)]
struct Context {
    meta: *mut c_void,
    sk: *mut c_void,
    uid: u32,
}

/// Every TCP socket of the reader's namespace.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn iter_tcp(ctx: *mut c_void) -> i32 {
    // SAFETY: the kernel calls an iterator program with this context.
    let sk = unsafe { (*ctx.cast::<Context>()).sk } as u64;
    if sk != 0 {
        found(Sock(sk));
    }
    0
}

#[inline(always)]
fn found(sk: Sock) -> Option<()> {
    let family = sk.family();
    if family != INET && family != INET6 {
        return None;
    }
    match sk.state() {
        tcp::LISTEN => {
            listener::open(sk, false)?;
        }
        tcp::NEW_SYN_RECV => {
            let request = Request(sk.0);
            if watch::phase()? == Phase::Counting {
                return orphan(request);
            }
            let slot = listener::slot_of(request.listener())?;
            let tuple = request.tuple(listener::info(slot)?.netns);
            if let Some(known) = watch::note(&tuple, request.isn(), true, slot).watch {
                known.state |= state::EARLIER | state::HALF_OPEN;
            }
        }
        _ => {}
    }
    Some(())
}

/// A request that is still there when counting ends.
#[inline(always)]
fn orphan(request: Request) -> Option<()> {
    let slot = listener::slot_of(request.listener())?;
    if listener::info(slot)?.closed_ns == 0 {
        return None;
    }
    reqsk_timer::expired(request, true)
}
