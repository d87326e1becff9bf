//! `hookgate explain`: what would become of captured requests, and why. Nothing is published.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::Args;
use hookgate_core::{
    explain::{self, Record, Verdict},
    limits::Deadline,
    route::{Router, RuleLook},
    source::Source,
};
use hookgate_http::{Fetcher, OutboundConfig, capture};
use serde_json::{Map, Value};

use crate::{
    assemble::{self, Ids, Parts},
    config::Config,
    run::Failure,
    secrets::Secrets,
};

/// What to explain, and by what.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Captured requests: raw HTTP/1.1, or JSON Lines with method, path, headers, body_base64 and now_unix. `-` is stdin.
    #[arg(required = true, value_name = "REQUEST")]
    requests: Vec<String>,

    /// The clock to judge by, in seconds since 1970. A JSON record's now_unix comes before it. Default: now.
    #[arg(long, value_name = "UNIX", value_parser = time)]
    at: Option<SystemTime>,

    /// Judge by this preset, with --secret and --param, instead of by a config.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    preset: Option<String>,

    /// A secret of the preset, as the provider shows it; may be given several times.
    #[arg(long, value_name = "TEXT", requires = "preset")]
    secret: Vec<String>,

    /// Another parameter of the preset, like `url=https://hooks.example.com/in`, `tolerance_s=60` or `jwks=@keys.json`.
    #[arg(long, value_name = "NAME=VALUE", requires = "preset", value_parser = parameter)]
    param: Vec<(String, Value)>,

    /// The address that the requests came from.
    #[arg(long, value_name = "IP")]
    peer: Option<IpAddr>,

    /// Fetch the keys and certificates that verification needs; without it such requests are rejected as keys_unavailable.
    #[arg(long)]
    fetch: bool,
}

/// Seconds since 1970, as a time.
pub(crate) fn time(text: &str) -> Result<SystemTime, String> {
    let time = text.parse().ok().and_then(explain::time_at);
    time.ok_or_else(|| "is no time; write seconds since 1970".to_owned())
}

/// A value is JSON where it reads as such, the content of a file after `@`, else text.
fn parameter(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let value = match value.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))?,
        None => value.to_owned(),
    };
    let parsed = serde_json::from_str(&value).unwrap_or(Value::String(value));
    Ok((name.to_owned(), parsed))
}

/// Explains every request of `arguments`, by `config` or, without one, as each record says itself. One verdict a line where
/// `json`, else a few lines for people.
pub(crate) fn explain(arguments: &Explain, config: Option<&Config>, json: bool) -> Result<(), Failure> {
    let json = json || !io::stdout().is_terminal();
    let (judge, fetcher) = match config {
        None => (Judge::ByRecord, Fetcher::new(&OutboundConfig::default()).expect("the defaults are good")),
        Some(config) => {
            let Parts { sources, router, fetcher, .. } =
                assemble::prepare(config, &Ids::of(config), &Secrets::default())?;
            let by_path = sources.into_iter().map(|source| (source.path().to_owned(), source)).collect();
            (Judge::ByConfig { by_path, router: Box::new(router) }, fetcher)
        }
    };
    let keys = Keys::new(arguments.fetch.then_some(fetcher))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for name in &arguments.requests {
        let each = |record: Result<Record, (Value, String)>| {
            let verdict = match record {
                Ok(record) => judge.verdict(arguments, &keys, record),
                Err((id, problem)) => Verdict { id, ..Verdict::refused("unreadable", 400, problem) },
            };
            print(&mut out, &verdict, json)
        };
        read(name, arguments, each).with_context(|| format!("explain {name}"))?;
    }
    out.flush()?;
    Ok(())
}

/// Whether `arguments` need a config to judge by although the command line names none: raw requests do not say themselves
/// what to judge them by.
pub(crate) fn needs_config(arguments: &Explain) -> bool {
    let is_raw = |name: &String| match name.as_str() {
        // What is looked at here stays in the buffer that all readers of stdin share.
        "-" => io::stdin().lock().fill_buf().is_ok_and(|start| !start.is_empty() && !is_json(start)),
        path => {
            let mut reader = File::open(path).map(BufReader::new);
            reader
                .as_mut()
                .is_ok_and(|reader| reader.fill_buf().is_ok_and(|start| !start.is_empty() && !is_json(start)))
        }
    };
    arguments.preset.is_none() && arguments.requests.iter().any(is_raw)
}

/// Whether a file that begins with `start` has JSON Lines in it.
fn is_json(start: &[u8]) -> bool {
    start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

enum Judge {
    ByRecord,
    ByConfig { by_path: HashMap<String, Arc<Source>>, router: Box<Router> },
}

impl Judge {
    fn verdict(&self, arguments: &Explain, keys: &Keys, mut record: Record) -> Verdict {
        let id = record.id.clone().unwrap_or(Value::Null);
        let now = record.now(arguments.at.unwrap_or_else(SystemTime::now));
        record.peer = record.peer.or(arguments.peer);
        let verdict = match self {
            Self::ByRecord => match record.source() {
                Ok(source) => keys.judge(&source, None, &record, now),
                Err(problem) => Verdict::refused("config_refused", 503, problem),
            },
            Self::ByConfig { by_path, router } => match by_path.get(record.path()) {
                Some(source) => keys.judge(source, Some(router), &record, now),
                None => Verdict::refused("unknown_source", 404, format!("no source has the path {:?}", record.path())),
            },
        };
        Verdict { id, ..verdict }
    }
}

/// Gets the documents that verification needs, if it may.
struct Keys(Option<(tokio::runtime::Runtime, Fetcher)>);

impl Keys {
    fn new(fetcher: Option<Fetcher>) -> io::Result<Self> {
        let Some(fetcher) = fetcher else { return Ok(Self(None)) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self(Some((runtime, fetcher))))
    }

    fn judge(&self, source: &Source, router: Option<&Router>, record: &Record, now: SystemTime) -> Verdict {
        let request = match record.request(now) {
            Ok(request) => request,
            Err(problem) => return Verdict::refused("malformed_request", 400, problem),
        };
        if let Some((runtime, fetch)) = &self.0 {
            for wanted in source.verifier().wanted(&request) {
                let (url, deadline) = (wanted.url().to_owned(), Deadline::after(Duration::from_secs(10)));
                let fetched = runtime.block_on(deadline.bound(wanted.fetch(fetch)));
                if let Some(Err(problem)) = fetched.unwrap_or_else(|_| Some(Err("no answer in time".to_owned()))) {
                    eprintln!("hookgate: fetch {url}: {problem}");
                }
            }
        }
        explain::judge(source, router, request)
    }
}

/// Reads the requests in the file or stream called `name`, and calls `each` with every one.
fn read(
    name: &str,
    arguments: &Explain,
    mut each: impl FnMut(Result<Record, (Value, String)>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let reader: Box<dyn Read> = match name {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(File::open(path).context("open it")?),
    };
    let mut reader = BufReader::with_capacity(256 * 1024, reader);
    let start = reader.fill_buf().context("read it")?;
    if !is_json(start) {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).context("read it")?;
        let id = Value::String(name.to_owned());
        let record =
            capture::parse(&bytes).map(|record| with_preset(Record { id: Some(id.clone()), ..record }, arguments));
        return Ok(each(record.map_err(|problem| (id, problem)))?);
    }
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) if line.trim().is_empty() => continue,
            Ok(_) => {}
            Err(error) => bail!("line {number} cannot be read: {error}"),
        }
        let place = || Value::String(format!("{name}:{number}"));
        let record = serde_json::from_str::<Record>(&line)
            .map(|record| with_preset(Record { id: record.id.clone().or_else(|| Some(place())), ..record }, arguments))
            .map_err(|error| (place(), format!("line {number} is no record: {error}")));
        each(record)?;
    }
    Ok(())
}

/// The record with what the command line says instead of it.
fn with_preset(mut record: Record, arguments: &Explain) -> Record {
    let Some(preset) = &arguments.preset else { return record };
    record.provider = Some(preset.clone());
    record.secrets.clone_from(&arguments.secret);
    let mut params: Map<String, Value> = arguments.param.iter().cloned().collect();
    if let Some(tolerance) = params.remove("tolerance_s") {
        record.tolerance_s = Some(tolerance.as_u64());
    }
    record.params = params;
    record
}

fn print(out: &mut impl Write, verdict: &Verdict, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, verdict)?;
        return writeln!(out);
    }
    write!(out, "{}", for_people(verdict))
}

fn for_people(verdict: &Verdict) -> String {
    let mut text = String::new();
    let id = verdict.id.as_str().map_or_else(|| verdict.id.to_string(), str::to_owned);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // To a string nothing can fail.
            let _written = writeln!(text, "  {name:<12} {value}");
        }
    };
    line("scheme", verdict.scheme.clone());
    line("secret", verdict.secret.clone());
    line("reason", verdict.reason.map(str::to_owned));
    line("", verdict.detail.clone());
    line("event id", verdict.event_id.clone());
    line("", verdict.event_id_candidate.map(|place| format!("by event_id[{place}]")));
    line("type", verdict.r#type.clone());
    for (name, value) in &verdict.attributes {
        line("attribute", Some(format!("{name} = {value}")));
    }
    for RuleLook { route, held, values } in &verdict.rules {
        let held = match held {
            Some(true) => "holds",
            Some(false) => "does not hold",
            None => "does not hold: something that it looks at is missing",
        };
        let value = |(name, value): (&String, &Option<String>)| match value {
            Some(value) => format!("{name} = {value:?}"),
            None => format!("{name} is missing"),
        };
        let values: Vec<String> = values.iter().map(value).collect();
        let because = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
        line("rule", Some(format!("{route} {held}{because}")));
    }
    line("routes", Some(verdict.routes.join(", ")));
    for destination in &verdict.destinations {
        let target = destination.target.as_deref().map(|target| format!(" {target}")).unwrap_or_default();
        let required = if destination.required { "" } else { " (best effort)" };
        line("to", Some(format!("{}{target}{required}", destination.sink)));
    }
    format!("{id}: {} ({})\n{text}", verdict.verdict, verdict.status)
}
