//! XAES-256-GCM (C2SP, <https://c2sp.org/XAES-256-GCM>): a 256-bit key for each
//! 96-bit nonce prefix, derived with CMAC (NIST SP 800-108r1 counter mode), then
//! AES-256-GCM under the last 96 bits of the nonce.

use core::cell::RefCell;

use aes::Aes256;
use cmac::{Cmac, KeyInit, Mac};
use colcrypt_memory::Guarded;
use zeroize::Zeroize;

use crate::aead::{Aes256Gcm, AuthenticationFailed, NONCE_LEN, TAG_LEN};
use crate::secret::{SecretKey, guard, without_traces};
use crate::stored::XAES_NONCE_LEN;
use crate::suites::Aad;

const PREFIX_LEN: usize = 12;

/// Derived keys kept, a power of two. A scan over rows that one connection wrote
/// needs one; rows that many connections wrote, one for each.
const CACHED_KEYS: usize = 64;

/// The suite under one subkey, with the derived keys it used last.
pub(crate) struct Xaes256Gcm {
    cmac: Cmac<Aes256>,
    derived: RefCell<[Option<Guarded<Derived>>; CACHED_KEYS]>,
}

struct Derived {
    prefix: [u8; PREFIX_LEN],
    cipher: Aes256Gcm,
}

impl Xaes256Gcm {
    pub(crate) fn new(key: &SecretKey) -> Self {
        Self {
            cmac: <Cmac<Aes256> as KeyInit>::new(key.expose().into()),
            derived: RefCell::new([const { None }; CACHED_KEYS]),
        }
    }

    pub(crate) fn seal<A: AsRef<[u8]> + ?Sized>(
        &self,
        nonce: &[u8; XAES_NONCE_LEN],
        aad: &A,
        plaintext: &[u8],
        out: &mut [u8],
    ) -> [u8; TAG_LEN] {
        self.with_derived(nonce, |cipher, nonce| {
            cipher.seal(nonce, aad, plaintext, out)
        })
    }

    pub(crate) fn open<A: AsRef<[u8]> + ?Sized>(
        &self,
        nonce: &[u8; XAES_NONCE_LEN],
        aad: &A,
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AuthenticationFailed> {
        self.with_derived(nonce, |cipher, nonce| {
            cipher.open(nonce, aad, ciphertext, tag, out)
        })
    }

    /// Runs `work` with the cipher for the nonce's prefix and the rest of the
    /// nonce. Prefixes are random, so one byte of them is a good hash.
    fn with_derived<T>(
        &self,
        nonce: &[u8; XAES_NONCE_LEN],
        work: impl FnOnce(&Aes256Gcm, &[u8; NONCE_LEN]) -> T,
    ) -> T {
        let (prefix, rest) = nonce
            .split_first_chunk::<PREFIX_LEN>()
            .expect("24 bytes have a first 12");
        let rest = rest.first_chunk().expect("24 bytes have a last 12");
        let mut derived = self.derived.borrow_mut();
        let slot = &mut derived[usize::from(prefix[0]) % CACHED_KEYS];
        match slot {
            Some(cached) if cached.prefix == *prefix => work(&cached.cipher, rest),
            _ => work(&self.fill(slot, prefix).cipher, rest),
        }
    }

    /// Out of the way of values whose key is at hand.
    #[cold]
    #[inline(never)]
    fn fill<'a>(
        &self,
        slot: &'a mut Option<Guarded<Derived>>,
        prefix: &[u8; PREFIX_LEN],
    ) -> &'a Derived {
        let derived = || Derived {
            prefix: *prefix,
            cipher: self.derive(prefix),
        };
        match slot {
            Some(used) => {
                without_traces(|| **used = derived());
                used
            }
            None => slot.insert(guard(derived)),
        }
    }

    /// `Kx = CMAC(K, 0x0001 | "X" | 0x00 | N[:12]) | CMAC(K, 0x0002 | "X" | 0x00 | N[:12])`
    fn derive(&self, prefix: &[u8; PREFIX_LEN]) -> Aes256Gcm {
        let mut key = [0; 32];
        for (counter, half) in (1u8..).zip(key.chunks_exact_mut(16)) {
            let mut cmac = self.cmac.clone();
            cmac.update(&[0, counter, b'X', 0]);
            cmac.update(prefix);
            half.copy_from_slice(&cmac.finalize().into_bytes());
        }
        let cipher = Aes256Gcm::new(&key);
        key.zeroize();
        cipher
    }
}

/// Writes `nonce | ciphertext | tag`.
pub(crate) fn seal(
    cipher: &Xaes256Gcm,
    nonce: &[u8; XAES_NONCE_LEN],
    aad: &Aad,
    plaintext: &[u8],
    body: &mut [u8],
) {
    let (out_nonce, rest) = body.split_at_mut(XAES_NONCE_LEN);
    let (ciphertext, tag) = rest.split_at_mut(plaintext.len());
    out_nonce.copy_from_slice(nonce);
    tag.copy_from_slice(&cipher.seal(nonce, aad, plaintext, ciphertext));
}

#[cfg(test)]
mod tests {
    use sha3::digest::{ExtendableOutput, Update, XofReader};

    use super::*;

    fn seal_raw(key: [u8; 32], nonce: &[u8; 24], plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
        let cipher = Xaes256Gcm::new(&SecretKey::take(&mut key.clone()));
        let mut out = vec![0; plaintext.len()];
        let tag = cipher.seal(nonce, aad, plaintext, &mut out);
        let mut opened = vec![0; plaintext.len()];
        cipher
            .open(nonce, aad, &out, &tag, &mut opened)
            .expect("what was sealed opens");
        assert_eq!(opened, plaintext);
        out.extend_from_slice(&tag);
        out
    }

    /// The two vectors of the C2SP specification, "Test Vectors".
    #[test]
    fn c2sp_vectors_hold() {
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        assert_eq!(
            hex::encode(seal_raw([1; 32], nonce, b"XAES-256-GCM", b"")),
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
        );
        assert_eq!(
            hex::encode(seal_raw(
                [3; 32],
                nonce,
                b"XAES-256-GCM",
                b"c2sp.org/XAES-256-GCM"
            )),
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"
        );
    }

    /// The accumulated vector of the C2SP specification: 10,000 random inputs
    /// drawn from SHAKE-128, all outputs hashed.
    #[test]
    fn c2sp_accumulated_vector_holds() {
        assert_eq!(
            accumulate(10_000),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
        );
    }

    /// The same with 1,000,000 inputs: `cargo test --release -- --ignored`.
    #[test]
    #[ignore = "takes seconds in a release build, minutes in a debug build"]
    fn c2sp_long_accumulated_vector_holds() {
        assert_eq!(
            accumulate(1_000_000),
            "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15"
        );
    }

    fn accumulate(rounds: usize) -> String {
        let mut input = sha3::Shake128::default().finalize_xof();
        let mut output = sha3::Shake128::default();
        let mut key = [0; 32];
        let mut nonce = [0; 24];
        let mut len = [0; 1];
        for _ in 0..rounds {
            input.read(&mut key);
            input.read(&mut nonce);
            input.read(&mut len);
            let mut plaintext = vec![0; usize::from(len[0])];
            input.read(&mut plaintext);
            input.read(&mut len);
            let mut aad = vec![0; usize::from(len[0])];
            input.read(&mut aad);
            output.update(&seal_raw(key, &nonce, &plaintext, &aad));
        }
        let mut digest = [0; 32];
        output.finalize_xof().read(&mut digest);
        hex::encode(digest)
    }

    #[test]
    fn prefixes_that_share_a_slot_do_not_mix() {
        let cipher = Xaes256Gcm::new(&SecretKey::take(&mut [9; 32]));
        let seal = |last: u8| {
            let mut nonce = [7; 24];
            nonce[11] = last;
            let mut out = [0; 4];
            let tag = cipher.seal(&nonce, b"", b"same", &mut out);
            (out, tag)
        };
        let first = seal(1);
        assert_ne!(first, seal(2));
        assert_eq!(first, seal(1));
    }
}
