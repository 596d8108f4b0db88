//! Data keys as this backend has read them, with the roles that may use each.
//! Kept until the key table, the ring or the roles change.

use core::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use colcrypt_core::{Key, KeyId, Suite, modifier_from_name};
use pgrx::prelude::*;

use super::table::{self, Basis, Kind, Row, State};
use crate::backend_local::BackendLocal;
use crate::error::Error;

/// A version of a data key.
pub(crate) struct DataKey {
    row: Row,
    suite: Suite,
    key: OnceCell<Key>,
    /// The roles that may use it; None if all may.
    roles: Option<Rc<Vec<pg_sys::Oid>>>,
    /// The last user who was found to be one of them, and when.
    allowed: Cell<Option<(pg_sys::Oid, u64)>>,
}

/// What was read, and what it depends on.
struct Known {
    /// None while it is being read.
    basis: Option<Basis>,
    keys: Vec<Rc<DataKey>>,
    by_id: HashMap<KeyId, usize>,
    /// The version of each name that seals, or else the last one.
    by_name: HashMap<String, usize>,
    /// As `by_name`, by the modifier that stands for the name.
    by_modifier: HashMap<i32, usize>,
    any_grants: bool,
}

static KNOWN: BackendLocal<RefCell<Option<Known>>> = BackendLocal::new(RefCell::new(None));

impl DataKey {
    /// # Errors
    /// [`Error::DestroyedKey`], [`Error::UnknownWrappingKey`],
    /// [`Error::DamagedKey`], [`Error::NoKeyRing`].
    pub(crate) fn key(&self) -> Result<&Key, Error> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let key = Key::new(self.row.unwrap()?);
        Ok(self.key.get_or_init(|| key))
    }

    pub(crate) fn id(&self) -> KeyId {
        self.row.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.row.name
    }

    /// Whether its material is gone.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.row.state == State::Destroyed
    }

    /// The suite that values are sealed with under it.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// Whether the current user may use it.
    pub(crate) fn is_granted(&self) -> bool {
        let Some(roles) = &self.roles else {
            return true;
        };
        // SAFETY: reads a variable of this backend.
        let user = unsafe { pg_sys::GetUserId() };
        let now = Some((user, roles::changes()));
        if self.allowed.get() == now {
            return true;
        }
        // SAFETY: catalog look-ups.
        let granted = roles
            .iter()
            .any(|role| unsafe { pg_sys::has_privs_of_role(user, *role) })
            || unsafe { pg_sys::superuser_arg(user) };
        if granted {
            // Looking it up may have brought news of changes, of those before.
            self.allowed.set(Some((user, roles::changes())));
        }
        granted
    }

    /// # Errors
    /// [`Error::KeyNotGranted`].
    pub(crate) fn check_granted(&self) -> Result<(), Error> {
        if self.is_granted() {
            Ok(())
        } else {
            Err(Error::KeyNotGranted { key: self.id() })
        }
    }
}

/// The data key with this id, whatever its state; None if there is none.
///
/// # Errors
/// [`Error::KeyTable`].
pub(crate) fn by_id(id: KeyId) -> Result<Option<Rc<DataKey>>, Error> {
    with_known(|known| known.key(known.by_id.get(&id)))
}

/// The version of the key `name` that seals new values.
///
/// # Errors
/// [`Error::UnknownKeyName`], [`Error::DestroyedKeyName`], [`Error::KeyTable`].
pub(crate) fn active_by_name(name: &str) -> Result<Rc<DataKey>, Error> {
    let found = with_known(|known| known.key(known.by_name.get(name)))?;
    active(found, || name.to_owned())
}

/// The version that seals new values, of the key whose name a type modifier
/// stands for.
///
/// # Errors
/// As [`active_by_name`].
pub(crate) fn active_by_modifier(modifier: i32) -> Result<Rc<DataKey>, Error> {
    active(find_modifier(modifier)?, || {
        colcrypt_core::show_modifier(modifier)
    })
}

fn active(found: Option<Rc<DataKey>>, name: impl FnOnce() -> String) -> Result<Rc<DataKey>, Error> {
    match found {
        Some(key) if key.row.state == State::Active => Ok(key),
        Some(key) => Err(Error::DestroyedKeyName {
            name: key.name().to_owned(),
        }),
        None => Err(Error::UnknownKeyName { name: name() }),
    }
}

/// The name that a type modifier stands for, if there is such a key.
///
/// # Errors
/// [`Error::KeyTable`].
pub(crate) fn name_of_modifier(modifier: i32) -> Result<Option<String>, Error> {
    Ok(find_modifier(modifier)?.map(|key| key.name().to_owned()))
}

/// Whether a type modifier stands for a key that the current user may not use.
///
/// # Errors
/// [`Error::KeyTable`].
pub(crate) fn is_restricted_modifier(modifier: i32) -> Result<bool, Error> {
    Ok(find_modifier(modifier)?.is_some_and(|key| !key.is_granted()))
}

fn find_modifier(modifier: i32) -> Result<Option<Rc<DataKey>>, Error> {
    with_known(|known| known.key(known.by_modifier.get(&modifier)))
}

/// Whether the current user may use every key.
///
/// # Errors
/// [`Error::KeyTable`].
pub(crate) fn all_granted() -> Result<bool, Error> {
    let keys: Vec<_> = with_known(|known| {
        let restricted = known.keys.iter().filter(|key| key.roles.is_some());
        restricted.map(Rc::clone).collect()
    })?;
    Ok(keys.iter().all(|key| key.is_granted()))
}

/// Whether there are data keys, as far as this backend has read the table. Cannot
/// fail.
pub(crate) fn may_have_data_keys() -> bool {
    KNOWN
        .borrow()
        .as_ref()
        .is_some_and(|known| !known.keys.is_empty())
}

/// Whether a key may be granted to some roles only, as far as this backend has read
/// the tables. Cannot fail.
pub(crate) fn may_have_grants() -> bool {
    let known = KNOWN.borrow();
    known
        .as_ref()
        .is_none_or(|known| known.any_grants || known.basis.is_none_or(Basis::has_old_tables))
}

/// Whether any key is granted to some roles only.
///
/// # Errors
/// [`Error::KeyTable`].
pub(crate) fn any_grants() -> Result<bool, Error> {
    with_known(|known| known.any_grants)
}

fn with_known<T>(work: impl FnOnce(&Known) -> T) -> Result<T, Error> {
    if let Some(known) = KNOWN.borrow().as_ref()
        && known.basis == Some(Basis::now())
    {
        return Ok(work(known));
    }
    let mut known = Known::read()?;
    // Reading may have brought news of changes, but only of those before.
    known.basis = Some(Basis::now());
    let result = work(&known);
    KNOWN.replace(Some(known));
    Ok(result)
}

impl Known {
    fn key(&self, number: Option<&usize>) -> Option<Rc<DataKey>> {
        number.map(|number| Rc::clone(&self.keys[*number]))
    }

    fn read() -> Result<Self, Error> {
        let mut grants: HashMap<String, Vec<pg_sys::Oid>> = HashMap::new();
        for (name, role) in table::read_grants()? {
            grants.entry(name).or_default().push(role);
        }
        let grants: HashMap<_, _> = grants
            .into_iter()
            .map(|(name, roles)| (name, Rc::new(roles)))
            .collect();
        let mut known = Self {
            basis: None,
            keys: Vec::new(),
            by_id: HashMap::new(),
            by_name: HashMap::new(),
            by_modifier: HashMap::new(),
            any_grants: false,
        };
        let rows = table::read_rows()?.into_iter();
        for row in rows.filter(|row| row.kind == Kind::Data) {
            let suite = Suite::from_name(&row.suite).ok_or(Error::KeyTable(
                "a key has a suite that this library does not know",
            ))?;
            let number = known.keys.len();
            let modifier = modifier_from_name(&row.name);
            known.by_id.insert(row.id, number);
            if row.state == State::Active || !known.by_name.contains_key(&row.name) {
                known.by_name.insert(row.name.clone(), number);
                known.by_modifier.insert(modifier, number);
            }
            let roles = row
                .restricted
                .then(|| grants.get(&row.name).cloned().unwrap_or_default());
            known.any_grants |= roles.is_some();
            known.keys.push(Rc::new(DataKey {
                row,
                suite,
                key: OnceCell::new(),
                roles,
                allowed: Cell::new(None),
            }));
        }
        Ok(known)
    }
}

/// News of roles: who is one, a superuser, or a member of which.
mod roles {
    use core::cell::Cell;

    use pgrx::prelude::*;

    use crate::backend_local::BackendLocal;

    static CHANGES: BackendLocal<Cell<Option<u64>>> = BackendLocal::new(Cell::new(None));

    /// How often roles have changed, as far as this backend was told.
    pub(super) fn changes() -> u64 {
        CHANGES.get().unwrap_or_else(listen)
    }

    #[cold]
    fn listen() -> u64 {
        for cache in [
            pg_sys::SysCacheIdentifier::AUTHOID,
            pg_sys::SysCacheIdentifier::AUTHMEMROLEMEM,
        ] {
            // SAFETY: the callback stays registered as long as the backend lives.
            unsafe {
                pg_sys::CacheRegisterSyscacheCallback(
                    cache as i32,
                    Some(on_change),
                    pg_sys::Datum::null(),
                );
            }
        }
        CHANGES.set(Some(0));
        0
    }

    /// Must not fail.
    unsafe extern "C-unwind" fn on_change(_: pg_sys::Datum, _: i32, _: u32) {
        CHANGES.set(CHANGES.get().map(|changes| changes + 1));
    }
}
