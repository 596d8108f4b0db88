//! `colcrypt.keep_masked()`: forms that were filled with a mask send it back. The
//! trigger keeps the old value where the new one is the mask.

use core::ffi::CStr;

use colcrypt_core::Payload;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::relations;
use crate::types::datum::{Call, Varlena, per_value_function};
use crate::{access, sealing};

per_value_function!("colcrypt_keep_masked", |call| {
    let call: Call<'_> = call;
    let trigger = Error::unwrap_or_raise(call.trigger().ok_or(NOT_A_TRIGGER));
    // SAFETY: PostgreSQL calls a trigger function with its data.
    unsafe { Error::unwrap_or_raise(keep_masked(trigger)).into() }
});

const NOT_A_TRIGGER: Error =
    Error::Trigger("colcrypt.keep_masked() must be fired BEFORE UPDATE FOR EACH ROW");

/// The row to store.
///
/// # Safety
/// The data of a trigger that fires.
unsafe fn keep_masked(trigger: &pg_sys::TriggerData) -> Result<pg_sys::HeapTuple, Error> {
    // TRIGGER_EVENT_ROW, TRIGGER_EVENT_BEFORE and TRIGGER_EVENT_UPDATE of
    // src/include/commands/trigger.h.
    const WANTED: u32 =
        pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_BEFORE | pg_sys::TRIGGER_EVENT_UPDATE;
    const MASK: u32 =
        pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_TIMINGMASK | pg_sys::TRIGGER_EVENT_OPMASK;
    if trigger.tg_event & MASK != WANTED {
        return Err(NOT_A_TRIGGER);
    }
    // SAFETY: relation, both rows and the arguments are there for such an event.
    unsafe {
        let relation = trigger.tg_relation;
        let descriptor = (*relation).rd_att;
        let count = (*descriptor).natts as usize;
        let definition = &*trigger.tg_trigger;
        let arguments = if definition.tgnargs > 0 {
            core::slice::from_raw_parts(definition.tgargs, definition.tgnargs as usize)
        } else {
            return Err(Error::Trigger(
                "colcrypt.keep_masked() takes the names of one or more columns",
            ));
        };
        let name = relations::relation_name((*relation).rd_id).unwrap_or_default();
        let (mut old, mut old_nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
        let (mut new, mut new_nulls) = (old.clone(), old_nulls.clone());
        pg_sys::heap_deform_tuple(
            trigger.tg_trigtuple,
            descriptor,
            old.as_mut_ptr(),
            old_nulls.as_mut_ptr(),
        );
        pg_sys::heap_deform_tuple(
            trigger.tg_newtuple,
            descriptor,
            new.as_mut_ptr(),
            new_nulls.as_mut_ptr(),
        );
        let (mut columns, mut values, mut nulls) = (Vec::new(), Vec::new(), Vec::new());
        for column in arguments {
            let column = CStr::from_ptr(*column);
            let attribute = relations::find_column((*relation).rd_id, column, &name)?;
            let payload =
                relations::payload_of_column((*relation).rd_id, attribute, column, &name)?;
            let number = attribute as usize - 1;
            if !new_nulls[number] && is_mask(payload, new[number]) {
                columns.push(i32::from(attribute));
                values.push(old[number]);
                nulls.push(old_nulls[number]);
            }
        }
        if columns.is_empty() {
            return Ok(trigger.tg_newtuple);
        }
        Ok(pg_sys::heap_modify_tuple_by_cols(
            trigger.tg_newtuple,
            descriptor,
            columns.len() as i32,
            columns.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        ))
    }
}

/// Whether a value is the mask. One that cannot be opened is not.
///
/// # Safety
/// A stored value.
unsafe fn is_mask(payload: Payload, value: pg_sys::Datum) -> bool {
    // SAFETY: by the caller's word.
    let stored = unsafe { Varlena::from_raw(value) };
    let plain = sealing::open_whoever_asks::<Zeroizing<Vec<u8>>>(payload, &stored);
    plain.is_ok_and(|plain| access::is_mask(payload, &plain))
}
