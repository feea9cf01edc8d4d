//! Numbers, times and addresses as people read them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tracer_abi::abi::Address;

/// Whether the text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    color: bool,
}

impl Style {
    /// Coloured with ANSI sequences, or not.
    #[must_use]
    pub fn new(color: bool) -> Style {
        Style { color }
    }

    /// A heading, or the sentence that matters most.
    pub(super) fn strong<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("1", text)
    }

    /// Something is wrong.
    pub(super) fn bad<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("31", text)
    }

    /// Something is right.
    pub(super) fn good<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("32", text)
    }

    /// Circumstances.
    pub(super) fn dim<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("2", text)
    }

    fn paint<'a>(&self, code: &str, text: &'a str) -> Cow<'a, str> {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m").into() } else { text.into() }
    }
}

/// `1234567` as `1,234,567`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3 events`, `1 event`.
pub(super) fn counted(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {one}s", count(n)) }
}

/// The share of `part` in `whole`: `2.0 %`. Never rounds something to nothing, nor a part to the whole.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0 %".to_owned();
    }
    let share = 100.0 * part as f64 / whole as f64;
    match share {
        _ if part == 0 => "0 %".to_owned(),
        _ if part == whole => "100 %".to_owned(),
        s if s < 0.1 => "< 0.1 %".to_owned(),
        s if s > 99.9 => "> 99.9 %".to_owned(),
        s => format!("{s:.1} %"),
    }
}

/// A time in microseconds with three digits and a unit: `12 us`, `1.25 ms`, `5.00 s`.
pub(super) fn time_us(us: u64) -> String {
    let (value, unit) = match us {
        0..1_000 => return format!("{us} us"),
        1_000..1_000_000 => (us as f64 / 1e3, "ms"),
        _ => (us as f64 / 1e6, "s"),
    };
    // The bounds are where rounding reaches the next number of digits.
    match value {
        v if v < 9.995 => format!("{v:.2} {unit}"),
        v if v < 99.95 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

/// An address that the kernel side gave, IPv4-mapped ones as IPv4.
pub fn address(address: Address) -> IpAddr {
    Ipv6Addr::from(address.octets()).to_canonical()
}

/// A task's name, as the kernel keeps it.
pub fn comm(bytes: &[u8; 16]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Address and port as `ss` prints them: `0.0.0.0:80`, `[::1]:80`, and `*:80` for both families.
pub(super) fn place(address: IpAddr, port: u16, dual_stack: bool) -> String {
    if dual_stack { format!("*:{port}") } else { SocketAddr::new(address, port).to_string() }
}

/// Breaks text into lines of at most `width` columns, each with the indentation before it. A line that begins with blanks is
/// a command: it is indented and never broken.
#[must_use]
pub fn wrap(text: &str, indent: &str, width: usize) -> String {
    let mut wrapped = String::new();
    for paragraph in text.lines() {
        if paragraph.starts_with(' ') {
            wrapped.push_str(&format!("{indent}{paragraph}\n"));
            continue;
        }
        let mut column = 0;
        for word in paragraph.split_whitespace() {
            let length = word.chars().count();
            if column > 0 && column + 1 + length > width {
                wrapped.push('\n');
                column = 0;
            }
            let before = if column == 0 { indent } else { " " };
            wrapped.push_str(before);
            wrapped.push_str(word);
            column += before.chars().count() + length;
        }
        wrapped.push('\n');
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0, 999, 1000, 28232, 1234567, u64::MAX].map(count);
        assert_eq!(texts, ["0", "999", "1,000", "28,232", "1,234,567", "18,446,744,073,709,551,615"]);
        assert_eq!((counted(1, "event"), counted(2000, "event")), ("1 event".into(), "2,000 events".into()));
    }

    #[test]
    fn a_share_is_never_rounded_to_nothing_or_all() {
        assert_eq!(percent(400, 20_000), "2.0 %");
        assert_eq!(percent(0, 20_000), "0 %");
        assert_eq!(percent(1, 1_000_000), "< 0.1 %");
        assert_eq!(percent(999_999, 1_000_000), "> 99.9 %");
        assert_eq!(percent(7, 7), "100 %");
        assert_eq!(percent(0, 0), "0 %");
    }

    #[test]
    fn times_have_three_digits() {
        let times = [0, 12, 999, 1_000, 1_250, 9_994, 9_996, 99_960, 900_000, 5_000_000, 5_000_000_000];
        let texts = times.map(time_us);
        let expected = [
            "0 us", "12 us", "999 us", "1.00 ms", "1.25 ms", "9.99 ms", "10.0 ms", "100 ms", "900 ms", "5.00 s",
            "5000 s",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn addresses_are_written_as_ss_writes_them() {
        let v4 = address(Address::mapped([10, 0, 0, 1]));
        assert_eq!(place(v4, 80, false), "10.0.0.1:80");
        assert_eq!(place(Ipv6Addr::LOCALHOST.into(), 80, false), "[::1]:80");
        assert_eq!(place(Ipv6Addr::UNSPECIFIED.into(), 80, true), "*:80");
    }

    #[test]
    fn text_is_broken_between_words_and_commands_are_not() {
        let text = "one two three four\n    sysctl -w a=b and more\nfive";
        assert_eq!(wrap(text, "> ", 10), "> one two\n> three\n> four\n>     sysctl -w a=b and more\n> five\n");
        assert_eq!(wrap("averyverylongword x", "", 5), "averyverylongword\nx\n");
    }

    #[test]
    fn colour_is_a_choice() {
        assert_eq!(Style::new(false).bad("x"), "x");
        assert_eq!(Style::new(true).bad("x"), "\x1b[31mx\x1b[0m");
    }
}
