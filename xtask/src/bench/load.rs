//! The loads: what is watched, and how fast it goes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::process::Process;
use crate::host;

/// The port of all loads.
pub(super) const PORT: u16 = 18_000;

/// One load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    /// What is counted by the second.
    pub(super) unit: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// `tracer-load` with these arguments, and how many things it does.
    Own(&'static [&'static str]),
    /// wrk against nginx, keep-alive.
    Wrk,
}

pub(super) const LOADS: [Load; 8] = [
    Load { name: "connect, accept, close; one CPU", unit: "connections", kind: Kind::Own(&["churn"]) },
    Load { name: "the same, two CPUs", unit: "connections", kind: Kind::Own(&["churn", "--two-cpus"]) },
    Load {
        name: "the same, one CPU, 20,000 in TIME_WAIT",
        unit: "connections",
        kind: Kind::Own(&["churn", "--time-wait", "20000", "--warm-up", "20000", "--connections", "2000"]),
    },
    Load { name: "every other SYN lost", unit: "connections", kind: Kind::Own(&["churn", "--lose-half"]) },
    Load {
        name: "SYN flood, no cookies",
        unit: "SYNs",
        kind: Kind::Own(&["flood", "--syncookies", "0", "--syns", "500000"]),
    },
    Load {
        name: "SYN flood, cookies when full",
        unit: "SYNs",
        kind: Kind::Own(&["flood", "--syncookies", "1", "--syns", "500000"]),
    },
    Load {
        name: "SYN flood, cookies always",
        unit: "SYNs",
        kind: Kind::Own(&["flood", "--syncookies", "2", "--syns", "500000"]),
    },
    Load { name: "wrk against nginx, keep-alive", unit: "requests", kind: Kind::Wrk },
];

/// How fast a load went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    /// Of the whole run, a second.
    pub(super) rate: f64,
    /// What its median connection took, nanoseconds, where each is timed.
    pub(super) median_ns: Option<f64>,
}

/// A load that is ready to begin.
pub(super) struct Ready {
    kind: Kind,
    process: Process,
    /// What keeps the server's files.
    _directory: Option<Directory>,
}

impl Load {
    /// Makes everything ready. The error is why that cannot be.
    pub(super) fn prepare(&self, program: &Path) -> anyhow::Result<Ready> {
        let (process, directory) = match self.kind {
            Kind::Own(arguments) => {
                let mut command = Command::new(program);
                command.args(arguments).args(["--port", &PORT.to_string()]);
                let mut process = Process::start(&mut command)?;
                process.line_with("ready")?;
                (process, None)
            }
            Kind::Wrk => {
                host::find_program("wrk").context("wrk is not installed")?;
                let nginx = host::find_program("nginx").context("nginx is not installed")?;
                let directory = Directory::make()?;
                let process = Process::start(
                    Command::new(nginx).arg("-e").arg("stderr").arg("-p").arg(&directory.0).args(["-c", "nginx.conf"]),
                )?;
                wait_for_port(PORT)?;
                (process, Some(directory))
            }
        };
        Ok(Ready { kind: self.kind, process, _directory: directory })
    }
}

impl Ready {
    /// Opens the namespace of the load.
    pub(super) fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.process.id())
    }

    /// Runs it to its end.
    pub(super) fn run(mut self) -> anyhow::Result<Speed> {
        match self.kind {
            Kind::Own(_) => {
                self.process.tell("go")?;
                let line = self.process.line_with("seconds")?;
                let said: serde_json::Value = serde_json::from_str(&line).context("a load did not say JSON")?;
                let number = |key: &str| said[key].as_f64();
                let done = number("connections").or(number("syns")).context("a load did not say how much it did")?;
                // The namespace stays until the tracers have looked at it.
                let status = self.process.ended()?;
                ensure!(status.success(), "a load failed: {status}");
                let rate = done / number("seconds").context("a load did not say how long it took")?;
                Ok(Speed { rate, median_ns: number("median_ns") })
            }
            Kind::Wrk => {
                let url = format!("http://127.0.0.1:{PORT}/");
                let mut wrk = Command::new(host::find_program("wrk").context("wrk is not installed")?);
                let text = host::output(wrk.args(["--threads", "1", "--connections", "50", "--duration", "2s", &url]))?;
                let rate = requests_per_second(&text).context("wrk did not say how many requests it made")?;
                self.process.end()?;
                Ok(Speed { rate, median_ns: None })
            }
        }
    }
}

fn requests_per_second(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok())
}

/// nginx' files, which go with it.
struct Directory(PathBuf);

impl Directory {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("tracer-bench-{}", std::process::id()));
        fs::create_dir_all(path.join("logs")).with_context(|| format!("cannot make {}", path.display()))?;
        let directory = Self(path);
        let configuration = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr crit;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path body; proxy_temp_path proxy;\n\
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
             server {{ listen 127.0.0.1:{PORT} backlog=4096; location / {{ return 200 \"hello\\n\"; }} }} }}\n"
        );
        fs::write(directory.0.join("nginx.conf"), configuration).context("cannot write nginx' configuration")?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wait_for_port(port: u16) -> anyhow::Result<()> {
    for _ in 0..500 {
        if std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("nobody listens on port {port} after five seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_says_how_many_requests_it_made() {
        let text =
            "Running 2s test @ http://127.0.0.1/\n  1 threads\n\nRequests/sec:  61234.56\nTransfer/sec:  9.11MB\n";
        assert_eq!(requests_per_second(text), Some(61234.56));
        assert_eq!(requests_per_second("unable to connect"), None);
    }
}
