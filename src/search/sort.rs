//! Sort support (src/include/utils/sortsupport.h): a sort makes the tag of each
//! value once and compares its first 8 bytes; the whole tags only for ties, which
//! are equal values.

use pgrx::prelude::*;

use super::{Purpose, Side, compare};
use crate::access;
use crate::compat;
use crate::error::Error;
use crate::types::datum::{Call, Detoasted};

/// A sort is a query's, or builds an index.
fn purpose() -> Purpose {
    if access::maintains_for_another() {
        Purpose::Free
    } else {
        Purpose::Query
    }
}

/// # Safety
/// `support` is live.
unsafe fn set_up<T: Side>(support: pg_sys::SortSupport) {
    // SAFETY: by the caller's word.
    let support = unsafe { &mut *support };
    support.comparator = Some(compare_values::<T>);
    if support.abbreviate {
        support.comparator = Some(compat::compare_unsigned());
        support.abbrev_converter = Some(abbreviate::<T>);
        support.abbrev_abort = Some(keep_abbreviating);
        support.abbrev_full_comparator = Some(compare_values::<T>);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn compare_values<T: Side>(
    left: pg_sys::Datum,
    right: pg_sys::Datum,
    _support: pg_sys::SortSupport,
) -> i32 {
    // SAFETY: PostgreSQL passes values of the type that sorts.
    let (left, right) = unsafe {
        (
            T::operand(Detoasted::from_raw(left)),
            T::operand(Detoasted::from_raw(right)),
        )
    };
    Error::unwrap_or_raise(compare(&left, &right, purpose())) as i32
}

#[pg_guard]
unsafe extern "C-unwind" fn abbreviate<T: Side>(
    value: pg_sys::Datum,
    _support: pg_sys::SortSupport,
) -> pg_sys::Datum {
    // SAFETY: as in `compare_values`.
    let operand = T::operand(unsafe { Detoasted::from_raw(value) });
    let tag = Error::unwrap_or_raise(operand.tag(purpose()));
    pg_sys::Datum::from(tag.prefix() as usize)
}

/// Tags are uniform: abbreviating always pays.
unsafe extern "C-unwind" fn keep_abbreviating(_tuples: i32, _support: pg_sys::SortSupport) -> bool {
    false
}

/// `_sortsupport(internal)`, and `_sortsupport_plain(internal)`
pub(crate) fn sort_support<S: Side>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: declared so, with a SortSupport.
    unsafe { set_up::<S>(call.internal(0)) };
    pg_sys::Datum::null()
}
