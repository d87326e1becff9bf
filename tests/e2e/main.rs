//! hookgate as its users meet it: the built program, started as a process, with real brokers behind it.

mod amqp_faults;
mod audit;
mod bad_requests;
mod broker_faults;
mod cli;
mod crash_points;
mod disk_faults;
mod explain;
#[cfg(feature = "kafka")]
mod fan_out;
#[cfg(feature = "kafka")]
#[path = "../../crates/sink-kafka/tests/common/topics.rs"]
mod kafka_topics;
mod main_job;
mod mistakes;
mod nats_faults;
mod nemesis;
mod outbound;
mod providers;
mod public_port;
mod redis_faults;
mod relay;
mod reload;
mod replicas;
mod routing;
mod secrets;
mod shutdown;
mod spool;
mod spooling;
#[cfg(feature = "otlp")]
mod traces;
mod workers;
mod world;
