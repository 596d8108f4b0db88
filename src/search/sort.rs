//! Sort support (src/include/utils/sortsupport.h): a sort makes the tag of each
//! value once and compares its first 8 bytes; the whole tags only for ties, which
//! are equal values.

use pgrx::prelude::*;

use super::{Operand, Purpose, compare};
use crate::compat;
use crate::error::Error;
use crate::types::datum::{Detoasted, per_value_function};

/// A type that sorts: encrypted_text, or text by its tags.
trait Sorted {
    fn operand(value: Detoasted<'_>) -> Operand<'_>;
}

struct Sealed;
struct Plain;

impl Sorted for Sealed {
    fn operand(value: Detoasted<'_>) -> Operand<'_> {
        Operand::Sealed(value)
    }
}

impl Sorted for Plain {
    fn operand(value: Detoasted<'_>) -> Operand<'_> {
        Operand::Plain(value)
    }
}

/// A sort is a query's, or builds an index.
fn purpose() -> Purpose {
    if crate::hooks::builds_for_another() {
        Purpose::Free
    } else {
        Purpose::Query
    }
}

/// # Safety
/// `support` is live.
unsafe fn set_up<T: Sorted>(support: pg_sys::SortSupport) {
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
unsafe extern "C-unwind" fn compare_values<T: Sorted>(
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
unsafe extern "C-unwind" fn abbreviate<T: Sorted>(
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

per_value_function!("encrypted_text_sortsupport_e", |call| {
    // SAFETY: declared as (internal), a SortSupport.
    unsafe { set_up::<Sealed>(call.internal(0)) };
    pg_sys::Datum::null()
});

per_value_function!("encrypted_text_sortsupport_t", |call| {
    // SAFETY: as above.
    unsafe { set_up::<Plain>(call.internal(0)) };
    pg_sys::Datum::null()
});
