//! The server's ring where every backend finds it: in pages that all processes share.
//! The postmaster puts it there when it starts, the keeper when it has read it again.
//! Not PostgreSQL's shared memory, which is made anew when a backend crashes.

use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::rc::Rc;
use std::sync::OnceLock;

use colcrypt_core::{KeyRing, MAX_RING_TEXT};
use zeroize::Zeroizing;

use super::server::{ServerRing, Source};

/// Words of a page.
const PAGE: usize = 512;
/// Words of a record: a ring is shorter than its text, and there is room for a
/// message.
const RECORD: usize = MAX_RING_TEXT / 8 + PAGE;
/// Longest message, in bytes.
const MAX_MESSAGE: usize = 1024;
/// The generation of the record that is in force, the process that reads the ring
/// again, and a page further on, in turn, two records.
const LEN: usize = PAGE + 2 * RECORD;

static WORDS: OnceLock<&'static [AtomicU64]> = OnceLock::new();

/// Makes the pages. To be called by the postmaster before it forks.
pub(super) fn install() -> std::io::Result<()> {
    let words = colcrypt_memory::shared_words(LEN)?;
    // A second call would find them there.
    let _ = WORDS.set(words);
    Ok(())
}

/// Counts what was published; 0 if nothing was.
pub(super) fn generation() -> u64 {
    WORDS
        .get()
        .map_or(0, |words| words[0].load(Ordering::Acquire))
}

/// Notes that this process reads the ring again when the configuration is reloaded, or
/// does no more.
pub(super) fn note_keeper(keeps: bool) {
    if let Some(words) = WORDS.get() {
        let process = if keeps { std::process::id() } else { 0 };
        words[1].store(u64::from(process), Ordering::Relaxed);
    }
}

/// Whether a process reads the ring again.
pub(super) fn has_keeper() -> bool {
    WORDS.get().is_some_and(|words| {
        let process = words[1].load(Ordering::Relaxed);
        // A worker that was killed takes the server's other children with it, so the
        // number is that of the last one.
        process > 0 && std::path::Path::new(&format!("/proc/{process}")).exists()
    })
}

/// Shows the ring to all processes. One at a time does: the postmaster before it has
/// children, then the keeper.
///
/// # Errors
/// A ring that is larger than ring text may be; it is not published.
pub(super) fn publish(server: &ServerRing) -> Result<(), &'static str> {
    let Some(words) = WORDS.get() else {
        return Err("there is no shared memory");
    };
    let record = encode(server);
    if record.len() > RECORD * 8 {
        return Err("the key ring is too large");
    }
    let next = words[0].load(Ordering::Relaxed) + 1;
    let (chunks, rest) = record.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let values = chunks
        .iter()
        .chain([&last])
        .map(|chunk| u64::from_ne_bytes(*chunk));
    for (word, value) in slot(words, next).iter().zip(values) {
        word.store(value, Ordering::Relaxed);
    }
    words[0].store(next, Ordering::Release);
    // Whoever sees what follows sees the new generation, too.
    fence(Ordering::Release);
    // Keys that are no more in force are not left behind. Who still reads them finds
    // out by the generation.
    for word in slot(words, next + 1) {
        word.store(0, Ordering::Relaxed);
    }
    Ok(())
}

/// What was published last, with its generation; `None` if nothing was.
pub(super) fn take() -> Option<ServerRing> {
    let words = WORDS.get()?;
    loop {
        let generation = words[0].load(Ordering::Acquire);
        if generation == 0 {
            return None;
        }
        let mut record = Zeroizing::new(Vec::with_capacity(RECORD * 8));
        for word in slot(words, generation) {
            record.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        fence(Ordering::Acquire);
        if words[0].load(Ordering::Relaxed) == generation {
            return decode(&record).map(|server| ServerRing {
                generation,
                ..server
            });
        }
    }
}

fn slot(words: &[AtomicU64], generation: u64) -> &[AtomicU64] {
    let start = if generation.is_multiple_of(2) {
        PAGE
    } else {
        PAGE + RECORD
    };
    &words[start..start + RECORD]
}

/// Source, two times, and two messages and a ring image, each behind its length.
fn encode(server: &ServerRing) -> Zeroizing<Vec<u8>> {
    let image = server.ring.as_ref().map(|ring| ring.to_image());
    let image = image.as_ref().map_or(&[][..], |image| image);
    let message = |text: &Option<String>| {
        let text = text.as_deref().unwrap_or_default();
        text[..text.floor_char_boundary(MAX_MESSAGE)].to_owned()
    };
    let (why_none, last_error) = (message(&server.why_none), message(&server.last_error));
    // One allocation of the final size: growing would leave copies behind.
    let len = 1 + 2 * 8 + 3 * 4 + why_none.len() + last_error.len() + image.len();
    let mut record = Zeroizing::new(Vec::with_capacity(len));
    record.push(server.source.map_or(0, |source| source as u8));
    record.extend_from_slice(&server.loaded_at.to_ne_bytes());
    record.extend_from_slice(&server.tried_at.to_ne_bytes());
    for part in [why_none.as_bytes(), last_error.as_bytes(), image] {
        let len = u32::try_from(part.len()).expect("far below 4 GiB");
        record.extend_from_slice(&len.to_ne_bytes());
        record.extend_from_slice(part);
    }
    record
}

fn decode(record: &[u8]) -> Option<ServerRing> {
    let (source, rest) = record.split_first()?;
    let (loaded_at, rest) = rest.split_first_chunk::<8>()?;
    let (tried_at, mut rest) = rest.split_first_chunk::<8>()?;
    let mut part = || {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_ne_bytes(*len) as usize)?;
        rest = after;
        Some(part)
    };
    let message = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        (!text.is_empty()).then_some(text)
    };
    let (why_none, last_error, image) = (part()?, part()?, part()?);
    Some(ServerRing {
        ring: KeyRing::from_image(image).map(Rc::new),
        source: Source::from_tag(*source),
        loaded_at: i64::from_ne_bytes(*loaded_at),
        tried_at: i64::from_ne_bytes(*tried_at),
        why_none: message(why_none),
        last_error: message(last_error),
        generation: 0,
    })
}
