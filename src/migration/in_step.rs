//! An encrypted column beside the plaintext one that it is to replace: the trigger that
//! keeps it in step, and the test whether it is.

use core::ffi::CStr;

use colcrypt_core::{Payload, is_reserved};
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::TOKEN_START;
use crate::error::{Error, Wire};
use crate::relations::{find_column, find_modifier, payload_of_column, relation_name};
use crate::sealing::Sealer;
use crate::types::datum::{Call, Detoasted, Varlena, VarlenaBuf, per_value_function};
use crate::types::plain::Plain;
use crate::types::{functions, json};
use crate::{encoding, sealing};

/// How the name of the trigger begins, before that of the column: it fires after others,
/// which fire in the order of their names.
pub(crate) const TRIGGER: &[u8] = b"~colcrypt ";

/// Both columns of a table.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    /// The plaintext column, and its type.
    pub(crate) source: i16,
    source_type: pg_sys::Oid,
    /// The encrypted one, and its type modifier.
    pub(crate) target: i16,
    modifier: i32,
    pub(crate) payload: Payload,
}

impl Pair {
    /// # Errors
    /// [`Error::NoColumn`], [`Error::WrongType`].
    pub(crate) fn find(relation: pg_sys::Oid, source: &CStr, target: &CStr) -> Result<Self, Error> {
        let name = relation_name(relation).unwrap_or_default();
        let source = find_column(relation, source, &name)?;
        let target_number = find_column(relation, target, &name)?;
        // SAFETY: the column exists.
        let source_type = unsafe { pg_sys::getBaseType(pg_sys::get_atttype(relation, source)) };
        let payload = payload_of_column(relation, target_number, target, &name)?;
        let expected = match payload {
            Payload::Text => &[pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::BPCHAROID][..],
            Payload::Bytea => &[pg_sys::BYTEAOID],
            Payload::Jsonb => &[pg_sys::JSONBOID, pg_sys::JSONOID],
        };
        // Anybody may make a trigger of the function.
        if !expected.contains(&source_type) {
            return Err(MISPLACED);
        }
        Ok(Self {
            source,
            source_type,
            target: target_number,
            modifier: find_modifier(relation, target_number),
            payload,
        })
    }

    /// A value of the plaintext column in the form that input has it.
    ///
    /// # Errors
    /// [`Error::InvalidLiteral`].
    fn plain<'a>(&self, value: &'a Detoasted<'_>) -> Result<Plain<'a>, Error> {
        Ok(match self.payload {
            Payload::Text if self.source_type == pg_sys::BPCHAROID => {
                // As its cast to text.
                let length = value
                    .iter()
                    .rposition(|byte| *byte != b' ')
                    .map_or(0, |last| last + 1);
                Plain::Borrowed(&value[..length])
            }
            Payload::Text | Payload::Bytea => Plain::Borrowed(value),
            Payload::Jsonb if self.source_type == pg_sys::JSONOID => {
                Plain::Made(json::normalized(value)?)
            }
            Payload::Jsonb => Plain::Made(json::print(value)),
        })
    }

    /// Whether a token of the plaintext column is taken over.
    fn adopted(&self, plain: &[u8]) -> Option<VarlenaBuf> {
        let adopts = self.payload != Payload::Jsonb
            && plain.starts_with(TOKEN_START)
            && functions::may_adopt(self.payload);
        let token = adopts.then(|| functions::adopt_fernet(self.payload, plain));
        token?.ok()
    }

    /// What belongs into the encrypted column.
    fn sealed(&self, value: &Detoasted<'_>) -> Result<VarlenaBuf, Error> {
        let plain = self.plain(value)?;
        match self.adopted(&plain) {
            Some(adopted) => Ok(adopted),
            // Whatever colcrypt.input says: the column beside it holds plaintext.
            None if is_reserved(json::unquoted_if(self.payload, &plain)) => {
                Err(Error::ReservedPrefix(Wire::Text))
            }
            None => Sealer::of_new_value(self.modifier)?.seal(self.payload, &plain),
        }
    }

    /// Whether a stored value holds what the plaintext column does. `rooms` are for
    /// plaintexts.
    ///
    /// # Errors
    /// As [`sealing::open_utf8`]; a damaged value does not hold it.
    ///
    /// # Safety
    /// Values of the two columns.
    pub(crate) unsafe fn is_in_step(
        &self,
        source: pg_sys::Datum,
        target: pg_sys::Datum,
        rooms: &mut [Zeroizing<Vec<u8>>; 2],
    ) -> Result<bool, Error> {
        // SAFETY: by the caller's word.
        let (value, stored) = unsafe { (Detoasted::from_raw(source), Varlena::from_raw(target)) };
        let [room, other_room] = rooms;
        let opened = match sealing::open_utf8(None, self.payload, &stored, room) {
            Ok(opened) => opened,
            Err(Error::Damaged { .. } | Error::Malformed | Error::NotText { .. }) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let plain = self.plain(&value)?;
        let is_same = match self.payload {
            Payload::Text => *encoding::to_utf8(&plain) == *opened,
            Payload::Bytea => *plain == *opened,
            Payload::Jsonb => *json::to_utf8(&plain) == *opened,
        };
        if is_same {
            return Ok(true);
        }
        Ok(match self.adopted(&plain) {
            Some(mut adopted) => {
                use crate::types::datum::Output;
                let bytes = adopted.bytes_mut();
                *sealing::open_utf8(None, self.payload, bytes, other_room)? == *opened
            }
            None => false,
        })
    }
}

// `colcrypt.keep_in_step()`
per_value_function!("colcrypt_keep_in_step", |call| {
    let call: Call<'_> = call;
    let trigger = Error::unwrap_or_raise(call.trigger().ok_or(MISPLACED));
    // SAFETY: PostgreSQL calls a trigger function with its data.
    unsafe { Error::unwrap_or_raise(keep_in_step(trigger)).into() }
});

const MISPLACED: Error =
    Error::Trigger("colcrypt.keep_in_step() is for the trigger of encrypt_column_online()");

/// The row to store.
///
/// # Safety
/// The data of a trigger that fires.
unsafe fn keep_in_step(trigger: &pg_sys::TriggerData) -> Result<pg_sys::HeapTuple, Error> {
    let event = trigger.tg_event;
    let is_for_row = event & pg_sys::TRIGGER_EVENT_ROW != 0
        && event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_BEFORE;
    // SAFETY: relation, rows and arguments are there for such an event.
    unsafe {
        let definition = &*trigger.tg_trigger;
        if !is_for_row || definition.tgnargs != 2 {
            return Err(MISPLACED);
        }
        let is_update = event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_UPDATE;
        let row = if is_update {
            trigger.tg_newtuple
        } else {
            trigger.tg_trigtuple
        };
        let arguments = core::slice::from_raw_parts(definition.tgargs, 2);
        let relation = trigger.tg_relation;
        let (source, target) = (CStr::from_ptr(arguments[0]), CStr::from_ptr(arguments[1]));
        let pair = Pair::find((*relation).rd_id, source, target)?;
        let descriptor = (*relation).rd_att;
        let get = |row, attribute: i16| {
            let mut is_null = false;
            let value = pg_sys::heap_getattr(row, attribute.into(), descriptor, &mut is_null);
            (!is_null).then_some(value)
        };
        let plain = get(row, pair.source);
        if is_update
            && let (Some(new), Some(old)) = (plain, get(trigger.tg_trigtuple, pair.source))
            && let (Some(kept), Some(stored)) = (
                get(row, pair.target),
                get(trigger.tg_trigtuple, pair.target),
            )
            && *Detoasted::from_raw(kept) == *Detoasted::from_raw(stored)
            && *Detoasted::from_raw(new) == *Detoasted::from_raw(old)
        {
            return Ok(row);
        }
        let sealed = match plain {
            Some(plain) => Some(pair.sealed(&Detoasted::from_raw(plain))?),
            None => None,
        };
        let mut columns = [i32::from(pair.target)];
        let mut nulls = [sealed.is_none()];
        let mut values = [sealed.map_or(pg_sys::Datum::null(), VarlenaBuf::into_raw)];
        Ok(pg_sys::heap_modify_tuple_by_cols(
            row,
            descriptor,
            1,
            columns.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        ))
    }
}
