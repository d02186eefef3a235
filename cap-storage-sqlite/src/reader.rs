//! The thread that reads. With a write-ahead log it waits for no writer, and no writer waits for it.

use std::collections::VecDeque;

use crate::job::{BoxedJob, Fate};
use crate::session::Session;

/// Runs and answers all of them, one after the other: each is one statement, and sees all that was committed before it.
pub(crate) fn run(session: &mut Session<'_>, _place: &str, batch: VecDeque<BoxedJob>) {
    for mut job in batch {
        job.run(session);
        job.answer(Fate::Committed);
    }
}
