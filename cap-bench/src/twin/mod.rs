//! The raw twins: what a careful engineer would write by hand for the same durable work.
//!
//! The loops are here, once; what they do to a database or a broker is in the files that bear its name. Nothing of
//! the engine is used; where a driver does not exist (the backends inside the process) the storage or the transport is
//! called directly, without an engine.

pub(crate) mod consume;
pub(crate) mod kafka;
pub(crate) mod latency;
pub(crate) mod memory;
pub(crate) mod mongo;
pub(crate) mod mysql;
pub(crate) mod postgres;
pub(crate) mod publish;
pub(crate) mod rabbitmq;
pub(crate) mod relay;
pub(crate) mod rows;
pub(crate) mod sqlite;
