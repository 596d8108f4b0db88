//! The operators, and the functions that the operator families are made of.
//! `sql/search.sql` declares them for each pair of an encrypted type (e) and its
//! plain type (p).

use core::cmp::Ordering;

use colcrypt_core::Tag;
use pgrx::prelude::*;

use super::{Operand, Purpose, Side, compare, equal, tags};
use crate::error::Error;
use crate::types::datum::{Call, per_value_function};
use crate::{access, compat};

/// Defines the operators and support functions of an encrypted type.
macro_rules! search_functions {
    ($name:literal, $type:ty) => {
        const _: () = {
            use $crate::search::operators::*;
            use $crate::types::datum::per_value_function;

            type E = $crate::search::Sealed<$type>;
            type P = $crate::search::Plain<$type>;
    $crate::search::search_functions!(@pair $name, "_ee", E, E);
    $crate::search::search_functions!(@pair $name, "_ep", E, P);
    $crate::search::search_functions!(@pair $name, "_pe", P, E);
    $crate::search::search_functions!(@pair $name, "_pp", P, P);
    $crate::search::search_functions!(@one $name, "", E);
    $crate::search::search_functions!(@one $name, "_plain", P);
            per_value_function!(concat!($name, "_typanalyze"), |call| {
                $crate::search::typanalyze::<$type>(&call)
            });
        };
    };
    (@pair $name:literal, $suffix:literal, $left:ty, $right:ty) => {
        per_value_function!(concat!($name, "_eq", $suffix), |call| {
            is_equal::<$left, $right>(&call).into()
        });
        per_value_function!(concat!($name, "_ne", $suffix), |call| {
            (!is_equal::<$left, $right>(&call)).into()
        });
        per_value_function!(concat!($name, "_lt", $suffix), |call| {
            order::<$left, $right>(&call).is_lt().into()
        });
        per_value_function!(concat!($name, "_le", $suffix), |call| {
            order::<$left, $right>(&call).is_le().into()
        });
        per_value_function!(concat!($name, "_ge", $suffix), |call| {
            order::<$left, $right>(&call).is_ge().into()
        });
        per_value_function!(concat!($name, "_gt", $suffix), |call| {
            order::<$left, $right>(&call).is_gt().into()
        });
        per_value_function!(
            concat!($name, "_cmp", $suffix),
            quick | call | known_index_order::<$left, $right>(call).map(Into::into),
            |call| index_order::<$left, $right>(&call).into()
        );
    };
    (@one $name:literal, $suffix:literal, $side:ty) => {
        per_value_function!(concat!($name, "_hash", $suffix), |call| {
            hash::<$side>(&call)
        });
        per_value_function!(concat!($name, "_hash_extended", $suffix), |call| {
            hash_extended::<$side>(&call)
        });
        per_value_function!(concat!($name, "_sortsupport", $suffix), |call| {
            $crate::search::sort_support::<$side>(&call)
        });
    };
}
pub(crate) use search_functions;

/// Both arguments of an operator's function.
fn operands<'a, L: Side, R: Side>(call: &Call<'a>) -> (Operand<'a>, Operand<'a>) {
    // SAFETY: declared with two varlenas, strict.
    let (left, right) = unsafe { (call.detoasted(0), call.detoasted(1)) };
    (L::operand(left), R::operand(right))
}

/// The operators `=` and `<>`.
#[inline]
pub(crate) fn is_equal<L: Side, R: Side>(call: &Call<'_>) -> bool {
    let (left, right) = operands::<L, R>(call);
    Error::unwrap_or_raise(equal(&left, &right, purpose_of_operator(call)))
}

/// The operators of the btree families.
pub(crate) fn order<L: Side, R: Side>(call: &Call<'_>) -> Ordering {
    let (left, right) = operands::<L, R>(call);
    Error::unwrap_or_raise(compare(&left, &right, purpose_of_operator(call)))
}

/// The same, if it is known: as [`tags::known_order`].
#[inline]
pub(crate) fn known_index_order<L: Side, R: Side>(call: &Call<'_>) -> Option<i32> {
    if L::IS_PLAIN || compat::in_vacuum() {
        return None;
    }
    // SAFETY: declared with two varlenas, strict.
    let (left, right) = unsafe { (call.in_place(0)?, call.in_place(1)?) };
    tags::known_order(L::PAYLOAD, left, R::IS_PLAIN, right).map(|order| order as i32)
}

/// Support function 1 of the btree families.
#[inline]
pub(crate) fn index_order<L: Side, R: Side>(call: &Call<'_>) -> i32 {
    if compat::in_vacuum() {
        return way_to_the_left(call);
    }
    let (left, right) = operands::<L, R>(call);
    Error::unwrap_or_raise(compare(&left, &right, purpose_of_order(call))) as i32
}

/// Support function 1 of the hash families.
#[inline]
pub(crate) fn hash<S: Side>(call: &Call<'_>) -> pg_sys::Datum {
    (hashed_tag::<S>(call).hash() as i32).into()
}

/// Support function 2 of the hash families.
pub(crate) fn hash_extended<S: Side>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: declared with a bigint as second argument, strict.
    let seed = unsafe { call.int8(1) };
    (hashed_tag::<S>(call).hash_extended(seed as u64) as i64).into()
}

fn hashed_tag<S: Side>(call: &Call<'_>) -> Tag {
    // SAFETY: declared with a varlena as first argument, strict.
    let operand = S::operand(unsafe { call.detoasted(0) });
    Error::unwrap_or_raise(operand.tag(purpose_of_hash(call)))
}

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
    let for_others = || access::maintains_for_another() || !is_own_index(call);
    upkeep_if((in_index && for_others()) || is_for_partition(call))
}

/// Support functions of the hash families: an index hashes what it stores, and
/// what is looked for in it, which compares it with nothing.
fn purpose_of_hash(call: &Call<'_>) -> Purpose {
    if access::compares_everything() {
        return Purpose::Free;
    }
    let in_index =
        call.has_index_options() && (!has_own_name(call) || access::maintains_for_another());
    upkeep_if(in_index || is_for_partition(call))
}

/// Operators: a unique constraint with ON CONFLICT looks for a duplicate with
/// scan keys of its own (`check_exclusion_or_unique_constraint()`).
fn purpose_of_operator(call: &Call<'_>) -> Purpose {
    if access::compares_everything() {
        return Purpose::Free;
    }
    let for_others = || access::maintains_for_another() || !is_own_index(call);
    upkeep_if(call.is_for_constraint() && for_others())
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

// `<`, `<=`, `>=`, `>`: the plain type's order would disagree with ORDER BY, which goes by
// tag, and whoever pages through rows by them would lose some.
per_value_function!("encrypted_no_order", |_call| {
    Error::unwrap_or_raise::<pg_sys::Datum>(Err(Error::NoOrder))
});
