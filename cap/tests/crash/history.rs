//! Reads the file and judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

/// What the file says of each order.
pub(crate) struct History {
    orders: Vec<i64>,
    messages: Vec<i64>,
    invoices: BTreeMap<i64, i64>,
    notices: BTreeMap<i64, i64>,
    /// Records that somebody still has to work on.
    open: i64,
}

/// What was counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    /// Committed orders.
    pub(crate) orders: usize,
    /// Of them, those without a message; in the end also those without an invoice or a notice.
    pub(crate) lost: usize,
    /// Messages, invoices and notices of orders that are not there.
    pub(crate) phantom: usize,
    /// Orders with more than one invoice.
    pub(crate) doubled: usize,
}

pub(crate) fn create(file: &Path) {
    let db = Connection::open(file).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE orders (number INTEGER PRIMARY KEY);
         CREATE TABLE invoices (number INTEGER NOT NULL);
         CREATE TABLE notices (number INTEGER NOT NULL);",
    )
    .unwrap();
}

fn query<T: rusqlite::types::FromSql>(file: &Path, sql: &str) -> Vec<T> {
    let db = Connection::open(file).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    let mut statement = db.prepare(sql).unwrap();
    statement.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// How many records are held by nodes that have no lease.
pub(crate) fn held_by_the_dead(file: &Path) -> i64 {
    let held = |table: &str| -> i64 {
        let live = r#"SELECT Node FROM "cap.nodes" WHERE LeaseUntil > unixepoch('subsec') * 1000000"#;
        query(file, &format!(r#"SELECT count(*) FROM "{table}" WHERE Owner IS NOT NULL AND Owner NOT IN ({live})"#))[0]
    };
    held("cap.published") + held("cap.received")
}

/// The topics of dead records.
pub(crate) fn dead(file: &Path) -> Vec<String> {
    let dead = |table: &str| format!(r#"SELECT Name FROM "{table}" WHERE StatusName = 'Failed' AND DueAt IS NULL"#);
    query(file, &format!("{} UNION ALL {}", dead("cap.published"), dead("cap.received")))
}

impl History {
    pub(crate) fn read(file: &Path) -> Self {
        let mut db = Connection::open(file).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        // One snapshot for all of it: the child may be running.
        let db = db.transaction().unwrap();
        let numbers = |sql: &str| -> Vec<i64> {
            let mut statement = db.prepare(sql).unwrap();
            statement.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let tally = |table: &str| {
            let mut tally = BTreeMap::new();
            for number in numbers(&format!("SELECT number FROM {table}")) {
                *tally.entry(number).or_insert(0) += 1;
            }
            tally
        };
        let ours: i64 = db
            .query_row("SELECT count(*) FROM sqlite_master WHERE name = 'cap.received'", (), |row| row.get(0))
            .unwrap();
        let (messages, open) = if ours == 0 {
            (Vec::new(), 0)
        } else {
            let messages = numbers(
                r#"SELECT CAST(substr(MessageId, 7) AS INTEGER) FROM "cap.published" WHERE MessageId LIKE 'order-%'"#,
            );
            let open = |table| {
                numbers(&format!(
                    r#"SELECT count(*) FROM "{table}" WHERE StatusName IN ('Scheduled', 'Queued') OR DueAt IS NOT NULL"#
                ))[0]
            };
            (messages, open("cap.published") + open("cap.received"))
        };
        Self {
            orders: numbers("SELECT number FROM orders"),
            messages,
            invoices: tally("invoices"),
            notices: tally("notices"),
            open,
        }
    }

    /// Counts what is wrong. `complete`: everything that was committed must have been handled by now.
    fn totals(&self, complete: bool) -> Totals {
        let orders: BTreeSet<i64> = self.orders.iter().copied().collect();
        let messages: BTreeSet<i64> = self.messages.iter().copied().collect();
        let missing = |seen: &dyn Fn(&i64) -> bool| orders.iter().filter(|number| !seen(number)).count();
        let extra = |seen: &mut dyn Iterator<Item = &i64>| seen.filter(|number| !orders.contains(number)).count();
        let unhandled = || {
            missing(&|number| self.invoices.contains_key(number)) + missing(&|number| self.notices.contains_key(number))
        };
        Totals {
            orders: orders.len(),
            lost: missing(&|number| messages.contains(number)) + if complete { unhandled() } else { 0 },
            phantom: extra(&mut messages.iter())
                + extra(&mut self.invoices.keys())
                + extra(&mut self.notices.keys())
                + orders.iter().filter(|number| *number % 5 == 4).count(),
            doubled: self.invoices.values().filter(|times| **times > 1).count(),
        }
    }

    /// What must hold at any moment.
    pub(crate) fn check(&self) -> Result<Totals, String> {
        self.judge(false)
    }

    /// What must hold once all is done.
    pub(crate) fn check_complete(&self) -> Result<Totals, String> {
        if self.open > 0 {
            return Err(format!("stuck: {} records are still open", self.open));
        }
        self.judge(true)
    }

    fn judge(&self, complete: bool) -> Result<Totals, String> {
        let totals = self.totals(complete);
        if totals.lost + totals.phantom + totals.doubled > 0 {
            return Err(format!("{totals:?}"));
        }
        Ok(totals)
    }
}
