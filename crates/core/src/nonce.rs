//! Nonces that cannot repeat.
//!
//! A server process forks; a generator whose state is copied by `fork` hands
//! the same nonces to both sides. So every use states the process it is in, and
//! a change of process throws the state away.

use core::fmt;

use zeroize::Zeroizing;

use crate::aead::NONCE_LEN;

/// The operating system's random number generator failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random number generator failed")]
pub struct RandomError;

/// How many values one XAES prefix serves: no derived key ever seals more.
pub(crate) const EPOCH_VALUES: u32 = 1 << 20;

const POOL_LEN: usize = 4096;

/// Makes the nonces of one process. Holds no key material.
pub struct NonceSource {
    process: Option<u32>,
    epoch: Option<Epoch>,
    pool: Pool,
}

/// The right to draw nonces in the process that was named: what
/// [`NonceSource::in_process`] gives.
pub struct Nonces<'a>(&'a mut NonceSource);

struct Epoch {
    prefix: [u8; 12],
    counter: [u8; 12],
    left: u32,
}

/// Random bytes bought in bulk: one system call for 341 nonces. What was handed
/// out is wiped, so that it cannot be found in memory later.
struct Pool {
    bytes: Box<Zeroizing<[u8; POOL_LEN]>>,
    left: usize,
}

impl Default for NonceSource {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for NonceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceSource(..)")
    }
}

impl NonceSource {
    /// A source that has drawn nothing yet.
    pub fn new() -> Self {
        Self {
            process: None,
            epoch: None,
            pool: Pool {
                bytes: Box::new(Zeroizing::new([0; POOL_LEN])),
                left: 0,
            },
        }
    }

    /// The source as process number `process` may use it: anything drawn in
    /// another process, of which this one may be a fork, is thrown away.
    pub fn in_process(&mut self, process: u32) -> Nonces<'_> {
        if self.process != Some(process) {
            self.process = Some(process);
            self.epoch = None;
            self.pool.left = 0;
        }
        Nonces(self)
    }
}

impl Nonces<'_> {
    /// A 192-bit XAES-256-GCM nonce: the epoch's random 96-bit prefix, then a
    /// 96-bit counter that started at a random value. Within an epoch no pair
    /// repeats; two epochs meet only if 96 random bits do.
    pub(crate) fn xaes(&mut self) -> Result<[u8; 24], RandomError> {
        if self.0.epoch.as_ref().is_none_or(|epoch| epoch.left == 0) {
            // Straight from the system's generator, once in 2^20 values.
            let mut random = [[0; 12]; 2];
            getrandom::fill(random.as_flattened_mut()).map_err(|_| RandomError)?;
            let [prefix, counter] = random;
            self.0.epoch = Some(Epoch {
                prefix,
                counter,
                left: EPOCH_VALUES,
            });
        }
        let epoch = self.0.epoch.as_mut().expect("made above");
        let mut nonce = [0; 24];
        nonce[..12].copy_from_slice(&epoch.prefix);
        nonce[12..].copy_from_slice(&epoch.counter);
        increment(&mut epoch.counter);
        epoch.left -= 1;
        Ok(nonce)
    }

    /// A random 96-bit nonce (NIST SP 800-38D section 8.2.2).
    pub(crate) fn random(&mut self) -> Result<[u8; NONCE_LEN], RandomError> {
        let mut nonce = [0; NONCE_LEN];
        self.fill(&mut nonce)?;
        Ok(nonce)
    }

    /// Random bytes, at most [`POOL_LEN`] of them.
    pub(crate) fn fill(&mut self, out: &mut [u8]) -> Result<(), RandomError> {
        let pool = &mut self.0.pool;
        if pool.left < out.len() {
            getrandom::fill(pool.bytes.as_mut_slice()).map_err(|_| RandomError)?;
            pool.left = POOL_LEN;
        }
        let used = &mut pool.bytes[pool.left - out.len()..pool.left];
        out.copy_from_slice(used);
        used.fill(0);
        pool.left -= out.len();
        Ok(())
    }
}

/// Adds one to a big-endian number, wrapping.
fn increment(counter: &mut [u8; 12]) {
    for byte in counter.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_counter_carries_and_wraps() {
        let mut counter = [0xff; 12];
        counter[0] = 0;
        increment(&mut counter);
        assert_eq!(counter, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut counter = [0xff; 12];
        increment(&mut counter);
        assert_eq!(counter, [0; 12]);
    }

    #[test]
    fn an_epoch_keeps_its_prefix_and_never_repeats_a_counter() {
        let mut source = NonceSource::new();
        let mut nonces = source.in_process(1);
        let first = nonces.xaes().expect("random bytes");
        let mut seen = HashSet::from([first]);
        for _ in 1..EPOCH_VALUES {
            let nonce = nonces.xaes().expect("random bytes");
            assert_eq!(nonce[..12], first[..12]);
            assert!(seen.insert(nonce));
        }
        let next = nonces.xaes().expect("random bytes");
        assert_ne!(next[..12], first[..12], "2^20 values end the epoch");
    }

    /// What `fork` does: the child starts with a copy of the parent's state.
    #[test]
    fn a_forked_process_starts_its_own_epoch_and_pool() {
        let mut parent = NonceSource::new();
        let before = parent.in_process(100).xaes().expect("random bytes");
        parent.in_process(100).random().expect("random bytes");
        let mut child = NonceSource {
            process: parent.process,
            epoch: parent.epoch.as_ref().map(|epoch| Epoch { ..*epoch }),
            pool: Pool {
                bytes: parent.pool.bytes.clone(),
                left: parent.pool.left,
            },
        };
        assert_ne!(
            child.in_process(101).xaes().expect("random bytes")[..12],
            before[..12]
        );
        assert_ne!(
            child.in_process(101).random(),
            parent.in_process(100).random()
        );
    }

    #[test]
    fn the_pool_refills_and_wipes_what_it_gave() {
        let mut source = NonceSource::new();
        let mut nonces = source.in_process(1);
        let mut seen = HashSet::new();
        for _ in 0..2 * POOL_LEN / NONCE_LEN {
            assert!(seen.insert(nonces.random().expect("random bytes")));
        }
        let left = source.pool.left;
        assert!(
            source.pool.bytes[left..][..NONCE_LEN]
                .iter()
                .all(|b| *b == 0)
        );
    }
}
