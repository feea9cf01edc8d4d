//! Field note 1: 20 threads with 1,000 long-lived connections each, against a
//! server with `listen(128)` that writes 256 bytes to each. Every `connect`
//! returns, `accept` counts less, and after Ctrl-C on the client a little more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, mpsc};
use std::thread;

use anyhow::{Context, Result, ensure};
use tracer_tests::namespace::{Namespace, is_quiet};
use tracer_tests::traffic::{
    Accepted, Listen, Listener, connect_blocking, own_descriptors, raise_descriptor_limit,
};

const THREADS: usize = 20;
const CONNECTIONS: usize = 1_000;
const GREETING: [u8; 256] = [0x55; 256];

#[test]
fn measure() -> Result<()> {
    raise_descriptor_limit(16_000)?;
    for cookies in ["0", "1", "2"] {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", cookies)?;
    namespace.set("net/ipv4/ip_local_port_range", "1024 65535")?;
    let listener = Listen::new(128).open()?;
    let before = tracer_tests::netstat::Netstat::read()?;
    let t = std::time::Instant::now();
    let connected = AtomicUsize::new(0);
    let accepted = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let hold = AtomicBool::new(true);
    thread::scope(|scope| -> Result<()> {
        for quota in [12000, 20000] {
            let accepted = &accepted;
            let listener = &listener;
            let done = &done; let hold = &hold;
            scope.spawn(move || own_descriptors(|| {
                let mut held: Vec<Accepted> = Vec::new();
                while !done.load(SeqCst) {
                    if quota == 20000 && accepted.load(SeqCst) < 12000 { thread::yield_now(); continue; }
                    if held.len() >= quota { thread::yield_now(); continue; }
                    match listener.accept()? {
                        Some(mut c) => { c.write(&GREETING)?; held.push(c); accepted.fetch_add(1, SeqCst); }
                        None => thread::yield_now(),
                    }
                }
                while hold.load(SeqCst) { thread::yield_now(); }
                Ok(())
            }));
        }
        let clients: Vec<_> = (0..THREADS).map(|_| { let connected = &connected; let listener = &listener; let hold = &hold; scope.spawn(move || own_descriptors(|| {
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS {
                held.push(connect_blocking(listener.address())?);
                connected.fetch_add(1, SeqCst);
            }
            while hold.load(SeqCst) { thread::sleep(std::time::Duration::from_millis(5)); }
            Ok(())
        }))}).collect();
        while connected.load(SeqCst) < 20000 && t.elapsed().as_secs() < 100 { thread::sleep(std::time::Duration::from_millis(5)); }
        println!("connected {} at {:?} accepted {}", connected.load(SeqCst), t.elapsed(), accepted.load(SeqCst));
        thread::sleep(std::time::Duration::from_millis(2500));
        println!("accepted {} half open {}", accepted.load(SeqCst), tracer_tests::namespace::half_open(listener.port())?);
        println!("{:?}", tracer_tests::netstat::Netstat::read()?.since(&before).nonzero(&tracer_tests::netstat::CHECKED));
        done.store(true, SeqCst);
        hold.store(false, SeqCst);
        for c in clients { c.join().unwrap()?; }
        Ok(())
    })?;
    println!("{:?}", t.elapsed());
    }
    Ok(())
}
