//! The kernel's TCP counters of a network namespace, as `/proc/net/netstat` prints them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The `TcpExt` counters by column name.
pub type TcpExt = BTreeMap<String, u64>;

/// Reads the counters of the network namespace that this thread is in; `proc` is `/proc`.
///
/// # Errors
/// When the file cannot be read or is not understood.
pub fn read(proc: &Path) -> Result<TcpExt> {
    let path = proc.join("thread-self/net/netstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// Parses the text: for each group one line of names and one of values (`netstat_seq_show()` in `net/ipv4/proc.c`).
///
/// # Errors
/// When there is no `TcpExt` group, or its two lines do not fit together.
pub fn parse(text: &str) -> Result<TcpExt> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        bail!("no lines of TcpExt");
    };
    let (names, values): (Vec<_>, Vec<_>) = (names.split_whitespace().collect(), values.split_whitespace().collect());
    if names.len() != values.len() {
        bail!("TcpExt has {} names and {} values", names.len(), values.len());
    }
    let mut counters = TcpExt::new();
    for (name, value) in names.into_iter().zip(values) {
        let value = value.parse().with_context(|| format!("{name} is {value}, not a number"))?;
        counters.insert(name.to_owned(), value);
    }
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_paired_within_their_group() {
        let text = "TcpExt: SyncookiesSent ListenDrops ListenOverflows\nTcpExt: 2 42 18446744073709551615\n\
                    IpExt: InOctets ListenDrops\nIpExt: 7 8\n";
        let counters = parse(text).expect("well-formed");
        assert_eq!(counters.len(), 3);
        assert_eq!(counters["ListenDrops"], 42);
        assert_eq!(counters["ListenOverflows"], u64::MAX);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert!(parse("").is_err());
        assert!(parse("TcpExt: A B\n").is_err());
        assert!(parse("TcpExt: A B\nTcpExt: 1\n").is_err());
        assert!(parse("TcpExt: A\nTcpExt: x\n").is_err());
    }

    #[test]
    fn this_kernel_prints_the_counters_that_decide_verdicts() {
        let counters = read(Path::new("/proc")).expect("/proc is mounted");
        for counter in tracer_abi::abi::Counter::ALL {
            assert!(counters.contains_key(counter.name()), "{}", counter.name());
        }
    }
}
