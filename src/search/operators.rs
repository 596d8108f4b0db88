//! The operators, and the functions that the operator families are made of.
//! `sql/search.sql` declares them for each pair of encrypted_text (e) and
//! text (t).

use core::cmp::Ordering;

use pgrx::prelude::*;

use super::{Operand, Purpose, compare, equal};
use crate::error::Error;
use crate::types::datum::{Call, per_value_function};
use crate::{access, compat};

/// An argument as `Operand::Sealed` or `Operand::Plain`.
macro_rules! operand {
    ($kind:ident, $call:ident, $number:literal) => {
        // SAFETY: declared with an argument of this type, strict.
        Operand::$kind(unsafe { $call.detoasted($number) })
    };
}

macro_rules! operator {
    ($symbol:expr, $left:ident, $right:ident, $function:expr) => {
        per_value_function!($symbol, |call| {
            let call: Call<'_> = call;
            let function: fn(&Operand<'_>, &Operand<'_>, Purpose) -> Result<_, Error> = $function;
            let left = operand!($left, call, 0);
            let right = operand!($right, call, 1);
            let purpose = purpose_of_operator(&call);
            Error::unwrap_or_raise(function(&left, &right, purpose)).into()
        });
    };
}

/// All functions of one pair of types; the suffix tells the pairs apart.
macro_rules! operators {
    ($suffix:literal, $left:ident, $right:ident) => {
        operator!(concat!("encrypted_text_eq_", $suffix), $left, $right, equal);
        operator!(
            concat!("encrypted_text_ne_", $suffix),
            $left,
            $right,
            |a, b, purpose| { equal(a, b, purpose).map(|equal| !equal) }
        );
        operator!(
            concat!("encrypted_text_lt_", $suffix),
            $left,
            $right,
            |a, b, purpose| { compare(a, b, purpose).map(Ordering::is_lt) }
        );
        operator!(
            concat!("encrypted_text_le_", $suffix),
            $left,
            $right,
            |a, b, purpose| { compare(a, b, purpose).map(Ordering::is_le) }
        );
        operator!(
            concat!("encrypted_text_ge_", $suffix),
            $left,
            $right,
            |a, b, purpose| { compare(a, b, purpose).map(Ordering::is_ge) }
        );
        operator!(
            concat!("encrypted_text_gt_", $suffix),
            $left,
            $right,
            |a, b, purpose| { compare(a, b, purpose).map(Ordering::is_gt) }
        );
        per_value_function!(concat!("encrypted_text_cmp_", $suffix), |call| {
            let call: Call<'_> = call;
            if compat::in_vacuum() {
                way_to_the_left(&call).into()
            } else {
                let left = operand!($left, call, 0);
                let right = operand!($right, call, 1);
                let purpose = purpose_of_order(&call);
                (Error::unwrap_or_raise(compare(&left, &right, purpose)) as i32).into()
            }
        });
    };
}

operators!("ee", Sealed, Sealed);
operators!("et", Sealed, Plain);
operators!("te", Plain, Sealed);
operators!("tt", Plain, Plain);

/// What support function 1 of the btree families gives to VACUUM. VACUUM compares
/// only to find the way from the root to the parent of a page that it deletes
/// (`_bt_pagedel()` of nbtpage.c), and then walks to the right until it meets the
/// parent. So it finds it from the leftmost path too, and needs no key for that:
/// autovacuum must work in a server without one.
fn way_to_the_left(call: &Call<'_>) -> i32 {
    // SAFETY: in a VACUUM only `_bt_compare()` (nbtsearch.c) calls a support
    // function 1, with a scan key; unless someone has put a SET clause on it, or a
    // hook (fmgr_security_definer()), which is not for functions of the extension.
    let descending = unsafe { call.scan_key().sk_flags } & compat::SK_BT_DESC != 0;
    // It turns the sign round, unless the column is descending.
    if descending { -1 } else { 1 }
}

// How a function knows that it is called to keep an index in order, and not by a
// query. What can be told apart by what it is called with, is here; queries that
// search an index are refused before they run (`comparisons.rs`).

/// Support function 1 of the btree families. An index calls it with a scan key and
/// with what PostgreSQL gives to support functions of an index only, the options
/// of the operator class; a query that searches in it, with the type that it looks
/// for besides (`ExecIndexBuildScanKeys()`, where `_bt_mkscankey()` has none).
fn purpose_of_order(call: &Call<'_>) -> Purpose {
    if access::compares_everything() {
        return Purpose::Free;
    }
    // SAFETY: with the options of an operator class, support function 1 of a btree
    // is called by `_bt_compare()` only, which has it in a scan key.
    let in_index =
        call.has_index_options() && unsafe { call.scan_key() }.sk_subtype == pg_sys::InvalidOid;
    upkeep_if((in_index && !is_own_index(call)) || is_for_partition(call))
}

/// Support functions of the hash families: an index hashes what it stores, and
/// what is looked for in it, which compares it with nothing.
fn purpose_of_hash(call: &Call<'_>) -> Purpose {
    if access::compares_everything() {
        return Purpose::Free;
    }
    let in_index =
        call.has_index_options() && (!has_own_name(call) || crate::hooks::builds_for_another());
    upkeep_if(in_index || is_for_partition(call))
}

/// Operators: a unique constraint with ON CONFLICT looks for a duplicate with
/// scan keys of its own (`check_exclusion_or_unique_constraint()`).
fn purpose_of_operator(call: &Call<'_>) -> Purpose {
    if access::compares_everything() {
        return Purpose::Free;
    }
    upkeep_if(call.is_for_constraint() && !is_own_index(call))
}

/// Whether the function finds the partition of a row, in a table that is not the
/// user's own.
fn is_for_partition(call: &Call<'_>) -> bool {
    call.is_for_partition_key() && !has_own_name(call)
}

/// Whether the function is called for a relation that has the name of one of the
/// user's own. Its schema is not known here.
fn has_own_name(call: &Call<'_>) -> bool {
    call.relation_name().is_none_or(access::has_own)
}

/// Whether the value that an index has in one of its pages is in an index of the
/// user's own, or of a temporary table: a unique index that somebody made for the
/// purpose would tell him whether what he has copied into it is what he guesses.
fn is_own_index(call: &Call<'_>) -> bool {
    // The other one is what is entered; when a page is split that may be on the left.
    // SAFETY: declared with two varlenas, strict.
    let (left, right) = unsafe { (call.pointer(0), call.pointer(1)) };
    let index = compat::relation_of_page(left).or_else(|| compat::relation_of_page(right));
    access::is_own(index)
}

fn upkeep_if(upkeep: bool) -> Purpose {
    if upkeep {
        Purpose::Free
    } else {
        Purpose::Query
    }
}

/// Support function 1 of the hash families.
macro_rules! hash {
    ($symbol:literal, $extended:literal, $kind:ident) => {
        per_value_function!($symbol, |call| {
            let call: Call<'_> = call;
            let purpose = purpose_of_hash(&call);
            let tag = Error::unwrap_or_raise(operand!($kind, call, 0).tag(purpose));
            (tag.hash() as i32).into()
        });
        per_value_function!($extended, |call| {
            let call: Call<'_> = call;
            // SAFETY: declared with a bigint as second argument, strict.
            let seed = unsafe { call.int8(1) };
            let purpose = purpose_of_hash(&call);
            let tag = Error::unwrap_or_raise(operand!($kind, call, 0).tag(purpose));
            (tag.hash_extended(seed as u64) as i64).into()
        });
    };
}

hash!(
    "encrypted_text_hash_e",
    "encrypted_text_hash_extended_e",
    Sealed
);
hash!(
    "encrypted_text_hash_t",
    "encrypted_text_hash_extended_t",
    Plain
);

// `<`, `<=`, `>=`, `>`: text's order would disagree with ORDER BY, which goes by
// tag, and whoever pages through rows by them would lose some.
per_value_function!("encrypted_text_no_order", |_call| {
    Error::unwrap_or_raise::<pg_sys::Datum>(Err(Error::NoOrder))
});
