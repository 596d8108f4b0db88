//! The SQL functions that make and unmake managed keys.

use colcrypt_core::{
    Key, KeyId, KeyIdentity, SecretKey, Suite, fingerprint, is_key_name, modifier_from_name,
};
use pgrx::datum::DatumWithOid;
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::table::{self, Kind, Row, State};
use super::{ring_guard, wrap};
use crate::error::Error;
use crate::keyring;
use crate::own_tables;

/// `colcrypt.create_key(name, algorithm)`: makes a key and gives its id.
#[pg_extern(sql = false)]
fn colcrypt_create_key(name: &str, algorithm: &str) -> Result<String, ErrorReport> {
    if !is_key_name(name) {
        return Err(Error::BadKeyName.into());
    }
    let suite = Suite::from_name(algorithm).ok_or(Error::Parameter {
        what: "algorithm of a key",
        bound: "xaes-256-gcm, aes-256-gcm, fernet or envelope",
    })?;
    table::lock(c"colcrypt.create_key()")?;
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
    table::lock(c"colcrypt.rotate_key()")?;
    let versions = versions(name)?;
    let active = versions.iter().find(|row| row.state == State::Active);
    let active = active.ok_or_else(|| Error::DestroyedKeyName {
        name: name.to_owned(),
    })?;
    // The key that is to be replaced must not be the last thing that works.
    active.unwrap()?;
    own_tables::as_owner(|| {
        Spi::run_with_args(
            "UPDATE colcrypt.key SET state = 'retired'
             WHERE kind = 'data' AND key_id = $1",
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
/// The rows are updated, which is what a subscriber is told of; then the table is
/// written anew, so that no older row version with the wrapped key is left in its
/// file.
#[pg_extern(sql = false)]
fn colcrypt_shred_key(name: &str) -> Result<i64, ErrorReport> {
    versions(name)?;
    table::lock_for_rewrite(c"colcrypt.shred_key()")?;
    let intact = |rows: Vec<Row>| {
        let intact = rows.iter().filter(|row| row.state != State::Destroyed);
        intact.count()
    };
    let destroyed = intact(versions(name)?);
    own_tables::as_owner(|| {
        Spi::run_with_args(
            "UPDATE colcrypt.key SET state = 'destroyed', wrapped = NULL, wrapped_by = NULL
             WHERE kind = 'data' AND name = $1
               AND state <> 'destroyed'",
            &[DatumWithOid::from(name)],
        )?;
        // Rewrites the table: the new type is the old one, but not the column as
        // it is. Copies what is visible now, and so no row version from before.
        Spi::run("ALTER TABLE colcrypt.key ALTER restricted TYPE boolean USING restricted IS TRUE")
    })?;
    // A row that is newer than the transaction's snapshot was not updated.
    if intact(versions(name)?) > 0 {
        return Err(Error::Serialization.into());
    }
    Ok(i64::try_from(destroyed).unwrap_or(i64::MAX))
}

/// `colcrypt.grant_key(name, role)`: lets a role use a key; from the first grant on
/// nobody else may.
#[pg_extern(sql = false)]
fn colcrypt_grant_key(name: &str, role: pg_sys::Oid) -> Result<(), ErrorReport> {
    table::lock(c"colcrypt.grant_key()")?;
    versions(name)?;
    own_tables::as_owner(|| {
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
         WHERE kind = 'data' AND name = $1",
        &[DatumWithOid::from(name), DatumWithOid::from(restricted)],
    )
}

/// `colcrypt.revoke_key(name, role)`: takes back what `grant_key()` gave, and says
/// whether there was something to take back.
#[pg_extern(sql = false)]
fn colcrypt_revoke_key(name: &str, role: pg_sys::Oid) -> Result<bool, ErrorReport> {
    table::lock(c"colcrypt.revoke_key()")?;
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
    own_tables::as_owner(|| {
        Spi::run_with_args(
            "DELETE FROM colcrypt.key_grant
             WHERE name = $1 AND role = $2",
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

/// `colcrypt.ring_keys()`: the keys of the ring in force, the session's in front of
/// the server's; the first of each is its primary.
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
    let primary = ring.primary().ok().map(Key::id);
    let server = ring.server_source_name().unwrap_or_default();
    let keys = ring.entries().map(|(entry, of_server)| {
        let id = entry.key.id();
        let is_primary = Some(id) == primary || Some(id) == ring.server_primary();
        let source = if of_server { server } else { "session" };
        (id.to_string(), entry.name.clone(), is_primary, source)
    });
    TableIterator::new(keys.collect::<Vec<_>>())
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
