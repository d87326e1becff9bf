//! A message as AMQP carries it: routing key, properties, headers, body.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use hookgate_core::{message::Message, sink::Target};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use sha2::{Digest, Sha256};

use crate::error::Cause;

/// By which the broker keeps a message beyond its own end, in a durable queue. Source: AMQP 0-9-1, `basic.delivery-mode`.
const PERSISTENT: u8 = 2;

/// What a content header holds beside its variable parts: class, weight, length, flags, mode and timestamp.
const FIXED_HEADER_BYTES: usize = 32;

/// A message as AMQP carries it.
pub(crate) struct Outbound {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) message_id: String,
    pub(crate) properties: BasicProperties,
    /// Length of the properties on the wire, or a little more. They go in one frame.
    pub(crate) properties_bytes: usize,
    pub(crate) body: Bytes,
}

impl Outbound {
    pub(crate) fn new(message: &Message) -> Result<Self, Cause> {
        let target = &message.leg.target;
        let not_a_destination = || Cause::NotADestination { target: target.to_string() };
        let Target::Exchange { exchange, routing_key } = target else {
            return Err(not_a_destination());
        };
        let short = |text: &str| ShortString::try_new(text).map_err(|_| not_a_destination());
        let message_id = message_id(message.broker_id());
        let mut fields = Fields { properties_bytes: FIXED_HEADER_BYTES + message_id.len(), ..Fields::default() };
        message.for_each_header(|name, value| fields.add(name, value));
        if let Some(name) = fields.unsendable {
            return Err(Cause::NotAHeader { name });
        }
        let timestamp = message.event.received_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let properties = fields
            .properties
            .with_headers(fields.headers)
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short(&message_id)?)
            .with_timestamp(timestamp)
            .with_app_id("hookgate".into());
        Ok(Self {
            exchange: short(exchange)?,
            routing_key: short(routing_key)?,
            message_id,
            properties,
            properties_bytes: fields.properties_bytes,
            body: message.body().clone(),
        })
    }
}

#[derive(Default)]
struct Fields {
    properties: BasicProperties,
    headers: FieldTable,
    properties_bytes: usize,
    unsendable: Option<String>,
}

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        // Length and type stand before name and value.
        self.properties_bytes += name.len() + value.len() + 6;
        // What is too long for a property travels on as a header.
        let properties = std::mem::take(&mut self.properties);
        self.properties = match (name, ShortString::try_new(value)) {
            ("content-type", Ok(value)) => properties.with_content_type(value),
            ("content-encoding", Ok(value)) => properties.with_content_encoding(value),
            _ => {
                match ShortString::try_new(name) {
                    Ok(name) => drop(self.headers.insert(name, AMQPValue::LongString(value.into()))),
                    Err(_) => self.unsendable = Some(name.to_owned()),
                }
                properties
            }
        };
    }
}

/// The broker id where it fits into the property, which takes 255 bytes; else its SHA-256.
fn message_id(broker_id: String) -> String {
    if broker_id.len() <= 255 {
        return broker_id;
    }
    let hex: String = Sha256::digest(broker_id).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

#[cfg(test)]
mod tests {
    use hookgate_core::event::SinkId;
    use hookgate_testkit::event::TestEvent;

    use super::*;

    fn outbound(event: &TestEvent) -> Outbound {
        let target = Target::Exchange { exchange: "hooks".to_owned(), routing_key: "a.b".to_owned() };
        Outbound::new(&event.to(&SinkId::new(0, "mq"), &target)).unwrap_or_else(|cause| panic!("{cause}"))
    }

    #[test]
    fn every_message_is_persistent_and_says_what_it_is() {
        let event = TestEvent::new("7").header("content-type", "text/plain").header("content-encoding", "gzip");
        let Outbound { exchange, routing_key, message_id, properties, body, .. } = outbound(&event);
        assert_eq!((exchange.as_str(), routing_key.as_str()), ("hooks", "a.b"));
        assert_eq!(message_id, "test:header:x-test-id=7");
        let text = |property: &Option<ShortString>| property.as_ref().map(ToString::to_string);
        assert_eq!(text(properties.message_id()), Some(message_id));
        assert_eq!(text(properties.app_id()).as_deref(), Some("hookgate"));
        assert_eq!(text(properties.content_type()).as_deref(), Some("text/plain"));
        assert_eq!(text(properties.content_encoding()).as_deref(), Some("gzip"));
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(body, "a body");
        let headers = properties.headers().as_ref().expect("there are some").inner();
        assert!(headers.contains_key("ce-id") && !headers.contains_key("content-type"));
    }

    #[test]
    fn what_is_too_long_for_a_property_is_a_hash_or_a_header() {
        let long = "x".repeat(300);
        let Outbound { message_id, properties, properties_bytes, .. } =
            outbound(&TestEvent::new(&long).header("content-type", &long));
        assert!(message_id.starts_with("sha256=") && message_id.len() == 71, "{message_id}");
        assert_ne!(message_id, outbound(&TestEvent::new(&format!("{long}x"))).message_id);
        assert_eq!(*properties.content_type(), None);
        assert!(properties.headers().as_ref().expect("there are some").inner().contains_key("content-type"));
        assert!(properties_bytes > 900);
    }
}
