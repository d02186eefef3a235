//! What storages and transports have in common beside their traits: for those who write one.
//!
//! Nothing here decides anything about messages. It is what each backend would otherwise write again: the words of its
//! errors, the checks that the contract asks of all, the arithmetic of a state's times and counts, the bookkeeping of a batch of
//! settlements, and a connection that is made anew by one caller for all.

mod attempt;
mod counts;
mod refuse;
mod settle;
mod slot;
mod times;

pub use attempt::Attempt;
pub use counts::{attempts, crashes, limit};
pub use refuse::{refuse, unregistered};
pub use settle::{Alike, Holder, Settlements};
pub use slot::Slot;
pub use times::{Range, Times};
