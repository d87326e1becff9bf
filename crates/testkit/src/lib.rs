//! What the tests of hookgate arrange with: brokers as real child processes, faults on the wire, raw HTTP, real senders.
//!
//! - [`process`]: a child process with its log, its signals and a sure end; free ports; waiting for a condition.
//! - [`nats`]: a real `nats-server`, to be started, killed, paused, restarted and reconfigured.
//! - [`nats_wire`]: a reader of JetStream that shares no code with the client library under test.
//! - [`redis`]: a real `redis-server`, alone, as a cluster or behind a Sentinel; [`redis_wire`]: a reader of it, likewise.
//! - [`rabbit`]: a real `rabbitmq-server`; [`rabbit_wire`]: AMQP without a client library, to arrange and to read queues.
//! - [`kafka`]: a real Apache Kafka, to be started, killed, paused and restarted.
//! - [`proxy`]: a TCP proxy that delays, freezes, loses replies, refuses, cuts and forges.
//! - [`volume`]: a file system of its own, whose disk becomes full, fails, hangs or loses power.
//! - [`http`]: an HTTP/1.1 client that sends exactly the bytes it is given.
//! - [`openclaw`]: requests as OpenClaw really sent them.
//! - [`sender`]: requests of any source, signed by the source itself; [`tls`]: a TLS server that vouches for itself.
//! - [`event`]: events, messages and pipelines, made through core's own doors.
//! - [`fake_sink`], [`fake_store`]: a sink and a claim store in memory that do as they are told; [`recorder`]: an observer
//!   that keeps what happens.
//! - [`sinks`]: secrets and errors for the tests of every sink; [`conformance`]: what every sink must do, run against its real broker.
//!
//! This is a test tool: where the arrangement itself fails (no broker installed, a limit that passed), it panics and
//! says what to do. Nothing here is ever shipped, and nothing here knows how the relay works inside.

pub mod conformance;
pub mod event;
pub mod fake_sink;
pub mod fake_store;
pub mod http;
pub mod kafka;
pub mod nats;
pub mod nats_wire;
pub mod openclaw;
pub mod process;
pub mod proxy;
pub mod rabbit;
pub mod rabbit_wire;
pub mod recorder;
pub mod redis;
pub mod redis_wire;
pub mod sender;
pub mod sinks;
pub mod steps;
pub mod tls;
pub mod volume;
