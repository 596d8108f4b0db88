//! `rotate_column_online()`: in batches, each a transaction of its own, which the
//! procedure in `sql/rotation.sql` or a [`worker`](super::worker) runs one after the
//! other.
//!
//! It goes through all blocks of all tables, and again where it had to leave rows out or
//! [`finish`] finds that values are stale. It never waits while it has rows locked, so
//! nobody can be in a deadlock with it.

use core::cell::Cell;
use core::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::fresh::Fresh;
use super::job::{self, Job, Pace, Place, Request};
use super::target::{Table, Target};
use super::walk::{Fires, Manner, Outcome, Patience, Walk};
use super::{finish, indexes, replicas, worker};
use crate::backend_local::BackendLocal;
use crate::compat;
use crate::error::Error;
use crate::keyring;
use crate::progress::Ticker;
use crate::relations::relation_name;
use crate::types::datum::per_value_function;

/// How long a batch takes at most, where there is little to rotate: as long nothing that
/// is deleted meanwhile can be vacuumed.
const LONGEST_BATCH: Duration = Duration::from_secs(1);
/// How long to wait before something is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// How long at most.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What comes after a batch.
pub(super) enum Next {
    /// Another one, so much later.
    Wait(Duration),
    /// Nothing: no value is stale.
    Done,
    /// Nothing, for somebody has said so.
    Stopped(String),
}

/// What this session has done of a rotation, since it took it up.
#[derive(Clone, Copy)]
struct Run {
    job: i32,
    started: Instant,
    ticker: Ticker,
    rows: i64,
    /// In the pass under way, which began so long after `started`.
    blocks: i64,
    pass: i32,
    pass_started: Instant,
}

static RUN: BackendLocal<Cell<Option<Run>>> = BackendLocal::new(Cell::new(None));

/// Makes a rotation, or takes one up that did not end; with its worker, if it is one of
/// `rotate_column_background()`. Gives its number.
#[expect(
    clippy::too_many_arguments,
    reason = "the parameters of the SQL function"
)]
#[pg_extern(sql = false)]
fn colcrypt_begin_rotation(
    relation: Option<pg_sys::Oid>,
    column_name: Option<&CStr>,
    batch_size: Option<i32>,
    pause: Option<Interval>,
    lock_timeout: Option<Interval>,
    max_rows_per_second: Option<i64>,
    max_lag_bytes: Option<i64>,
    fire_triggers: Option<bool>,
    background: bool,
) -> Result<i32, ErrorReport> {
    let name = if background {
        c"rotate_column_background()"
    } else {
        prevent_in_transaction("rotate_column_online()")?;
        c"rotate_column_online()"
    };
    let request = Request {
        relation: relation.ok_or(Error::not_given("relation"))?,
        column: column_name
            .ok_or(Error::not_given("column_name"))?
            .to_owned(),
        shadow: None,
        batch_size: Error::at_least(1, "batch_size", batch_size.map(i64::from))?,
        pause: seconds("pause", pause)?,
        lock_timeout: seconds("lock_timeout", lock_timeout)?,
        max_rows_per_second: limit(1, "max_rows_per_second", max_rows_per_second)?,
        max_lag_bytes: limit(0, "max_lag_bytes", max_lag_bytes)?,
        fires_triggers: fire_triggers.ok_or(Error::not_given("fire_triggers"))?,
    };
    compat::prevent_if_read_only(name);
    let target = Target::resolve(request.relation, &request.column)?;
    if background && target.is_temporary() {
        return Err(Error::TemporaryTable.into());
    }
    target.tables()?;
    let ring = keyring::current();
    ring.primary()?;
    if background && ring.is_session_s() {
        return Err(Error::SessionKey.into());
    }
    let id = Job::begin(&request, background)?;
    if background {
        worker::start(id)?;
    }
    Ok(id)
}

fn prevent_in_transaction(what: &'static str) -> Result<(), Error> {
    // SAFETY: reads the state of this backend.
    if unsafe { pg_sys::IsTransactionBlock() } {
        return Err(Error::InTransaction(what));
    }
    Ok(())
}

/// # Errors
/// [`Error::Parameter`].
fn seconds(what: &'static str, value: Option<Interval>) -> Result<f64, Error> {
    /// Longer than that nobody means, and no timer takes.
    const MOST: f64 = 1e6;
    value
        .map(|interval| interval.as_micros() as f64 / 1e6)
        .filter(|value| (0.0..=MOST).contains(value))
        .ok_or(Error::Parameter {
            what,
            bound: "0 or more, and 1000000 seconds at most",
        })
}

fn limit(least: i64, what: &'static str, value: Option<i64>) -> Result<Option<i64>, Error> {
    value
        .map(|value| Error::at_least(least, what, Some(value)))
        .transpose()
}

#[pg_extern(sql = false)]
fn colcrypt_rotation_step(job: i32) -> Result<Option<f64>, ErrorReport> {
    match step(job)? {
        Next::Wait(time) => Ok(Some(time.as_secs_f64())),
        Next::Done => Ok(None),
        Next::Stopped(state) => Err(Error::RotationStopped { job, state }.into()),
    }
}

/// Does one batch, with the rights of the current user, who must own the relation.
///
/// # Errors
/// [`Error::NoRotation`], [`Error::RotationRuns`]; as `rotate_column()`.
pub(super) fn step(id: i32) -> Result<Next, Error> {
    if !job::holds(id) {
        Target::check_owner(job::find(id)?.relation)?;
        job::hold(id)?;
        finish::forget_writers();
    }
    let mut job = Job::load(id)?;
    if job.state != "running" {
        job::let_go();
        return Ok(Next::Stopped(job.state));
    }
    let started = Instant::now();
    let (column, shadow) = (job.request.column.clone(), job.request.shadow.clone());
    let plaintext = shadow.as_ref().map(|_| column.as_c_str());
    let column = shadow.as_deref().unwrap_or(&column);
    let Some(target) = Target::try_resolve(job.request.relation, column)? else {
        return wait(&job, "waiting for a lock");
    };
    let target = target.fed_by(plaintext);
    if let Some(most) = job.request.max_lag_bytes
        && replicas::lag_bytes()? > most
    {
        return wait(&job, "waiting for replicas");
    }
    let parts = target.parts();
    if job.place.blocks_total.is_none() {
        job.place.blocks_total = Some(parts.iter().map(|part| blocks_of(*part)).sum());
    }
    let part = match job.place.part {
        // It may have been dropped.
        Some(last) => parts.iter().find(|part| part.to_u32() >= last.to_u32()),
        None => parts.first(),
    };
    let Some(part) = part else {
        return end_pass(job, &target);
    };
    let Some(table) = target.try_table(*part)? else {
        return wait(&job, "waiting for a lock");
    };
    let batch = rotate_batch(&mut job, table, started)?;
    job.rows_rotated += batch.rotated;
    job.place.pass_rotated += batch.rotated;
    job.place.pass_skipped += batch.skipped;
    let run = note(&job, &batch, started);
    let phase = if batch.waited {
        "waiting for locked rows"
    } else {
        job.phase()
    };
    job.save("running", phase, &run.pace(&job))?;
    run.report(&job, table);
    if batch.rotated == 0 {
        return Ok(Next::Wait(Duration::ZERO));
    }
    let pause = Duration::from_secs_f64(job.request.pause);
    let slowed = job.request.max_rows_per_second.map(|most| {
        let least = Duration::from_secs_f64(batch.rotated as f64 / most as f64);
        least.saturating_sub(started.elapsed())
    });
    Ok(Next::Wait(pause.max(slowed.unwrap_or_default())))
}

fn wait(job: &Job, phase: &str) -> Result<Next, Error> {
    job.save("running", phase, &Pace::default())?;
    Ok(Next::Wait(RETRY))
}

/// All tables are through.
fn end_pass(mut job: Job, target: &Target<'_>) -> Result<Next, Error> {
    let run = RUN.get().filter(|run| run.job == job.id);
    let pace = Pace {
        rows_per_second: run.and_then(|run| run.pace(&job).rows_per_second),
        remaining: None,
    };
    let Place {
        pass,
        pass_rotated,
        pass_skipped,
        ..
    } = job.place;
    if pass_skipped == 0 {
        if job.request.shadow.is_none() {
            return finish(job, target, &pace);
        }
        // It is verified in a pass that comes after it was filled.
        if pass_rotated == 0 && pass > 1 {
            job.place = job.place.next_pass();
            job.save("running", "encrypted", &pace)?;
            job.save_verified(&target.parts())?;
            return Ok(Next::Done);
        }
    } else {
        pgrx::notice!("{pass_skipped} rows were locked by others, and are tried again");
    }
    begin_pass(job, &pace)
}

fn begin_pass(mut job: Job, pace: &Pace) -> Result<Next, Error> {
    let Place {
        pass_rotated,
        pass_skipped,
        ..
    } = job.place;
    finish::forget_writers();
    job.place = job.place.next_pass();
    let phase = if pass_rotated == 0 && pass_skipped > 0 {
        "waiting for locked rows"
    } else {
        job.phase()
    };
    job.save("running", phase, pace)?;
    // Where others keep rows locked, it is not always reading the table.
    let run = RUN.get().filter(|run| run.job == job.id);
    let pass_time = run.map_or(RETRY, |run| run.pass_started.elapsed());
    Ok(Next::Wait(if pass_rotated == 0 {
        pass_time.clamp(RETRY, LONGEST_RETRY)
    } else {
        Duration::ZERO
    }))
}

/// A pass has left nothing out: that may have been all.
fn finish(job: Job, target: &Target<'_>, pace: &Pace) -> Result<Next, Error> {
    const FINISHING: &str = "finishing";
    if !finish::writers_have_ended(job.id, &target.parts())? {
        return wait(&job, "waiting for older transactions");
    }
    if job.phase != FINISHING {
        // So that others see what comes now, which may take long.
        job.save("running", FINISHING, pace)?;
        return Ok(Next::Wait(Duration::ZERO));
    }
    match finish::is_all_fresh(target)? {
        None => wait(&job, "waiting for a lock"),
        Some(false) => begin_pass(job, pace),
        Some(true) => {
            job.save("done", "done", pace)?;
            finish::forget_writers();
            job::let_go();
            RUN.set(None);
            if job.rows_rotated > 0 {
                for table in target.tables()? {
                    indexes::tell_of_btrees(table.oid, table.attribute);
                }
            }
            Ok(Next::Done)
        }
    }
}

/// What was done in a transaction.
struct Batch {
    rotated: i64,
    skipped: i64,
    blocks: i64,
    waited: bool,
}

/// Goes on in a table, which is locked, and sets the place for the next batch.
fn rotate_batch(job: &mut Job, table: Table, started: Instant) -> Result<Batch, Error> {
    let (blocks, file) = compat::size_and_file(table.oid);
    let place = &mut job.place;
    if place.part != Some(table.oid) || place.file != file {
        // A table that was written anew may have its rows anywhere.
        place.part = Some(table.oid);
        place.file = file;
        place.next_block = 0;
        place.end_block = blocks;
    }
    // It may have been truncated.
    let (first, end) = (place.next_block, place.end_block.min(blocks));
    let mut batch = Batch {
        rotated: 0,
        skipped: 0,
        blocks: 0,
        waited: false,
    };
    let mut next = None;
    if first < end {
        let manner = Manner {
            blocks: Some((first, end)),
            // A new value, or one that is there already.
            verifies: table.pair.is_none() || place.pass > 1,
            fires: match (table.pair, job.request.fires_triggers) {
                (Some(_), _) => Fires::InStep,
                (None, true) => Fires::Users,
                (None, false) => Fires::Nothing,
            },
        };
        let mut fresh = Fresh::new(table.modifier);
        let mut rooms = <[Zeroizing<Vec<u8>>; 2]>::default();
        // Only once in a batch, and not while others may wait for it.
        let milliseconds = (job.request.lock_timeout * 1000.0).ceil() as i32;
        let mut may_wait = place.pass > 1 && milliseconds > 0;
        let mut block = first;
        // SAFETY: in a transaction, with the table locked.
        unsafe {
            let mut walk = Walk::begin(table, manner)?;
            while walk.next_row() {
                if walk.block() != block {
                    block = walk.block();
                    if batch.rotated >= job.request.batch_size || started.elapsed() > LONGEST_BATCH
                    {
                        next = Some(block);
                        break;
                    }
                }
                let patience = if may_wait && !walk.holds_rows() {
                    Patience::Milliseconds(milliseconds)
                } else {
                    Patience::None
                };
                let held_rows = walk.holds_rows();
                match walk.rotate_row(&mut fresh, patience, &mut rooms)? {
                    Outcome::Rotated => batch.rotated += 1,
                    Outcome::Skipped => {}
                    Outcome::Locked if may_wait && held_rows => {
                        // The next batch waits for it, with nothing locked.
                        next = Some(block);
                        break;
                    }
                    Outcome::Locked => {
                        batch.skipped += 1;
                        batch.waited |= may_wait;
                        may_wait = false;
                    }
                }
            }
            walk.end();
        }
    }
    let place = &mut job.place;
    match next {
        Some(next) => {
            batch.blocks = i64::from(next) - i64::from(first);
            place.next_block = next;
        }
        None => {
            batch.blocks = i64::from(end.saturating_sub(first));
            place.parts_blocks += i64::from(end);
            // The OIDs of tables are gone through in their order.
            place.part = Some((table.oid.to_u32().saturating_add(1)).into());
            place.file = pg_sys::InvalidOid;
            place.next_block = 0;
            place.end_block = 0;
        }
    }
    Ok(batch)
}

/// The blocks of a table; 0 if somebody has locked it.
fn blocks_of(table: pg_sys::Oid) -> i64 {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: locked before it is opened, if it can be.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(table, lock) {
            return 0;
        }
        if pg_sys::get_rel_name(table).is_null() {
            return 0;
        }
    }
    i64::from(compat::size_and_file(table).0)
}

/// Adds a batch, which began at `started`, to what this session has done.
fn note(job: &Job, batch: &Batch, started: Instant) -> Run {
    let known = RUN.get().filter(|run| run.job == job.id);
    let mut run = known.unwrap_or(Run {
        job: job.id,
        started,
        ticker: Ticker::default(),
        rows: 0,
        blocks: 0,
        pass: job.place.pass,
        pass_started: started,
    });
    if run.pass != job.place.pass {
        run.pass = job.place.pass;
        run.pass_started = started;
        run.blocks = 0;
    }
    run.rows += batch.rotated;
    run.blocks += batch.blocks;
    RUN.set(Some(run));
    run
}

impl Run {
    fn pace(&self, job: &Job) -> Pace {
        let per_second = |count: i64, since: Instant| {
            let seconds = since.elapsed().as_secs_f64();
            (seconds > 0.0).then_some(count as f64 / seconds)
        };
        let place = &job.place;
        let done = place.parts_blocks + i64::from(place.next_block);
        let left = place.blocks_total.unwrap_or_default() - done;
        let speed = per_second(self.blocks, self.pass_started).filter(|speed| *speed > 0.0);
        Pace {
            rows_per_second: per_second(self.rows, self.started),
            remaining: speed.map(|speed| left.max(0) as f64 / speed),
        }
    }

    /// Says how far it is, from time to time.
    fn report(mut self, job: &Job, table: Table) {
        if !self.ticker.is_due() {
            return;
        }
        RUN.set(Some(self));
        let pace = self.pace(job);
        let place = &job.place;
        pgrx::notice!(
            "rotated {} rows so far, {:.0} per second; at block {} of {} of \"{}\", {}",
            job.rows_rotated,
            pace.rows_per_second.unwrap_or_default(),
            place.next_block,
            place.end_block,
            relation_name(table.oid).unwrap_or_default(),
            match pace.remaining {
                Some(seconds) => format!("about {seconds:.0} seconds to go in pass {}", place.pass),
                None => format!("pass {}", place.pass),
            }
        );
    }
}

/// Makes a job of `encrypt_column_online()`, which the SQL function around it has
/// prepared, or takes it up again; gives its number.
#[pg_extern(sql = false)]
fn colcrypt_begin_encryption(
    relation: pg_sys::Oid,
    column_name: &CStr,
    shadow: &CStr,
    batch_size: i32,
    pause: Interval,
    lock_timeout: Interval,
) -> Result<i32, ErrorReport> {
    let request = Request {
        relation,
        column: column_name.to_owned(),
        shadow: Some(shadow.to_owned()),
        batch_size: Error::at_least(1, "batch_size", Some(batch_size.into()))?,
        pause: seconds("pause", Some(pause))?,
        lock_timeout: seconds("lock_timeout", Some(lock_timeout))?,
        max_rows_per_second: None,
        max_lag_bytes: None,
        fires_triggers: false,
    };
    Target::resolve(relation, shadow)?;
    keyring::current().primary()?;
    Ok(Job::begin(&request, false)?)
}

/// The tables that were verified for `encrypt_column_online()`.
#[pg_extern(sql = false)]
fn colcrypt_verified_parts(job: i32) -> Result<Vec<pg_sys::Oid>, ErrorReport> {
    Ok(job::verified(job)?)
}

/// Ends a job of `encrypt_column_online()` for now, or for good.
#[pg_extern(sql = false)]
fn colcrypt_end_encryption(job: i32, state: &str, phase: &str) -> Result<(), ErrorReport> {
    let known = Job::load(job)?;
    Target::resolve(known.request.relation, &known.request.column)
        .map(drop)
        .or_else(|error| match error {
            // The column is plaintext again, or still.
            Error::WrongType { .. } => Ok(()),
            error => Err(error),
        })?;
    known.save(state, phase, &Pace::default())?;
    job::let_go();
    Ok(())
}

// `CALL colcrypt.wait_for_next_batch(seconds)`
per_value_function!("colcrypt_wait_for_next_batch", |call| {
    wait_for_next_batch(call.raw());
    pg_sys::Datum::null()
});

/// Waits outside of any transaction's snapshot, which would keep VACUUM from removing
/// what is deleted meanwhile.
fn wait_for_next_batch(call: pg_sys::FunctionCallInfo) {
    // SAFETY: PostgreSQL calls a procedure with its context; declared with a double
    // precision, which is given.
    let (context, seconds) = unsafe {
        let context = (*call).context.cast::<pg_sys::CallContext>().as_ref();
        (
            context,
            f64::from_bits((*(*call).args.as_ptr()).value.value() as u64),
        )
    };
    let commits = context
        .is_some_and(|context| context.type_ == pg_sys::NodeTag::T_CallContext && !context.atomic);
    let started = Instant::now();
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    // SAFETY: as PL/pgSQL's COMMIT (exec_stmt_commit() of pl_exec.c); no snapshot is taken
    // before this ends.
    unsafe {
        if commits {
            pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
            pg_sys::SPI_commit();
        }
        while started.elapsed() < time {
            compat::sleep(Some(time.saturating_sub(started.elapsed())));
            pgrx::check_for_interrupts!();
        }
        if commits {
            pg_sys::SPI_finish();
        }
    }
}

#[pg_extern(sql = false)]
fn colcrypt_prevent_in_transaction() -> Result<(), ErrorReport> {
    Ok(prevent_in_transaction("encrypt_column_online()")?)
}
