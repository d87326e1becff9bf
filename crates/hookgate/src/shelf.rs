//! `hookgate spool` and `hookgate dead`: looks at what waits, or is not tried again, and moves or drops it.
//!
//! The same request is answered by the process that has the spool, through its admin port, or here, where nobody has it.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use hookgate_core::{
    envelope::{self, Burial},
    event::SinkId,
    message::Message,
    observe::{Observer, Unobserved},
    record,
    spool::Shelf,
};
use hookgate_http::Fetcher;
use hookgate_spool::{Queue, Record, SpoolErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::{
    assemble,
    config::Config,
    run::Failure,
    spool::{LocalSpool, SpoolConfig},
};

/// What to do with messages.
#[derive(Debug, Args)]
pub(crate) struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// One line for each message: its number, its event, why it is here.
    List {
        /// Of this sink only.
        #[arg(long)]
        sink: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// A message as a JSON line, its body included.
    Show(One),
    /// Every message as a JSON line, its body included.
    Export {
        /// Of this sink only.
        #[arg(long)]
        sink: Option<String>,
    },
    /// Put messages at the end of the backlog, as if they had just come.
    Replay(Chosen),
    /// Forget messages. There is no way back.
    Drop(Chosen),
}

#[derive(Debug, Args)]
struct One {
    /// The sink.
    sink: String,
    /// The message's number, as `list` tells it.
    number: u64,
}

#[derive(Debug, Args)]
struct Chosen {
    /// The sink.
    sink: String,
    /// The messages' numbers, as `list` tells them.
    #[arg(required_unless_present = "all")]
    numbers: Vec<u64>,
    /// All of them.
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
}

/// What is asked of whoever has the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// `dead`, or else the backlog.
    dead: bool,
    sink: String,
    verb: Verb,
    /// Messages with a number behind this one only.
    after: u64,
    /// And up to this one.
    until: u64,
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    List,
    Show,
    Replay,
    Drop,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    sink: String,
    number: u64,
    spooled_at: String,
    bytes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// What is wrong with it, where it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    failures: u32,
    /// Why it is a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead: Option<Burial>,
    /// All of it, as the file sink would write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<Box<RawValue>>,
}

/// Messages that are looked at together: their bodies are in memory then.
const PAGE: usize = 16;

/// Longest answer that is taken from the admin port: a page of the longest bodies.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Answers a request that came through the admin port.
pub(crate) async fn answer(spool: &LocalSpool, request: &[u8]) -> Result<Vec<u8>, String> {
    let request: Request = serde_json::from_slice(request).map_err(|error| format!("not a request: {error}"))?;
    let lines = perform(spool, &request).await.map_err(|error| format!("{error:#}"))?;
    Ok(serde_json::to_vec(&lines).expect("plain data is JSON"))
}

async fn perform(spool: &LocalSpool, request: &Request) -> anyhow::Result<Vec<Line>> {
    let shelf = if request.dead { Shelf::Dead } else { Shelf::Backlog };
    let (sink, queue) = spool.find(&request.sink, shelf)?;
    let records = queue.list(request.after, request.limit.min(PAGE)).await?;
    let mut lines = Vec::new();
    for record in records.iter().filter(|record| record.place.seq() <= request.until) {
        let mut line = describe(&sink, request, record);
        match request.verb {
            Verb::List => {}
            Verb::Show => line.message = message_of(&sink, shelf, record).map(|message| json_line(&message)),
            Verb::Drop => queue.done_for_good(record.place).await,
            Verb::Replay => replay(spool, &sink, &queue, shelf, record).await?,
        }
        lines.push(line);
    }
    Ok(lines)
}

/// First it is in the backlog, then it is not here any more.
async fn replay(spool: &LocalSpool, sink: &SinkId, queue: &Queue, shelf: Shelf, record: &Record) -> anyhow::Result<()> {
    let payload = match shelf {
        Shelf::Dead => envelope::unbury(&record.payload)?.1,
        Shelf::Backlog => record.payload.clone(),
    };
    let _ticket = spool.find(sink.name(), Shelf::Backlog)?.1.append(payload).await?;
    queue.done_for_good(record.place).await;
    Ok(())
}

fn message_of(sink: &SinkId, shelf: Shelf, record: &Record) -> Option<Message> {
    let payload = match shelf {
        Shelf::Dead => envelope::unbury(&record.payload).ok()?.1,
        Shelf::Backlog => record.payload.clone(),
    };
    envelope::decode(&payload, sink, &[]).ok()
}

fn json_line(message: &Message) -> Box<RawValue> {
    let mut line = Vec::new();
    record::encode(message, &mut line);
    let text = String::from_utf8(line).expect("JSON is UTF-8");
    RawValue::from_string(text.trim_end().to_owned()).expect("it is JSON")
}

fn describe(sink: &SinkId, request: &Request, record: &Record) -> Line {
    let shelf = if request.dead { Shelf::Dead } else { Shelf::Backlog };
    let message = message_of(sink, shelf, record);
    let burial = request.dead.then(|| envelope::unbury(&record.payload).ok()).flatten().map(|(burial, _)| burial);
    Line {
        sink: sink.name().to_owned(),
        number: record.place.seq(),
        spooled_at: humantime::format_rfc3339_millis(record.at).to_string(),
        bytes: message.as_ref().map_or(record.payload.len(), |message| message.body().len()),
        source: message.as_ref().map(|message| message.event.source.name().to_owned()),
        id: message.as_ref().map(|message| message.event.id.to_string()),
        target: message.as_ref().map(|message| message.leg.target.to_string()),
        problem: message.is_none().then(|| "it cannot be read by this version of hookgate".to_owned()),
        failures: record.failures,
        dead: burial,
        message: None,
    }
}

/// Who has the spool.
enum Keeper {
    /// Nobody had it, so it is ours.
    Here(LocalSpool),
    /// A process that can be asked.
    Elsewhere { url: String, fetcher: Fetcher },
}

impl Keeper {
    fn find(config: &Config, table: &SpoolConfig) -> anyhow::Result<Self> {
        let mut sinks = assemble::sink_ids(config);
        for name in table.strangers(&sinks) {
            sinks.push(SinkId::new(sinks.len(), name));
        }
        let unobserved: Arc<dyn Observer> = Arc::new(Unobserved);
        let opened = LocalSpool::open(table, &sinks, &unobserved);
        let locked = |error: &anyhow::Error| {
            let found = error.chain().find_map(|cause| cause.downcast_ref::<hookgate_spool::SpoolError>());
            found.is_some_and(|error| error.kind == SpoolErrorKind::Locked)
        };
        match opened {
            Ok(spool) => Ok(Self::Here(spool)),
            Err(error) if locked(&error) => {
                let fetcher =
                    Fetcher::new(&config.outbound).map_err(|problems| anyhow!("outbound: {}", problems[0]))?;
                Ok(Self::Elsewhere { url: format!("http://{}/spool", config.admin.listen), fetcher })
            }
            Err(error) => Err(error),
        }
    }

    async fn ask(&self, request: &Request) -> anyhow::Result<Vec<Line>> {
        let (url, fetcher) = match self {
            Self::Here(spool) => return perform(spool, request).await,
            Self::Elsewhere { url, fetcher } => (url, fetcher),
        };
        let body = Bytes::from(serde_json::to_vec(request)?);
        let asked = http::Request::post(url).header("content-type", "application/json").body(body)?;
        let answer = fetcher.send(asked, ANSWER_BYTES_MAX).await;
        let answer = answer.map_err(|problem| {
            anyhow!("the spool belongs to a process that does not answer at {url} (admin.listen): {problem}")
        })?;
        if !answer.status().is_success() {
            bail!("{url} says {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
        }
        Ok(serde_json::from_slice(answer.body())?)
    }
}

/// Does what `command` says, to the dead letters or to the backlog.
pub(crate) async fn shelf(command: &Command, dead: bool, config: &Config, as_json: bool) -> Result<ExitCode, Failure> {
    let table = config.spool.as_ref().context("there is no [spool] in the config")?;
    let keeper = Keeper::find(config, table)?;
    let (verb, sinks, numbers, limit) = match &command.action {
        Action::List { sink, limit } => (Verb::List, keeper.sinks(sink.as_deref(), config), None, *limit),
        Action::Export { sink } => (Verb::Show, keeper.sinks(sink.as_deref(), config), None, usize::MAX),
        Action::Show(One { sink, number }) => (Verb::Show, vec![sink.clone()], Some(vec![*number]), 1),
        Action::Replay(some) => (Verb::Replay, vec![some.sink.clone()], some.numbers(), usize::MAX),
        Action::Drop(some) => (Verb::Drop, vec![some.sink.clone()], some.numbers(), usize::MAX),
    };
    let mut left = limit;
    let mut out = io::stdout().lock();
    for sink in sinks {
        let mut request = Request { dead, sink, verb, after: 0, until: u64::MAX, limit: 0 };
        match &numbers {
            // One at a time: exactly those that were named.
            Some(numbers) => {
                for number in numbers {
                    let named =
                        Request { after: number.saturating_sub(1), until: *number, limit: 1, ..request.clone() };
                    let lines = keeper.ask(&named).await?;
                    if lines.is_empty() {
                        return Err(anyhow!("there is no message {number} for {}", request.sink).into());
                    }
                    print(&mut out, &lines, verb, as_json)?;
                }
            }
            None => {
                // What is put at the end by a replay is not taken up again.
                if verb == Verb::Replay && !dead {
                    request.until = keeper.last(&request).await?;
                }
                while left > 0 {
                    request.limit = left.min(PAGE);
                    let lines = keeper.ask(&request).await?;
                    let Some(end) = lines.last() else { break };
                    request.after = end.number;
                    left -= lines.len();
                    print(&mut out, &lines, verb, as_json)?;
                }
            }
        }
    }
    if let Keeper::Here(spool) = keeper {
        spool.close().await;
    }
    Ok(ExitCode::SUCCESS)
}

impl Keeper {
    /// The sinks that are meant: `one`, or all that it has something of.
    fn sinks(&self, one: Option<&str>, config: &Config) -> Vec<String> {
        match (one, self) {
            (Some(sink), _) => vec![sink.to_owned()],
            (None, Self::Here(spool)) => spool.state().into_iter().map(|state| state.sink.name().to_owned()).collect(),
            (None, Self::Elsewhere { .. }) => config.sinks.keys().cloned().collect(),
        }
    }

    /// The number of the last message that is there now.
    async fn last(&self, request: &Request) -> anyhow::Result<u64> {
        let mut request = Request { verb: Verb::List, limit: PAGE, ..request.clone() };
        loop {
            match self.ask(&request).await?.last() {
                Some(line) => request.after = line.number,
                None => return Ok(request.after),
            }
        }
    }
}

impl Chosen {
    fn numbers(&self) -> Option<Vec<u64>> {
        (!self.all).then(|| self.numbers.clone())
    }
}

fn print(out: &mut impl Write, lines: &[Line], verb: Verb, as_json: bool) -> io::Result<()> {
    for line in lines {
        let Line { sink, number, spooled_at, bytes, source, id, target, problem, failures, dead, message } = line;
        if verb == Verb::Show {
            let shown: Value =
                json!({ "sink": sink, "number": number, "dead": dead, "message": message, "problem": problem });
            writeln!(out, "{shown}")?;
        } else if as_json {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        } else {
            let what = match verb {
                Verb::Replay => "replayed ",
                Verb::Drop => "dropped ",
                Verb::List | Verb::Show => "",
            };
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let (source, id, target) = (text(source), text(id), text(target));
            write!(out, "{what}{sink} {number} {spooled_at} {source}:{id} to {target}, {bytes} B, {failures} failed")?;
            if let Some(Burial { reason, error, .. }) = dead {
                write!(out, ", {reason}: {error}")?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}
