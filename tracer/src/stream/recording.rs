//! The recording file: what `--record` writes and `tracer replay` reads.
//!
//! ```text
//! header   "TRACER\r\n"  version u32  byte order u16  size of an event u16  length u32  metadata (JSON)
//! chunk    kind u8 ('E' events, 'J' JSON)  length u32  payload
//! end      'Z'  8 u32  number of events u64
//! ```
//!
//! Lengths are in bytes; numbers are little-endian, except those inside events, which are in the byte order that the
//! header names. The carriage return in the magic shows a transfer in text mode. The end marker, with its count, tells
//! a complete recording from one that was cut off.

use std::io::{self, Read, Write};

use serde_json::Value;
use thiserror::Error;
use tracer_abi::abi::Event;
use zerocopy::{FromBytes, IntoBytes};

const MAGIC: [u8; 8] = *b"TRACER\r\n";
/// The format written here. A change of [`Event`] or of the framing raises it.
const VERSION: u32 = 1;
/// Read back as 0xfeff where the byte order is the same, and as 0xfffe where it is not.
const BYTE_ORDER: u16 = 0xfeff;
const EVENT_SIZE: usize = size_of::<Event>();
/// Longest chunk, and longest metadata.
const MAX_LENGTH: usize = 64 << 20;
/// Events in one chunk, at most.
const BATCH: usize = 8192;

const EVENTS: u8 = b'E';
const JSON: u8 = b'J';
const END: u8 = b'Z';

/// Why a recording cannot be read, or not any further.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The file could not be read.
    #[error("cannot read the recording at byte {offset}")]
    Io {
        /// Where in the file.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("not a recording: it does not begin with the magic of one; make one with `tracer --record FILE`")]
    WrongMagic,
    /// A later tracer wrote it.
    #[error(
        "the recording has format version {found}, this tracer reads up to {VERSION}; replay it with a newer tracer"
    )]
    NewerVersion {
        /// Its version.
        found: u32,
    },
    /// No tracer wrote this version.
    #[error("the recording has format version {found}, which never existed: the file is damaged")]
    UnknownVersion {
        /// Its version.
        found: u32,
    },
    /// It comes from a machine with another byte order.
    #[error("the recording has the byte order of another kind of machine; replay it on one like that")]
    OtherByteOrder,
    /// Its events have another size.
    #[error(
        "an event of the recording has {found} bytes instead of {EVENT_SIZE}; replay it with the tracer that made it"
    )]
    OtherEventSize {
        /// Theirs.
        found: u16,
    },
    /// It ends before its end marker.
    #[error("the recording is cut off at byte {offset}, in {part}; what came before it is complete")]
    Truncated {
        /// Where the file ends.
        offset: u64,
        /// What was being read.
        part: &'static str,
    },
    /// A length that cannot be.
    #[error(
        "the {part} at byte {offset} of the recording has a length of {length} bytes, which cannot be: the file is damaged"
    )]
    BadLength {
        /// Where the length is.
        offset: u64,
        /// Of what.
        part: &'static str,
        /// The length.
        length: u64,
    },
    /// A kind of chunk that this version does not have.
    #[error("unknown kind of chunk {kind:#04x} at byte {offset} of the recording: the file is damaged")]
    UnknownChunk {
        /// Where the chunk begins.
        offset: u64,
        /// Its kind.
        kind: u8,
    },
    /// JSON that is none.
    #[error("the {part} at byte {offset} of the recording is not valid JSON: the file is damaged")]
    BadJson {
        /// Where it begins.
        offset: u64,
        /// What it is.
        part: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The end marker counts other events than were read.
    #[error("the recording holds {found} events and says that it holds {said}: the file is damaged")]
    WrongCount {
        /// Events that were read.
        found: u64,
        /// What the end marker says.
        said: u64,
    },
    /// Something follows the end marker.
    #[error("bytes follow the end of the recording at byte {offset}: the file is damaged")]
    BytesAfterEnd {
        /// Where they begin.
        offset: u64,
    },
}

/// Writes a recording. Give it a buffered writer: each chunk is written in three parts.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    events: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a recording, with what the caller wants to find again in [`Reader::metadata`].
    ///
    /// # Errors
    /// When writing fails, or the metadata exceed 64 MiB.
    pub fn new(mut to: W, metadata: &Value) -> io::Result<Writer<W>> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        to.write_all(&BYTE_ORDER.to_ne_bytes())?;
        to.write_all(&(EVENT_SIZE as u16).to_le_bytes())?;
        let metadata = to_bytes(metadata)?;
        to.write_all(&(metadata.len() as u32).to_le_bytes())?;
        to.write_all(&metadata)?;
        Ok(Writer { to, events: 0 })
    }

    /// Writes events, in their order.
    ///
    /// # Errors
    /// When writing fails.
    pub fn events(&mut self, events: &[Event]) -> io::Result<()> {
        for batch in events.chunks(BATCH) {
            self.chunk(EVENTS, batch.as_bytes())?;
            self.events += batch.len() as u64;
        }
        Ok(())
    }

    /// Writes a snapshot of the caller's.
    ///
    /// # Errors
    /// When writing fails, or the value exceeds 64 MiB.
    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        let bytes = to_bytes(value)?;
        self.chunk(JSON, &bytes)
    }

    /// Writes the end marker, flushes, and gives the writer back. A recording without it reads as cut off.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        let events = self.events.to_le_bytes();
        self.chunk(END, &events)?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn chunk(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        self.to.write_all(&[kind])?;
        self.to.write_all(&(payload.len() as u32).to_le_bytes())?;
        self.to.write_all(payload)
    }
}

fn to_bytes(value: &Value) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(value)?;
    if bytes.len() > MAX_LENGTH {
        let length = bytes.len();
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a snapshot of {length} bytes is too long for a recording, which takes up to {MAX_LENGTH}"),
        ));
    }
    Ok(bytes)
}

/// A part of a recording.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// Events, in their order; one batch of the writer's or more, or a part of one.
    Events(Vec<Event>),
    /// A snapshot of the caller's.
    Json(Value),
}

/// Reads a recording. Give it a buffered reader.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    offset: u64,
    events: u64,
    metadata: Value,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When this is no recording, none of a version and a machine that can be read here, or is cut off in its header.
    pub fn new(from: R) -> Result<Reader<R>, RecordingError> {
        const PART: &str = "the header";
        let mut reader = Reader { from, offset: 0, events: 0, metadata: Value::Null, ended: false };
        let magic = reader.bytes(MAGIC.len(), PART)?;
        if magic != MAGIC {
            return Err(RecordingError::WrongMagic);
        }
        match u32::from_le_bytes(reader.array(PART)?) {
            VERSION => {}
            found if found > VERSION => return Err(RecordingError::NewerVersion { found }),
            found => return Err(RecordingError::UnknownVersion { found }),
        }
        if u16::from_ne_bytes(reader.array(PART)?) != BYTE_ORDER {
            return Err(RecordingError::OtherByteOrder);
        }
        let found = u16::from_le_bytes(reader.array(PART)?);
        if usize::from(found) != EVENT_SIZE {
            return Err(RecordingError::OtherEventSize { found });
        }
        let length = reader.length("metadata", |length| length <= MAX_LENGTH)?;
        reader.metadata = reader.value(length, "metadata")?;
        Ok(reader)
    }

    /// What the writer was given at the beginning.
    #[must_use]
    pub fn metadata(&self) -> &Value {
        &self.metadata
    }

    /// The next part, or `None` after the last one.
    ///
    /// # Errors
    /// When the file is cut off, damaged or cannot be read. Whatever was given out before is sound; after an error, the
    /// recording reads as ended.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, RecordingError> {
        if self.ended {
            return Ok(None);
        }
        let chunk = self.read_chunk();
        self.ended = !matches!(chunk, Ok(Some(_)));
        chunk
    }

    fn read_chunk(&mut self) -> Result<Option<Chunk>, RecordingError> {
        let offset = self.offset;
        let [kind] = self.array("the next chunk: the end marker is missing")?;
        match kind {
            EVENTS => {
                let length =
                    self.length("chunk of events", |length| length <= MAX_LENGTH && length.is_multiple_of(EVENT_SIZE))?;
                let offset = self.offset;
                let bytes = self.bytes(length, "a chunk of events")?;
                let mut events = Vec::with_capacity(length / EVENT_SIZE);
                for event in bytes.chunks_exact(EVENT_SIZE) {
                    let bad = |_| RecordingError::BadLength { offset, part: "event", length: event.len() as u64 };
                    events.push(Event::read_from_bytes(event).map_err(bad)?);
                }
                self.events += events.len() as u64;
                Ok(Some(Chunk::Events(events)))
            }
            JSON => {
                let length = self.length("snapshot", |length| length <= MAX_LENGTH)?;
                Ok(Some(Chunk::Json(self.value(length, "snapshot")?)))
            }
            END => {
                self.length("end marker", |length| length == size_of::<u64>())?;
                let said = u64::from_le_bytes(self.array("the end marker")?);
                if said != self.events {
                    return Err(RecordingError::WrongCount { found: self.events, said });
                }
                if self.read_up_to(1)?.is_empty() {
                    Ok(None)
                } else {
                    Err(RecordingError::BytesAfterEnd { offset: self.offset - 1 })
                }
            }
            kind => Err(RecordingError::UnknownChunk { offset, kind }),
        }
    }

    fn length(&mut self, part: &'static str, holds: impl FnOnce(usize) -> bool) -> Result<usize, RecordingError> {
        let offset = self.offset;
        let length = u32::from_le_bytes(self.array(part)?);
        if holds(length as usize) {
            Ok(length as usize)
        } else {
            Err(RecordingError::BadLength { offset, part, length: u64::from(length) })
        }
    }

    fn value(&mut self, length: usize, part: &'static str) -> Result<Value, RecordingError> {
        let offset = self.offset;
        let bytes = self.bytes(length, part)?;
        serde_json::from_slice(&bytes).map_err(|source| RecordingError::BadJson { offset, part, source })
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], RecordingError> {
        let bytes = self.bytes(N, part)?;
        let offset = self.offset;
        bytes.try_into().map_err(|_| RecordingError::Truncated { offset, part })
    }

    fn bytes(&mut self, length: usize, part: &'static str) -> Result<Vec<u8>, RecordingError> {
        let bytes = self.read_up_to(length)?;
        if bytes.len() == length { Ok(bytes) } else { Err(RecordingError::Truncated { offset: self.offset, part }) }
    }

    /// Reads until `length` bytes or the end of the file. Memory follows what is there, not what a length promises.
    fn read_up_to(&mut self, length: usize) -> Result<Vec<u8>, RecordingError> {
        let mut bytes = Vec::new();
        let read = self.from.by_ref().take(length as u64).read_to_end(&mut bytes);
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        read.map(|_| bytes).map_err(|source| RecordingError::Io { offset, source })
    }
}

#[cfg(test)]
mod tests;
