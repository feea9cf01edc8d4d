//! A writer of initial file systems: the `newc` form of cpio, as the kernel's `Documentation/driver-api/early-userspace/
//! buffer-format.rst` describes it.

/// An archive under construction.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// What the header of an entry says beside its name and length.
#[derive(Default)]
struct Header {
    mode: u32,
    device: (u32, u32),
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a directory; its parent has to be there already.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, &Header { mode: DIRECTORY | 0o755, ..Header::default() }, &[]);
    }

    /// Adds a file that may be read and executed.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, &Header { mode: FILE | 0o755, ..Header::default() }, content);
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, to: &str) {
        self.entry(path, &Header { mode: SYMLINK | 0o777, ..Header::default() }, to.as_bytes());
    }

    /// Adds a character device.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, &Header { mode: CHARACTER_DEVICE | 0o600, device: (major, minor) }, &[]);
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", &Header::default(), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, header: &Header, content: &[u8]) {
        let path = path.trim_start_matches('/');
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).expect("a file of 4 GiB does not fit into a guest");
        let fields = [
            self.entries,
            header.mode,
            0, // owner
            0, // group
            1, // links
            0, // time: the same input gives the same bytes
            length(content.len()),
            0, // device that holds the file
            0,
            header.device.0,
            header.device.1,
            length(path.len() + 1),
            0, // checksum, unused in this form
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_documents_it() {
        let mut archive = Archive::default();
        archive.file("/etc/a", b"hello");
        // Header of 110 bytes, name of 6 with its end to a multiple of 4, content of 5 to a multiple of 4.
        let expected = [
            "070701",
            "00000001",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000006",
            "00000000",
            "etc/a\0",
            "hello\0\0\0",
        ];
        assert_eq!(String::from_utf8(archive.bytes).unwrap(), expected.concat());
    }

    #[test]
    fn devices_and_links_have_their_own_modes() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.symlink("init", "/bin/sh");
        let text = String::from_utf8(archive.bytes).unwrap();
        assert!(text.contains("000041ed"), "{text}");
        let device = text.find("00002180").unwrap();
        assert_eq!(&text[device + 8 * 8..device + 10 * 8], "0000000500000001");
        assert!(text.contains("0000a1ff") && text.ends_with("init\0\0/bin/sh\0"), "{text:?}");
    }

    #[test]
    fn every_archive_ends_with_the_trailer_at_a_multiple_of_four() {
        let bytes = Archive::default().finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(String::from_utf8(bytes).unwrap().contains("TRAILER!!!\0"));
    }
}
