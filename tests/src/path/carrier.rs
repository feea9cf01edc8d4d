//! The thread that carries packets from one namespace to the other: it delays them, loses some, and has each counted.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::truth::Header;
use super::{CLIENT, DEVICE, Direction, Settings, Shared};
use crate::namespace::Namespace;
use crate::tun;

/// How soon the carrier notices that it is to end.
const ATTENTION: Duration = Duration::from_millis(20);

/// How many packets the device of the calling thread's namespace could not hand to the carrier.
pub(super) fn transmissions_dropped() -> Result<u64> {
    const PATH: &str = "/proc/thread-self/net/dev";
    const DROPPED: usize = 11;
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let counters = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))
        .with_context(|| format!("{DEVICE} is not in {PATH}"))?;
    let dropped = counters.split_ascii_whitespace().nth(DROPPED);
    dropped.and_then(|it| it.parse().ok()).with_context(|| format!("unknown line in {PATH}: {counters}"))
}

/// The carrier's whole life, in the clients' namespace, which it makes.
pub(super) fn carry(settings: Settings, server: &File, shared: &Shared, ready: &Sender<File>) -> Result<()> {
    let namespace = Namespace::enter()?;
    let clients = tun::open(DEVICE, CLIENT).context("the clients' end of the path")?;
    let own = File::open(namespace.path()).context("cannot open the clients' namespace")?;
    if ready.send(own).is_err() {
        return Ok(());
    }
    let mut lanes = [
        Lane::new(Direction::ToServer, &clients, server, settings),
        Lane::new(Direction::ToClients, server, &clients, settings),
    ];
    while !shared.over.load(SeqCst) {
        for lane in &mut lanes {
            lane.take_in(shared)?;
        }
        let mut delivered = false;
        for lane in &mut lanes {
            delivered |= lane.hand_over(shared)?;
        }
        // What was handed over has most often been answered already.
        if !delivered {
            let due = lanes.iter().filter_map(Lane::next).min();
            let pause = due.map_or(ATTENTION, |due| due.saturating_duration_since(Instant::now()).min(ATTENTION));
            let mut wanted = [PollFd::new(&clients, PollFlags::IN), PollFd::new(server, PollFlags::IN)];
            match poll(&mut wanted, Some(&Timespec::try_from(pause)?)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for packets"),
            }
        }
    }
    let dropped = transmissions_dropped().context("the clients' end of the path")?;
    ensure!(dropped == 0, "the clients' device has dropped {dropped} packets: the path was too slow for it");
    Ok(())
}

/// One direction.
struct Lane<'path> {
    direction: Direction,
    from: &'path File,
    to: &'path File,
    settings: Settings,
    chance: Chance,
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl<'path> Lane<'path> {
    fn new(direction: Direction, from: &'path File, to: &'path File, settings: Settings) -> Self {
        let chance = Chance::new(settings.seed ^ direction as u64);
        Self { direction, from, to, settings, chance, under_way: VecDeque::new() }
    }

    /// When the next packet is due.
    fn next(&self) -> Option<Instant> {
        self.under_way.front().map(|(due, _)| *due)
    }

    /// Reads what the sender has sent, decides what becomes of it, and counts.
    fn take_in(&mut self, shared: &Shared) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let length = match self.from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot read from the TUN device"),
            };
            let packet = &buffer[..length];
            // IPv6 looks for its neighbours on every device; it has none here.
            if packet.first().is_none_or(|first| first >> 4 != 4) {
                continue;
            }
            let mut truth = shared.truth();
            if let Some(segment) = Header::of(packet) {
                truth.note_sent(self.direction, &segment);
            }
            if shared.cut.load(SeqCst) {
                truth.note_lost(self.direction, packet, |losses| &mut losses.cut);
            } else if self.chance.happens(self.settings.loss) {
                truth.note_lost(self.direction, packet, |losses| &mut losses.chance);
            } else if self.under_way.len() >= self.settings.queue {
                truth.note_lost(self.direction, packet, |losses| &mut losses.queue);
            } else {
                self.under_way.push_back((Instant::now() + self.settings.delay, packet.to_vec()));
            }
        }
    }

    /// Hands over what is due; whether that was anything. The receiver's kernel has handled it when this returns.
    fn hand_over(&mut self, shared: &Shared) -> Result<bool> {
        let mut any = false;
        while self.next().is_some_and(|due| due <= Instant::now()) {
            let Some((_, packet)) = self.under_way.pop_front() else { break };
            let mut truth = shared.truth();
            if shared.cut.load(SeqCst) {
                truth.note_lost(self.direction, &packet, |losses| &mut losses.cut);
                continue;
            }
            if let Some(segment) = Header::of(&packet) {
                truth.note_arrived(self.direction, &segment);
            }
            let written = self.to.write(&packet).context("cannot write to the TUN device")?;
            ensure!(written == packet.len(), "the TUN device took only {written} bytes");
            any = true;
            if self.direction == Direction::ToServer {
                // Its answer has to be counted before the next packet of the same client arrives.
                break;
            }
        }
        Ok(any)
    }
}

/// Chances from a seed: SplitMix64.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        // Seeds that differ little must not begin alike.
        Self(seed.wrapping_mul(0xd129_0d3c_2ae5_8f6b))
    }

    fn happens(&mut self, probability: f64) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // 53 bits are what an f64 holds exactly: from 0 to just below 1.
        probability > (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_as_probable_as_asked_and_follow_their_seed() {
        let happened = |seed, probability| {
            let mut chance = Chance::new(seed);
            (0..10_000).map(|_| chance.happens(probability)).collect::<Vec<_>>()
        };
        let count = |chances: &[bool]| chances.iter().filter(|it| **it).count();
        assert!((900..=1100).contains(&count(&happened(1, 0.1))));
        assert_eq!((count(&happened(1, 0.0)), count(&happened(1, 1.0))), (0, 10_000));
        assert_eq!(happened(2, 0.5), happened(2, 0.5));
        assert_ne!(happened(2, 0.5), happened(3, 0.5));
    }
}
