//! Which events go where: rules, evaluated without I/O, to a plan that is never empty.

mod allow;
mod rule;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::allow::Allowed;
use self::rule::{Facts, Held, JsonPaths, Rule};
use crate::{
    auth::Authenticated,
    config::{self, Problem},
    event::{Event, EventKey, SinkId},
    handoff::{Accepted, AcceptedAs},
    json::JsonError,
    message::{Message, free_header},
    observe::RouteResult,
    redact::{Redacted, Redaction},
    sink::{Addressing, Target},
    template::{Grammar, Template},
};

/// A `[[routes]]` table.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Told in logs and in each message's `hookgate-route`. Default: `route-<n>`, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which events; a CEL expression over `source`, `type`, `attr`, `headers`, `method`, `path`, `content_type`, `body_size` and
    /// `json`. An event that lacks what it looks at does not match. Default: all events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Which part of those events, from above 0 to 1. Default: 1, all. The id decides, so that a repeat fares as the first did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<f64>,
    /// Whether routes that come later are passed over for the events of this one. Default: `false`; all matching routes count.
    #[serde(default, rename = "final", deserialize_with = "config::flag", skip_serializing_if = "std::ops::Not::not")]
    pub is_final: bool,
    /// Whether these events are wanted nowhere, instead of `to`: they are answered 200, unless another route takes them.
    /// Default: `false`.
    #[serde(default, deserialize_with = "config::flag", skip_serializing_if = "std::ops::Not::not")]
    pub drop: bool,
    /// What an answer of 2xx waits for. Default: `"broker"`, each required destination's acknowledgement; the spool steps in
    /// where one does not come in time. With `"spool"` it is the spool's fsync, and the event is published afterwards: for
    /// senders that cannot wait for a slow broker.
    #[serde(default)]
    pub ack: Ack,
    /// Values of the JSON body that are taken out of the copy sent to these destinations, as JSON pointers like
    /// `"/job/delivery/to"`; `*` stands for every key or place. Each becomes `"[redacted]"`, all other bytes stay, and the
    /// message says so. An event that is not JSON is refused then. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
    /// Where they go; every destination of every matching route gets the event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<DestinationConfig>,
}

/// What an answer of 2xx waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// The acknowledgement of the broker.
    #[default]
    Broker,
    /// The fsync of the spool.
    Spool,
}

/// One entry of a route's `to`.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationConfig {
    /// The name of a `[sinks.…]` table.
    pub sink: String,
    /// Whether the sender is told 2xx only when this destination has the event. Default: `true`; with `false` a failure
    /// here is counted and logged and the event is lost for this destination.
    #[serde(default = "required", deserialize_with = "config::flag")]
    pub required: bool,
    /// The subject, for a sink of type `nats`; a template like `"openclaw.{attr.job}"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The topic, for a sink of type `kafka`; a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The key that chooses the partition, beside `topic`; a template. Default: `"{partition_key}"`, so that events which
    /// belong together stay in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The exchange, for a sink of type `amqp`; a template. Default: `""`, AMQP's default exchange, where the routing key is
    /// the name of a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// The routing key, for a sink of type `amqp`; a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_key: Option<String>,
    /// Headers that the message gets besides those that every message has; each value is a template. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl DestinationConfig {
    /// What is written in it besides the sink, with the addressing that it belongs to.
    fn written(&self) -> [(&'static str, &Option<String>, Addressing); 5] {
        [
            ("subject", &self.subject, Addressing::Subject),
            ("topic", &self.topic, Addressing::Topic),
            ("key", &self.key, Addressing::Topic),
            ("exchange", &self.exchange, Addressing::Exchange),
            ("routing_key", &self.routing_key, Addressing::Exchange),
        ]
    }
}

fn required() -> bool {
    true
}

/// The `[unrouted]` table: what happens to an event that no route takes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UnroutedConfig {
    /// Default: `"reject"`, since an event that falls between the rules is a mistake in them more often than not.
    #[serde(default)]
    pub action: UnroutedAction,
}

/// What to do with an event that no route takes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnroutedAction {
    /// Answer 422: the sender sees that nobody wants it.
    #[default]
    Reject,
    /// Answer 200 and forget it.
    Drop,
    /// Send it to these destinations.
    To(Vec<DestinationConfig>),
}

/// A sink as the router knows it.
#[derive(Debug, Clone)]
pub struct SinkDeclaration {
    /// Its name and place.
    pub id: SinkId,
    /// What its destinations name.
    pub addressing: Addressing,
    /// Patterns of what they may name, see [`Allowed`]; empty for anything.
    pub allow: Vec<String>,
}

/// One destination of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// Its place in the plan.
    pub index: usize,
    /// The sink.
    pub sink: SinkId,
    /// Where in the sink.
    pub target: Target,
    /// The route that asked for it.
    pub route: Arc<str>,
    /// Whether the event is accepted only once this leg has a receipt.
    pub required: bool,
    /// What the answer waits for.
    pub ack: Ack,
    /// Whether the plan has another leg in the same sink.
    pub shares_sink: bool,
    /// Headers that the route sets, with their values, in the form in which they are sent.
    pub headers: Arc<[(Arc<str>, String)]>,
    /// The copy of the body that goes there, if it is not the body itself.
    pub redacted: Option<Redacted>,
}

/// The destinations of one event. Never empty, and at least one is required.
#[derive(Debug)]
pub struct Plan {
    event: EventKey,
    legs: Vec<Leg>,
}

impl Plan {
    /// The event that it is for.
    pub fn event(&self) -> EventKey {
        self.event
    }

    /// The destinations.
    pub fn legs(&self) -> &[Leg] {
        &self.legs
    }

    /// `event` addressed to each destination.
    pub fn messages(&self, event: &Arc<Authenticated<Event>>) -> impl Iterator<Item = Message> {
        assert_eq!(self.event, event.key, "a plan addresses the event that it was made for");
        self.legs.iter().map(|leg| Message { event: Arc::clone(event), leg: leg.clone() })
    }
}

/// What the router decided about an event, and what each route that it concerns had to do with it.
#[derive(Debug)]
pub struct Decision {
    /// Where it goes.
    pub routed: Routed,
    /// By route; those that simply did not match are left out.
    pub routes: Vec<(Arc<str>, RouteResult)>,
}

/// Where an event goes.
#[derive(Debug)]
pub enum Routed {
    /// It goes to these destinations.
    To(Plan),
    /// No route takes it and the config says to refuse it.
    Reject,
    /// No route takes it, or one that says so drops it.
    Drop(Dropped),
    /// A route takes values out of it that nobody can find.
    Unredactable(JsonError),
}

/// The router's word that the config tells to drop an event.
#[derive(Debug)]
pub struct Dropped(());

impl Dropped {
    /// Answers the sender as if it were wanted.
    pub fn accept(self, event: &Authenticated<Event>) -> Accepted {
        Accepted::new(AcceptedAs::Dropped, event.id.clone())
    }
}

/// All routes of the config.
#[derive(Debug)]
pub struct Router {
    routes: Vec<Route>,
    /// For each source that a rule names, the places of the routes that can be for it.
    by_source: HashMap<String, Candidates>,
    /// The same, for every other source.
    for_others: Candidates,
    json: JsonPaths,
    unrouted: Unrouted,
}

#[derive(Debug)]
struct Route {
    name: Arc<str>,
    when: Rule,
    /// What a hash of the event's key must be below.
    sample: Option<u64>,
    is_final: bool,
    drop: bool,
    to: Vec<Destination>,
}

/// Routes that can be for the events of one source, so that the others cost them nothing.
#[derive(Debug, Default)]
struct Candidates {
    places: Vec<usize>,
    /// Whether one of them reads the body.
    reads_json: bool,
}

impl Candidates {
    fn of(routes: &[Route], source: Option<&str>) -> Self {
        let can_be = |route: &&Route| route.when.source().is_none() || route.when.source() == source;
        let reads_json = routes.iter().filter(can_be).any(|route| route.when.reads_json());
        let places = routes.iter().enumerate().filter(|(_, route)| can_be(route)).map(|(place, _)| place).collect();
        Self { places, reads_json }
    }
}

impl Route {
    /// Whether `event` is in the sample of this route. Another one's is another part of the events.
    fn samples(&self, event: &Event) -> bool {
        self.sample.is_none_or(|below| {
            let mut hash = Sha256::new();
            hash.update(&*self.name);
            hash.update(event.key.as_bytes());
            u64::from_be_bytes(hash.finalize()[..8].try_into().expect("a hash has 32 bytes")) < below
        })
    }
}

#[derive(Debug)]
enum Unrouted {
    Reject,
    Drop,
    To(Vec<Destination>),
}

#[derive(Debug)]
struct Destination {
    sink: SinkId,
    route: Arc<str>,
    required: bool,
    ack: Ack,
    redact: Option<Arc<Redaction>>,
    target: TargetTemplate,
    headers: Vec<(Arc<str>, Template)>,
}

#[derive(Debug)]
enum TargetTemplate {
    Whole,
    Subject(Template),
    Topic { topic: Template, key: Template },
    Exchange { exchange: Template, routing_key: Template },
}

impl TargetTemplate {
    /// Those of its places that `allow` is about, in the order in which a pattern names them.
    fn places(&self) -> Vec<&Template> {
        match self {
            Self::Whole => Vec::new(),
            Self::Subject(subject) => vec![subject],
            Self::Topic { topic, .. } => vec![topic],
            Self::Exchange { exchange, routing_key } => vec![exchange, routing_key],
        }
    }

    fn render(&self, event: &Event) -> Target {
        self.with(|template| template.render(event))
    }

    fn with(&self, text: impl Fn(&Template) -> String) -> Target {
        match self {
            Self::Whole => Target::Whole,
            Self::Subject(subject) => Target::Subject(text(subject)),
            Self::Topic { topic, key } => Target::Topic { topic: text(topic), key: text(key) },
            Self::Exchange { exchange, routing_key } => {
                Target::Exchange { exchange: text(exchange), routing_key: text(routing_key) }
            }
        }
    }
}

/// What a rule makes of an event.
#[derive(Debug, Clone, Serialize)]
pub struct RuleLook {
    /// The route's name.
    pub route: String,
    /// Whether it holds; `None` when something that it looks at is not there, so that it does not.
    pub held: Option<bool>,
    /// What it looks at, by its name in CEL.
    pub values: BTreeMap<String, Option<String>>,
}

/// The names that rules and destinations may use.
#[derive(Debug)]
pub struct Names<'a> {
    /// Every sink.
    pub sinks: &'a [SinkDeclaration],
    /// Every source.
    pub sources: &'a [String],
    /// Every attribute of any source.
    pub attributes: &'a [String],
}

impl Router {
    /// Checks and prepares all routes.
    ///
    /// # Errors
    /// Every problem found; keys are those of the whole config.
    pub fn compile(routes: &[RouteConfig], unrouted: &UnroutedConfig, names: &Names<'_>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let (mut compiled, mut json) = (Vec::new(), JsonPaths::default());
        for (place, route) in routes.iter().enumerate() {
            let key = format!("routes[{place}]");
            let when = route.when.as_deref();
            let when = when.map_or(Ok(Rule::always()), |text| Rule::compile(text, names, &mut json));
            let when = when.map_err(|message| problems.push(Problem::new(format!("{key}.when"), message)));
            problems.extend(check_route(route).into_iter().map(|problem| problem.within(&key)));
            let name = route.name.clone().unwrap_or_else(|| format!("route-{}", place + 1));
            let redact = Redaction::parse(&route.redact).map_err(|(place, message)| {
                problems.push(Problem::new(format!("{key}.redact[{place}]"), message));
            });
            let redact = redact.ok().filter(|_| !route.redact.is_empty()).map(Arc::new);
            let parts = RouteParts { name: &name, ack: route.ack, redact };
            let to = match route.drop {
                true => Vec::new(),
                false => compile_destinations(&format!("{key}.to"), &parts, &route.to, names, &mut problems),
            };
            if let Ok(when) = when {
                // Nothing below 2^64 is left out.
                let sample = route.sample.filter(|part| *part < 1.0).map(|part| (part * 2_f64.powi(64)) as u64);
                let (name, is_final, drop) = (name.as_str().into(), route.is_final, route.drop);
                compiled.push(Route { name, when, sample, is_final, drop, to });
            }
        }
        let named = compiled.iter().filter_map(|route: &Route| route.when.source());
        let by_source = named.map(|name| (name.to_owned(), Candidates::of(&compiled, Some(name)))).collect();
        let for_others = Candidates::of(&compiled, None);
        let unrouted = match &unrouted.action {
            UnroutedAction::Reject => Unrouted::Reject,
            UnroutedAction::Drop => Unrouted::Drop,
            UnroutedAction::To(to) => Unrouted::To(compile_destinations(
                "unrouted.action.to",
                &RouteParts { name: "unrouted", ack: Ack::Broker, redact: None },
                to,
                names,
                &mut problems,
            )),
        };
        match problems.is_empty() {
            true => Ok(Self { routes: compiled, by_source, for_others, json, unrouted }),
            false => Err(problems),
        }
    }

    /// The names of all routes.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.routes.iter().map(|route| &route.name)
    }

    /// What each rule makes of `event`, and the values that it looks at, whether it is reached or not.
    pub fn look(&self, event: &Authenticated<Event>) -> Vec<RuleLook> {
        let facts = Facts::with_json(event, &self.json);
        let look = |route: &Route| RuleLook {
            route: route.name.to_string(),
            held: match route.when.holds(&facts) {
                Held::Yes => Some(true),
                Held::No => Some(false),
                Held::Incomplete => None,
            },
            values: route.when.looks_at(&facts),
        };
        self.routes.iter().map(look).collect()
    }

    /// An example of each place in `sink` that events are sent to, with an `x` for each value of an event.
    pub fn examples(&self, sink: &SinkId) -> Vec<Target> {
        let unrouted = match &self.unrouted {
            Unrouted::To(to) => to.as_slice(),
            Unrouted::Reject | Unrouted::Drop => &[],
        };
        let all = self.routes.iter().flat_map(|route| &route.to).chain(unrouted);
        let mut examples: Vec<Target> = Vec::new();
        for destination in all.filter(|destination| destination.sink == *sink) {
            let example = destination.target.with(Template::example);
            if !examples.contains(&example) {
                examples.push(example);
            }
        }
        examples
    }

    /// The destinations of `event`: those of every route that holds, each once.
    pub fn plan(&self, event: &Authenticated<Event>) -> Decision {
        let candidates = self.by_source.get(event.source.name()).unwrap_or(&self.for_others);
        let facts = match candidates.reads_json {
            true => Facts::with_json(event, &self.json),
            false => Facts::of(event),
        };
        let (mut legs, mut routes) = (Legs::default(), Vec::new());
        for route in candidates.places.iter().map(|place| &self.routes[*place]) {
            let result = match route.when.holds(&facts) {
                Held::No => continue,
                Held::Incomplete => RouteResult::Incomplete,
                Held::Yes if !route.samples(event) => RouteResult::NotSampled,
                Held::Yes if route.drop => RouteResult::Dropped,
                Held::Yes => RouteResult::Matched,
            };
            routes.push((Arc::clone(&route.name), result));
            if matches!(result, RouteResult::Matched | RouteResult::Dropped) {
                legs.add(&route.to, event);
                if route.is_final {
                    break;
                }
            }
        }
        let routed = self.routed(legs, &routes, event);
        Decision { routed, routes }
    }

    fn routed(&self, mut legs: Legs, routes: &[(Arc<str>, RouteResult)], event: &Authenticated<Event>) -> Routed {
        if legs.legs.is_empty() {
            if routes.iter().any(|(_, result)| matches!(result, RouteResult::Dropped | RouteResult::NotSampled)) {
                return Routed::Drop(Dropped(()));
            }
            match &self.unrouted {
                Unrouted::Reject => return Routed::Reject,
                Unrouted::Drop => return Routed::Drop(Dropped(())),
                Unrouted::To(to) => legs.add(to, event),
            }
        }
        let mut legs = match legs.redacted(event) {
            Ok(legs) => legs,
            Err(error) => return Routed::Unredactable(error),
        };
        for place in 0..legs.len() {
            let in_same_sink = legs.iter().filter(|leg| leg.sink == legs[place].sink).count();
            legs[place].shares_sink = in_same_sink > 1;
        }
        Routed::To(Plan { event: event.key, legs })
    }
}

/// What is wrong with a route beside its rule and its destinations.
fn check_route(route: &RouteConfig) -> Option<Problem> {
    if route.drop && !route.to.is_empty() {
        return Some(Problem::new("drop", "is true, and there are destinations in \"to\"; leave one of them out"));
    }
    if route.sample.is_some_and(|part| !(part > 0.0 && part <= 1.0)) {
        return Some(Problem::new("sample", "is a part of the events, above 0 and at most 1"));
    }
    None
}

/// What the destinations of one route have in common.
struct RouteParts<'a> {
    name: &'a str,
    ack: Ack,
    redact: Option<Arc<Redaction>>,
}

/// The legs of a plan that is being made.
#[derive(Default)]
struct Legs {
    legs: Vec<Leg>,
    /// At the place of each, what is taken out for it.
    redact: Vec<Option<Arc<Redaction>>>,
}

impl Legs {
    /// Adds what is not there yet; a destination that one route requires is required, and what one route takes out is out.
    fn add(&mut self, to: &[Destination], event: &Event) {
        let header = |(name, value): &(Arc<str>, Template)| (Arc::clone(name), value.render(event));
        for destination in to {
            let target = destination.target.render(event);
            let same = |leg: &Leg| leg.sink == destination.sink && leg.target == target;
            if let Some(place) = self.legs.iter().position(same) {
                let (leg, redact) = (&mut self.legs[place], &mut self.redact[place]);
                leg.required |= destination.required;
                // The stronger promise of the two.
                if destination.ack == Ack::Broker {
                    leg.ack = Ack::Broker;
                }
                let further =
                    destination.headers.iter().filter(|(name, _)| !leg.headers.iter().any(|(set, _)| set == name));
                let further: Vec<_> = further.map(header).collect();
                if !further.is_empty() {
                    leg.headers = leg.headers.iter().cloned().chain(further).collect();
                }
                *redact = match (redact.take(), destination.redact.clone()) {
                    (Some(one), Some(other)) => Some(Arc::new(one.and(&other))),
                    (one, other) => one.or(other),
                };
                continue;
            }
            self.redact.push(destination.redact.clone());
            self.legs.push(Leg {
                index: self.legs.len(),
                sink: destination.sink.clone(),
                target,
                route: Arc::clone(&destination.route),
                required: destination.required,
                ack: destination.ack,
                shares_sink: false,
                headers: destination.headers.iter().map(header).collect(),
                redacted: None,
            });
        }
    }

    /// The legs, each with its own copy of the body where something is taken out for it.
    fn redacted(mut self, event: &Event) -> Result<Vec<Leg>, JsonError> {
        let mut made: Vec<(Arc<Redaction>, Redacted)> = Vec::new();
        for (leg, redact) in self.legs.iter_mut().zip(self.redact) {
            let Some(redact) = redact else { continue };
            let copy = match made.iter().find(|(known, _)| *known == redact) {
                Some((_, copy)) => copy.clone(),
                None => {
                    let copy = redact.of(&event.body)?;
                    made.push((redact, copy.clone()));
                    copy
                }
            };
            leg.redacted = Some(copy);
        }
        Ok(self.legs)
    }
}

fn compile_destinations(
    key: &str,
    of: &RouteParts<'_>,
    to: &[DestinationConfig],
    names: &Names<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<Destination> {
    if to.is_empty() {
        problems.push(Problem::new(key, "is empty; name a sink, like [{ sink = \"events\" }]"));
    } else if !to.iter().any(|destination| destination.required) {
        problems.push(Problem::new(key, "has no required destination, so that a 2xx would promise nothing"));
    }
    let mut compiled = Vec::new();
    for (place, destination) in to.iter().enumerate() {
        match compile_destination(destination, names) {
            Err(problem) => problems.push(problem.within(&format!("{key}[{place}]"))),
            Ok((sink, target, headers)) => {
                let RouteParts { name, ack, redact } = of;
                let (route, redact, required) = ((*name).into(), redact.clone(), destination.required);
                compiled.push(Destination { sink, route, required, ack: *ack, redact, target, headers });
            }
        }
    }
    compiled
}

type Compiled = (SinkId, TargetTemplate, Vec<(Arc<str>, Template)>);

fn compile_destination(config: &DestinationConfig, names: &Names<'_>) -> Result<Compiled, Problem> {
    let Some(sink) = names.sinks.iter().find(|sink| sink.id.name() == config.sink) else {
        let known: Vec<_> = names.sinks.iter().map(|sink| sink.id.name()).collect();
        return Err(Problem::new("sink", config::unknown("sink", &config.sink, &known)));
    };
    let foreign = config.written().into_iter().find(|(_, text, of)| text.is_some() && *of != sink.addressing);
    if let Some((key, ..)) = foreign {
        return Err(Problem::new(
            key,
            format!("is not for the sink {}, which has {}", sink.id, places(sink.addressing)),
        ));
    }
    let template = |key: &str, text: Option<&str>, grammar| {
        let text = text.ok_or_else(|| Problem::new(key, format!("is missing: the sink {} needs one", sink.id)))?;
        parse_template(text, grammar, names).map_err(|message| Problem::new(key, message))
    };
    let target = match sink.addressing {
        Addressing::None => TargetTemplate::Whole,
        Addressing::Subject => {
            TargetTemplate::Subject(template("subject", config.subject.as_deref(), Grammar::NatsSubject)?)
        }
        Addressing::Topic => TargetTemplate::Topic {
            topic: template("topic", config.topic.as_deref(), Grammar::KafkaTopic)?,
            key: template("key", config.key.as_deref().or(Some("{partition_key}")), Grammar::KafkaKey)?,
        },
        Addressing::Exchange => TargetTemplate::Exchange {
            exchange: template("exchange", config.exchange.as_deref().or(Some("")), Grammar::AmqpName)?,
            routing_key: template("routing_key", config.routing_key.as_deref(), Grammar::AmqpName)?,
        },
    };
    if !is_allowed(&target, sink) {
        let key = match sink.addressing {
            Addressing::None | Addressing::Subject => "subject",
            Addressing::Topic => "topic",
            Addressing::Exchange => "routing_key",
        };
        let example = target.with(Template::example);
        let message = format!(
            "may lead outside of what the sink {} allows: {example} (x stands for values); allowed: {}",
            sink.id,
            sink.allow.join(", ")
        );
        return Err(Problem::new(key, message));
    }
    let mut headers = Vec::new();
    for (name, value) in &config.headers {
        let key = format!("headers.{name}");
        let header = free_header(name).map_err(|why| Problem::new(&key, why))?;
        let value =
            parse_template(value, Grammar::HeaderValue, names).map_err(|message| Problem::new(&key, message))?;
        if headers.iter().any(|(known, _): &(Arc<str>, _)| **known == *header.as_str()) {
            return Err(Problem::new(&key, "stands twice: names of headers have no case"));
        }
        headers.push((header.as_str().into(), value));
    }
    Ok((sink.id.clone(), target, headers))
}

fn parse_template(text: &str, grammar: Grammar, names: &Names<'_>) -> Result<Template, String> {
    let template = Template::parse(text, grammar)?;
    let unknown = |name: &&str| !names.attributes.iter().any(|known| known == name);
    if let Some(name) = template.attributes().find(unknown) {
        return Err(unknown_attribute(name, names));
    }
    Ok(template)
}

/// Whether all that `target` can render is within one pattern of its sink.
fn is_allowed(target: &TargetTemplate, sink: &SinkDeclaration) -> bool {
    let places = target.places();
    // One that is no pattern is a problem of the sink, told there.
    let within =
        |pattern: &String| Allowed::parse(pattern, sink.addressing).is_ok_and(|allowed| allowed.covers(&places));
    sink.allow.is_empty() || sink.allow.iter().any(within)
}

/// What the places in a sink are, for the operator.
fn places(addressing: Addressing) -> &'static str {
    match addressing {
        Addressing::None => "one place only",
        Addressing::Subject => "subjects",
        Addressing::Topic => "topics and keys",
        Addressing::Exchange => "exchanges and routing keys",
    }
}

fn unknown_attribute(name: &str, names: &Names<'_>) -> String {
    let known: Vec<&str> = names.attributes.iter().map(String::as_str).collect();
    config::unknown("attribute", name, &known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(destination: &serde_json::Value, addressing: Addressing) -> Vec<String> {
        let routes: Vec<RouteConfig> =
            serde_json::from_value(serde_json::json!([{ "to": [destination] }])).expect("well-formed");
        let allow = match addressing {
            Addressing::Subject => vec!["a.*".to_owned(), "a".to_owned()],
            _ => Vec::new(),
        };
        let sinks = [SinkDeclaration { id: SinkId::new(0, "s"), addressing, allow }];
        let names = Names { sinks: &sinks, sources: &[], attributes: &["job".to_owned()] };
        let router = Router::compile(&routes, &UnroutedConfig::default(), &names);
        router.err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_destination_names_what_its_sink_has() {
        use serde_json::json;
        for (addressing, good) in [
            (Addressing::None, json!({ "sink": "s" })),
            (Addressing::Subject, json!({ "sink": "s", "subject": "a.{attr.job}" })),
            (Addressing::Topic, json!({ "sink": "s", "topic": "a" })),
            (Addressing::Topic, json!({ "sink": "s", "topic": "a-{type}", "key": "{attr.job}" })),
            (Addressing::Exchange, json!({ "sink": "s", "routing_key": "queue" })),
            (Addressing::Exchange, json!({ "sink": "s", "exchange": "e", "routing_key": "a.{attr.job}" })),
        ] {
            assert_eq!(problems(&good, addressing), [] as [&str; 0], "{good}");
        }
        for (addressing, bad, said) in [
            (Addressing::Topic, json!({ "sink": "s" }), "topic: is missing"),
            (Addressing::Exchange, json!({ "sink": "s", "exchange": "e" }), "routing_key: is missing"),
            (Addressing::Subject, json!({ "sink": "s", "subject": "a", "key": "b" }), "key: is not for the sink s"),
            (
                Addressing::Topic,
                json!({ "sink": "s", "topic": "{attr.jb}" }),
                "there is no attribute \"jb\"; did you mean \"job\"?",
            ),
            (Addressing::Topic, json!({ "sink": "s", "topic": "a/b" }), "is not a Kafka topic"),
            (Addressing::Subject, json!({ "sink": "s", "subject": "{attr.job}" }), "subject: may lead outside"),
            (Addressing::Subject, json!({ "sink": "s", "subject": "a.b.c" }), "allows: a.b.c"),
            (
                Addressing::None,
                json!({ "sink": "s", "headers": { "ce-id": "a" } }),
                "headers.ce-id: belongs to hookgate",
            ),
            (
                Addressing::None,
                json!({ "sink": "s", "headers": { "x": "a\n" } }),
                "headers.x: \"a\\n\" is not the value",
            ),
            (Addressing::None, json!({ "sink": "s", "headers": { "X-a": "1", "x-A": "2" } }), "stands twice"),
            (Addressing::None, json!({ "sink": "s", "headers": { "x": "{attr.jb}" } }), "there is no attribute \"jb\""),
        ] {
            let found = problems(&bad, addressing);
            assert!(found.len() == 1 && found[0].contains(said), "{bad}: {found:?}");
        }
    }
}
