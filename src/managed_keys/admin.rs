//! The SQL functions that make and unmake managed keys.

use colcrypt_core::{
    KeyId, KeyIdentity, SecretKey, Suite, fingerprint, is_key_name, modifier_from_name,
};
use pgrx::datum::DatumWithOid;
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::table::{self, Kind, Row, State};
use super::{ring_guard, wrap};
use crate::error::Error;
use crate::keyring;

/// `colcrypt.create_key(name, algorithm)`: makes a key and gives its id.
#[pg_extern(sql = false)]
fn colcrypt_create_key(name: &str, algorithm: &str) -> Result<String, ErrorReport> {
    if !is_key_name(name) {
        return Err(Error::BadKeyName.into());
    }
    let suite = Suite::ALL
        .into_iter()
        .find(|suite| suite.name() == algorithm)
        .ok_or(Error::Parameter {
            what: "algorithm of a key",
            bound: "xaes-256-gcm, aes-256-gcm, fernet or envelope",
        })?;
    table::lock()?;
    let modifier = modifier_from_name(name);
    for row in data_rows()? {
        if row.name == name && row.state != State::Destroyed {
            return Err(Error::KeyNameExists { name: row.name }.into());
        }
        if row.name != name && modifier_from_name(&row.name) == modifier {
            return Err(Error::KeyNameClash {
                name: name.to_owned(),
                other: row.name,
            }
            .into());
        }
    }
    // What was granted to some under the old key of that name is theirs alone.
    let restricted = table::read_grants()?.iter().any(|(key, _)| key == name);
    Ok(make(name, suite.name(), restricted)?.to_string())
}

/// `colcrypt.rotate_key(name)`: makes a new version of a key, which seals from now
/// on, and gives its id.
#[pg_extern(sql = false)]
fn colcrypt_rotate_key(name: &str) -> Result<String, ErrorReport> {
    table::lock()?;
    let versions = versions(name)?;
    let active = versions.iter().find(|row| row.state == State::Active);
    let active = active.ok_or_else(|| Error::DestroyedKeyName {
        name: name.to_owned(),
    })?;
    // The key that is to be replaced must not be the last thing that works.
    active.unwrap()?;
    table::as_owner(|| {
        Spi::run_with_args(
            "UPDATE colcrypt.key SET state = 'retired'
             WHERE kind OPERATOR(pg_catalog.=) 'data' AND key_id OPERATOR(pg_catalog.=) $1",
            &[DatumWithOid::from(active.id.to_string())],
        )
    })?;
    check_seen(&versions, name)?;
    Ok(make(name, &active.suite, active.restricted)?.to_string())
}

/// A row that is newer than the transaction's snapshot was read, but not updated.
fn check_seen(before: &[Row], name: &str) -> Result<(), Error> {
    let active = |rows: &[Row]| {
        let active = rows.iter().filter(|row| row.state == State::Active);
        active.count()
    };
    if active(before) > 0 && active(&versions(name)?) > 0 {
        return Err(Error::Serialization);
    }
    Ok(())
}

/// `colcrypt.shred_key(name)`: destroys every version of a key, and gives how many
/// there were.
///
/// The table is written anew, so that no older row version with the wrapped key is
/// left in its file.
#[pg_extern(sql = false)]
fn colcrypt_shred_key(name: &str) -> Result<i64, ErrorReport> {
    versions(name)?;
    // TRUNCATE takes this lock; asked for at once, so that it cannot deadlock with
    // another one who has the lesser one already.
    let table = table::table()?;
    // SAFETY: the lock is held until the transaction ends.
    unsafe {
        pg_sys::LockRelationOid(table, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE);
    }
    let rows = table::read_rows()?;
    let destroyed = rows.iter().filter(|row| is_shredded_by(row, name)).count();
    table::as_owner(|| {
        Spi::run("TRUNCATE colcrypt.key")?;
        for row in &rows {
            let shredded = is_shredded_by(row, name);
            let state = if shredded {
                State::Destroyed
            } else {
                row.state
            };
            let wrapped = row.wrapped.as_ref().filter(|_| !shredded);
            Spi::run_with_args(
                "INSERT INTO colcrypt.key
                     (key_id, name, kind, suite, state, wrapped_by, wrapped, created_at, restricted)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    DatumWithOid::from(row.id.to_string()),
                    DatumWithOid::from(table::null_if_empty(&row.name)),
                    DatumWithOid::from(row.kind.name()),
                    DatumWithOid::from(table::null_if_empty(&row.suite)),
                    DatumWithOid::from(state.name()),
                    DatumWithOid::from(wrapped.map(|wrapped| wrapped.by.to_string())),
                    DatumWithOid::from(wrapped.map(|wrapped| wrapped.key.as_slice())),
                    DatumWithOid::from(row.created_at),
                    DatumWithOid::from(row.restricted),
                ],
            )?;
        }
        Ok(())
    })?;
    Ok(i64::try_from(destroyed).unwrap_or(i64::MAX))
}

fn is_shredded_by(row: &Row, name: &str) -> bool {
    row.kind == Kind::Data && row.name == name && row.state != State::Destroyed
}

/// `colcrypt.grant_key(name, role)`: lets a role use a key; from the first grant on
/// nobody else may.
#[pg_extern(sql = false)]
fn colcrypt_grant_key(name: &str, role: pg_sys::Oid) -> Result<(), ErrorReport> {
    table::lock()?;
    versions(name)?;
    table::as_owner(|| {
        Spi::run_with_args(
            "INSERT INTO colcrypt.key_grant (name, role) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &[DatumWithOid::from(name), DatumWithOid::from(role)],
        )?;
        restrict(name, true)
    })?;
    Ok(())
}

/// Says of all versions of a key whether only some roles may use it.
fn restrict(name: &str, restricted: bool) -> Result<(), pgrx::spi::Error> {
    Spi::run_with_args(
        "UPDATE colcrypt.key SET restricted = $2
         WHERE kind OPERATOR(pg_catalog.=) 'data' AND name OPERATOR(pg_catalog.=) $1",
        &[DatumWithOid::from(name), DatumWithOid::from(restricted)],
    )
}

/// `colcrypt.revoke_key(name, role)`: takes back what `grant_key()` gave, and says
/// whether there was something to take back.
#[pg_extern(sql = false)]
fn colcrypt_revoke_key(name: &str, role: pg_sys::Oid) -> Result<bool, ErrorReport> {
    table::lock()?;
    versions(name)?;
    let granted = |role: Option<pg_sys::Oid>| -> Result<usize, Error> {
        let grants = table::read_grants()?;
        let grants = grants
            .iter()
            .filter(|(key, to)| key == name && role.is_none_or(|role| *to == role));
        Ok(grants.count())
    };
    if granted(Some(role))? == 0 {
        return Ok(false);
    }
    let open = granted(None)? == 1;
    table::as_owner(|| {
        Spi::run_with_args(
            "DELETE FROM colcrypt.key_grant
             WHERE name OPERATOR(pg_catalog.=) $1 AND role OPERATOR(pg_catalog.=) $2",
            &[DatumWithOid::from(name), DatumWithOid::from(role)],
        )?;
        if open { restrict(name, false) } else { Ok(()) }
    })?;
    if open {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_WARNING,
            format!("encryption key {name} has no grants left: every role may use it"),
            "colcrypt",
        )
        .set_hint("SELECT colcrypt.grant_key() for a role closes it to all others.")
        .report(PgLogLevel::WARNING);
    }
    Ok(true)
}

/// `colcrypt.accept_key()`: remembers the ring's primary as a key of this database,
/// whatever the guard says of it, and gives its id.
#[pg_extern(sql = false)]
fn colcrypt_accept_key() -> Result<String, ErrorReport> {
    // SAFETY: asks who the user is.
    if !unsafe { pg_sys::superuser() } {
        return Err(Error::MustBeSuperuser.into());
    }
    Ok(ring_guard::accept()?.to_string())
}

/// `colcrypt.ring_keys()`: the keys of the ring in force, the primary first.
#[pg_extern(sql = false)]
fn colcrypt_ring_keys() -> TableIterator<
    'static,
    (
        name!(key_id, String),
        name!(name, Option<String>),
        name!(is_primary, bool),
        name!(source, &'static str),
    ),
> {
    let ring = keyring::current();
    let keys: Vec<_> = ring
        .entries()
        .enumerate()
        .map(|(number, (entry, of_server))| {
            let source = if of_server { "server" } else { "session" };
            (
                entry.key.id().to_string(),
                entry.name.clone(),
                number == 0,
                source,
            )
        })
        .collect();
    TableIterator::new(keys)
}

/// `colcrypt.modifier_name(modifier)`: the name of the key that a type modifier of
/// encrypted_text stands for.
#[pg_extern(sql = false)]
fn colcrypt_modifier_name(modifier: i32) -> Result<Option<String>, ErrorReport> {
    if modifier < 0 {
        return Ok(None);
    }
    let name = super::name_of_modifier(modifier)?;
    Ok(Some(
        name.unwrap_or_else(|| colcrypt_core::show_modifier(modifier)),
    ))
}

fn make(name: &str, suite: &str, restricted: bool) -> Result<KeyId, Error> {
    // Values say their key by its id: no other may have it.
    let taken: Vec<_> = table::read_rows()?.iter().map(|row| row.id).collect();
    let ring = keyring::current();
    let (key, id) = loop {
        let key = SecretKey::random()?;
        let id = fingerprint(&key);
        if !taken.contains(&id) && ring.get(id).is_none() {
            break (key, id);
        }
    };
    let identity = KeyIdentity {
        id,
        kind: Kind::Data.name(),
        name,
        suite,
    };
    wrap::insert(&identity, &key, restricted)?;
    Ok(id)
}

fn data_rows() -> Result<impl Iterator<Item = Row>, Error> {
    let rows = table::read_rows()?.into_iter();
    Ok(rows.filter(|row| row.kind == Kind::Data))
}

/// The versions of a key, of which there is one at least.
fn versions(name: &str) -> Result<Vec<Row>, Error> {
    let versions: Vec<_> = data_rows()?.filter(|row| row.name == name).collect();
    if versions.is_empty() {
        return Err(Error::UnknownKeyName {
            name: name.to_owned(),
        });
    }
    Ok(versions)
}
