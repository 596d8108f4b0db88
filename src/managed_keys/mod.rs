//! Keys that the database keeps, in table `colcrypt.key`: data keys, which values
//! are sealed under, and the key of the blind indexes, both wrapped by a key of
//! the ring; and the ids of the ring's keys that have encrypted here.

mod admin;
mod data_keys;
mod index_key;
mod ring_guard;
mod table;
mod wrap;

pub(crate) use data_keys::{
    DataKey, active_by_modifier, active_by_name, all_granted, any_grants, by_id,
    is_restricted_modifier, may_have_data_keys, may_have_grants, name_of_modifier,
};
pub(crate) use index_key::{index_key, prepare_index_key};
pub(crate) use ring_guard::{Use, check as check_ring, passed as ring_passed};
pub(crate) use table::{Basis, changes};
