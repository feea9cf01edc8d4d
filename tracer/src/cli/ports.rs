//! A set of TCP ports.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

const WORDS: usize = (1 << 16) / 64;

/// The ports to trace: a bitmap of 65,536 bits, port 0 never set.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; WORDS]>,
}

impl PortSet {
    /// The set without a port.
    #[must_use]
    pub fn empty() -> PortSet {
        PortSet { words: Box::new([0; WORDS]) }
    }

    /// The set of every port, 1 to 65535.
    #[must_use]
    pub fn every() -> PortSet {
        let mut words = Box::new([u64::MAX; WORDS]);
        words[0] &= !1;
        PortSet { words }
    }

    /// Whether every port is in the set: no choice was made.
    #[must_use]
    pub fn is_every(&self) -> bool {
        *self == PortSet::every()
    }

    /// Whether this port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port) / 64] >> (port % 64) & 1 == 1
    }

    /// How many ports are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether no port is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The ports, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|p| self.contains(*p))
    }

    /// The bitmap: port `p` is bit `p % 64` of word `p / 64`.
    #[must_use]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// The set as the fewest ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in self.iter() {
            match ranges.last_mut() {
                Some(last) if *last.end() + 1 == port => *last = *last.start()..=port,
                _ => ranges.push(port..=port),
            }
        }
        ranges
    }

    /// Adds every port of `other`.
    pub fn merge(&mut self, other: &PortSet) {
        for (a, b) in self.words.iter_mut().zip(other.words.iter()) {
            *a |= b;
        }
    }

    fn insert(&mut self, port: u16) {
        self.words[usize::from(port) / 64] |= 1 << (port % 64);
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_every() {
            return f.write_str("every port");
        }
        for (i, range) in self.ranges().iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match (range.start(), range.end()) {
                (a, b) if a == b => write!(f, "{comma}{a}")?,
                (a, b) => write!(f, "{comma}{a}-{b}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

/// What is wrong with a list of ports.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Nothing was given.
    #[error("no port is given; write one such as 8000, or a list such as 8000,9000-9010")]
    Empty,
    /// Two commas in a row, or one at an end.
    #[error("an item of the list is empty; write ports and single commas, such as 8000,8080")]
    EmptyItem,
    /// Port 0 stands for "any" and cannot listen.
    #[error("nothing listens on port 0; ports go from 1 to 65535")]
    Zero,
    /// A number beyond the last port.
    #[error("{0} is no port; ports go from 1 to 65535")]
    TooLarge(String),
    /// Not a number.
    #[error("'{0}' is no port; write a number from 1 to 65535, or a range such as 9000-9010")]
    NotANumber(String),
    /// Last before first.
    #[error("the range {0}-{1} runs backwards; write {1}-{0}")]
    Reversed(u16, u16),
}

fn port(text: &str, item: &str) -> Result<u16, PortError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PortError::NotANumber(item.to_owned()));
    }
    match text.parse::<u16>() {
        Ok(0) => Err(PortError::Zero),
        Ok(port) => Ok(port),
        // Only digits: it can only be too large.
        Err(_) => Err(PortError::TooLarge(text.to_owned())),
    }
}

impl FromStr for PortSet {
    type Err = PortError;

    fn from_str(list: &str) -> Result<PortSet, PortError> {
        if list.trim().is_empty() {
            return Err(PortError::Empty);
        }
        let mut set = PortSet::empty();
        for item in list.split(',').map(str::trim) {
            if item.is_empty() {
                return Err(PortError::EmptyItem);
            }
            let (first, last) = match item.split_once('-') {
                Some((a, b)) => (port(a.trim(), item)?, port(b.trim(), item)?),
                None => {
                    let p = port(item, item)?;
                    (p, p)
                }
            };
            if last < first {
                return Err(PortError::Reversed(first, last));
            }
            (first..=last).for_each(|p| set.insert(p));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<String, String> {
        list.parse::<PortSet>().map(|s| s.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn lists_and_ranges_are_normalised() {
        assert_eq!(parse("8000").as_deref(), Ok("8000"));
        assert_eq!(parse("9000-9010, 8080,8000,9011").as_deref(), Ok("8000,8080,9000-9011"));
        assert_eq!(parse("65535,1").as_deref(), Ok("1,65535"));
        assert_eq!(parse("1-65535").as_deref(), Ok("every port"));
    }

    #[test]
    fn a_bad_list_is_refused_with_the_item_and_the_remedy() {
        for (list, names) in [
            ("", "no port is given"),
            ("  ", "no port is given"),
            ("0", "port 0"),
            ("0-5", "port 0"),
            ("70000", "70000 is no port"),
            ("99999999999999999999", "99999999999999999999 is no port"),
            ("abc", "'abc' is no port"),
            ("80,abc", "'abc' is no port"),
            ("+80", "'+80' is no port"),
            ("80,,81", "empty"),
            ("80,", "empty"),
            ("9000-", "'9000-' is no port"),
            ("-9000", "'-9000' is no port"),
            ("1-2-3", "'1-2-3' is no port"),
            ("9010-9000", "9010-9000 runs backwards; write 9000-9010"),
        ] {
            let message = parse(list).expect_err(list);
            assert!(message.contains(names), "{list:?}: {message}");
        }
    }

    #[test]
    fn the_bitmap_is_the_set() {
        let set: PortSet = "63-64,65535".parse().expect("good list");
        assert_eq!(set.iter().collect::<Vec<_>>(), [63, 64, 65535]);
        assert_eq!((set.words()[0], set.words()[1], set.words()[1023]), (1 << 63, 1, 1 << 63));
        assert_eq!(set.len(), 3);
        assert!(!set.contains(0) && !set.contains(65) && set.contains(64));
        assert_eq!(PortSet::every().len(), 65535);
        assert!(!PortSet::every().contains(0));
        assert!(PortSet::empty().is_empty());
    }
}
