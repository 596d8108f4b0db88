//! A key file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{MAX_RING_TEXT, SourceError};
use crate::secret::SecretText;

/// `O_NONBLOCK` of Linux: a named pipe is opened without waiting for its other
/// end, and then refused.
const O_NONBLOCK: i32 = 0o4000;

/// Reads a key file. The rule for owner and mode is that for a TLS key
/// (PostgreSQL's `be-secure-common.c`, `check_ssl_key_file_permissions`).
///
/// `server_user` is the effective user id of the server.
///
/// # Errors
/// [`SourceError`].
pub fn read_key_file(path: &Path, server_user: u32) -> Result<SecretText, SourceError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)?;
    // The opened file is judged, not the path: what is checked is what is read.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(SourceError::NotRegular);
    }
    let mode = metadata.mode() & 0o7777;
    let allowed = match metadata.uid() {
        uid if uid == server_user => 0o700,
        0 => 0o740,
        _ => return Err(SourceError::Owner),
    };
    if mode & 0o777 & !allowed != 0 {
        return Err(SourceError::Mode(mode));
    }
    read_text(file)
}

fn read_text(file: File) -> Result<SecretText, SourceError> {
    // One allocation of the final size: growing would leave copies behind.
    let mut text = String::with_capacity(MAX_RING_TEXT + 1);
    let result = file
        .take(MAX_RING_TEXT as u64 + 1)
        .read_to_string(&mut text);
    let text = SecretText::new(text);
    match result {
        Ok(_) if text.expose().len() > MAX_RING_TEXT => Err(SourceError::TooLarge),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(SourceError::NotUtf8),
        Err(error) => Err(SourceError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        user: u32,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let user = folder.path().metadata().expect("it is there").uid();
            Self { folder, user }
        }

        fn read(&self, content: &[u8], mode: u32, user: u32) -> Result<SecretText, SourceError> {
            read_key_file(&self.write(content, mode), user)
        }

        fn write(&self, content: &[u8], mode: u32) -> PathBuf {
            let path = self.folder.path().join("ring");
            let _ = fs::remove_file(&path);
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode set");
            path
        }
    }

    #[test]
    fn a_private_file_is_read() {
        let fixture = Fixture::new();
        for mode in [0o600, 0o400] {
            let text = fixture.read(b"key", mode, fixture.user).expect("read");
            assert_eq!(text.expose(), "key");
        }
    }

    #[test]
    fn a_file_that_others_may_touch_is_refused() {
        let fixture = Fixture::new();
        for mode in [0o644, 0o604, 0o620, 0o601, 0o606] {
            let error = fixture
                .read(b"key", mode, fixture.user)
                .expect_err("refused");
            assert!(
                matches!(error, SourceError::Mode(m) if m == mode),
                "{error}"
            );
        }
    }

    #[test]
    fn the_owner_is_the_server_or_root() {
        let fixture = Fixture::new();
        let other = fixture.user + 1;
        match fixture.read(b"key", 0o640, other) {
            // As root: the file is root's, and its group may read it.
            Ok(_) => assert_eq!(fixture.user, 0),
            Err(error) => assert!(matches!(error, SourceError::Owner), "{error}"),
        }
    }

    #[test]
    fn what_is_no_text_file_is_refused() {
        let fixture = Fixture::new();
        let user = fixture.user;
        assert!(matches!(
            read_key_file(fixture.folder.path(), user),
            Err(SourceError::NotRegular)
        ));
        assert!(matches!(
            read_key_file(&fixture.folder.path().join("absent"), user),
            Err(SourceError::Io(_))
        ));
        assert!(matches!(
            fixture.read(b"\xff", 0o600, user),
            Err(SourceError::NotUtf8)
        ));
        let most = vec![b'#'; MAX_RING_TEXT];
        assert!(fixture.read(&most, 0o600, user).is_ok());
        let more = vec![b'#'; MAX_RING_TEXT + 1];
        assert!(matches!(
            fixture.read(&more, 0o600, user),
            Err(SourceError::TooLarge)
        ));
    }
}
