//! The encrypted types.

pub(crate) mod datum;
pub(crate) mod encrypted_text;
