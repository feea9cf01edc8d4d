//! `tracer listeners`: the listening sockets of now, as a table or as JSON.

use std::io::{self, Write};
use std::net::IpAddr;

use serde::Serialize;

use super::format::place;
use super::json::SCHEMA;
use crate::observe::Listening;

#[derive(Serialize)]
struct Wire<'a> {
    schema: &'static str,
    listeners: Vec<Listener<'a>>,
}

#[derive(Serialize)]
struct Listener<'a> {
    port: u16,
    address: IpAddr,
    netns: u32,
    pid: Option<u32>,
    comm: Option<&'a str>,
    backlog: Backlog,
    accept_queue: Queue,
    half_open_queue: HalfOpen,
}

#[derive(Serialize)]
struct Backlog {
    effective: u32,
    somaxconn: u32,
    max_syn_backlog: u32,
    syncookies: u32,
}

#[derive(Serialize)]
struct Queue {
    now: u32,
}

#[derive(Serialize)]
struct HalfOpen {
    /// Null where several listeners share the port.
    now: Option<u32>,
}

impl<'a> Listener<'a> {
    fn new(l: &'a Listening) -> Listener<'a> {
        Listener {
            port: l.port,
            address: l.address,
            netns: l.netns,
            pid: l.owner.as_ref().map(|owner| owner.pid),
            comm: l.owner.as_ref().map(|owner| owner.comm.as_str()),
            backlog: Backlog {
                effective: l.backlog,
                somaxconn: l.sysctls.somaxconn,
                max_syn_backlog: l.sysctls.max_syn_backlog,
                syncookies: l.sysctls.syncookies,
            },
            accept_queue: Queue { now: l.accept_queue },
            half_open_queue: HalfOpen { now: l.half_open },
        }
    }
}

/// Writes one JSON object, with the keys of the report.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_json(listeners: &[Listening], out: &mut dyn Write) -> io::Result<()> {
    let listeners = listeners.iter().map(Listener::new).collect();
    // One write, so that a reader never sees half a line.
    let mut text = serde_json::to_vec(&Wire { schema: SCHEMA, listeners })?;
    text.push(b'\n');
    out.write_all(&text)
}

/// Writes a table. The network namespace is a column only where there are several.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_table(listeners: &[Listening], out: &mut dyn Write) -> io::Result<()> {
    let several = listeners.windows(2).any(|pair| pair[0].netns != pair[1].netns);
    let mut rows =
        vec![["listener", "accept queue", "limit", "half-open", "somaxconn", "netns", "process"].map(String::from)];
    for l in listeners {
        rows.push([
            place(l.address, l.port, l.dual_stack),
            l.accept_queue.to_string(),
            l.backlog.to_string(),
            l.half_open.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            l.sysctls.somaxconn.to_string(),
            l.netns.to_string(),
            l.owner.as_ref().map_or_else(|| "-".to_owned(), |o| format!("{} (pid {})", o.comm, o.pid)),
        ]);
    }
    let widths: [usize; 7] = std::array::from_fn(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0));
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            match i {
                0 | 6 => line.push_str(&format!("{cell:<width$}  ")),
                5 if !several => {}
                _ => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    out.write_all(table.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use expect_test::expect;

    use super::*;
    use crate::observe::{Owner, Sysctls};

    fn listeners() -> Vec<Listening> {
        let sysctls = Sysctls {
            somaxconn: 4096,
            max_syn_backlog: 2048,
            syncookies: 1,
            abort_on_overflow: false,
            synack_retries: 5,
            local_port_range: (32768, 60999),
            reserved_ports: 0,
            tw_reuse: 2,
        };
        let web = Listening {
            port: 8000,
            address: Ipv4Addr::UNSPECIFIED.into(),
            dual_stack: false,
            netns: 4026531840,
            inode: 1,
            owner: Some(Owner { pid: 4242, comm: "server".into() }),
            accept_queue: 129,
            backlog: 128,
            half_open: Some(17),
            sysctls,
        };
        let group = Listening {
            port: 443,
            address: Ipv6Addr::UNSPECIFIED.into(),
            dual_stack: true,
            netns: 4026532210,
            owner: None,
            accept_queue: 0,
            half_open: None,
            ..web.clone()
        };
        vec![web, group]
    }

    #[test]
    fn the_table_shows_the_namespace_only_where_there_are_several() {
        let table = |listeners: &[Listening]| {
            let mut out = Vec::new();
            write_table(listeners, &mut out).expect("memory");
            String::from_utf8(out).expect("UTF-8")
        };
        expect![[r#"
            listener      accept queue  limit  half-open  somaxconn       netns  process
            0.0.0.0:8000           129    128         17       4096  4026531840  server (pid 4242)
            *:443                    0    128          -       4096  4026532210  -
        "#]]
        .assert_eq(&table(&listeners()));
        expect![[r#"
            listener      accept queue  limit  half-open  somaxconn  process
            0.0.0.0:8000           129    128         17       4096  server (pid 4242)
        "#]]
        .assert_eq(&table(&listeners()[..1]));
    }

    #[test]
    fn the_keys_are_those_of_the_report() {
        let mut out = Vec::new();
        write_json(&listeners(), &mut out).expect("memory");
        expect![[r#"
            {"schema":"tracer/1","listeners":[{"port":8000,"address":"0.0.0.0","netns":4026531840,"pid":4242,"comm":"server","backlog":{"effective":128,"somaxconn":4096,"max_syn_backlog":2048,"syncookies":1},"accept_queue":{"now":129},"half_open_queue":{"now":17}},{"port":443,"address":"::","netns":4026532210,"pid":null,"comm":null,"backlog":{"effective":128,"somaxconn":4096,"max_syn_backlog":2048,"syncookies":1},"accept_queue":{"now":0},"half_open_queue":{"now":null}}]}
        "#]].assert_eq(&String::from_utf8(out).expect("UTF-8"));
    }
}
