//! The access mode of a role whose code runs in a session of somebody else.
//!
//! ANALYZE, REINDEX, REFRESH MATERIALIZED VIEW and the like, autovacuum too, run what
//! the owner of a table has written, with his rights, but with the settings of whoever
//! maintains it.

use core::cell::Cell;

use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::compat;
use crate::gucs::{self, Access};
use crate::rows::for_each_row;

/// A role, a transaction and a command of it: the next one may find other settings.
type Asked = (pg_sys::Oid, pg_sys::LocalTransactionId, pg_sys::CommandId);

/// The last answer.
static KNOWN: BackendLocal<Cell<Option<(Asked, Access)>>> = BackendLocal::new(Cell::new(None));

/// The stricter of `session` and the mode that sessions of the current user begin with.
/// To be asked in a security-restricted operation.
pub(crate) fn with_owners(session: Access) -> Access {
    // SAFETY: reads the state of this backend, which is in a transaction.
    let (user, log_in, asked, security) = unsafe {
        let transaction = compat::local_transaction();
        let (mut user, mut security) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security);
        let asked = (user, transaction, pg_sys::GetCurrentCommandId(false));
        (user, pg_sys::GetAuthenticatedUserId(), asked, security)
    };
    if security & pg_sys::SECURITY_NOFORCE_RLS as i32 != 0 {
        // The check of a foreign key runs as the owner of the other table, to tell the
        // one of this table what is there.
        return Access::Masked;
    }
    if user == log_in {
        return session;
    }
    let owners = match KNOWN.get() {
        Some((known, access)) if known == asked => access,
        _ => {
            let access = of_role(user);
            KNOWN.set(Some((asked, access)));
            access
        }
    };
    session.stricter(owners)
}

/// `colcrypt.access` as PostgreSQL sets it at log-in (`process_settings()` of
/// postinit.c).
fn of_role(role: pg_sys::Oid) -> Access {
    // SAFETY: reads a variable of this backend.
    let database = unsafe { pg_sys::MyDatabaseId };
    let none = pg_sys::InvalidOid;
    // The most particular one first.
    let places = [
        (database, role),
        (none, role),
        (database, none),
        (none, none),
    ];
    let mut found = [None; 4];
    let read = for_each_row::<3>(compat::PG_DB_ROLE_SETTING.into(), |columns| {
        let place = columns.get(0).zip(columns.get(1));
        if let Some(number) = places.iter().position(|wanted| Some(*wanted) == place) {
            // Bytes, because settings may be in any encoding.
            let settings: Option<Array<'_, &[u8]>> = columns.get(2);
            found[number] = settings.and_then(|all| all.iter().flatten().find_map(parse));
        }
    });
    match read {
        Ok(()) => found
            .into_iter()
            .flatten()
            .next()
            .unwrap_or_else(gucs::configured_access),
        Err(_) => Access::Masked,
    }
}

/// The mode that `name=value` sets, if it is about that.
fn parse(setting: &[u8]) -> Option<Access> {
    let equals = setting.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&setting[..equals], &setting[equals + 1..]);
    name.eq_ignore_ascii_case(b"colcrypt.access")
        .then(|| Access::from_name(value).unwrap_or(Access::Masked))
}
