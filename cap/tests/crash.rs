//! A child process publishes and handles on SQLite and is killed: at each step of a message's way, and at random
//! moments. After each restart the history is checked, by this process, on the file alone:
//!
//! - nothing committed is lost: in the end there is exactly one invoice for each order, and one notice at the least;
//! - nothing rolled back appears: no message, no invoice, no notice;
//! - no record is stuck: after a restart all is done within the lease and the time that the work takes.
//!
//! `CAP_CRASH_KILLS` sets the number of random kills (default 200), `CAP_CRASH_SEED` their seed.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test")]

#[path = "crash/child.rs"]
mod child;
#[path = "crash/history.rs"]
mod history;
#[path = "crash/parent.rs"]
mod parent;

use cap::Step;
use libtest_mimic::{Arguments, Trial};

fn main() {
    if let Some(order) = child::Order::from_environment() {
        return child::run(order);
    }
    let mut trials: Vec<Trial> = Step::ALL
        .into_iter()
        .map(|step| {
            Trial::test(format!("killed_after_{step:?}_nothing_is_lost_or_doubled"), move || {
                parent::killed_at(step).map_err(Into::into)
            })
        })
        .collect();
    trials.push(Trial::test("a_message_that_kills_its_process_is_given_up_and_takes_no_neighbour_with_it", || {
        parent::killed_by_a_message().map_err(Into::into)
    }));
    trials.push(Trial::test("killed_at_random_moments_nothing_is_lost_or_doubled", || {
        parent::killed_at_random().map_err(Into::into)
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
