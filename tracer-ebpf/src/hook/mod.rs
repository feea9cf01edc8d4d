//! One file for each place in the kernel; in each, thin programs around one body.

mod accept;
mod child;
mod child_process;
mod client_end;
mod conn_request;
mod connect;
mod control;
mod fast_open;
mod listen_drop;
mod listener;
mod process_exit;
mod reqsk_timer;
mod rtx_synack;
mod snapshot;
mod sock_state;
mod unheard;
