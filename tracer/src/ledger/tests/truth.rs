//! The outcome of every attempt of the model, by the words of the contract.

use std::collections::BTreeMap;

use tracer_abi::abi::{Cause, NO_LISTENER, flag};

use super::attempt::{Place, SECOND};
use super::kernel::Kernel;
use crate::ledger::Account;

impl Kernel {
    /// The accounts as they have to be, without packets.
    pub(super) fn truth(&self) -> BTreeMap<u32, Account> {
        let mut accounts: BTreeMap<u32, Account> = self.slots.keys().map(|slot| (*slot, Account::default())).collect();
        for a in self.attempts.iter().filter(|a| a.place != Place::New) {
            let account = accounts.entry(a.home).or_default();
            account.attempts += 1;
            let closed_ns = self.closed_ns.get(&a.home).copied();
            let expires_ns = a.ended_ns.unwrap_or(u64::MAX).min(a.cookie_ns + 120 * SECOND);
            let lost = match a.place {
                // Late or dead, it is not told.
                Place::Accepted if a.unseen => {
                    account.accepted += 1;
                    account.accepted_unseen += 1;
                    None
                }
                Place::Accepted => {
                    account.accepted += 1;
                    account.dead_on_arrival += u64::from(a.dead);
                    if a.dropped {
                        account.late[a.decisive] += 1;
                        match a.by {
                            by if by & flag::FIN != 0 => account.completed_by.fin += 1,
                            by if by & flag::DATA != 0 => account.completed_by.data += 1,
                            _ => account.completed_by.ack += 1,
                        }
                    }
                    None
                }
                Place::WentWithListener => Some((Cause::ListenerClosed, true)),
                Place::HalfOpen if closed_ns.is_some() => Some((Cause::ListenerClosed, a.answered)),
                Place::Cookie if closed_ns.is_some_and(|ns| ns <= expires_ns) => Some((Cause::ListenerClosed, false)),
                Place::Cookie if self.now_ns >= expires_ns => Some((Cause::HandshakeExpired, false)),
                Place::HalfOpen | Place::Cookie if !a.dropped => None,
                Place::Queued => None,
                _ => Some((a.decisive, a.answered)),
            };
            match lost {
                Some((cause, phantom)) => {
                    account.lost[cause] += 1;
                    account.phantom += u64::from(phantom);
                }
                None if a.place != Place::Accepted => account.pending += 1,
                None => {}
            }
        }
        if let Some(totals) = self.slots.get(&NO_LISTENER) {
            let account = accounts.entry(NO_LISTENER).or_default();
            account.attempts += totals.port_exhausted;
            account.lost[Cause::PortExhaustion] += totals.port_exhausted;
        }
        accounts
    }
}

/// What of an account the model has an opinion on.
pub(super) fn essence(account: &Account) -> Account {
    let mut essence = *account;
    essence.packets = Default::default();
    (essence.lost_with_reset, essence.lost_at_syn, essence.unlisted) = (0, 0, 0);
    essence
}
