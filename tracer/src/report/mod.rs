//! What a run found: one model ([`Report`]), and the printers of it. Printers compute nothing but their layout.
//!
//! Times and counts of the model are those of the contract's JSON; what is not known there is an `Option`.

pub mod advice;
mod blocks;
mod causes;
mod cost;
mod doctor;
mod events;
mod format;
mod human;
mod json;
mod listeners;
mod model;

pub use cost::{Cost, ProgramCost, RingCost};
pub use doctor::{
    Doctor, DoctorHook, DoctorHost, Finding, NotBetter, NotBy, State, write_human as write_doctor,
    write_json as write_doctor_json,
};
pub use events::{decision as write_decision, ending as write_ending};
pub use format::{Style, wrap};
pub use format::{address, comm};
pub use human::write as write_human;
pub use json::write as write_json;
pub use listeners::{write_json as write_listeners_json, write_table as write_listeners_table};
pub use model::{
    AcceptWait, Advice, Backlog, ByEnder, Check, ClientProcess, Clients, CommandResult, EndedBy, Exhaustion, Host,
    Listener, Mark, Missed, Namespace, Pair, PortsInUse, Queue, Report, Window,
};

#[cfg(test)]
mod samples;
