//! The ones' complement checksum of RFC 1071, in two steps: sums of parts can be taken once and added.

/// The sum of 16-bit words; the last byte of an odd number is the high one of its word. It cannot overflow below 128 KiB.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let (words, last) = bytes.as_chunks::<2>();
    let last = last.first().map_or(0, |byte| u32::from(*byte) << 8);
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>() + last
}

/// The checksum from a sum, or from several added up, if all parts but the last are of even length.
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }

    #[test]
    fn an_odd_byte_is_the_high_one_of_its_word() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn parts_add_up() {
        let bytes: Vec<u8> = (0..=254).collect();
        let (begin, end) = bytes.split_at(100);
        assert_eq!(fold(sum(begin) + sum(end)), fold(sum(&bytes)));
    }
}
