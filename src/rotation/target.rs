//! What a rotation works on: parsed and judged once, here.

use core::ffi::{CStr, c_char};

use colcrypt_core::Payload;
use pgrx::prelude::*;

use crate::error::Error;
use crate::migration::in_step::Pair;
use crate::relations::{
    find_column, find_modifier, payload_of_column, relation_kind, relation_name,
};
use crate::{audit, compat};

/// A relation and a column of it, judged and locked.
pub(super) struct Target<'a> {
    relation: pg_sys::Oid,
    column: &'a CStr,
    /// What the values are.
    payload: Payload,
    /// The column that has the same in plaintext, if it is to be encrypted.
    plaintext: Option<&'a CStr>,
}

/// One table that has storage, locked.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) oid: pg_sys::Oid,
    pub(super) attribute: i16,
    /// What its values are.
    pub(super) payload: Payload,
    /// The type modifier of the column, which names its key.
    pub(super) modifier: i32,
    /// Set if the column is to hold what another one has in plaintext.
    pub(super) pair: Option<Pair>,
}

/// As an UPDATE locks a table.
const LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;

impl<'a> Target<'a> {
    /// Locks the relation as an UPDATE does.
    ///
    /// # Errors
    /// The caller must own the table; it must be an ordinary or partitioned
    /// table, the column must be there and of an encrypted type, or a domain over
    /// one.
    pub(super) fn resolve(relation: pg_sys::Oid, column: &'a CStr) -> Result<Self, Error> {
        // SAFETY: locking an OID that is no relation does no harm.
        unsafe { pg_sys::LockRelationOid(relation, LOCK) };
        Self::judge(relation, column)
    }

    /// As [`Self::resolve`]; None if somebody else has it locked.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub(super) fn try_resolve(
        relation: pg_sys::Oid,
        column: &'a CStr,
    ) -> Result<Option<Self>, Error> {
        // SAFETY: as above.
        if unsafe { pg_sys::ConditionalLockRelationOid(relation, LOCK) } {
            Self::judge(relation, column).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Whether the current user owns the relation, if there is one.
    ///
    /// # Errors
    /// [`Error::NotOwner`].
    pub(super) fn check_owner(relation: pg_sys::Oid) -> Result<(), Error> {
        match relation_name(relation) {
            Some(relation_name) if !compat::owns_relation(relation) => Err(Error::NotOwner {
                relation: relation_name,
            }),
            _ => Ok(()),
        }
    }

    fn judge(relation: pg_sys::Oid, column: &'a CStr) -> Result<Self, Error> {
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
        Ok(Self {
            relation,
            column,
            payload,
            plaintext: None,
        })
    }

    /// The same, to be filled with what another column has in plaintext.
    pub(super) fn fed_by(mut self, plaintext: Option<&'a CStr>) -> Self {
        self.plaintext = plaintext;
        self
    }

    /// The table, its partitions and what inherits from it; locks them as an UPDATE
    /// does.
    ///
    /// # Errors
    /// [`Error::NoColumn`].
    pub(super) fn tables(&self) -> Result<Vec<Table>, Error> {
        let mut tables = Vec::new();
        for oid in compat::find_all_inheritors(self.relation, LOCK) {
            match relation_kind(oid) {
                pg_sys::RELKIND_RELATION => tables.push(self.table(oid)?),
                pg_sys::RELKIND_FOREIGN_TABLE => pgrx::notice!(
                    "skipping foreign table \"{}\": its server rotates it",
                    relation_name(oid).unwrap_or_default()
                ),
                _ => {}
            }
        }
        Ok(tables)
    }

    /// The same tables in the order of their OIDs, without locks.
    pub(super) fn parts(&self) -> Vec<pg_sys::Oid> {
        let all = compat::find_all_inheritors(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        let mut parts: Vec<_> = all
            .into_iter()
            .filter(|oid| relation_kind(*oid) == pg_sys::RELKIND_RELATION)
            .collect();
        parts.sort_unstable_by_key(|part| part.to_u32());
        parts
    }

    /// One of them, locked as an UPDATE does; None if somebody else has it locked, or it
    /// is gone.
    ///
    /// # Errors
    /// [`Error::NoColumn`].
    pub(super) fn try_table(&self, oid: pg_sys::Oid) -> Result<Option<Table>, Error> {
        // SAFETY: locking an OID that is no relation does no harm.
        let locked = unsafe { pg_sys::ConditionalLockRelationOid(oid, LOCK) };
        if locked && relation_kind(oid) == pg_sys::RELKIND_RELATION {
            self.table(oid).map(Some)
        } else {
            Ok(None)
        }
    }

    fn table(&self, oid: pg_sys::Oid) -> Result<Table, Error> {
        let name = relation_name(oid).unwrap_or_default();
        // A child has the column under the same name, perhaps at another place.
        let attribute = find_column(oid, self.column, &name)?;
        Ok(Table {
            oid,
            attribute,
            payload: self.payload,
            modifier: find_modifier(oid, attribute),
            pair: match self.plaintext {
                Some(source) => Some(Pair::find(oid, source, self.column)?),
                None => None,
            },
        })
    }

    /// Whether it is a temporary table.
    pub(super) fn is_temporary(&self) -> bool {
        is_temporary(self.relation)
    }
}

/// Whether a relation is a temporary table.
pub(super) fn is_temporary(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    unsafe { pg_sys::get_rel_persistence(relation) == pg_sys::RELPERSISTENCE_TEMP as c_char }
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
        let attributes = compat::attributes((*relation).rd_att);
        let generated = attributes[attribute as usize - 1].attgenerated != 0;
        pg_sys::RelationClose(relation);
        generated
    }
}
