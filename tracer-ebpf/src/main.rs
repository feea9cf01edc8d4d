//! The kernel side of tracer: programs that turn what the kernel did to a handshake into counts and events.
//!
//! One file in `hook/` for each place in the kernel; the body there is free of how it is attached. What is read from kernel
//! memory is read in `kernel/`; what is sent goes through `emit`; every map is in `maps`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the only way to an atomic addition on this target")]

mod emit;
mod hook;
mod kernel;
mod maps;
mod untold;
mod watch;

/// The kernel lends the helpers that read its memory to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects any program from which this can be reached; it is here because `core` asks for it.
    loop {}
}
