#![doc = include_str!("../README.md")]

mod address;
pub mod check;
pub mod log;
pub mod report;
pub mod runner;
pub mod server;
pub mod storage;
pub mod transport;

pub use check::{Check, CheckResult, Failure, Fixture, Need};
pub use report::{Entry, Outcome, Report};
pub use runner::{RunOptions, run_all, run_one};
pub use storage::{signs, take_over_from};
