//! Where ring text is read from: the one module with I/O.

mod command;
mod file;

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

pub use command::{CommandOutput, run_key_command};
pub use file::read_key_file;

use zeroize::Zeroizing;

use crate::secret::SecretText;

/// Most bytes of a ring text.
pub const MAX_RING_TEXT: usize = 64 * 1024;

/// Why a source gave no ring text. Quotes paths and names, never content.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The operating system refused.
    #[error("could not read it: {0}")]
    Io(#[from] io::Error),
    /// A directory, a pipe, a device.
    #[error("it is not a regular file")]
    NotRegular,
    /// Owned by somebody else.
    #[error("it must be owned by the server's user or by root")]
    Owner,
    /// Readable or writable by others.
    #[error(
        "it has mode {0:04o}: it must be 0600 or less if owned by the server's user, \
         or 0640 or less if owned by root"
    )]
    Mode(u32),
    /// Longer than [`MAX_RING_TEXT`].
    #[error("it is larger than {} KiB", MAX_RING_TEXT / 1024)]
    TooLarge,
    /// Not text.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// A command did not come to its end in time.
    #[error("it did not end within {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// A command was not waited for, because the server stops.
    #[error("it was given up")]
    GivenUp,
    /// A command failed.
    #[error("it failed with {0}")]
    Exit(ExitStatus),
}

impl SecretText {
    /// Takes over what a source gave.
    ///
    /// # Errors
    /// [`SourceError::TooLarge`], [`SourceError::NotUtf8`].
    pub fn from_source(bytes: Vec<u8>) -> Result<Self, SourceError> {
        let bytes = Zeroizing::new(bytes);
        if bytes.len() > MAX_RING_TEXT {
            return Err(SourceError::TooLarge);
        }
        let text = core::str::from_utf8(&bytes).map_err(|_| SourceError::NotUtf8)?;
        Ok(Self::new(text.to_owned()))
    }
}
