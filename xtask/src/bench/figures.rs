//! Many measurements, a few numbers.

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

impl Range {
    /// Of at least one number.
    pub(super) fn of(numbers: &[f64]) -> Option<Range> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Range { median, least, greatest })
    }

    /// `1.043 (0.98 to 1.12)`.
    pub(super) fn ratio(&self) -> String {
        format!("{:.3} ({:.2} to {:.2})", self.median, self.least, self.greatest)
    }

    /// `31,250 (30,100 to 32,007)`.
    pub(super) fn rate(&self) -> String {
        format!("{} ({} to {})", grouped(self.median), grouped(self.least), grouped(self.greatest))
    }
}

/// A whole number in groups of three.
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_all_numbers() {
        assert_eq!(Range::of(&[]), None);
        assert_eq!(Range::of(&[3.0, 1.0, 2.0]), Some(Range { median: 2.0, least: 1.0, greatest: 3.0 }));
        assert_eq!(Range::of(&[4.0, 1.0]).map(|range| range.median), Some(2.5));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            (grouped(999.4), grouped(1000.0), grouped(1_234_567.0)),
            ("999".into(), "1,000".into(), "1,234,567".into())
        );
        let range = Range { median: 1.0432, least: 0.984, greatest: 1.116 };
        assert_eq!(range.ratio(), "1.043 (0.98 to 1.12)");
    }
}
