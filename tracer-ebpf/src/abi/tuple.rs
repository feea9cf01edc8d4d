//! The identity of a connection in one network namespace.

/// An IP address: 16 bytes in network order. IPv4 is written as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), as a dual-stack listener sees it.
///
/// Two words rather than bytes: a BPF program that may only assume the alignment of bytes copies and compares them one by one, and so
/// does the verifier, on every path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)
)]
#[repr(transparent)]
pub struct Address(
    /// The bytes as they are in memory.
    [u64; 2],
);

impl Address {
    /// `::`, the IPv6 wildcard.
    pub const ANY: Address = Address([0; 2]);
    /// `0.0.0.0`, the IPv4 wildcard.
    pub const ANY_V4: Address = Address::mapped([0; 4]);

    /// An IPv6 address.
    #[must_use]
    pub const fn new(octets: [u8; 16]) -> Address {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Address([u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])])
    }

    /// An IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn mapped(v4: [u8; 4]) -> Address {
        Address::of_v4(u32::from_ne_bytes(v4))
    }

    /// An IPv4 address as the kernel has it: a word in network order.
    #[must_use]
    #[inline(always)]
    pub const fn of_v4(word: u32) -> Address {
        let (mark, v4) = (Self::MARK as u64, word as u64);
        Address([0, if cfg!(target_endian = "little") { v4 << 32 | mark } else { mark << 32 | v4 }])
    }

    /// Whether it is an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let mark = if cfg!(target_endian = "little") { self.0[1] as u32 } else { (self.0[1] >> 32) as u32 };
        self.0[0] == 0 && mark == Self::MARK
    }

    /// Its bytes as two words of memory.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        self.0
    }

    /// The inverse of [`words`](Self::words).
    #[must_use]
    #[inline(always)]
    pub const fn of_words(words: [u64; 2]) -> Address {
        Address(words)
    }

    /// The bytes, in network order.
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.0[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.0[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// What precedes a mapped IPv4 address.
    const MARK: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
}

/// A TCP 4-tuple in a network namespace, seen from the server: the key of everything that is known of one attempt.
///
/// IPv4 addresses are mapped, so that one connection has one key whatever the family of the socket that handles it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Tuple {
    /// The client's address.
    pub client: Address,
    /// The server's address.
    pub server: Address,
    /// The client's port, host order.
    pub client_port: u16,
    /// The server's port, host order.
    pub port: u16,
    /// The inode number of the network namespace.
    pub netns: u32,
}

const _: () = assert!(size_of::<Tuple>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_bytes_that_it_was_made_of() {
        let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        assert_eq!(Address::new(v6).octets(), v6);
        assert!(!Address::new(v6).is_v4() && !Address::ANY.is_v4());
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
        assert_eq!(Address::mapped([10, 1, 2, 3]).octets(), mapped);
        assert_eq!(Address::new(mapped), Address::mapped([10, 1, 2, 3]));
        assert!(Address::mapped([10, 1, 2, 3]).is_v4() && Address::ANY_V4.is_v4());
    }
}
