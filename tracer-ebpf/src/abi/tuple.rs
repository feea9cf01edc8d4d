//! The identity of a connection in one network namespace.

/// A TCP 4-tuple in a network namespace, seen from the server: the key of everything that is known of one attempt.
///
/// Addresses are 16 bytes in network order; IPv4 is written as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), as a dual-stack
/// listener sees it, so that one connection has one key whatever the family of the socket that handles it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Tuple {
    /// The client's address.
    pub client: [u8; 16],
    /// The server's address.
    pub server: [u8; 16],
    /// The client's port, host order.
    pub client_port: u16,
    /// The server's port, host order.
    pub port: u16,
    /// The inode number of the network namespace.
    pub netns: u32,
}

const _: () = assert!(size_of::<Tuple>() == 40);

impl Tuple {
    /// An IPv4 address (four bytes in network order) in its IPv4-mapped form.
    #[must_use]
    #[inline(always)]
    pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
    }
}
