//! The field notes, one scenario each: the notes' server and clients as processes of their own, their Ctrl-C, and the
//! tracer's numbers beside theirs.
//!
//! Small by default; with `FIELD_NOTES=full` the notes' own numbers (`cargo xtask field-notes --full`). What each side has counted
//! goes to stderr as a table. Notes 7 and 8 are in `field_note_7.rs` and `field_note_8.rs`, as they need a path with
//! a delay, and note 9 in `field_note_9.rs`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tracer_tests::namespace::{Namespace, is_quiet};
use tracer_tests::notes::{Clients, Comparison, Connected, End, Load, Recording, Scale, Served, Server, resets_sent};
use tracer_tests::report::{ClientEnd, Mark, Report, counts};
use tracer_tests::session::{Finished, Scope, Session};
use tracer_tests::uring::Ring;
use tracer_tests::wait;

/// The server's port in the notes; no client is given it, as it is below every port range here.
const PORT: u16 = 8000;

/// What the scenarios begin with.
struct Lab {
    namespace: Namespace,
    scale: Scale,
    load: Load,
}

impl Lab {
    /// A namespace in which clients have this many local ports.
    fn new(ports: u16) -> Result<Self> {
        const FIRST: u16 = 32_768;
        let namespace = Namespace::enter()?;
        let range = format!("{FIRST} {}", FIRST - 1 + ports);
        namespace.set("net/ipv4/ip_local_port_range", &range)?;
        let load = Load::find(env!("CARGO_BIN_EXE_tracer-load"))?;
        Ok(Self { namespace, scale: Scale::from_env(), load })
    }

    /// A server that sleeps for `sleep` seconds after every so many accepts, unless that is 0.
    fn server(&self, backlog: u32, sleep_every: u32, sleep: f64, more: &[&str]) -> Result<Server> {
        let mut arguments = vec!["--port".into(), PORT.to_string(), "--backlog".into(), backlog.to_string()];
        if sleep_every > 0 {
            arguments.extend(["--sleep-every".into(), sleep_every.to_string(), "--sleep".into(), sleep.to_string()]);
        }
        // One process may not have descriptors enough for all connections, but each thread has its own table.
        arguments.extend(["--threads".into(), self.scale.of("1", "4").into()]);
        arguments.extend(more.iter().map(ToString::to_string));
        self.load.server(arguments)
    }

    /// A process of so many threads with so many connections each.
    fn clients(&self, (threads, connections): (u32, u32), more: &[&str]) -> Result<Clients> {
        let mut arguments = vec!["--port".into(), PORT.to_string(), "--threads".into(), threads.to_string()];
        arguments.extend(["--connections".into(), connections.to_string()]);
        arguments.extend(more.iter().map(ToString::to_string));
        self.load.clients(arguments)
    }

    fn session(&self, recording: Option<&Recording>) -> Result<Session> {
        Session::start_with(&self.namespace, PORT, Scope::Path, |start| match recording {
            Some(recording) => recording.of(start),
            None => start,
        })
    }

    /// Waits until everything is over in the kernel too.
    fn all_over(&self) -> Result<()> {
        wait::until_within(self.scale.patience(), "all connections to end", || is_quiet(PORT))
    }
}

fn addresses(of: &[SocketAddr]) -> BTreeSet<SocketAddr> {
    of.iter().copied().collect()
}

/// What has to hold of every run that is at rest, whoever the clients were.
fn compare(title: &str, finished: &Finished, served: &Served, processes: &[(u32, Connected)]) -> Result<Comparison> {
    let mut comparison = Comparison::new(title);
    let report = &finished.report;
    let seen = sum(processes);
    let ledger = &finished.listener()?.ledger;
    // At rest nothing is half-open: who is neither accepted nor in the queue is lost, for want of a port, unanswered, or
    // connected by its own account only.
    let held = served.accepted + served.waiting;
    let phantoms = seen.connected.checked_sub(held).context("the server has more connections than the clients")?;
    let unanswered = seen.failed_by("ETIMEDOUT");
    comparison.equal("attempts", seen.connects, report.totals.attempts);
    comparison.equal("accepted", served.accepted, ledger.accepted);
    comparison.equal("pending", served.waiting, ledger.pending);
    comparison.equal("lost", seen.connects - held, report.totals.lost.total);
    comparison.equal(
        "lost: port-exhaustion",
        seen.failed_by("EADDRNOTAVAIL"),
        report.totals.lost_by("port-exhaustion"),
    );
    let full = ledger.lost_by("accept-queue-full") + ledger.lost_by("syncookie-ack-dropped");
    comparison.equal("lost at a full accept queue", phantoms + unanswered, full);
    comparison.equal("phantom", phantoms, ledger.phantom);
    comparison.clients(report, processes);
    Ok(comparison)
}

fn sum(processes: &[(u32, Connected)]) -> Connected {
    Connected::sum(&processes.iter().map(|(_, seen)| seen.clone()).collect::<Vec<_>>())
}

/// The lost that had a local port.
fn lost(finished: &Finished) -> BTreeSet<SocketAddr> {
    &finished.all_lost() - &finished.lost("port-exhaustion")
}

/// The only mark whose label has this in it.
fn mark<'a>(report: &'a Report, label: &str) -> Result<&'a Mark> {
    let mut found = report.marks.iter().filter(|it| it.label.contains(label));
    match (found.next(), found.next()) {
        (Some(mark), None) => Ok(mark),
        _ => bail!("not one mark with {label:?}: {:?}", report.marks),
    }
}

/// That the counts of a mark lie between those at rest before and after it: it takes the tracer some time to notice.
fn compare_mark(comparison: &mut Comparison, mark: &Mark, before: u64, after: u64) {
    comparison.between(&format!("accepted: {}", mark.label), before, after, mark.accepted);
}

/// One process of clients that is let through, then Ctrl-C. One tracer ends before it, the other at the end.
///
/// While the server sleeps, the SYNs of all threads are dropped at much the same time, and so they are sent again in one go. If
/// there are more threads than places in the accept queue, all SYNs are answered before the queue is full, and ACKs are dropped.
fn before_and_after_ctrl_c(lab: &Lab, mut server: Server, clients: (u32, u32)) -> Result<()> {
    let patience = lab.scale.patience();
    let recording = Recording::new()?;
    let (until_ctrl_c, to_the_end) = (lab.session(None)?, lab.session(Some(&recording))?);

    let mut clients = lab.clients(clients, &[])?;
    let seen = clients.done(patience)?;
    let before = server.settle(patience)?;
    ensure!(until_ctrl_c.kernel()?.get("ListenOverflows") > 0, "the accept queue was never full: nothing to explain");
    let open = clients.look()?;
    let processes = [(clients.pid(), seen.clone())];
    let first = until_ctrl_c.finish().context("before Ctrl-C")?;
    to_the_end.mark()?;
    clients.interrupt()?;
    let after = server.settle(patience)?;
    lab.all_over()?;
    let second = to_the_end.finish().context("after Ctrl-C")?;
    server.finish()?;
    recording.print()?;

    let (local, peers) = (addresses(&seen.local), before.peer_set());
    let mut comparison = compare("before Ctrl-C", &first, &before, &processes)?;
    // Of the accepted, those whose SYN was sent again were late. That a final ACK was dropped leaves no trace in its client.
    let resent = &addresses(&seen.resent) & &peers;
    comparison.between("late", resent.len() as u64, before.accepted, first.report.totals.late.total);
    comparison.equal("dead on arrival", 0, first.report.totals.dead_on_arrival);
    comparison.equal("clients with a greeting, accepted", open.unread, first.report.totals.accepted);
    comparison.verdict(&first)?;
    assert_eq!(lost(&first), &local - &peers, "the phantoms");
    assert!(resent.is_subset(&first.all_late()), "{resent:?} were late, not only {:?}", first.all_late());

    let mut comparison = compare("after Ctrl-C", &second, &after, &processes)?;
    let rise = after.accepted - before.accepted;
    comparison.equal("dead on arrival", after.dead, second.report.totals.dead_on_arrival);
    comparison.equal("the rise: dead on arrival", rise, second.report.totals.dead_on_arrival);
    comparison.equal("the rise: late", first.report.totals.late.total + rise, second.report.totals.late.total);
    let by_fin = second.report.totals.late.completed_by.get("fin").copied().unwrap_or(0);
    comparison.equal("the rise: completed by a FIN", rise, by_fin);
    for label in ["SIGUSR1", "SIGINT"] {
        compare_mark(&mut comparison, mark(&second.report, label)?, before.accepted, after.accepted);
    }
    // Who dies with the greeting unread sends a RST, and a FIN only who was never accepted.
    comparison.ends(&second.report, &[End::of(processes[0].0, "signal", &open)]);
    comparison.verdict(&second)?;
    let by_ctrl_c = second.ends.iter().filter(|end| {
        (end.event.as_str(), end.signal, end.pid) == ("fin", Some(Signal::INT.as_raw().unsigned_abs()), processes[0].0)
    });
    let told: BTreeSet<_> = by_ctrl_c.map(ClientEnd::client_address).collect();
    assert!(
        lost(&first).is_subset(&told),
        "each phantom's FIN is told, with its cause: {:?} by {told:?}",
        lost(&first)
    );
    assert_eq!(lost(&second), &local - &after.peer_set(), "the phantoms of which Ctrl-C made nothing");
    Ok(())
}

/// Every `connect()` returns, `accept()` counts less, and after Ctrl-C a little more.
#[test]
fn note_1_accept_counts_less_than_connect_and_a_little_more_after_ctrl_c() -> Result<()> {
    let lab = Lab::new(28_232)?;
    let (backlog, sleep_every) = lab.scale.of((20, 150), (12, 1_000));
    let server = lab.server(backlog, sleep_every, 0.3, &[])?;
    before_and_after_ctrl_c(&lab, server, lab.scale.of((40, 10), (20, 1_000)))
}

/// More connections than local ports: *Cannot assign requested address*.
#[test]
fn note_1_accept_stops_short_of_the_local_ports_and_connect_finds_none() -> Result<()> {
    let scale = Scale::from_env();
    let lab = Lab::new(scale.of(300, 28_232))?;
    let (backlog, sleep_every) = scale.of((20, 110), (12, 1_000));
    let server = lab.server(backlog, sleep_every, 0.3, &[])?;
    before_and_after_ctrl_c(&lab, server, scale.of((40, 10), (20, 2_500)))
}

/// The count stops with connections in the accept queue. After Ctrl-C they are accepted, greeted, and answer with a RST.
#[test]
fn note_2_what_is_accepted_after_ctrl_c_is_dead_on_arrival_and_answers_with_a_reset() -> Result<()> {
    let lab = Lab::new(28_232)?;
    let (backlog, clients, stop_after) = lab.scale.of((49, (20, 20), "350"), (512, (100, 200), "19487"));
    // A final ACK that is dropped while nobody accepts is given up after seconds, not minutes.
    lab.namespace.set("net/ipv4/tcp_synack_retries", "2")?;
    let patience = lab.scale.patience();
    let mut server = lab.server(backlog, 0, 0.0, &["--stop-after", stop_after])?;
    let recording = Recording::new()?;
    let (until_ctrl_c, to_the_end) = (lab.session(None)?, lab.session(Some(&recording))?);

    let mut clients = lab.clients(clients, &[])?;
    let seen = clients.done(patience)?;
    let all: u64 = stop_after.parse()?;
    server.rest(patience, |it| it.waiting == 0 || it.accepted == all)?;
    let before = server.report()?;
    let open = clients.look()?;
    let processes = [(clients.pid(), seen.clone())];
    let first = until_ctrl_c.finish().context("before Ctrl-C")?;
    to_the_end.mark()?;
    clients.interrupt()?;
    server.rest(patience, |it| it.accepted == before.accepted)?;
    let resets = resets_sent()?;
    server.go()?;
    let after = server.settle(patience)?;
    lab.all_over()?;
    let resets = resets_sent()? - resets;
    let second = to_the_end.finish().context("after Ctrl-C")?;
    server.finish()?;
    recording.print()?;

    let mut comparison = compare("before Ctrl-C", &first, &before, &processes)?;
    comparison.equal("dead on arrival", 0, first.report.totals.dead_on_arrival);
    comparison.verdict(&first)?;
    assert_eq!(lost(&first), &(&addresses(&seen.local) - &before.peer_set()) - &waiting(&before, &after)?);
    let mut comparison = compare("after Ctrl-C", &second, &after, &processes)?;
    comparison.equal("dead on arrival", after.dead, second.report.totals.dead_on_arrival);
    comparison.equal("accepted after Ctrl-C", after.accepted - before.accepted, second.report.totals.dead_on_arrival);
    for label in ["SIGUSR1", "SIGINT"] {
        compare_mark(&mut comparison, mark(&second.report, label)?, before.accepted, before.accepted);
    }
    comparison.ends(&second.report, &[End::of(processes[0].0, "signal", &open)]);
    comparison.verdict(&second)?;
    ensure!(after.dead >= before.waiting && before.waiting > 0, "nothing was accepted dead: {after:?}");
    ensure!(resets >= after.dead, "{resets} RSTs for {} greetings to the dead", after.dead);
    Ok(())
}

/// The clients that waited in the accept queue: the next to be accepted.
fn waiting(before: &Served, after: &Served) -> Result<BTreeSet<SocketAddr>> {
    let accepted = before.peers.len();
    let next = after.peers.get(accepted..accepted + usize::try_from(before.waiting)?);
    Ok(addresses(next.context("what waited was not accepted")?))
}

/// The same as note 1 with more threads: of 50,000 connections, those that find a port.
#[test]
fn note_3_a_hundred_threads_run_out_of_local_ports() -> Result<()> {
    let scale = Scale::from_env();
    let lab = Lab::new(scale.of(200, 28_232))?;
    let (backlog, sleep_every) = scale.of((16, 130), (64, 1_000));
    let server = lab.server(backlog, sleep_every, 0.3, &["--how", "epoll"])?;
    before_and_after_ctrl_c(&lab, server, scale.of((100, 4), (100, 500)))
}

/// Processes end by Ctrl-C one after the other, and those that found no local port take theirs.
///
/// The first tries 50,000 connections at full scale, where the notes tried 250,000 and more: each `connect()` too many looks at all
/// ports, some milliseconds long, and the notes' number of them would take an hour.
fn by_turns(lab: &Lab, ports: u64, first: (u32, u32), others: &[(u32, u32)]) -> Result<()> {
    let patience = lab.scale.patience();
    let (backlog, sleep_every) = lab.scale.of((12, 120), (128, 1_000));
    let mut server = lab.server(backlog, sleep_every, 0.3, &[])?;
    let recording = Recording::new()?;
    let session = lab.session(Some(&recording))?;
    // What the server had accepted when a mark was set.
    let mut rests = Vec::new();
    let mut processes = Vec::new();
    let mut rest = |server: &mut Server| -> Result<()> {
        rests.push(server.settle(patience)?.accepted);
        session.mark()
    };

    let mut clients = lab.clients(first, &[])?;
    processes.push((clients.pid(), clients.done(patience)?));
    let pause = lab.scale.of("50", "1000");
    let mut waiting = Vec::new();
    for other in others {
        let mut clients = lab.clients(*other, &["--on-error", "retry", "--pause", pause])?;
        wait::until_within(patience, "a process to find no port", || Ok(clients.count()?.all_failed() > 0))?;
        waiting.push(clients);
    }
    rest(&mut server)?;
    let mut ends = vec![End::of(clients.pid(), "signal", &clients.look()?)];
    clients.interrupt()?;
    for clients in &mut waiting {
        processes.push((clients.pid(), clients.done(patience)?));
    }
    for mut clients in waiting {
        rest(&mut server)?;
        ends.push(End::of(clients.pid(), "signal", &clients.look()?));
        clients.interrupt()?;
    }
    let after = server.settle(patience)?;
    lab.all_over()?;
    let finished = session.finish()?;
    server.finish()?;
    recording.print()?;

    let mut comparison = compare("processes by turns", &finished, &after, &processes)?;
    comparison.equal("dead on arrival", after.dead, finished.report.totals.dead_on_arrival);
    let own: Vec<_> = finished.report.marks.iter().filter(|it| it.label == "SIGUSR1").collect();
    comparison.equal("marks that were set", rests.len() as u64, own.len() as u64);
    // Each process was interrupted right after a mark.
    let next = rests.iter().skip(1).copied().chain([after.accepted]);
    for ((own, (pid, _)), (before, next)) in own.iter().zip(&processes).zip(rests.iter().zip(next)) {
        compare_mark(&mut comparison, own, *before, next);
        compare_mark(&mut comparison, mark(&finished.report, &format!("(pid {pid})"))?, *before, next);
    }
    comparison.ends(&finished.report, &ends);
    comparison.verdict(&finished)?;
    ensure!(after.accepted > ports, "only {} connections were accepted, of {ports} ports", after.accepted);
    for (pid, seen) in &processes {
        ensure!(seen.failed_by("EADDRNOTAVAIL") > 0, "process {pid} has always found a port");
    }
    Ok(())
}

/// 1,000 threads in two processes: the accept count passes the number of local ports.
#[test]
fn note_4_the_ports_of_an_interrupted_process_go_to_the_one_that_waits() -> Result<()> {
    let scale = Scale::from_env();
    let ports = scale.of(200, 28_232);
    let (first, other) = scale.of(((20, 15), (10, 10)), ((500, 100), (500, 50)));
    by_turns(&Lab::new(ports)?, ports.into(), first, &[other])
}

/// 1,000 threads in four processes.
#[test]
fn note_5_processes_are_interrupted_one_by_one_and_each_has_its_own_counts() -> Result<()> {
    let scale = Scale::from_env();
    let ports = scale.of(200, 28_232);
    let (first, other) = scale.of(((20, 15), (10, 5)), ((250, 200), (250, 30)));
    by_turns(&Lab::new(ports)?, ports.into(), first, &[other; 3])
}

/// Three processes, and the server sleeps: connections time out, ports run out, and a thread that gives up ends its
/// connections, each of which sends a FIN or a RST that nobody has asked for.
#[test]
fn note_6_connect_times_out_and_threads_that_give_up_send_the_fins_that_nobody_sent() -> Result<()> {
    let scale = Scale::from_env();
    let lab = Lab::new(scale.of(200, 28_232))?;
    let patience = scale.patience();
    // A SYN and one more, three seconds in all.
    lab.namespace.set("net/ipv4/tcp_syn_retries", "1")?;
    const LINEAR: &str = "net/ipv4/tcp_syn_linear_timeouts";
    if Path::new("/proc/sys").join(LINEAR).exists() {
        lab.namespace.set(LINEAR, "0")?;
    }
    let (backlog, sleep_every, sleep) = scale.of((16, 100, 4.5), (128, 500, 5.0));
    let each = scale.of((10, 16), (100, 200));
    let mut server = lab.server(backlog, sleep_every, sleep, &[])?;
    let recording = Recording::new()?;
    let session = lab.session(Some(&recording))?;

    // Alone, it fills the accept queue while the server sleeps: these are the connections that it ends without a greeting.
    let mut stops = lab.clients(each, &["--on-error", "stop"])?;
    wait::until_within(patience, "the server to sleep and the accept queue to be full", || {
        let now = server.count()?;
        Ok(now.accepted == u64::from(sleep_every) && now.waiting > u64::from(backlog))
    })?;
    let mut exits = lab.clients(each, &[])?;
    let mut interrupted = lab.clients(each, &[])?;
    let mut processes = Vec::new();
    for clients in [&mut exits, &mut interrupted, &mut stops] {
        processes.push((clients.pid(), clients.done(patience)?));
    }
    let before = server.settle(patience)?;
    session.mark()?;
    let mut given_up = stops.close()?;
    given_up.add(sum(&processes[2..]));
    let ends = [
        End::of(exits.pid(), "exit", &exits.look()?),
        End::of(interrupted.pid(), "signal", &interrupted.look()?),
        End::of(stops.pid(), "close", &given_up),
    ];
    exits.finish()?;
    interrupted.interrupt()?;
    stops.finish()?;
    let after = server.settle(patience)?;
    lab.all_over()?;
    let finished = session.finish()?;
    server.finish()?;
    recording.print()?;

    let mut comparison = compare("three processes, the server sleeps", &finished, &after, &processes)?;
    // A thread may give up between accept() and the server's look at what it has accepted: then only the server sees it dead.
    comparison.between("dead on arrival", 1, after.dead, finished.report.totals.dead_on_arrival);
    let of_syns = finished.events.iter().filter(|it| it.event == "lost" && it.stage.as_deref() == Some("syn"));
    let seen = sum(&processes);
    let labels = ["SIGUSR1".into()].into_iter().chain(processes.iter().map(|(pid, _)| format!("(pid {pid})")));
    for label in labels {
        compare_mark(&mut comparison, mark(&finished.report, &label)?, before.accepted, after.accepted);
    }
    comparison.equal("lost with every SYN dropped", seen.failed_by("ETIMEDOUT"), of_syns.count() as u64);
    comparison.ends(&finished.report, &ends);
    comparison.verdict(&finished)?;
    for name in ["ETIMEDOUT", "EADDRNOTAVAIL"] {
        ensure!(seen.failed_by(name) > 0, "no connect() failed with {name}: {:?}", seen.failed);
    }
    ensure!(given_up.closed_clean > 0, "no thread that gave up had a connection without greeting");
    Ok(())
}

/// The programs themselves, without a tracer: their counts have to agree with each other whatever they are told to do.
#[test]
fn server_and_clients_agree_on_every_connection_however_it_is_accepted_and_ended() -> Result<()> {
    let lab = Lab::new(28_232)?;
    let patience = lab.scale.patience();
    for how in ["accept", "epoll", "io-uring"] {
        if how == "io-uring"
            && let Err(error) = Ring::open()
        {
            eprintln!("no io_uring here to accept by: {error}");
            continue;
        }
        let mut server = lab.server(4_000, 50, 0.1, &["--how", how, "--stop-after", "150"])?;
        let mut clients = lab.clients((4, 50), &[])?;
        let seen = clients.done(patience)?;
        assert_eq!((seen.connects, seen.connected, seen.all_failed()), (200, 200, 0));
        server.rest(patience, |it| it.accepted == 150)?;
        let look = clients.look()?;
        assert_eq!((look.open, look.unread), (200, 150), "the greeted");
        server.go()?;
        let served = server.settle(patience)?;
        assert_eq!((served.accepted, served.written, served.write_errors, served.dead), (200, 200, 0, 0));
        assert_eq!(served.peer_set(), addresses(&seen.local));

        // A FIN goes out although there is a greeting to read; a close sends a RST because of it.
        clients.shutdown()?;
        wait::until("the server to see every FIN", || Ok(server.count()?.peer_fin == 200))?;
        let mut others = lab.clients((2, 10), &[])?;
        others.done(patience)?;
        server.settle(patience)?;
        let closed = others.close()?;
        assert_eq!((closed.closed_clean, closed.closed_unread), (0, 20));
        wait::until("the server to see every RST", || Ok(server.count()?.peer_reset == 20))?;
        clients.finish()?;
        others.finish()?;
        lab.all_over()?;
        let served = server.finish()?;
        assert_eq!((served.accepted, served.peers.len(), served.waiting), (220, 220, 0));
    }
    // An address at which nobody listens: each way to go on after a failed connect().
    let nobody = ["--address", "127.0.0.2", "--on-error"];
    let mut refused = lab.clients((3, 5), &[nobody.as_slice(), &["next"]].concat())?;
    assert_eq!(refused.done(patience)?.failed, counts([("ECONNREFUSED", 15)]));
    let mut stopped = lab.clients((3, 5), &[nobody.as_slice(), &["stop"]].concat())?;
    assert_eq!(stopped.done(patience)?.connects, 3);
    let exited = lab.clients((1, 5), &[nobody.as_slice(), &["exit"]].concat())?.done(patience);
    ensure!(exited.is_err(), "it goes on although connect() failed: {exited:?}");
    Ok(())
}
