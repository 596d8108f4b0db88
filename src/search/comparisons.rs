//! Finds what a query compares that the session may not compare: in an analyzed
//! query, and in the plan of one, for those that were planned for somebody else.
//! The functions that compare refuse by themselves; this is for what they cannot
//! see: a search in an index, and an order that an index gives without comparing.

use core::ffi::c_void;

use pgrx::prelude::*;

use crate::error::Error;
use crate::relations::{EncryptedTypes, encrypted_types, find_modifier, holds_encrypted, members};
use crate::tally::{self, Operation};
use crate::{access, compat, managed_keys};

/// Whether there may be anything to refuse. Must not fail, so it reads no table.
pub(crate) fn is_watched() -> bool {
    !access::is_plainly_full() || managed_keys::may_have_grants()
}

#[pg_guard]
pub(crate) unsafe extern "C-unwind" fn check_query(query: *mut pg_sys::Query) {
    // SAFETY: a query is a node.
    Error::unwrap_or_raise(unsafe { check(|search| search.visit(query.cast())) });
}

#[pg_guard]
pub(crate) unsafe extern "C-unwind" fn check_plan(plan: *mut pg_sys::PlanState) {
    // SAFETY: the state of a plan that is started.
    Error::unwrap_or_raise(unsafe {
        check(|search| visit_plan(plan, core::ptr::from_mut(search).cast()))
    });
}

/// Takes from the planner the indexes that would answer what may not be asked: by
/// finding, or by the order in which they give rows.
#[pg_guard]
pub(crate) unsafe extern "C-unwind" fn hide_indexes(
    relation: pg_sys::Oid,
    info: *mut pg_sys::RelOptInfo,
) {
    // SAFETY: the list of indexes is the planner's own.
    unsafe {
        Error::unwrap_or_raise(check(|search| {
            let indexes: Vec<_> = members((*info).indexlist).collect();
            for index in indexes {
                let oid = (*index.cast::<pg_sys::IndexOptInfo>()).indexoid;
                if search.may_not_use(relation, oid) {
                    (*info).indexlist = pg_sys::list_delete_ptr((*info).indexlist, index.cast());
                }
            }
            false
        }));
    }
}

/// What a query is searched for.
struct Search {
    types: EncryptedTypes,
    /// Whether every comparison is refused, or only those of columns under a key
    /// that the user may not use.
    all: bool,
}

/// # Safety
/// `find` walks a query or a plan.
unsafe fn check(find: impl FnOnce(&mut Search) -> bool) -> Result<(), Error> {
    let Some(types) = encrypted_types() else {
        return Ok(());
    };
    let mut search = Search {
        types,
        all: access::check_compare().is_err(),
    };
    // If the tables cannot be read, the functions that compare say so.
    if !search.all && managed_keys::all_granted().unwrap_or(true) {
        return Ok(());
    }
    if !find(&mut search) {
        return Ok(());
    }
    let refusal = access::check_compare().err();
    let refusal = refusal.unwrap_or(Error::CompareColumnNotGranted);
    tally::count_failure(Operation::Compare, None, &refusal);
    Err(refusal)
}

impl Search {
    /// Whether an index tells of values that may not be compared.
    ///
    /// # Safety
    /// `index` is an index of `table`, which is locked.
    unsafe fn may_not_use(&self, table: pg_sys::Oid, index: pg_sys::Oid) -> bool {
        // SAFETY: by the caller's word; opened and closed again.
        unsafe {
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let relation = pg_sys::index_open(index, lock);
            let form = &*(*relation).rd_index;
            let count = usize::try_from(form.indnkeyatts).unwrap_or(0);
            let keys = form.indkey.values.as_slice(count);
            let is_btree = (*(*relation).rd_rel).relam == pg_sys::BTREE_AM_OID;
            let refused = keys.iter().enumerate().any(|(number, attribute)| {
                // Behind another column it orders only what is equal there; who may
                // compare some values may use that.
                let leads =
                    number == 0 || !is_btree || (compat::SKIPS_COLUMNS && number + 1 < keys.len());
                (self.all || leads) && self.refuses_column(table, *attribute, relation, number)
            });
            pg_sys::index_close(relation, lock);
            refused
        }
    }

    /// # Safety
    /// `attribute` is the column of `table` that `index` has at `number`, 0 for an
    /// expression.
    unsafe fn refuses_column(
        &self,
        table: pg_sys::Oid,
        attribute: i16,
        index: pg_sys::Relation,
        number: usize,
    ) -> bool {
        // SAFETY: by the caller's word.
        unsafe {
            let (declared, mut modifier) = if attribute > 0 {
                let modifier = find_modifier(table, attribute);
                (pg_sys::get_atttype(table, attribute), modifier)
            } else {
                (pg_sys::get_atttype((*index).rd_id, number as i16 + 1), -1)
            };
            let base = pg_sys::getBaseTypeAndTypmod(declared, &raw mut modifier);
            if self.types.has(base) {
                // A column without a key of its own may hold values under any.
                return self.all || modifier < 0 || self.is_refused(modifier);
            }
            holds_encrypted(base)
        }
    }

    /// Whether the node, or something in it, compares.
    ///
    /// # Safety
    /// `node` is null or a node of an analyzed query or a plan's expression.
    unsafe fn visit(&mut self, node: *mut pg_sys::Node) -> bool {
        use pg_sys::NodeTag as Tag;
        // SAFETY: the tag says what a node is; the walkers are PostgreSQL's.
        unsafe {
            if node.is_null() {
                return false;
            }
            let compares = match (*node).type_ {
                Tag::T_Query => {
                    let query: *mut pg_sys::Query = node.cast();
                    if self.sorts(&*query) {
                        return true;
                    }
                    return compat::query_tree_walker(query, visit, self.context());
                }
                Tag::T_OpExpr | Tag::T_DistinctExpr | Tag::T_NullIfExpr => {
                    let operator = &*node.cast::<pg_sys::OpExpr>();
                    self.is_ours(operator.opno) && self.concerns_any(operator.args)
                }
                Tag::T_ScalarArrayOpExpr => {
                    let operator = &*node.cast::<pg_sys::ScalarArrayOpExpr>();
                    self.is_ours(operator.opno) && self.concerns_any(operator.args)
                }
                Tag::T_RowCompareExpr => {
                    let row = &*node.cast::<pg_sys::RowCompareExpr>();
                    self.concerns_any(row.largs) || self.concerns_any(row.rargs)
                }
                Tag::T_MinMaxExpr => {
                    let extreme = &*node.cast::<pg_sys::MinMaxExpr>();
                    self.concerns_any(extreme.args)
                }
                Tag::T_Aggref => {
                    let aggregate = &*node.cast::<pg_sys::Aggref>();
                    (!aggregate.aggdistinct.is_null() || !aggregate.aggorder.is_null())
                        && self.sorts_any(aggregate.args)
                }
                Tag::T_SetOperationStmt => {
                    let operation = &*node.cast::<pg_sys::SetOperationStmt>();
                    !operation.groupClauses.is_null() && self.has_column(operation)
                }
                _ => false,
            };
            compares || compat::expression_tree_walker(node, visit, self.context())
        }
    }

    fn context(&mut self) -> *mut c_void {
        core::ptr::from_mut(self).cast()
    }

    /// Whether a query sorts or groups by encrypted values.
    ///
    /// # Safety
    /// An analyzed query.
    unsafe fn sorts(&self, query: &pg_sys::Query) -> bool {
        // SAFETY: by the caller's word.
        unsafe { self.sorts_any(query.targetList) }
    }

    /// Whether one of these target entries is something to sort or group by.
    ///
    /// # Safety
    /// A list of target entries.
    unsafe fn sorts_any(&self, entries: *mut pg_sys::List) -> bool {
        // SAFETY: by the caller's word.
        unsafe {
            members(entries).any(|entry| {
                let entry = &*entry.cast::<pg_sys::TargetEntry>();
                entry.ressortgroupref != 0 && self.concerns(entry.expr.cast())
            })
        }
    }

    /// # Safety
    /// An analyzed set operation.
    unsafe fn has_column(&self, operation: &pg_sys::SetOperationStmt) -> bool {
        // SAFETY: lists of OIDs and of integers, of the same length.
        unsafe {
            let count = if operation.colTypes.is_null() {
                0
            } else {
                (*operation.colTypes).length
            };
            (0..count).any(|number| {
                let cell = (*operation.colTypmods).elements.add(number as usize);
                self.types
                    .has(pg_sys::list_nth_oid(operation.colTypes, number))
                    && self.is_refused((*cell).int_value)
            })
        }
    }

    /// # Safety
    /// A list of expressions.
    unsafe fn concerns_any(&self, expressions: *mut pg_sys::List) -> bool {
        // SAFETY: by the caller's word.
        unsafe { members(expressions).any(|expression| self.concerns(expression)) }
    }

    /// Whether an expression is an encrypted value that may not be compared.
    ///
    /// # Safety
    /// An expression.
    unsafe fn concerns(&self, expression: *mut pg_sys::Node) -> bool {
        // SAFETY: by the caller's word.
        unsafe {
            let mut modifier = pg_sys::exprTypmod(expression);
            let type_oid =
                pg_sys::getBaseTypeAndTypmod(pg_sys::exprType(expression), &raw mut modifier);
            let encrypted =
                self.types.has(type_oid) || self.types.has(pg_sys::get_element_type(type_oid));
            encrypted && self.is_refused(modifier)
        }
    }

    fn is_refused(&self, modifier: i32) -> bool {
        self.all
            || (modifier >= 0 && managed_keys::is_restricted_modifier(modifier).unwrap_or(true))
    }

    /// Whether an operator compares encrypted values: those that give no boolean, as
    /// `||` does, work with what the session gets to see.
    fn is_ours(&self, operator: pg_sys::Oid) -> bool {
        let (mut left, mut right) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        // SAFETY: an operator of an analyzed query exists.
        let result = unsafe {
            pg_sys::op_input_types(operator, &raw mut left, &raw mut right);
            pg_sys::get_func_rettype(pg_sys::get_opcode(operator))
        };
        result == pg_sys::BOOLOID && (self.types.has(left) || self.types.has(right))
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn visit(node: *mut pg_sys::Node, search: *mut c_void) -> bool {
    // SAFETY: PostgreSQL's walkers pass the nodes, and the search as it was given.
    unsafe { (*search.cast::<Search>()).visit(node) }
}

/// Whether a plan uses an index that it may not.
#[pg_guard]
unsafe extern "C-unwind" fn visit_plan(state: *mut pg_sys::PlanState, search: *mut c_void) -> bool {
    use pg_sys::NodeTag as Tag;
    // SAFETY: PostgreSQL's walker passes the states of a plan; the tag says what a
    // plan is.
    unsafe {
        if state.is_null() {
            return false;
        }
        let plan = (*state).plan;
        let index = match (*plan).type_ {
            Tag::T_IndexScan => (*plan.cast::<pg_sys::IndexScan>()).indexid,
            Tag::T_IndexOnlyScan => (*plan.cast::<pg_sys::IndexOnlyScan>()).indexid,
            Tag::T_BitmapIndexScan => (*plan.cast::<pg_sys::BitmapIndexScan>()).indexid,
            _ => pg_sys::InvalidOid,
        };
        let refused = index != pg_sys::InvalidOid
            && (*search.cast::<Search>())
                .may_not_use(pg_sys::IndexGetRelation(index, false), index);
        refused || compat::planstate_tree_walker(state, visit_plan, search)
    }
}
