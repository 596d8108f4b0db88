//! How bytes pass between PostgreSQL and Rust without a copy: arguments are
//! borrowed from the datum, results are written where PostgreSQL will read them.
//! The unsafe code of the encrypted types is here.

use core::ffi::{CStr, c_char};
use core::marker::PhantomData;
use core::ptr::NonNull;

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::prelude::*;
use pgrx::varlena;

use crate::compat;

/// A borrowed value of an SQL type whose values are variable-length bytes: its bytes
/// without the length word.
///
/// In place unless it was compressed or stored out of line.
pub(crate) struct Varlena<'a> {
    bytes: &'a [u8],
}

/// A result of such a type, written in place.
pub(crate) struct VarlenaBuf {
    value: NonNull<pg_sys::varlena>,
    len: usize,
}

/// A result of the SQL type `cstring`, written in place.
pub(crate) struct CStringBuf {
    value: NonNull<u8>,
    len: usize,
}

/// Declares a C function (version 1 calling convention, src/include/fmgr.h) for
/// what PostgreSQL calls once for every value. `#[pg_extern]` walks the arguments
/// with an iterator, which takes a tenth of the time that opening a value takes, and
/// cannot be part of what a macro defines for each type.
///
/// The body turns a [`Call`] into the result's datum. With `quick` before it, a function
/// that may know the result at once: it must not panic and not call what may raise an
/// error, for it runs outside of pgrx's guard, which takes as long as a comparison.
macro_rules! per_value_function {
    ($symbol:expr, |$call:ident| $body:expr) => {
        $crate::types::datum::per_value_function!($symbol, quick | _ | None, |$call| $body);
    };
    ($symbol:expr, quick |$quick_call:pat_param| $quick:expr, |$call:ident| $body:expr) => {
        const _: () = {
            #[unsafe(export_name = concat!("pg_finfo_", $symbol))]
            extern "C" fn finfo() -> &'static ::pgrx::pg_sys::Pg_finfo_record {
                const V1: ::pgrx::pg_sys::Pg_finfo_record =
                    ::pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &V1
            }

            #[unsafe(export_name = $symbol)]
            unsafe extern "C-unwind" fn function(
                call: ::pgrx::pg_sys::FunctionCallInfo,
            ) -> ::pgrx::pg_sys::Datum {
                // SAFETY: PostgreSQL calls the function with a live call.
                let $quick_call = unsafe { &$crate::types::datum::Call::new(call) };
                let quick: Option<::pgrx::pg_sys::Datum> = $quick;
                match quick {
                    Some(result) => result,
                    // SAFETY: as above.
                    None => unsafe { guarded(call) },
                }
            }

            #[::pgrx::pg_guard]
            unsafe extern "C-unwind" fn guarded(
                call: ::pgrx::pg_sys::FunctionCallInfo,
            ) -> ::pgrx::pg_sys::Datum {
                // SAFETY: as above.
                let $call = unsafe { $crate::types::datum::Call::new(call) };
                $body
            }
        };
    };
}
pub(crate) use per_value_function;

/// Strategies of equality (src/include/access/stratnum.h).
const EQUAL_IN_HASH: u16 = 1;
const EQUAL_IN_BTREE: u16 = 3;

/// A call of a strict function: no argument is null.
pub(crate) struct Call<'a> {
    raw: pg_sys::FunctionCallInfo,
    lifetime: PhantomData<&'a ()>,
}

impl<'a> Call<'a> {
    /// # Safety
    /// `call` is live, and no argument is null.
    pub(crate) unsafe fn new(call: pg_sys::FunctionCallInfo) -> Self {
        Self {
            raw: call,
            lifetime: PhantomData,
        }
    }

    fn info(&self) -> &'a pg_sys::FunctionCallInfoBaseData {
        // SAFETY: live, by the word of the caller of `new`.
        unsafe { &*self.raw }
    }

    /// # Safety
    /// The SQL function is declared with an argument of this number.
    unsafe fn datum(&self, number: usize) -> pg_sys::Datum {
        debug_assert!(
            number < self.info().nargs as usize,
            "declared with fewer arguments"
        );
        // SAFETY: by the caller's word the array is that long.
        unsafe { (*self.info().args.as_ptr().add(number)).value }
    }

    /// # Safety
    /// The SQL function declares this argument as a varlena.
    pub(crate) unsafe fn varlena(&self, number: usize) -> Varlena<'a> {
        // SAFETY: by the caller's word; arguments outlive the call.
        unsafe { Varlena::from_raw(self.datum(number)) }
    }

    /// As `varlena`, for functions that are called with a long-lived memory
    /// context: a copy that detoasting made is freed on drop.
    ///
    /// # Safety
    /// The SQL function declares this argument as a varlena.
    pub(crate) unsafe fn detoasted(&self, number: usize) -> Detoasted<'a> {
        // SAFETY: by the caller's word.
        unsafe { Detoasted::from_raw(self.datum(number)) }
    }

    /// The result NULL.
    pub(crate) fn null(&self) -> pg_sys::Datum {
        // SAFETY: live, by the word of the caller of `new`; only this writes to it.
        unsafe { (*self.raw).isnull = true };
        pg_sys::Datum::null()
    }

    /// The call, for functions of PostgreSQL.
    pub(crate) fn raw(&self) -> pg_sys::FunctionCallInfo {
        self.raw
    }

    /// The bytes of an argument, if it can be read where it is.
    ///
    /// # Safety
    /// The SQL function declares this argument as a varlena.
    #[inline]
    pub(crate) unsafe fn in_place(&self, number: usize) -> Option<&'a [u8]> {
        // SAFETY: by the caller's word; arguments outlive the call.
        unsafe {
            let value: *mut pg_sys::varlena = self.datum(number).cast_mut_ptr();
            is_plain(value).then(|| {
                let bytes = varlena::vardata_any(value).cast();
                core::slice::from_raw_parts(bytes, varlena::varsize_any_exhdr(value))
            })
        }
    }

    /// Where an argument is.
    ///
    /// # Safety
    /// The SQL function declares this argument as of a type passed by reference.
    pub(crate) unsafe fn pointer(&self, number: usize) -> *const u8 {
        // SAFETY: by the caller's word.
        unsafe { self.datum(number).cast_mut_ptr() }
    }

    /// # Safety
    /// The SQL function declares this argument as `internal`, a `T`.
    pub(crate) unsafe fn internal<T>(&self, number: usize) -> *mut T {
        // SAFETY: by the caller's word.
        unsafe { self.datum(number).cast_mut_ptr() }
    }

    /// The scan key that the function is called for.
    ///
    /// # Safety
    /// The function is called through the `sk_func` of a scan key.
    pub(crate) unsafe fn scan_key(&self) -> &'a pg_sys::ScanKeyData {
        // SAFETY: by the caller's word the function's description is a field of it.
        unsafe {
            let function: *const u8 = self.info().flinfo.cast();
            &*function
                .sub(core::mem::offset_of!(pg_sys::ScanKeyData, sk_func))
                .cast()
        }
    }

    /// Whether the function is called as a support function of an index: with the
    /// options of its operator class, in the form that PostgreSQL gives them to
    /// such functions only (`set_fn_opclass_options()` of fmgr.c). In expressions
    /// there is the node of the call, elsewhere nothing.
    pub(crate) fn has_index_options(&self) -> bool {
        // SAFETY: the description of the function is live; its expression is null
        // or a node.
        unsafe {
            let expression = (*self.info().flinfo).fn_expr;
            !expression.is_null()
                && (*expression).type_ == pg_sys::NodeTag::T_Const
                && (*expression.cast::<pg_sys::Const>()).consttype == pg_sys::BYTEAOID
        }
    }

    /// Whether the function is called to find the partition of a row: its
    /// description then lives with the partition key in the relation cache
    /// (`RelationBuildPartitionKey()` of partcache.c). Plans and
    /// `satisfies_hash_partition()` have copies of their own.
    pub(crate) fn is_for_partition_key(&self) -> bool {
        // SAFETY: the memory context of the description is live and has a name.
        unsafe {
            let function = &*self.info().flinfo;
            function.fn_expr.is_null()
                && !function.fn_mcxt.is_null()
                && CStr::from_ptr((*function.fn_mcxt).name) == c"partition key"
        }
    }

    /// The name of the relation in whose part of the relation cache the function's
    /// description lives, if it does: an index (`RelationInitIndexAccessInfo()`), or
    /// a partitioned table.
    pub(crate) fn relation_name(&self) -> Option<&'a CStr> {
        // SAFETY: the memory context of the description is live; its identifier is
        // null or NUL-terminated.
        unsafe {
            let context = (*self.info().flinfo).fn_mcxt.as_ref()?;
            context.ident.as_ref().map(|name| CStr::from_ptr(name))
        }
    }

    /// Whether an operator's function with two arguments is called through the
    /// scan key of a constraint that looks for a duplicate: of no type, and
    /// followed by what is looked for.
    pub(crate) fn is_for_constraint(&self) -> bool {
        // SAFETY: the description is live. It is in memory that PostgreSQL
        // allocated or on its stack, where there are some bytes before and after
        // it: so it may be looked at as if it were in a scan key, whose members
        // are plain numbers.
        unsafe {
            if !(*self.info().flinfo).fn_expr.is_null() || self.info().nargs != 2 {
                return false;
            }
            let key = self.scan_key();
            (1..=pg_sys::INDEX_MAX_KEYS as i16).contains(&key.sk_attno)
                && [EQUAL_IN_HASH, EQUAL_IN_BTREE].contains(&key.sk_strategy)
                && key.sk_subtype == pg_sys::InvalidOid
                && key.sk_collation == pg_sys::InvalidOid
                && key.sk_argument == self.datum(1)
        }
    }

    /// What a trigger function is called with; `None` if it is called otherwise.
    pub(crate) fn trigger(&self) -> Option<&'a pg_sys::TriggerData> {
        // SAFETY: the context is null or a node that says what it is.
        unsafe {
            let context = self.info().context.as_ref()?;
            (context.type_ == pg_sys::NodeTag::T_TriggerData)
                .then(|| &*core::ptr::from_ref(context).cast::<pg_sys::TriggerData>())
        }
    }

    /// # Safety
    /// The SQL function declares this argument as `bigint`.
    pub(crate) unsafe fn int8(&self, number: usize) -> i64 {
        // SAFETY: by the caller's word.
        unsafe { self.datum(number).value() as i64 }
    }

    /// # Safety
    /// The SQL function declares this argument as `boolean`.
    pub(crate) unsafe fn bool(&self, number: usize) -> bool {
        // SAFETY: by the caller's word.
        unsafe { self.datum(number).value() != 0 }
    }

    /// # Safety
    /// The SQL function declares this argument as `cstring` or `name`.
    pub(crate) unsafe fn cstring(&self, number: usize) -> &'a CStr {
        // SAFETY: by the caller's word.
        unsafe { CStr::from_ptr(self.datum(number).cast_mut_ptr()) }
    }

    /// # Safety
    /// The SQL function declares this argument as `integer`.
    pub(crate) unsafe fn int4(&self, number: usize) -> i32 {
        // SAFETY: by the caller's word.
        unsafe { self.datum(number).value() as i32 }
    }
}

/// Somewhere to write a result of known or bounded length.
pub(crate) trait Output: Sized {
    /// Room for `len` bytes, all zero.
    fn zeroed(len: usize) -> Self;
    /// The bytes.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Gives up all but the first `len` bytes.
    fn truncate(&mut self, len: usize);

    /// A copy of `bytes`.
    fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.bytes_mut().copy_from_slice(bytes);
        copy
    }
}

impl core::ops::Deref for Varlena<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Varlena<'_> {
    /// # Safety
    /// `datum` is a valid, non-null varlena datum that outlives `self`.
    pub(crate) unsafe fn from_raw(datum: pg_sys::Datum) -> Self {
        // SAFETY: by the caller's word.
        let value = unsafe { Detoasted::from_raw(datum) };
        let bytes = value.bytes;
        // A copy lives as long as the call's memory context.
        core::mem::forget(value);
        Self { bytes }
    }
}

/// The bytes of a varlena, in place or in a copy that is freed on drop.
pub(crate) struct Detoasted<'a> {
    bytes: &'a [u8],
    copy: *mut pg_sys::varlena,
}

impl Detoasted<'_> {
    /// # Safety
    /// `datum` is a valid, non-null varlena datum that outlives `self`.
    #[inline]
    pub(crate) unsafe fn from_raw(datum: pg_sys::Datum) -> Self {
        // SAFETY: the datum is a varlena by the caller's word; detoasting gives
        // either the same pointer or a palloc'd copy.
        unsafe {
            let value: *mut pg_sys::varlena = datum.cast_mut_ptr();
            let (packed, copy) = if is_plain(value) {
                (value, core::ptr::null_mut())
            } else {
                let copy = pg_sys::pg_detoast_datum_packed(value);
                (copy, copy)
            };
            let bytes = core::slice::from_raw_parts(
                varlena::vardata_any(packed).cast(),
                varlena::varsize_any_exhdr(packed),
            );
            Self { bytes, copy }
        }
    }
}

impl core::ops::Deref for Detoasted<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Detoasted<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.copy.is_null() {
            // SAFETY: palloc'd by detoasting; nothing else refers to it.
            unsafe { pg_sys::pfree(self.copy.cast()) };
        }
    }
}

/// Whether a varlena can be read where it is. Saves the common case a call
/// through pgrx's guard.
///
/// # Safety
/// `value` points to a varlena.
unsafe fn is_plain(value: *const pg_sys::varlena) -> bool {
    // SAFETY: a varlena has at least its first header byte.
    unsafe { !varlena::varatt_is_1b_e(value) && !varlena::varatt_is_4b_c(value) }
}

/// How many bytes a value takes where it is stored, with its length word.
///
/// # Safety
/// `datum` is a valid, non-null varlena datum.
pub(crate) unsafe fn stored_size(datum: pg_sys::Datum) -> usize {
    // SAFETY: by the caller's word.
    unsafe { pg_sys::toast_datum_size(datum) }
}

/// The first `N` bytes of a stored value, without fetching the rest of one that
/// is stored out of line; `None` if it is shorter.
///
/// # Safety
/// `datum` is a valid, non-null varlena datum.
pub(crate) unsafe fn first_bytes<const N: usize>(datum: pg_sys::Datum) -> Option<[u8; N]> {
    // SAFETY: as the caller says; the slice that comes back is palloc'd.
    unsafe {
        let value: *mut pg_sys::varlena = datum.cast_mut_ptr();
        if is_plain(value) {
            return Varlena::from_raw(datum).first_chunk().copied();
        }
        let slice = pg_sys::pg_detoast_datum_slice(value, 0, N as i32);
        let bytes = Varlena::from_raw(slice.into()).first_chunk().copied();
        pg_sys::pfree(slice.cast());
        bytes
    }
}

impl Output for VarlenaBuf {
    fn zeroed(len: usize) -> Self {
        let size = len + pg_sys::VARHDRSZ;
        let value = compat::palloc0(size).cast();
        // SAFETY: `size` bytes are there; palloc0 raises an error from 1 GB on, so
        // the length fits the length word.
        unsafe { varlena::set_varsize_4b(value.as_ptr(), size as i32) };
        Self { value, len }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialized bytes follow the length word, and are only
        // reachable through `self`.
        unsafe {
            let data: *mut u8 = self.value.as_ptr().cast();
            core::slice::from_raw_parts_mut(data.add(pg_sys::VARHDRSZ), self.len)
        }
    }

    fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "a result only shrinks");
        self.len = len;
        // SAFETY: the value is at least this long.
        unsafe { varlena::set_varsize_4b(self.value.as_ptr(), (len + pg_sys::VARHDRSZ) as i32) };
    }
}

impl VarlenaBuf {
    /// A result that PostgreSQL made.
    ///
    /// # Safety
    /// `value` is a valid, palloc'd, uncompressed varlena with a 4-byte length
    /// word.
    pub(crate) unsafe fn from_raw(value: *mut pg_sys::varlena) -> Self {
        // SAFETY: by the caller's word.
        unsafe {
            let len = varlena::varsize_any_exhdr(value);
            Self {
                value: NonNull::new_unchecked(value),
                len,
            }
        }
    }

    /// Wipes and frees it.
    pub(crate) fn wipe(mut self) {
        self.bytes_mut().fill(0);
        core::hint::black_box(self.value);
        // SAFETY: palloc'd, and nothing else refers to it.
        unsafe { pg_sys::pfree(self.value.as_ptr().cast()) };
    }

    /// The datum; the memory context owns the value from here on.
    pub(crate) fn into_raw(self) -> pg_sys::Datum {
        self.value.as_ptr().into()
    }
}

impl CStringBuf {
    /// The datum; the memory context owns the string from here on.
    pub(crate) fn into_raw(self) -> pg_sys::Datum {
        self.value.as_ptr().cast::<c_char>().into()
    }
}

impl Output for CStringBuf {
    fn zeroed(len: usize) -> Self {
        // The last byte ends the string.
        Self {
            value: compat::palloc0(len + 1).cast(),
            len,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialized bytes, only reachable through `self`.
        unsafe { core::slice::from_raw_parts_mut(self.value.as_ptr(), self.len) }
    }

    fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "a result only shrinks");
        // SAFETY: there is room for the end after any of the first `self.len` bytes.
        unsafe { *self.value.as_ptr().add(len) = 0 };
        self.len = len;
    }
}

// SAFETY: the value is palloc'd and NUL-terminated.
unsafe impl BoxRet for CStringBuf {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: a C string, which the function is declared to return.
        unsafe { fcinfo.return_raw_datum(self.into_raw()) }
    }
}

impl_sql_translatable!(CStringBuf, "cstring");

/// A result of type `record`.
pub(crate) struct Record(pg_sys::Datum);

impl Record {
    /// A row of the type that the call is expected to return; `None` is NULL.
    ///
    /// # Safety
    /// `call` is the current call, and `columns` are of the types that its SQL
    /// function returns.
    pub(crate) unsafe fn new<const N: usize>(
        call: pg_sys::FunctionCallInfo,
        columns: [Option<pg_sys::Datum>; N],
    ) -> Self {
        let mut nulls = columns.map(|column| column.is_none());
        let mut values = columns.map(|column| column.unwrap_or(pg_sys::Datum::null()));
        // SAFETY: by the caller's word the types agree; both arrays have a member
        // for each column, which is checked.
        unsafe {
            let mut descriptor = core::ptr::null_mut();
            let class =
                pg_sys::get_call_result_type(call, core::ptr::null_mut(), &raw mut descriptor);
            assert_eq!(
                class,
                pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE,
                "the function is declared with OUT parameters"
            );
            assert_eq!(
                (*descriptor).natts as usize,
                N,
                "as many columns as declared"
            );
            let descriptor = pg_sys::BlessTupleDesc(descriptor);
            let tuple =
                pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            Self(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
        }
    }
}

impl Record {
    /// The datum.
    pub(crate) fn into_raw(self) -> pg_sys::Datum {
        self.0
    }
}

// SAFETY: the datum is a palloc'd row.
unsafe impl BoxRet for Record {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: a row of the type that the call expects.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

impl_sql_translatable!(Record, "record");
