//! What a rotation works on: parsed and judged once, here.

use core::ffi::{CStr, c_char};

use colcrypt_core::Payload;
use pgrx::prelude::*;

use crate::error::Error;
use crate::relations::{
    find_column, find_modifier, payload_of_column, relation_kind, relation_name,
};
use crate::{audit, compat};

/// Locked tables with the column in each.
pub(super) struct Target {
    tables: Vec<Table>,
}

/// One table that has storage.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) oid: pg_sys::Oid,
    pub(super) attribute: i16,
    /// What its values are.
    pub(super) payload: Payload,
    /// The type modifier of the column, which names its key.
    pub(super) modifier: i32,
}

impl Target {
    /// The table `relation`, its partitions and what inherits from it, each with
    /// the number of the column. Locks them as an UPDATE does.
    ///
    /// # Errors
    /// The caller must own the table; it must be an ordinary or partitioned
    /// table, the column must be there and of an encrypted type, or a domain over
    /// one.
    pub(super) fn resolve(relation: pg_sys::Oid, column: &CStr) -> Result<Self, Error> {
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        // SAFETY: locking an OID that is no relation does no harm.
        unsafe { pg_sys::LockRelationOid(relation, lock) };
        let name = relation_name(relation).ok_or(Error::NoRelation(relation.to_u32()))?;
        let owned = compat::owns_relation(relation);
        check_kind(relation, &name)?;
        if !owned {
            return Err(Error::NotOwner { relation: name });
        }
        if audit::is_on() {
            audit::add_relations([relation].into_iter());
        }
        let attribute = find_column(relation, column, &name)?;
        let payload = payload_of_column(relation, attribute, column, &name)?;
        if is_generated(relation, attribute) {
            let column = column.to_string_lossy().into_owned();
            return Err(Error::GeneratedColumn { column });
        }
        let mut tables = Vec::new();
        for oid in compat::find_all_inheritors(relation, lock) {
            match relation_kind(oid) {
                pg_sys::RELKIND_RELATION => {
                    let name = relation_name(oid).unwrap_or_default();
                    // A child has the column under the same name, perhaps at
                    // another place.
                    let attribute = find_column(oid, column, &name)?;
                    tables.push(Table {
                        oid,
                        attribute,
                        payload,
                        modifier: find_modifier(oid, attribute),
                    });
                }
                pg_sys::RELKIND_FOREIGN_TABLE => pgrx::notice!(
                    "skipping foreign table \"{}\": its server rotates it",
                    relation_name(oid).unwrap_or_default()
                ),
                _ => {}
            }
        }
        Ok(Self { tables })
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = Table> {
        self.tables.iter().copied()
    }
}

fn check_kind(oid: pg_sys::Oid, name: &str) -> Result<(), Error> {
    let (kind, hint) = match relation_kind(oid) {
        pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE => {
            // SAFETY: the relation is locked; closed again at once.
            let other_temp = unsafe {
                let relation = pg_sys::RelationIdGetRelation(oid);
                let class = (*relation).rd_rel;
                let other_temp = (*class).relpersistence == pg_sys::RELPERSISTENCE_TEMP as c_char
                    && !(*relation).rd_islocaltemp;
                pg_sys::RelationClose(relation);
                other_temp
            };
            return if other_temp {
                Err(Error::OtherTemp)
            } else {
                Ok(())
            };
        }
        pg_sys::RELKIND_VIEW => ("a view", "Rotate the table that the view reads."),
        pg_sys::RELKIND_MATVIEW => (
            "a materialized view",
            "Rotate the table that it reads, then REFRESH MATERIALIZED VIEW.",
        ),
        pg_sys::RELKIND_FOREIGN_TABLE => (
            "a foreign table",
            "Rotate the column on the server that stores the table.",
        ),
        pg_sys::RELKIND_INDEX | pg_sys::RELKIND_PARTITIONED_INDEX => ("an index", ""),
        pg_sys::RELKIND_SEQUENCE => ("a sequence", ""),
        pg_sys::RELKIND_COMPOSITE_TYPE => ("a composite type", ""),
        _ => ("a relation of another kind", ""),
    };
    Err(Error::NotTable {
        relation: name.to_owned(),
        kind,
        hint,
    })
}

/// Whether the column is computed from others of its row.
fn is_generated(oid: pg_sys::Oid, attribute: i16) -> bool {
    // SAFETY: the relation is locked and has this attribute; closed again at once.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(oid);
        let descriptor = (*relation).rd_att;
        let attributes = (*descriptor).attrs.as_slice((*descriptor).natts as usize);
        let generated = attributes[attribute as usize - 1].attgenerated != 0;
        pg_sys::RelationClose(relation);
        generated
    }
}
