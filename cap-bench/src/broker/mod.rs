//! Brokers, by name.

pub(crate) mod kafka;
pub(crate) mod memory;
pub(crate) mod rabbitmq;

pub(crate) use kafka::KafkaBroker;
pub(crate) use memory::MemoryBroker;
pub(crate) use rabbitmq::RabbitMqBroker;
