//! A long path between clients in one network namespace and a server in another: delay, loss and a bounded queue.
//!
//! Each namespace has a TUN device, and a thread carries IPv4 packets between the two. It needs no queueing discipline of the
//! kernel (`netem`), which many kernels lack, and knows better: it has read the header of every segment, so that it can tell
//! which SYN arrived at the server, which SYN-ACK the server sent, and what was lost between. That is the truth which a report
//! about the server is held against: of a client on another host, the server's side knows no more than what arrived.
//!
//! Loss is by chance, from a seed that belongs into the message of each failure. The same seed does not make the same run, as
//! the order of the packets is the kernel's and the scheduler's.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::Namespace;
use crate::rawtcp::flag::{ACK, FIN, RST, SYN};
use crate::tun;

/// The name of the device in both namespaces.
const DEVICE: &str = "path0";
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
/// How soon the carrier notices that it is to end.
const ATTENTION: Duration = Duration::from_millis(20);

/// What a path is like.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a packet takes from one end to the other, at least.
    pub delay: Duration,
    /// The probability, from 0 to 1, that a packet is lost, in each direction.
    pub loss: f64,
    /// Where the chances come from.
    pub seed: u64,
    /// How many packets may be under way in each direction; what comes then is lost, as at a router.
    pub queue: usize,
}

/// The directions of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the server.
    ToServer,
    /// From the server to the clients.
    ToClients,
}

/// How many packets of a kind were put on the path, and what became of them: what has neither arrived nor been lost is under
/// way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crossing {
    /// Put on the path by the sender's kernel.
    pub sent: u64,
    /// Handed to the receiver's kernel.
    pub arrived: u64,
    /// Lost, for whatever reason.
    pub lost: u64,
}

impl Crossing {
    /// How many are under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.sent - self.arrived - self.lost
    }
}

/// What the path has seen of one connection attempt: a client's address and port with an initial sequence number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    /// SYNs, from the client.
    pub syn: Crossing,
    /// SYN-ACKs, from the server.
    pub synack: Crossing,
    /// The SYN-ACKs that the server has sent, by its initial sequence number: one for each request or cookie that it made.
    pub synack_by_isn: BTreeMap<u32, u64>,
    /// Bare ACKs of a SYN-ACK, and of nothing else, from the client.
    pub final_ack: Crossing,
    /// FINs of a client that has sent no data.
    pub fin: Crossing,
    /// RSTs of a client that has sent no data.
    pub reset: Crossing,
    syns_before_synack: u64,
}

impl Flow {
    /// How many SYNs arrived that the server gave no answer to for certain: those before its first SYN-ACK, but the one that
    /// this answers. What becomes of a SYN after a SYN-ACK cannot be told from the path.
    #[must_use]
    pub fn ignored_syns(&self) -> u64 {
        self.syns_before_synack - u64::from(self.synack.sent > 0)
    }

    /// How many SYN-ACKs the server has sent that repeat an earlier one, sequence number and all. Of an ordinary request,
    /// these are retransmissions; a cookie for a SYN that came again within the same minute is equal to the one before, too.
    #[must_use]
    pub fn repeated_synacks(&self) -> u64 {
        self.synack_by_isn.values().map(|sent| sent - 1).sum()
    }

    /// How many packets of this attempt are under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        [self.syn, self.synack, self.final_ack, self.fin, self.reset].iter().map(Crossing::under_way).sum()
    }

    /// Whether the server can have learned that the client got a SYN-ACK.
    #[must_use]
    pub fn was_answered(&self) -> bool {
        self.final_ack.arrived + self.fin.arrived > 0
    }
}

/// Packets that did not come out of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// By chance.
    pub chance: u64,
    /// While the line was cut.
    pub cut: u64,
    /// As too many were under way.
    pub queue: u64,
}

/// What a path has carried and lost.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// By client and initial sequence number.
    pub flows: BTreeMap<(SocketAddr, u32), Flow>,
    /// What got lost on the way to the server.
    pub lost_to_server: Losses,
    /// What got lost on the way to the clients.
    pub lost_to_clients: Losses,
}

impl Truth {
    /// The attempts that the server can know of: those of which a SYN arrived.
    pub fn attempts(&self) -> impl Iterator<Item = (&(SocketAddr, u32), &Flow)> {
        self.flows.iter().filter(|(_, flow)| flow.syn.arrived > 0)
    }

    /// A sum over all attempts.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Flow) -> u64) -> u64 {
        self.flows.values().map(of).sum()
    }

    /// What was lost in one direction.
    #[must_use]
    pub fn lost(&self, direction: Direction) -> Losses {
        match direction {
            Direction::ToServer => self.lost_to_server,
            Direction::ToClients => self.lost_to_clients,
        }
    }

    fn losses(&mut self, direction: Direction) -> &mut Losses {
        match direction {
            Direction::ToServer => &mut self.lost_to_server,
            Direction::ToClients => &mut self.lost_to_clients,
        }
    }

    /// Which count of which attempt this segment belongs to. A new attempt begins with its SYN.
    fn crossing(&mut self, direction: Direction, segment: &Header) -> Option<&mut Crossing> {
        let flags = segment.flags & (SYN | ACK | FIN | RST);
        if direction == Direction::ToClients {
            let flow = self.flows.get_mut(&(segment.destination, segment.acknowledgement.wrapping_sub(1)))?;
            return (flags == SYN | ACK).then_some(&mut flow.synack);
        }
        if flags == SYN {
            return Some(&mut self.flows.entry((segment.source, segment.sequence)).or_default().syn);
        }
        let flow = self.flows.get_mut(&(segment.source, segment.sequence.wrapping_sub(1)))?;
        if flags & RST != 0 {
            return Some(&mut flow.reset);
        }
        if flags & FIN != 0 {
            return Some(&mut flow.fin);
        }
        let isn = segment.acknowledgement.wrapping_sub(1);
        (flow.synack_by_isn.contains_key(&isn)).then_some(&mut flow.final_ack)
    }

    fn note_sent(&mut self, direction: Direction, segment: &Header) {
        let Some(crossing) = self.crossing(direction, segment) else { return };
        crossing.sent += 1;
        if direction == Direction::ToClients {
            let key = (segment.destination, segment.acknowledgement.wrapping_sub(1));
            if let Some(flow) = self.flows.get_mut(&key) {
                *flow.synack_by_isn.entry(segment.sequence).or_default() += 1;
            }
        }
    }

    fn note_lost(&mut self, direction: Direction, packet: &[u8], reason: fn(&mut Losses) -> &mut u64) {
        *reason(self.losses(direction)) += 1;
        if let Some(crossing) = Header::of(packet).and_then(|segment| self.crossing(direction, &segment)) {
            crossing.lost += 1;
        }
    }

    fn note_arrived(&mut self, direction: Direction, segment: &Header) {
        let Some(crossing) = self.crossing(direction, segment) else { return };
        crossing.arrived += 1;
        if direction == Direction::ToServer && segment.flags & SYN != 0 {
            let flow = self.flows.entry((segment.source, segment.sequence)).or_default();
            flow.syns_before_synack += u64::from(flow.synack.sent == 0);
        }
    }
}

/// A path that carries packets; dropping it takes it down.
#[derive(Debug)]
pub struct Path {
    settings: Settings,
    shared: Arc<Shared>,
    clients: File,
    carrier: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    truth: Mutex<Truth>,
    cut: AtomicBool,
    over: AtomicBool,
}

impl Shared {
    fn truth(&self) -> MutexGuard<'_, Truth> {
        // A panic elsewhere leaves the counts as they are: no call here can leave them half written.
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Path {
    /// Connects the server's namespace, which the calling thread is in, with a fresh one for clients.
    ///
    /// # Errors
    /// Fails without root, when this kernel has no TUN device, or when the loss is no probability.
    pub fn open(_server: &Namespace, settings: Settings) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&settings.loss), "a loss of {} is no probability", settings.loss);
        let server = tun::open(DEVICE, SERVER).context("the server's end of the path")?;
        let shared = Arc::new(Shared::default());
        let (sender, ready) = channel();
        let carrier = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || carry(settings, &server, &shared, &sender))
        };
        match ready.recv() {
            Ok(clients) => Ok(Self { settings, shared, clients, carrier: Some(carrier) }),
            Err(_) => {
                carrier.join().expect("the carrier does not panic")?;
                anyhow::bail!("the carrier has ended before it began")
            }
        }
    }

    /// The server's address on the path.
    #[must_use]
    pub fn server() -> IpAddr {
        SERVER.into()
    }

    /// The clients' address on the path.
    #[must_use]
    pub fn client() -> IpAddr {
        CLIENT.into()
    }

    /// What the path is like, for messages: above all the seed.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Moves the calling thread into the clients' namespace for good: for threads that are made for a client's work.
    ///
    /// # Errors
    /// Fails without root.
    pub fn join_clients(&self) -> Result<()> {
        move_into_link_name_space(self.clients.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot move a thread into the clients' namespace")
    }

    /// Runs `work` in the clients' namespace, on a thread of its own, and waits for its end.
    ///
    /// # Errors
    /// Fails as [`Path::join_clients`] and as `work` does.
    pub fn among_clients<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join_clients()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a sysctl of the clients' namespace, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// Fails when the kernel has no such sysctl or refuses the value.
    pub fn set_for_clients(&self, name: &str, value: &str) -> Result<()> {
        // The kernel shows each thread the sysctls of its own namespace.
        let write = || fs::write(format!("/proc/sys/{name}"), value);
        self.among_clients(|| write().with_context(|| format!("cannot set the clients' sysctl {name} to {value}")))
    }

    /// Cuts the line: what is under way and what is sent from now on, in both directions, gets lost.
    pub fn cut(&self) {
        // With the counts locked, no packet is being handed over.
        let _truth = self.shared.truth();
        self.shared.cut.store(true, SeqCst);
    }

    /// What the path has carried and lost so far.
    #[must_use]
    pub fn truth(&self) -> Truth {
        self.shared.truth().clone()
    }

    /// Takes the path down.
    ///
    /// # Errors
    /// Fails when a packet went missing outside of what the path counts, which would make it no truth.
    pub fn finish(mut self) -> Result<Truth> {
        let dropped = transmissions_dropped().context("the server's end of the path")?;
        ensure!(dropped == 0, "the server's device has dropped {dropped} packets: the path was too slow for it");
        self.shared.over.store(true, SeqCst);
        if let Some(carrier) = self.carrier.take() {
            carrier.join().expect("the carrier does not panic").context("the path has broken down")?;
        }
        Ok(self.truth())
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        if let Some(carrier) = self.carrier.take() {
            // A broken path shows itself in what the test asserts; here another error is on its way already.
            let _ = carrier.join();
        }
    }
}

/// How many packets the device of the calling thread's namespace could not hand to the carrier.
fn transmissions_dropped() -> Result<u64> {
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
fn carry(settings: Settings, server: &File, shared: &Shared, ready: &Sender<File>) -> Result<()> {
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

/// What the path looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
}

impl Header {
    /// The header of a TCP segment in an IPv4 packet; none in any other packet.
    fn of(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 != 4 || *packet.get(9)? != libc::IPPROTO_TCP as u8 {
            return None;
        }
        let tcp = packet.get(usize::from(packet[0] & 0x0f) * 4..)?;
        let address = |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
        let port = |at: usize| -> Option<u16> { tcp.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes) };
        let number = |at: usize| -> Option<u32> { tcp.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes) };
        Some(Self {
            source: (address(12)?, port(0)?).into(),
            destination: (address(16)?, port(2)?).into(),
            sequence: number(4)?,
            acknowledgement: number(8)?,
            flags: *tcp.get(13)?,
        })
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
    use crate::traffic::{Client, Listen, State, connect_blocking};
    use crate::wait;

    fn settings(delay_ms: u64, loss: f64) -> Settings {
        Settings { delay: Duration::from_millis(delay_ms), loss, seed: 7, queue: 1000 }
    }

    #[test]
    fn a_handshake_takes_a_round_trip_and_is_counted_at_both_ends() -> Result<()> {
        let namespace = Namespace::enter()?;
        let path = Path::open(&namespace, settings(30, 0.0))?;
        let listener = Listen::new(5).on(Path::server()).open()?;
        let (client, took) = path.among_clients(|| {
            let began = Instant::now();
            let client = connect_blocking(listener.address())?;
            Ok((client, began.elapsed()))
        })?;
        assert!(took >= Duration::from_millis(60), "{took:?}");
        let accepted = listener.accept_many(1)?;
        assert_eq!((accepted[0].peer, client.address().ip()), (client.address(), Path::client()));
        let truth = path.finish()?;
        let flows: Vec<_> = truth.flows.iter().collect();
        let [((address, _), flow)] = flows.as_slice() else { anyhow::bail!("not one attempt: {truth:?}") };
        assert_eq!(*address, client.address());
        let once = Crossing { sent: 1, arrived: 1, lost: 0 };
        assert_eq!((flow.syn, flow.synack, flow.final_ack), (once, once, once));
        assert_eq!((flow.fin, flow.reset), (Crossing::default(), Crossing::default()));
        assert_eq!((flow.ignored_syns(), flow.repeated_synacks(), flow.was_answered()), (0, 0, true));
        assert_eq!((truth.lost_to_server, truth.lost_to_clients), (Losses::default(), Losses::default()));
        Ok(())
    }

    #[test]
    fn a_cut_line_carries_nothing_and_a_full_queue_drops() -> Result<()> {
        let namespace = Namespace::enter()?;
        let path = Path::open(&namespace, Settings { queue: 2, ..settings(200, 0.0) })?;
        let listener = Listen::new(5).on(Path::server()).open()?;
        let clients: Vec<_> =
            path.among_clients(|| (0..3).map(|_| Ok(Client::connect(listener.address())?)).collect())?;
        wait::until("three SYNs on the path", || Ok(path.truth().sum(|flow| flow.syn.sent) >= 3))?;
        path.cut();
        wait::until("both packets to be lost", || Ok(path.truth().lost(Direction::ToServer).cut >= 2))?;
        for client in &clients {
            assert_eq!(client.state()?, State::SynSent);
        }
        let truth = path.finish()?;
        assert_eq!((truth.lost_to_server.queue, truth.sum(|flow| flow.syn.arrived)), (1, 0));
        assert_eq!(truth.attempts().count(), 0);
        Ok(())
    }

    #[test]
    fn what_was_sent_and_did_not_arrive_was_lost_by_chance() -> Result<()> {
        const CLIENTS: usize = 100;
        let namespace = Namespace::enter()?;
        let path = Path::open(&namespace, settings(1, 0.3))?;
        let listener = Listen::new(1000).on(Path::server()).open()?;
        let _clients: Vec<_> =
            path.among_clients(|| (0..CLIENTS).map(|_| Ok(Client::connect(listener.address())?)).collect())?;
        // Some may need longer than a test can wait.
        let accepted = listener.accept_many(CLIENTS / 2)?;
        wait::until("a lost SYN to be sent again", || Ok(path.truth().sum(|flow| flow.syn.sent) > CLIENTS as u64))?;
        wait::until("every packet to arrive or be lost", || Ok(path.truth().sum(Flow::under_way) == 0))?;
        let truth = path.finish()?;
        let answered = truth.flows.values().filter(|flow| flow.was_answered()).count();
        assert!(answered >= accepted.len() && truth.attempts().count() >= answered, "{answered} answered: {truth:?}");
        let lost = truth.sum(|flow| flow.syn.lost + flow.final_ack.lost);
        assert!(lost > 0 && lost <= truth.lost(Direction::ToServer).chance, "{lost} lost: {truth:?}");
        let lost = truth.sum(|flow| flow.synack.lost);
        assert!(lost > 0 && lost <= truth.lost(Direction::ToClients).chance, "{lost} lost: {truth:?}");
        Ok(())
    }

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
