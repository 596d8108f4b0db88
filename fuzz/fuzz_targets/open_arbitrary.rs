//! Bytes that were not sealed under a key do not open under it, and a value that
//! was sealed and then changed does not either.

#![no_main]

use colcrypt_core::{Key, NonceSource, Payload, SecretKey, Stored, Suite};
use libfuzzer_sys::fuzz_target;

thread_local! {
    // Not the key of any test file: values in a corpus must not open.
    static KEY: Key = Key::new(SecretKey::take(&mut [0xfa; 32]));
}

fuzz_target!(|bytes: &[u8]| KEY.with(|key| {
    let mut forged = bytes.to_vec();
    if let Some(key_id) = forged.get_mut(1..Stored::HEADER_LEN) {
        key_id.copy_from_slice(&key.id().0);
    }
    assert_eq!(open(key, &forged), None);
    assert!(key.adopt_fernet(bytes).is_err());

    // The first byte chooses a suite, the next four a place and what changes there,
    // the rest is plaintext.
    if let Some(([choice, at @ .., change], plaintext)) = bytes.split_first_chunk::<5>() {
        let suite = Suite::ALL[usize::from(*choice) % Suite::ALL.len()];
        let mut sealed = vec![0; suite.sealed_len(plaintext.len())];
        key.seal(
            suite,
            Payload::Text,
            plaintext,
            NonceSource::new().in_process(1),
            &mut sealed,
        )
        .expect("random bytes");
        assert_eq!(open(key, &sealed).as_deref(), Some(plaintext));

        let [a, b, c] = at.map(usize::from);
        let place = ((a << 16) | (b << 8) | c) % sealed.len();
        sealed[place] ^= change;
        let opened = open(key, &sealed);
        assert_eq!(opened.is_some(), *change == 0);
    }
}));

fn open(key: &Key, bytes: &[u8]) -> Option<Vec<u8>> {
    let stored = Stored::parse(bytes).ok()?;
    let mut out = vec![0; stored.plaintext_capacity()];
    let len = key.open(&stored, Payload::Text, &mut out).ok()?;
    out.truncate(len);
    Some(out)
}
