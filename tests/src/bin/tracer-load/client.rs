//! The clients of the field notes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use socket2::{Domain, Socket, Type};
use tracer_tests::notes::{Connected, errno_name, retransmits};
use tracer_tests::report::Counts;
use tracer_tests::traffic::{canonical, own_descriptors};

/// Descriptors that are no connections.
const OTHERS: u64 = 64;
/// There may be a thousand threads, each of which calls little.
const STACK: usize = 256 << 10;
const NO_PANIC: &str = "no thread panics while it holds a lock";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The server's address
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
    address: IpAddr,
    /// The server's port
    #[arg(long)]
    port: u16,
    /// How many threads connect
    #[arg(long, default_value_t = 1)]
    threads: u16,
    /// How many connections each thread opens, one after the other
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// What a thread does when connect() fails
    #[arg(long, value_enum, default_value_t = OnError::Next)]
    on_error: OnError,
    /// Before `retry` tries again, in milliseconds
    #[arg(long, default_value_t = 50)]
    pause: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Goes on with its next connection
    Next,
    /// Tries again after a pause, until it is connected
    Retry,
    /// Ends, and with it ends its connections, as a function's local variables do
    Stop,
    /// Ends the process
    Exit,
}

/// What happens in the order in which the main thread hears of it.
enum Event {
    /// A thread is through with its connections, or failed otherwise than by connect().
    Through(Result<Connected>),
    /// A thread has done what it was told.
    Answer(Result<Connected>),
    /// A line of stdin.
    Line(String),
    /// The end of stdin.
    End,
}

/// What a thread is told when it is through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Look,
    Shutdown,
    Close,
}

/// Counts of now.
#[derive(Debug, Default)]
struct Now {
    connects: AtomicU64,
    connected: AtomicU64,
    failed: Mutex<Counts>,
}

impl Now {
    fn count(&self) -> Connected {
        Connected {
            connects: self.connects.load(SeqCst),
            connected: self.connected.load(SeqCst),
            failed: self.failed.lock().expect(NO_PANIC).clone(),
            ..Connected::default()
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let own = u64::from(options.connections) + OTHERS;
    let all = u64::from(options.threads) * u64::from(options.connections) + OTHERS;
    let limit = crate::raise_descriptor_limit(all)?;
    ensure!(own <= limit, "{own} descriptors are needed by each thread, and {limit} are allowed");
    // One table for all, as in any program, unless that would be too small.
    let apart = all > limit;

    let now = Arc::new(Now::default());
    let (sender, events) = channel();
    let mut threads = Vec::new();
    for _ in 0..options.threads {
        let (order, orders) = channel();
        threads.push(order);
        let (options, now, sender) = (options.clone(), Arc::clone(&now), sender.clone());
        let work = move || {
            let work = || {
                client(&options, &now, &sender, &orders);
                Ok(())
            };
            if let Err(error) = if apart { own_descriptors(work) } else { work() } {
                // Nobody listens when the process is about to end.
                let _ = sender.send(Event::Through(Err(error)));
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(work).context("cannot start a thread")?;
    }
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            let _ = sender.send(Event::Line(line));
        }
        let _ = sender.send(Event::End);
    });
    conduct(&now, &threads, &events)
}

/// Collects what the threads have seen, then passes on what stdin orders.
fn conduct(now: &Now, threads: &[Sender<Order>], events: &Receiver<Event>) -> Result<()> {
    let mut through = 0;
    let mut answers = 0;
    let mut sum = Connected::default();
    for event in events {
        match event {
            Event::Through(part) => {
                sum.add(part?);
                through += 1;
                if through == threads.len() {
                    crate::tell(&Connected { done: true, ..std::mem::take(&mut sum) })?;
                }
            }
            Event::Answer(part) => {
                sum.add(part?);
                answers += 1;
                if answers == threads.len() {
                    crate::tell(&Connected { done: true, ..std::mem::take(&mut sum) })?;
                    answers = 0;
                }
            }
            Event::Line(line) => {
                let order = match line.trim() {
                    "count" => {
                        crate::tell(&now.count())?;
                        continue;
                    }
                    "look" => Order::Look,
                    "shutdown" => Order::Shutdown,
                    "close" => Order::Close,
                    other => anyhow::bail!("unknown request {other:?}"),
                };
                ensure!(through == threads.len(), "{order:?} came before all threads were through");
                for thread in threads {
                    thread.send(order).context("a thread has ended")?;
                }
            }
            Event::End => break,
        }
    }
    // Nothing is closed here: the kernel does that.
    std::process::exit(0);
}

/// One thread: connects, tells what it has seen, and does what it is told.
fn client(options: &Options, now: &Now, events: &Sender<Event>, orders: &Receiver<Order>) {
    let mut open = Vec::new();
    // The main thread is gone only when the process is about to end.
    let _ = events.send(Event::Through(connect_all(options, now, &mut open)));
    for order in orders {
        let _ = events.send(Event::Answer(obey(order, &mut open)));
    }
}

fn connect_all(options: &Options, now: &Now, open: &mut Vec<Socket>) -> Result<Connected> {
    let server = SocketAddr::new(options.address, options.port);
    let mut seen = Connected::default();
    while seen.connected + seen.given_up < u64::from(options.connections) {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).context("cannot make a socket")?;
        now.connects.fetch_add(1, SeqCst);
        seen.connects += 1;
        let Err(error) = socket.connect(&server.into()) else {
            now.connected.fetch_add(1, SeqCst);
            seen.connected += 1;
            let local = socket.local_addr()?.as_socket().context("a local address that is none of IP")?;
            let local = canonical(local);
            seen.local.push(local);
            if retransmits(&socket)? > 0 {
                seen.resent.push(local);
            }
            open.push(socket);
            continue;
        };
        let name = errno_name(&error);
        *now.failed.lock().expect(NO_PANIC).entry(name.clone()).or_default() += 1;
        *seen.failed.entry(name).or_default() += 1;
        match options.on_error {
            OnError::Next => seen.given_up += 1,
            OnError::Retry => {
                drop(socket);
                thread::sleep(Duration::from_millis(options.pause));
            }
            OnError::Stop => {
                seen.add(obey(Order::Close, open)?);
                return Ok(seen);
            }
            OnError::Exit => {
                eprintln!("connect: {error}");
                std::process::exit(1);
            }
        }
    }
    Ok(seen)
}

/// Looks at the open connections, or ends them.
fn obey(order: Order, open: &mut Vec<Socket>) -> Result<Connected> {
    let mut seen = Connected::default();
    let is_unread = |socket: &Socket| -> Result<bool> {
        Ok(rustix::io::ioctl_fionread(socket).context("cannot look at a connection")? > 0)
    };
    match order {
        Order::Look => {
            for socket in open {
                seen.open += 1;
                seen.unread += u64::from(is_unread(socket)?);
            }
        }
        Order::Shutdown => {
            for socket in open {
                seen.open += 1;
                socket.shutdown(Shutdown::Write).context("cannot shut down")?;
            }
        }
        Order::Close => {
            for socket in open.drain(..) {
                // Who closes with bytes unread sends a RST, and a FIN otherwise.
                let closed = if is_unread(&socket)? { &mut seen.closed_unread } else { &mut seen.closed_clean };
                *closed += 1;
            }
        }
    }
    Ok(seen)
}
