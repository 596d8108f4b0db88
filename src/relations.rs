//! What the catalog says of relations and their encrypted columns.

use core::cell::Cell;
use core::ffi::CStr;
use std::ffi::CString;

use colcrypt_core::Payload;
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::compat;
use crate::encoding;
use crate::error::Error;
use crate::managed_keys;

/// The name of a relation, for messages.
pub(crate) fn relation_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: gives a palloc'd string or null.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        name.as_ref()
            .map(|name| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// The kind of a relation (`pg_class.relkind`); 0 if there is none.
pub(crate) fn relation_kind(oid: pg_sys::Oid) -> u8 {
    // SAFETY: gives '\0' for an OID that is no relation.
    unsafe { pg_sys::get_rel_relkind(oid) as u8 }
}

/// # Errors
/// [`Error::NoColumn`].
pub(crate) fn find_column(oid: pg_sys::Oid, column: &CStr, relation: &str) -> Result<i16, Error> {
    // SAFETY: gives 0 for no such column, dropped ones included, and below 0 for
    // a system column.
    match unsafe { pg_sys::get_attnum(oid, column.as_ptr()) } {
        number @ 1.. => Ok(number),
        _ => Err(Error::NoColumn {
            relation: relation.to_owned(),
            column: column.to_string_lossy().into_owned(),
        }),
    }
}

/// The type modifier of a column, or of the domain that it is of.
pub(crate) fn find_modifier(oid: pg_sys::Oid, attribute: i16) -> i32 {
    // SAFETY: the attribute exists.
    unsafe {
        let (mut declared, mut modifier, mut collation) =
            (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
        pg_sys::get_atttypetypmodcoll(
            oid,
            attribute,
            &raw mut declared,
            &raw mut modifier,
            &raw mut collation,
        );
        pg_sys::getBaseTypeAndTypmod(declared, &raw mut modifier);
        modifier
    }
}

/// What the values of an encrypted column are.
///
/// # Errors
/// [`Error::WrongType`] unless the column is encrypted.
pub(crate) fn payload_of_column(
    oid: pg_sys::Oid,
    attribute: i16,
    column: &CStr,
    relation: &str,
) -> Result<Payload, Error> {
    let types = encrypted_types().ok_or(Error::KeyTable("its extension is not there"))?;
    // SAFETY: the attribute exists; format_type_be() gives a palloc'd string.
    let (base, element, actual) = unsafe {
        let declared = pg_sys::get_atttype(oid, attribute);
        let actual = CStr::from_ptr(pg_sys::format_type_be(declared));
        let base = pg_sys::getBaseType(declared);
        (
            base,
            pg_sys::get_element_type(base),
            actual.to_string_lossy().into_owned(),
        )
    };
    if let Some(payload) = types.payload(base) {
        return Ok(payload);
    }
    let hint = if types.has(element) {
        "Cast an array to one of the plain type and back in an UPDATE to encrypt its elements \
         again."
    } else {
        ""
    };
    Err(Error::WrongType {
        relation: relation.to_owned(),
        column: column.to_string_lossy().into_owned(),
        actual,
        hint,
    })
}

/// An encrypted column whose values are there to be read, all of them.
pub(crate) struct ReadableColumn {
    /// The relation and the column as SQL has them, in the database's encoding.
    relation: CString,
    column: CString,
    pub(crate) attribute: i16,
}

impl ReadableColumn {
    /// Locks the relation. What the caller may read, the query decides.
    ///
    /// # Errors
    /// [`Error::NoRelation`], [`Error::NotTable`], [`Error::NoColumn`],
    /// [`Error::WrongType`]; [`Error::HiddenRows`].
    pub(crate) fn find(oid: pg_sys::Oid, column: &CStr) -> Result<Self, Error> {
        // SAFETY: locking an OID that is no relation does no harm.
        unsafe { pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) };
        let name = relation_name(oid).ok_or(Error::NoRelation(oid.to_u32()))?;
        let readable = [
            pg_sys::RELKIND_RELATION,
            pg_sys::RELKIND_PARTITIONED_TABLE,
            pg_sys::RELKIND_MATVIEW,
        ];
        if !readable.contains(&relation_kind(oid)) {
            return Err(Error::NotTable {
                relation: name,
                kind: "a relation without rows of its own",
                hint: "",
            });
        }
        let attribute = find_column(oid, column, &name)?;
        payload_of_column(oid, attribute, column, &name)?;
        // SAFETY: the relation exists.
        let hidden = unsafe { pg_sys::check_enable_rls(oid, pg_sys::InvalidOid, true) };
        if hidden == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32 {
            return Err(Error::HiddenRows { relation: name });
        }
        // SAFETY: the relation is locked; both give palloc'd strings.
        let (relation, column) = unsafe {
            let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
            let relation = pg_sys::quote_qualified_identifier(schema, pg_sys::get_rel_name(oid));
            let column = pg_sys::quote_identifier(column.as_ptr());
            (CStr::from_ptr(relation), CStr::from_ptr(column))
        };
        Ok(Self {
            relation: relation.to_owned(),
            column: column.to_owned(),
            attribute,
        })
    }

    /// A query with the relation for each `RELATION` in it, and the column for each
    /// `COLUMN`.
    pub(crate) fn query(&self, pattern: &str) -> CString {
        let join = |parts: Vec<Vec<u8>>, name: &CStr| parts.join(name.to_bytes());
        let with_columns = |part: &str| {
            let parts = part.split("COLUMN").map(|part| part.as_bytes().to_vec());
            join(parts.collect(), &self.column)
        };
        let parts = pattern.split("RELATION").map(with_columns);
        CString::new(join(parts.collect(), &self.relation)).expect("names have no NUL")
    }
}

/// The OIDs of the encrypted types, each at the place of its [`Payload::index`].
#[derive(Clone, Copy)]
pub(crate) struct EncryptedTypes([pg_sys::Oid; Payload::ALL.len()]);

impl EncryptedTypes {
    /// What the values of the type are, if it is an encrypted one.
    pub(crate) fn payload(&self, type_oid: pg_sys::Oid) -> Option<Payload> {
        let types = self.0.into_iter().zip(Payload::ALL);
        let mut types = types.filter(|(oid, _)| *oid != pg_sys::InvalidOid);
        types.find_map(|(oid, payload)| (oid == type_oid).then_some(payload))
    }

    /// The type that has such values; invalid if there is none.
    pub(crate) fn oid(&self, payload: Payload) -> pg_sys::Oid {
        self.0[payload.index()]
    }

    pub(crate) fn has(&self, type_oid: pg_sys::Oid) -> bool {
        self.payload(type_oid).is_some()
    }
}

/// The encrypted types, if the extension is there: what `colcrypt.inspect()` takes.
pub(crate) fn encrypted_types() -> Option<EncryptedTypes> {
    static KNOWN: BackendLocal<Cell<Option<(u64, EncryptedTypes)>>> =
        BackendLocal::new(Cell::new(None));
    let now = managed_keys::changes();
    if let Some((then, known)) = KNOWN.get()
        && then == now
    {
        return Some(known);
    }
    // SAFETY: a catalog look-up, which raises no error where something is not there.
    let schema = unsafe { pg_sys::get_namespace_oid(c"colcrypt".as_ptr(), true) };
    if schema == pg_sys::InvalidOid {
        return None;
    }
    let mut types = EncryptedTypes([pg_sys::InvalidOid; Payload::ALL.len()]);
    for function in compat::unary_functions(c"inspect") {
        let name = compat::type_name(function.argument).unwrap_or_default();
        let plain = name.strip_prefix("encrypted_");
        let mut payloads = Payload::ALL.into_iter();
        if function.schema == schema
            && let Some(payload) = payloads.find(|payload| Some(payload.name()) == plain)
        {
            types.0[payload.index()] = function.argument;
        }
    }
    if types.0 == [pg_sys::InvalidOid; Payload::ALL.len()] {
        return None;
    }
    KNOWN.set(Some((now, types)));
    Some(types)
}

/// The name of a relation with its schema, as SQL has it.
pub(crate) fn qualified_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: catalog look-ups, which give palloc'd strings or null.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
        if name.is_null() || schema.is_null() {
            return None;
        }
        let quoted = pg_sys::quote_qualified_identifier(schema, name);
        Some(encoding::to_string(CStr::from_ptr(quoted)))
    }
}

/// Whether a relation stores rows, or other relations store them for it.
pub(crate) fn is_table(oid: pg_sys::Oid) -> bool {
    [
        pg_sys::RELKIND_RELATION,
        pg_sys::RELKIND_PARTITIONED_TABLE,
        pg_sys::RELKIND_MATVIEW,
        pg_sys::RELKIND_FOREIGN_TABLE,
    ]
    .contains(&relation_kind(oid))
}

/// Whether a relation has a column whose values are encrypted, or hold encrypted ones.
pub(crate) fn has_encrypted_column(oid: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups; a column that was dropped has no type.
    unsafe {
        let exists = |number: &i16| {
            let cache = pg_sys::SysCacheIdentifier::ATTNUM as i32;
            let none = pg_sys::Datum::null();
            pg_sys::SearchSysCacheExists(cache, oid.into(), (*number).into(), none, none)
        };
        let mut columns = (1..).take_while(exists);
        columns.any(|number| holds_encrypted(pg_sys::get_atttype(oid, number)))
    }
}

/// Whether values of a type are encrypted, or hold encrypted ones.
pub(crate) fn holds_encrypted(type_oid: pg_sys::Oid) -> bool {
    encrypted_types().is_some_and(|types| holds(type_oid, &types, 0))
}

fn holds(type_oid: pg_sys::Oid, types: &EncryptedTypes, depth: u8) -> bool {
    if type_oid == pg_sys::InvalidOid {
        return false;
    }
    // SAFETY: catalog look-ups; the relation is opened and closed again.
    unsafe {
        let type_oid = pg_sys::getBaseType(type_oid);
        if types.has(type_oid) || depth > 8 {
            return true;
        }
        let parts = [
            pg_sys::get_element_type(type_oid),
            pg_sys::get_range_subtype(type_oid),
        ];
        if parts.into_iter().any(|part| holds(part, types, depth + 1)) {
            return true;
        }
        let class = pg_sys::get_typ_typrelid(type_oid);
        if class == pg_sys::InvalidOid {
            return false;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::relation_open(class, lock);
        let members: Vec<_> = compat::attributes((*relation).rd_att)
            .iter()
            .filter(|member| !member.attisdropped)
            .map(|member| member.atttypid)
            .collect();
        pg_sys::relation_close(relation, lock);
        members
            .into_iter()
            .any(|member| holds(member, types, depth + 1))
    }
}

/// Whether what a table has under this name is encrypted, or nothing of a column: an
/// expression. The name as PostgreSQL's messages quote it.
pub(crate) fn may_be_encrypted(table: pg_sys::Oid, column: &str) -> bool {
    let name = match column
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => column.to_owned(),
    };
    let Ok(name) = CString::new(name) else {
        return true;
    };
    // SAFETY: catalog look-ups; the number is 0 if there is no such column.
    unsafe {
        let number = pg_sys::get_attnum(table, name.as_ptr());
        if number == 0 {
            return true;
        }
        holds_encrypted(pg_sys::get_atttype(table, number))
    }
}

/// The members of a list of nodes.
///
/// # Safety
/// `list` is null or a list of nodes, and outlives the iterator.
pub(crate) unsafe fn members(list: *mut pg_sys::List) -> impl Iterator<Item = *mut pg_sys::Node> {
    // SAFETY: by the caller's word.
    let cells = unsafe {
        if list.is_null() {
            &[]
        } else {
            core::slice::from_raw_parts((*list).elements, (*list).length as usize)
        }
    };
    // SAFETY: by the caller's word.
    cells.iter().map(|cell| unsafe { cell.ptr_value.cast() })
}
