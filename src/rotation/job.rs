//! A rotation in batches as the table `colcrypt.rotation` has it: what was asked for, and
//! how far it is.

use core::cell::Cell;
use core::ffi::CStr;
use std::ffi::CString;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::{gucs, own_tables};

/// What `rotate_column_online()` and `rotate_column_background()` are asked for.
pub(super) struct Request {
    pub(super) relation: pg_sys::Oid,
    pub(super) column: CString,
    /// For `encrypt_column_online()`: the encrypted column beside it.
    pub(super) shadow: Option<CString>,
    pub(super) batch_size: i64,
    /// In seconds.
    pub(super) pause: f64,
    /// In seconds.
    pub(super) lock_timeout: f64,
    pub(super) max_rows_per_second: Option<i64>,
    pub(super) max_lag_bytes: Option<i64>,
    pub(super) fires_triggers: bool,
}

/// A row of the table.
pub(super) struct Job {
    pub(super) id: i32,
    pub(super) request: Request,
    pub(super) state: String,
    pub(super) phase: String,
    pub(super) place: Place,
    pub(super) rows_rotated: i64,
}

/// Where a rotation stands.
#[derive(Clone, Default)]
pub(super) struct Place {
    /// Which time it goes through all tables, from 1.
    pub(super) pass: i32,
    pub(super) pass_rotated: i64,
    pub(super) pass_skipped: i64,
    /// The table under way.
    pub(super) part: Option<pg_sys::Oid>,
    /// The file that it had when its first block was looked at.
    pub(super) file: pg_sys::Oid,
    pub(super) next_block: u32,
    pub(super) end_block: u32,
    /// Blocks of the tables that are through in this pass.
    pub(super) parts_blocks: i64,
    /// Blocks to go through in this pass.
    pub(super) blocks_total: Option<i64>,
}

impl Place {
    /// Where the next pass begins.
    pub(super) fn next_pass(&self) -> Self {
        Self {
            pass: self.pass.saturating_add(1),
            ..Self::default()
        }
    }
}

/// How fast it goes.
#[derive(Default)]
pub(super) struct Pace {
    pub(super) rows_per_second: Option<f64>,
    /// Seconds to the end of the pass.
    pub(super) remaining: Option<f64>,
}

impl Job {
    /// Makes a rotation, or takes one up that did not end, with the rights of the current
    /// user. Gives its number.
    ///
    /// # Errors
    /// [`Error::RotationRuns`].
    pub(super) fn begin(request: &Request, background: bool) -> Result<i32, Error> {
        // Another session may just have begun one, and then it is found the next time.
        let mut begun = Self::try_begin(request, background)?;
        if begun.is_none() {
            begun = Self::try_begin(request, background)?;
        }
        begun.ok_or(Error::Serialization)
    }

    fn try_begin(request: &Request, background: bool) -> Result<Option<i32>, Error> {
        let column = || DatumWithOid::from(request.column.as_c_str());
        let known: Option<i32> = own_tables::as_owner(|| {
            Spi::run_with_args(
                "DELETE FROM colcrypt.rotation AS r
                 WHERE r.state IN ('done', 'cancelled') AND r.relation = $1 AND r.column_name = namein($2)
                    OR NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = r.relation)",
                &[request.relation.into(), column()],
            )?;
            or_none(Spi::get_one_with_args(
                "SELECT job FROM colcrypt.rotation
                 WHERE relation = $1 AND column_name = namein($2) AND state IN ('running', 'paused', 'failed')",
                &[request.relation.into(), column()],
            ))
        })?;
        if let Some(job) = known
            && is_held_elsewhere(job)?
        {
            return Err(Error::RotationRuns { job });
        }
        // SAFETY: reads the state of this backend.
        let role = unsafe { pg_sys::GetUserId() };
        let algorithm = gucs::suite().name();
        let write_key = gucs::write_key().map(CStr::to_string_lossy);
        own_tables::as_owner(|| {
            or_none(Spi::get_one_with_args(
                match known {
                    Some(_) => {
                        "UPDATE colcrypt.rotation
                         SET role = $3, background = $4, batch_size = $5, pause = $6, lock_timeout = $7,
                             max_rows_per_second = $8, max_lag_bytes = $9, fire_triggers = $10,
                             algorithm = $11, write_key = $12, shadow = namein($13),
                             state = 'running', phase = 'starting', last_error = NULL,
                             rows_per_second = NULL, estimated_end = NULL, updated_at = clock_timestamp()
                         WHERE relation = $1 AND column_name = namein($2)
                           AND state IN ('running', 'paused', 'failed')
                         RETURNING job"
                    }
                    None => {
                        "INSERT INTO colcrypt.rotation
                             (relation, column_name, role, background, batch_size, pause, lock_timeout,
                              max_rows_per_second, max_lag_bytes, fire_triggers, algorithm, write_key, shadow)
                         VALUES ($1, namein($2), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, namein($13))
                         ON CONFLICT DO NOTHING RETURNING job"
                    }
                },
                &[
                    request.relation.into(),
                    column(),
                    role.into(),
                    background.into(),
                    request.batch_size.into(),
                    request.pause.into(),
                    request.lock_timeout.into(),
                    request.max_rows_per_second.into(),
                    request.max_lag_bytes.into(),
                    request.fires_triggers.into(),
                    algorithm.into(),
                    write_key.as_deref().into(),
                    request.shadow.as_deref().into(),
                ],
            ))
        })
    }

    /// Reads a rotation.
    ///
    /// # Errors
    /// [`Error::NoRotation`].
    pub(super) fn load(id: i32) -> Result<Self, Error> {
        let job = own_tables::as_owner(|| {
            Spi::connect_mut(|client| {
                let rows = client.update(
                    "SELECT relation, nameout(column_name), state, batch_size, pause, lock_timeout,
                            max_rows_per_second, max_lag_bytes, fire_triggers, pass, pass_rotated,
                            pass_skipped, part, file, next_block, end_block, parts_blocks,
                            blocks_total, rows_rotated, nameout(shadow), phase
                     FROM colcrypt.rotation WHERE job = $1",
                    None,
                    &[id.into()],
                )?;
                if rows.is_empty() {
                    return Ok(None);
                }
                let row = rows.first();
                let block = |ordinal| -> Result<u32, spi::Error> {
                    let block: i64 = row.get(ordinal)?.unwrap_or_default();
                    Ok(u32::try_from(block).unwrap_or_default())
                };
                Ok(Some(Self {
                    id,
                    request: Request {
                        relation: row.get(1)?.unwrap_or(pg_sys::InvalidOid),
                        column: row.get::<&CStr>(2)?.unwrap_or_default().to_owned(),
                        shadow: row.get::<&CStr>(20)?.map(CStr::to_owned),
                        batch_size: row.get(4)?.unwrap_or(1),
                        pause: row.get(5)?.unwrap_or_default(),
                        lock_timeout: row.get(6)?.unwrap_or_default(),
                        max_rows_per_second: row.get(7)?,
                        max_lag_bytes: row.get(8)?,
                        fires_triggers: row.get(9)?.unwrap_or_default(),
                    },
                    state: row.get(3)?.unwrap_or_default(),
                    phase: row.get(21)?.unwrap_or_default(),
                    place: Place {
                        pass: row.get(10)?.unwrap_or(1),
                        pass_rotated: row.get(11)?.unwrap_or_default(),
                        pass_skipped: row.get(12)?.unwrap_or_default(),
                        part: row.get(13)?,
                        file: row.get(14)?.unwrap_or(pg_sys::InvalidOid),
                        next_block: block(15)?,
                        end_block: block(16)?,
                        parts_blocks: row.get(17)?.unwrap_or_default(),
                        blocks_total: row.get(18)?,
                    },
                    rows_rotated: row.get(19)?.unwrap_or_default(),
                }))
            })
        })?;
        job.ok_or(Error::NoRotation { job: id })
    }

    /// What it does in this pass.
    pub(super) fn phase(&self) -> &'static str {
        match (&self.request.shadow, self.place.pass) {
            (None, 1) => "rotating",
            (None, _) => "checking",
            (Some(_), 1) => "encrypting",
            (Some(_), _) => "verifying",
        }
    }

    /// Stores which tables were verified.
    ///
    /// # Errors
    /// [`Error::OwnTable`].
    pub(super) fn save_verified(&self, parts: &[pg_sys::Oid]) -> Result<(), Error> {
        own_tables::as_owner(|| {
            Spi::run_with_args(
                "UPDATE colcrypt.rotation SET verified = $2 WHERE job = $1",
                &[self.id.into(), parts.to_vec().into()],
            )
        })
    }

    /// Stores where it stands; a state that somebody else has given it meanwhile stays.
    ///
    /// # Errors
    /// [`Error::OwnTable`].
    pub(super) fn save(&self, state: &str, phase: &str, pace: &Pace) -> Result<(), Error> {
        let place = &self.place;
        own_tables::as_owner(|| {
            Spi::run_with_args(
                "UPDATE colcrypt.rotation
                 SET state = CASE state WHEN 'running' THEN $2 ELSE state END, phase = $3, pass = $4, pass_rotated = $5, pass_skipped = $6, part = $7,
                     file = $8, next_block = $9, end_block = $10, parts_blocks = $11,
                     blocks_total = $12, rows_rotated = $13, rows_per_second = $14,
                     estimated_end = clock_timestamp() + make_interval(secs => $15),
                     updated_at = clock_timestamp()
                 WHERE job = $1",
                &[
                    self.id.into(),
                    state.into(),
                    phase.into(),
                    place.pass.into(),
                    place.pass_rotated.into(),
                    place.pass_skipped.into(),
                    place.part.into(),
                    place.file.into(),
                    i64::from(place.next_block).into(),
                    i64::from(place.end_block).into(),
                    place.parts_blocks.into(),
                    place.blocks_total.into(),
                    self.rows_rotated.into(),
                    pace.rows_per_second.into(),
                    pace.remaining.into(),
                ],
            )
        })
    }
}

/// Changes the state of a rotation, if it is one of `from`; whether it was.
///
/// # Errors
/// [`Error::OwnTable`].
pub(super) fn change_state(
    id: i32,
    from: &[&str],
    to: &str,
    last_error: Option<&str>,
) -> Result<bool, Error> {
    let from: Vec<_> = from.iter().map(ToString::to_string).collect();
    own_tables::as_owner(|| {
        let changed: Option<i32> = or_none(Spi::get_one_with_args(
            "UPDATE colcrypt.rotation
             SET state = $3, last_error = $4, phase = CASE $3 WHEN 'running' THEN 'starting' ELSE phase END,
                 background = background OR $3 = 'running', updated_at = clock_timestamp()
             WHERE job = $1 AND state = ANY ($2) RETURNING job",
            &[id.into(), from.into(), to.into(), last_error.into()],
        ))?;
        Ok(changed.is_some())
    })
}

/// Who has asked for a rotation.
pub(super) struct Asked {
    pub(super) relation: pg_sys::Oid,
    pub(super) role: pg_sys::Oid,
    pub(super) state: String,
    /// Whether it is one of `encrypt_column_online()`.
    pub(super) encrypts: bool,
    /// What that session sealed new values with.
    pub(super) algorithm: String,
    pub(super) write_key: String,
}

/// # Errors
/// [`Error::NoRotation`].
pub(super) fn find(id: i32) -> Result<Asked, Error> {
    let found = own_tables::as_owner(|| {
        Spi::connect(|client| {
            let rows = client.select(
                "SELECT relation, role, algorithm, write_key, shadow IS NOT NULL, state FROM colcrypt.rotation WHERE job = $1",
                None,
                &[id.into()],
            )?;
            if rows.is_empty() {
                return Ok(None);
            }
            let row = rows.first();
            Ok(Some(Asked {
                relation: row.get(1)?.unwrap_or(pg_sys::InvalidOid),
                role: row.get(2)?.unwrap_or(pg_sys::InvalidOid),
                algorithm: row.get(3)?.unwrap_or_default(),
                write_key: row.get(4)?.unwrap_or_default(),
                encrypts: row.get(5)?.unwrap_or_default(),
                state: row.get(6)?.unwrap_or_default(),
            }))
        })
    })?;
    found.ok_or(Error::NoRotation { job: id })
}

/// The tables that were verified.
///
/// # Errors
/// [`Error::OwnTable`].
pub(super) fn verified(id: i32) -> Result<Vec<pg_sys::Oid>, Error> {
    let parts: Option<Vec<pg_sys::Oid>> = own_tables::as_owner(|| {
        or_none(Spi::get_one_with_args(
            "SELECT verified FROM colcrypt.rotation WHERE job = $1",
            &[id.into()],
        ))
    })?;
    Ok(parts.unwrap_or_default())
}

/// The rotations that a background worker was at work on.
///
/// # Errors
/// [`Error::OwnTable`].
pub(super) fn left_over() -> Result<Vec<i32>, Error> {
    own_tables::as_owner(|| {
        let jobs: Option<Vec<i32>> = Spi::get_one(
            "SELECT array_agg(job ORDER BY job) FROM colcrypt.rotation
             WHERE state = 'running' AND background",
        )?;
        Ok(jobs.unwrap_or_default())
    })
}

/// No row is no value.
fn or_none<T>(result: Result<Option<T>, spi::Error>) -> Result<Option<T>, spi::Error> {
    match result {
        Err(spi::Error::InvalidPosition) => Ok(None),
        result => result,
    }
}

/// The rotation that this session is at work on, and what it has locked for that.
static HELD: BackendLocal<Cell<Option<(i32, pg_sys::LOCKTAG)>>> =
    BackendLocal::new(Cell::new(None));

const LOCK: pg_sys::LOCKMODE = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;

/// What is locked by whoever is at work on a rotation, across its transactions.
fn lock_tag(id: i32) -> Result<pg_sys::LOCKTAG, Error> {
    Ok(pg_sys::LOCKTAG {
        // SAFETY: reads a variable of this backend.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: own_tables::oid(c"rotation")?.to_u32(),
        locktag_field3: id as u32,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    })
}

/// Whether this session is the one that is at work on a rotation.
pub(super) fn holds(id: i32) -> bool {
    HELD.get().is_some_and(|(held, _)| held == id)
}

/// Makes this session the one that is at work on a rotation, until it lets go or a
/// transaction of it fails.
///
/// # Errors
/// [`Error::RotationRuns`].
pub(super) fn hold(id: i32) -> Result<(), Error> {
    if holds(id) {
        return Ok(());
    }
    let_go();
    let tag = lock_tag(id)?;
    // SAFETY: a lock of the session, which `let_go` releases.
    let held = unsafe { pg_sys::LockAcquire(&raw const tag, LOCK, true, true) };
    if held == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
        return Err(Error::RotationRuns { job: id });
    }
    HELD.set(Some((id, tag)));
    if !RELEASES_AT_EXIT.replace(true) {
        // SAFETY: the callback takes anything, and the library is never unloaded.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::null()) };
    }
    Ok(())
}

/// Whether [`at_exit`] is registered in this process.
static RELEASES_AT_EXIT: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// PostgreSQL itself releases such a lock of a process only if it is in a transaction.
unsafe extern "C-unwind" fn at_exit(_code: i32, _nothing: pg_sys::Datum) {
    let_go();
}

/// Ends what [`hold`] has begun. Also called when a transaction fails.
pub(crate) fn let_go() {
    if let Some((_, tag)) = HELD.take() {
        // SAFETY: this session has the lock.
        unsafe { pg_sys::LockRelease(&raw const tag, LOCK, true) };
    }
}

/// Whether another session is at work on a rotation. If not, none will be before this
/// transaction ends.
pub(super) fn is_held_elsewhere(id: i32) -> Result<bool, Error> {
    let tag = lock_tag(id)?;
    // SAFETY: a lock of the transaction.
    let held = unsafe { pg_sys::LockAcquire(&raw const tag, LOCK, false, true) };
    Ok(held == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL)
}
