//! Rotation: moves a column's values to the primary key and the current algorithm.
//!
//! Rotation is no change of data: it fires no trigger unless asked to, is no concern of
//! rules, row-level security, foreign keys and CHECK constraints, and needs no privilege
//! but ownership.

mod at_once;
mod finish;
mod fresh;
mod indexes;
mod job;
mod launcher;
mod online;
mod replicas;
mod scan;
mod target;
mod waiting;
mod walk;
mod worker;

pub(crate) use job::let_go;
pub(crate) use launcher::register;
