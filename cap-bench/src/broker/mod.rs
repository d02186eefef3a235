//! Brokers, by name.

pub(crate) mod memory;
pub(crate) mod rabbitmq;

pub(crate) use memory::MemoryBroker;
pub(crate) use rabbitmq::RabbitMqBroker;
