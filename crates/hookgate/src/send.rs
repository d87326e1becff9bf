//! `hookgate send`: a correctly signed test event of any source, posted or printed.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use hookgate_core::{
    auth::{Draft, SigningKey},
    config::unknown,
    preset::Preset,
};
use hookgate_http::Fetcher;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::json;

use crate::{
    assemble::{self, Ids, Parts},
    config::Config,
    run::Failure,
    secrets::Secrets,
    telemetry::millis,
};

/// What to send, and where.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The source in the config whose event to make.
    source: String,

    /// Where hookgate is, without the source's path. Default: the config's own port on this machine.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The body: a text in which $ID, $NOW, $NOW_MS and $RFC3339 are filled in, @FILE, or - for stdin. Default: a sample of
    /// the source's preset.
    #[arg(long, value_name = "BODY")]
    data: Option<String>,

    /// A header to send along, like 'X-GitHub-Event: push'; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,

    /// The id of the event and of the message. Default: a new one each time.
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,

    /// The name of the secret to sign with. Default: the first that is live.
    #[arg(long, value_name = "NAME")]
    secret: Option<String>,

    /// A private key in PKCS #8 form (PEM), for senders of whom hookgate has the public key only.
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,

    /// The time to sign, in seconds since 1970. Default: now.
    #[arg(long, value_name = "UNIX", value_parser = crate::explain::time)]
    at: Option<SystemTime>,

    /// Print the raw request instead of sending it; `hookgate explain` reads it.
    #[arg(long)]
    print: bool,
}

/// The body of a source of which no preset gives one.
const SAMPLE: &str = r#"{"id":"$ID","type":"test","time":"$RFC3339","message":"a test by hookgate send"}"#;

/// How long an answer is waited for: longer than any provider does.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Longest answer that is shown, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Makes the event and sends it. The exit code says whether it was accepted.
pub(crate) fn send(arguments: &Send, config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let Parts { sources, fetcher, .. } = assemble::prepare(config, &Ids::of(config), &Secrets::default())?;
    let known: Vec<&str> = sources.iter().map(|source| source.id().name()).collect();
    let source = sources.iter().find(|source| source.id().name() == arguments.source);
    let source = source.ok_or_else(|| anyhow!("{}", unknown("source", &arguments.source, &known)))?;
    let preset = config.sources[&arguments.source].preset.as_deref().and_then(Preset::find);
    let mut draft = draft(arguments, source.path(), preset)?;
    source.sign(&mut draft).map_err(|problem| anyhow!("sign for sources.{}: {problem}", arguments.source))?;
    if arguments.print {
        io::stdout().write_all(&raw(&draft))?;
        return Ok(ExitCode::SUCCESS);
    }
    let base = arguments.url.clone().unwrap_or_else(|| own_url(config));
    Ok(post(&base, draft, &fetcher.with_timeout(ANSWER_LIMIT), json)?)
}

fn draft(arguments: &Send, path: &str, preset: Option<&Preset>) -> anyhow::Result<Draft> {
    let now = arguments.at.unwrap_or_else(SystemTime::now);
    let id = arguments.id.clone().unwrap_or_else(|| format!("{:016x}", fastrand::u64(..)));
    let placeholders = Placeholders::new(&id, now);
    let body = match arguments.data.as_deref() {
        None => placeholders.fill(preset.and_then(|preset| preset.sample.as_deref()).unwrap_or(SAMPLE)).into_bytes(),
        Some("-") => {
            let mut body = Vec::new();
            io::stdin().read_to_end(&mut body).context("read the body from stdin")?;
            body
        }
        Some(text) => match text.strip_prefix('@') {
            Some(path) => std::fs::read(path).with_context(|| format!("read the body from {path}"))?,
            None => placeholders.fill(text).into_bytes(),
        },
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("hookgate/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in preset.iter().flat_map(|preset| &preset.sample_headers) {
        insert(&mut headers, name, &placeholders.fill(value))?;
    }
    for line in &arguments.header {
        let (name, value) =
            line.split_once(':').with_context(|| format!("{line:?} is no header; write 'Name: value'"))?;
        insert(&mut headers, name.trim(), value.trim())?;
    }
    let signing_key = arguments.signing_key.as_ref().map(|path| {
        let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        SigningKey::from_pem(&pem).map_err(|problem| anyhow!("{} {problem}", path.display()))
    });
    Ok(Draft {
        method: Method::POST,
        path: path.to_owned(),
        query: None,
        headers,
        body: Bytes::from(body),
        now,
        id,
        secret: arguments.secret.clone(),
        signing_key: signing_key.transpose()?,
    })
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> anyhow::Result<()> {
    let header: HeaderName = name.parse().with_context(|| format!("{name:?} is no header name"))?;
    let value =
        HeaderValue::from_str(value).with_context(|| format!("the value of {name} cannot stand in a header"))?;
    headers.insert(header, value);
    Ok(())
}

/// What `$ID` and the others stand for.
struct Placeholders([(&'static str, String); 4]);

impl Placeholders {
    fn new(id: &str, now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self([
            ("$ID", id.to_owned()),
            // Before the shorter name that it begins with.
            ("$NOW_MS", since.as_millis().to_string()),
            ("$NOW", since.as_secs().to_string()),
            ("$RFC3339", humantime::format_rfc3339_seconds(now).to_string()),
        ])
    }

    fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

/// The config's own port, as this machine reaches it.
fn own_url(config: &Config) -> String {
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let mut listen = config.server.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    format!("{scheme}://{listen}")
}

fn target(draft: &Draft) -> String {
    match &draft.query {
        Some(query) => format!("{}?{query}", draft.path),
        None => draft.path.clone(),
    }
}

/// The request as it would be on the wire.
fn raw(draft: &Draft) -> Vec<u8> {
    let mut raw = format!("{} {} HTTP/1.1\r\n", draft.method, target(draft)).into_bytes();
    for (name, value) in &draft.headers {
        raw.extend_from_slice(name.as_str().as_bytes());
        raw.extend_from_slice(b": ");
        raw.extend_from_slice(value.as_bytes());
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(format!("content-length: {}\r\n\r\n", draft.body.len()).as_bytes());
    raw.extend_from_slice(&draft.body);
    raw
}

fn post(base: &str, draft: Draft, fetcher: &Fetcher, json: bool) -> anyhow::Result<ExitCode> {
    let url = format!("{}{}", base.trim_end_matches('/'), target(&draft));
    let mut request = http::Request::builder().method(draft.method).uri(&url).body(draft.body);
    if let Ok(request) = &mut request {
        *request.headers_mut() = draft.headers;
    }
    let request = request.with_context(|| format!("{base:?} is no URL; write \"http://127.0.0.1:8080\""))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begun = Instant::now();
    // The query may hold a token.
    let shown = url.split('?').next().unwrap_or_default();
    let answer = match runtime.block_on(fetcher.send(request, ANSWER_BYTES_MAX)) {
        Ok(answer) => answer,
        Err(problem) => bail!("post to {shown}: {problem}"),
    };
    let (status, body) = (answer.status(), String::from_utf8_lossy(answer.body()).into_owned());
    let elapsed_ms = millis(begun.elapsed());
    let mut out = io::stdout().lock();
    if json {
        writeln!(
            out,
            "{}",
            json!({ "url": shown, "status": status.as_u16(), "body": body, "elapsed_ms": elapsed_ms })
        )?;
    } else {
        eprintln!("posted to {shown}: {status} after {elapsed_ms} ms");
        writeln!(out, "{body}")?;
    }
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
