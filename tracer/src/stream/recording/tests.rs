use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;
use zerocopy::FromZeros;

use super::*;

fn event(n: u64) -> Event {
    let mut event = Event::new_zeroed();
    (event.time_ns, event.isn, event.kind) = (n, 7, 1);
    event
}

fn written() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &json!({ "kernel": "6.12" })).expect("to memory");
    writer.events(&[event(1), event(2)]).expect("to memory");
    writer.json(&json!([1, { "slot": 2 }])).expect("to memory");
    writer.events(&[]).expect("to memory");
    writer.events(&[event(3)]).expect("to memory");
    writer.finish().expect("to memory")
}

/// All chunks, and the error that ended them.
fn read(bytes: &[u8]) -> (Vec<Chunk>, Option<RecordingError>) {
    let mut chunks = Vec::new();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (chunks, Some(error)),
    };
    loop {
        match reader.next_chunk() {
            Ok(Some(chunk)) => chunks.push(chunk),
            Ok(None) => return (chunks, None),
            Err(error) => {
                assert!(matches!(reader.next_chunk(), Ok(None)), "an error is told once");
                return (chunks, Some(error));
            }
        }
    }
}

fn error(bytes: &[u8]) -> String {
    read(bytes).1.map_or_else(|| "none".to_owned(), |error| error.to_string())
}

#[test]
fn what_was_written_is_read() {
    let bytes = written();
    assert_eq!(Reader::new(&bytes[..]).expect("a recording").metadata(), &json!({ "kernel": "6.12" }));
    let (chunks, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        chunks,
        [
            Chunk::Events(vec![event(1), event(2)]),
            Chunk::Json(json!([1, { "slot": 2 }])),
            Chunk::Events(vec![event(3)]),
        ]
    );
}

#[test]
fn many_events_are_split_and_keep_their_order() {
    let events: Vec<Event> = (0..BATCH as u64 + 5).map(event).collect();
    let mut writer = Writer::new(Vec::new(), &Value::Null).expect("to memory");
    writer.events(&events).expect("to memory");
    let (chunks, error) = read(&writer.finish().expect("to memory"));
    assert!(error.is_none(), "{error:?}");
    assert_eq!(chunks.len(), 2);
    let read: Vec<Event> = chunks
        .into_iter()
        .flat_map(|chunk| match chunk {
            Chunk::Events(events) => events,
            Chunk::Json(_) => Vec::new(),
        })
        .collect();
    assert_eq!(read, events);
}

#[test]
fn something_else_is_not_a_recording() {
    let expected = "not a recording: it does not begin with the magic of one; make one with `tracer --record FILE`";
    assert_eq!(error(b"#!/bin/sh\necho something else entirely\n"), expected);
    let unix = written().into_iter().filter(|byte| *byte != b'\r').collect::<Vec<u8>>();
    assert_eq!(error(&unix), expected);
}

#[test]
fn a_newer_version_asks_for_a_newer_tracer() {
    let mut bytes = written();
    bytes[8] = 2;
    assert_eq!(
        error(&bytes),
        "the recording has format version 2, this tracer reads up to 1; replay it with a newer tracer"
    );
    bytes[8] = 0;
    assert_eq!(error(&bytes), "the recording has format version 0, which never existed: the file is damaged");
}

#[test]
fn another_machines_events_are_not_misread() {
    let mut bytes = written();
    bytes.swap(12, 13);
    assert!(matches!(read(&bytes).1, Some(RecordingError::OtherByteOrder)));
    let mut bytes = written();
    bytes[14] += 8;
    assert!(
        matches!(read(&bytes).1, Some(RecordingError::OtherEventSize { found }) if found as usize == EVENT_SIZE + 8)
    );
}

#[test]
fn a_recording_cut_off_anywhere_says_where_and_keeps_what_came_before() {
    let bytes = written();
    let whole = read(&bytes).0;
    for length in 0..bytes.len() {
        let (chunks, error) = read(&bytes[..length]);
        let Some(RecordingError::Truncated { offset, .. }) = error else { panic!("{length} bytes: {error:?}") };
        assert_eq!(offset, length as u64);
        assert_eq!(chunks, whole[..chunks.len()]);
    }
    let unfinished = &bytes[..bytes.len() - 13];
    assert_eq!(
        error(unfinished),
        format!(
            "the recording is cut off at byte {}, in the next chunk: the end marker is missing; what came before it is \
             complete",
            unfinished.len()
        )
    );
}

#[test]
fn lengths_that_cannot_be_are_refused_before_anything_is_read() {
    let header = Writer::new(Vec::new(), &Value::Null).expect("to memory").to;
    let with = |chunk: &[u8]| [&header[..], chunk].concat();
    let at = header.len();
    assert_eq!(
        error(&with(b"E\x01\0\0\0")),
        format!(
            "the chunk of events at byte {} of the recording has a length of 1 bytes, which cannot be: the file is damaged",
            at + 1
        )
    );
    assert!(matches!(read(&with(b"J\xff\xff\xff\xff")).1, Some(RecordingError::BadLength { part: "snapshot", .. })));
    assert!(matches!(read(&with(b"Z\x04\0\0\0")).1, Some(RecordingError::BadLength { part: "end marker", .. })));
    // A length that could be, and is not kept.
    assert!(matches!(read(&with(b"J\0\0\0\x01{")).1, Some(RecordingError::Truncated { .. })));
}

#[test]
fn damage_is_named() {
    let header = Writer::new(Vec::new(), &Value::Null).expect("to memory").to;
    let with = |chunk: &[u8]| [&header[..], chunk].concat();
    assert_eq!(
        error(&with(b"?\0\0\0\0")),
        format!("unknown kind of chunk 0x3f at byte {} of the recording: the file is damaged", header.len())
    );
    assert_eq!(
        error(&with(b"J\x02\0\0\0{{")),
        format!("the snapshot at byte {} of the recording is not valid JSON: the file is damaged", header.len() + 5)
    );
    assert_eq!(
        error(&with(b"Z\x08\0\0\0\x05\0\0\0\0\0\0\0")),
        "the recording holds 0 events and says that it holds 5: the file is damaged"
    );
    let mut bytes = written();
    bytes.push(0);
    assert_eq!(
        error(&bytes),
        format!("bytes follow the end of the recording at byte {}: the file is damaged", bytes.len() - 1)
    );
}

#[test]
fn an_unreadable_file_is_told_apart_from_a_damaged_one() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let header = Writer::new(Vec::new(), &Value::Null).expect("to memory").to;
    let mut reader = Reader::new(header.chain(Broken)).expect("a header");
    assert!(matches!(reader.next_chunk(), Err(RecordingError::Io { .. })));
}

#[test]
fn a_full_disk_is_an_error_of_the_writer() {
    let mut room = [0u8; 40];
    let mut writer = Writer::new(&mut room[..], &Value::Null).expect("the header fits");
    assert_eq!(writer.events(&[event(1)]).map_err(|error| error.kind()), Err(io::ErrorKind::WriteZero));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..400)) {
        read(&bytes);
        read(&[&Writer::new(Vec::new(), &Value::Null).expect("to memory").to[..], &bytes].concat());
    }

    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = written();
        let at = at.index(bytes.len());
        bytes[at] = to;
        read(&bytes);
    }

    #[test]
    fn events_of_any_content_survive(raw in vec(vec(any::<u8>(), EVENT_SIZE), 0..20)) {
        let events: Vec<Event> = raw.iter().map(|raw| Event::read_from_bytes(raw).expect("its size")).collect();
        let mut writer = Writer::new(Vec::new(), &Value::Null).expect("to memory");
        writer.events(&events).expect("to memory");
        let (chunks, error) = read(&writer.finish().expect("to memory"));
        prop_assert!(error.is_none());
        let expected = if events.is_empty() { vec![] } else { vec![Chunk::Events(events)] };
        prop_assert_eq!(chunks, expected);
    }
}
