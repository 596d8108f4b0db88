//! Memory for keys: pages that the operating system locks into memory and leaves out
//! of core dumps; and pages that a process shares with those that it forks.
//!
//! The one crate beside the extension with `unsafe`: what it gives out is safe.

#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

mod guarded;
mod pages;
mod registers;

pub use guarded::{Guarded, is_locked, lock_again};
pub use pages::shared_words;
pub use registers::clear_vector_registers;
