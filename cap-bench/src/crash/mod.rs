//! The crash rig: processes that publish, relay and consume on real servers, a seeded nemesis that kills, freezes and
//! cuts them and their servers, a record of what each saw, and a checker that judges the record.
//!
//! In the order in which a run goes: `run` (the whole), `roles` (what the processes do), `recorder` (what they write
//! down), `proxy` and `servers` (what can be attacked), `trouble` (messages that attack), `nemesis` (who attacks, and
//! when), `remains` (what is left in CAP's tables), `checker`, `neighbours` and `health` (who judges).

pub(crate) mod checker;
pub(crate) mod health;
pub(crate) mod intervals;
pub(crate) mod neighbours;
pub(crate) mod nemesis;
pub(crate) mod proxy;
pub(crate) mod recorder;
pub(crate) mod remains;
pub(crate) mod roles;
pub(crate) mod run;
pub(crate) mod servers;
pub(crate) mod trouble;
