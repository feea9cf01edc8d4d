//! A million SYNs of clients that do not exist: exact counts in bounded memory, and healthy connections beside them.

use anyhow::{Context as _, Result};
use tracer_tests::flood::Flood;
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::rawtcp::Wire;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Client, Listen, peers};

const SYNS: u32 = 1_000_000;
/// How many SYNs come between two healthy clients.
const BETWEEN: u32 = 20_000;
/// Attempts that the tracer remembers at a time, and seven eighths of them, which it tells of as they come.
const REMEMBERED: u64 = 131_072;
const TOLD: u64 = 114_688;
/// What the tracer may have resident, in KiB.
const MEMORY: u64 = 64 << 10;

/// Sends the flood, with a local client every now and then.
fn flood(syncookies: u8) -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", &syncookies.to_string())?;
    // Requests of the flood stay until the end.
    namespace.set("net/ipv4/tcp_synack_retries", "6")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(128).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut flood = Flood::new(&wire, listener.address())?;
    let (mut healthy, mut accepted) = (Vec::new(), 0);
    for number in 0..SYNS {
        flood.send(number)?;
        if syncookies > 0 && number % BETWEEN == 0 {
            healthy.push(Client::connect(listener.address())?);
            let arrived = listener.accept_all()?;
            assert!(peers(&arrived).is_subset(&healthy.iter().map(Client::address).collect()));
            accepted += arrived.len() as u64;
        }
    }
    let memory = session.peak_memory()?;
    eprintln!("{memory} KiB resident at most");
    assert!(memory < MEMORY, "{memory} KiB resident");
    let kernel = session.kernel()?;
    // The queue in front of TCP may be full: of those that it drops, nobody above knows.
    let arrived = u64::from(SYNS) - dropped_at("wire0")?;
    assert!(arrived > u64::from(SYNS) / 2, "only {arrived} SYNs arrived");
    assert_eq!(accepted, healthy.len() as u64);

    let finished = session.finish()?;
    let outcomes = finished.listener()?.ledger.outcomes();
    let packets = &finished.report.totals.packets;
    assert_eq!(packets.synack_cookie, kernel.get("SyncookiesSent"));
    let drops = kernel.get("TCPReqQFullDrop");
    let mut lost = outcomes.lost.clone();
    // Under pressure the kernel gives requests up early.
    let expired = lost.remove("handshake-expired").unwrap_or(0);
    assert_eq!(lost, if drops > 0 { counts([("half-open-queue-full", drops)]) } else { counts([]) });
    // All that there was room for has a line. A little of what is kept free is needed where the hashes of others meet.
    if syncookies == 0 {
        let told = drops + expired - finished.report.totals.lost.untold;
        assert!((TOLD..REMEMBERED).contains(&told), "{told} have a line");
    }
    let attempts = arrived + accepted;
    let pending = attempts - accepted - drops - expired;
    finished.expect(&Outcomes { attempts, accepted, pending, lost: outcomes.lost, ..Outcomes::default() })
}

/// How many received packets an interface of the calling thread's namespace has dropped.
fn dropped_at(interface: &str) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let row = table.lines().find_map(|line| line.trim().strip_prefix(interface)).context("no such interface")?;
    let field = row.trim_start_matches(':').split_whitespace().nth(3).context("no count of drops")?;
    field.parse().context("the count of drops is no number")
}

#[test]
fn without_cookies_each_syn_of_a_million_is_lost_by_its_cause() -> Result<()> {
    flood(0)
}

#[test]
fn with_cookies_when_the_queue_is_full_a_million_are_pending_and_clients_get_through() -> Result<()> {
    flood(1)
}

#[test]
fn with_cookies_for_everybody_a_million_are_pending_and_clients_get_through() -> Result<()> {
    flood(2)
}
