//! Requests: the only code of the project that opens a connection.
//!
//! Redirects are followed here and not by the client below, because of the token: it goes to the configured endpoint
//! and to no other host or port, wherever a redirect leads.

use std::{
    io::{self, Read},
    thread,
    time::Duration,
};

use ureq::{
    Agent, Body,
    http::{Response, Uri, header},
    tls::{RootCerts, TlsConfig},
};

use super::{
    Watch,
    settings::{Retries, Settings},
};
use crate::{Error, HubFault};

/// Redirects in a row.
const MAX_REDIRECTS: usize = 10;

/// Tries of a question that finds nobody to answer it.
const MAX_QUESTIONS: u32 = 3;

/// Bytes of an answer that is read as a whole. Listings of the largest models have a few.
const MAX_ANSWER: u64 = 64 << 20;

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered, and refused.
    Refused(Refusal),
    /// No connection, or one that broke or fell silent; what was said about it.
    Cut(String),
    /// The server cannot be trusted to be what its name says; what was said about it.
    Barred(String),
    /// The server answers what cannot be used; trying again is of no use.
    Wrong(HubFault, String),
    /// The fault is on this side: the disk.
    Local(Error),
}

/// A server's refusal.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// `X-Error-Code`: `GatedRepo`, `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, …
    pub code: String,
    /// `X-Error-Message`, cut to a sentence's length.
    pub message: String,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
}

impl Failure {
    /// Whether the hub may be well and only not be reached now, so that a copy of what it had may stand in.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Cut(_) | Self::Barred(_) => true,
            Self::Refused(refusal) => matches!(refusal.status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

/// Where an address leads to: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin(String, String, u16);

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        })?;
        Some(Self(scheme, uri.host()?.to_ascii_lowercase(), port))
    }
}

/// Talks to one endpoint.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Option<Origin>,
    authorization: Option<String>,
    retries: Retries,
}

/// A status below 300, or 416.
pub(super) type Answer = Response<Body>;

impl Client {
    pub fn new(settings: &Settings) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("scruple/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // sizes, ranges and hashes are of the plain bytes
            .timeout_resolve(Some(settings.silence))
            .timeout_connect(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence));
        if !settings.proxy {
            config = config.proxy(None);
        }
        if let Some(roots) = &settings.roots {
            config = config.tls_config(TlsConfig::builder().root_certs(RootCerts::new_with_certs(roots)).build());
        }
        Self {
            agent: config.build().new_agent(),
            origin: settings.endpoint.parse().ok().as_ref().and_then(Origin::of),
            endpoint: settings.endpoint.clone(),
            authorization: settings.token.as_ref().map(|token| format!("Bearer {token}")),
            retries: settings.retries,
        }
    }

    /// `path` below the endpoint.
    pub fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// The answer to a GET of `address`, from byte `from` on if the server can do that. Every status below 300 and 416
    /// is an answer, others are failures.
    pub fn get(&self, address: &str, from: u64) -> Result<Answer, Failure> {
        self.follow(address, false, |address, authorization| {
            let mut request = self.agent.get(address);
            if let Some(value) = authorization {
                request = request.header(header::AUTHORIZATION, value);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            request.call()
        })
    }

    /// The answer to a HEAD of `address`. A redirect that itself says what the file is, is that answer.
    pub fn head(&self, address: &str) -> Result<Answer, Failure> {
        self.follow(address, true, |address, authorization| {
            let mut request = self.agent.head(address);
            if let Some(value) = authorization {
                request = request.header(header::AUTHORIZATION, value);
            }
            request.call()
        })
    }

    /// The body of a GET of `address`, tried again where that can help.
    pub fn get_whole(&self, address: &str, attempts: u32, watch: &mut dyn Watch) -> Result<Vec<u8>, Failure> {
        self.insist(attempts, watch, || {
            let mut bytes = Vec::new();
            let answer = self.get(address, 0)?;
            let mut body = answer.into_body().into_reader().take(MAX_ANSWER + 1);
            body.read_to_end(&mut bytes).map_err(|error| Failure::Cut(error.to_string()))?;
            if bytes.len() as u64 > MAX_ANSWER {
                return Err(Failure::Wrong(HubFault::NoHub, format!("its answer has more than {MAX_ANSWER} bytes")));
            }
            Ok(bytes)
        })
    }

    /// As [`head`](Self::head), tried again where that can help.
    pub fn head_again(&self, address: &str, watch: &mut dyn Watch) -> Result<Answer, Failure> {
        self.insist(self.retries.attempts, watch, || self.head(address))
    }

    fn insist<T>(
        &self,
        attempts: u32,
        watch: &mut dyn Watch,
        mut request: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut tried = 0;
        loop {
            let failure = match request() {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            tried += 1;
            // Where there is no network at all, that should be told soon.
            let attempts = if matches!(failure, Failure::Cut(_)) { attempts.min(MAX_QUESTIONS) } else { attempts };
            let (wait, why) = self.wait(failure, tried, attempts)?;
            watch.waits(&why, wait);
            thread::sleep(wait);
        }
    }

    /// Tries in a row without progress, at most.
    pub fn attempts(&self) -> u32 {
        self.retries.attempts
    }

    /// How long to wait before the next try, after `tried` of them without progress, and why; gives the failure back
    /// where another try is of no use.
    pub fn wait(&self, failure: Failure, tried: u32, attempts: u32) -> Result<(Duration, String), Failure> {
        if !failure.is_passing() || matches!(failure, Failure::Barred(_)) || tried >= attempts {
            return Err(failure);
        }
        let doubled = self.retries.first_wait.saturating_mul(1 << (tried - 1).min(16));
        let wait = doubled.min(self.retries.longest_wait);
        match failure {
            Failure::Refused(Refusal { wait: Some(asked), .. }) if asked > self.retries.longest_wait => Err(failure),
            Failure::Refused(Refusal { wait: asked, status, .. }) => {
                Ok((wait.max(asked.unwrap_or_default()), format!("{} answers with status {status}", self.endpoint)))
            }
            Failure::Cut(what) => Ok((wait, what)),
            other => Err(other),
        }
    }

    /// Follows redirects; up to one that says itself what the file is, if `to_description`.
    fn follow(
        &self,
        address: &str,
        to_description: bool,
        request: impl Fn(&str, Option<&str>) -> Result<Answer, ureq::Error>,
    ) -> Result<Answer, Failure> {
        let mut address = address.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let uri: Uri =
                address.parse().map_err(|_| wrong(format!("it leads to `{}`, no address", short(&address))))?;
            let origin = Origin::of(&uri);
            let encrypted = |origin: &Option<Origin>| origin.as_ref().is_some_and(|origin| origin.0 == "https");
            if encrypted(&self.origin) && !encrypted(&origin) {
                return Err(wrong(format!("it leads from https to `{}`, which is not encrypted", short(&address))));
            }
            let authorization = self.authorization.as_deref().filter(|_| origin.is_some() && origin == self.origin);
            let answer = request(&address, authorization).map_err(|error| failure(error, &uri))?;
            match answer.status().as_u16() {
                301 | 302 | 303 | 307 | 308 if to_description && text(&answer, "x-linked-etag").is_some() => {
                    return Ok(answer);
                }
                status @ (301 | 302 | 303 | 307 | 308) => {
                    let location = text(&answer, "location");
                    let location = location.ok_or_else(|| wrong(format!("it answers {status} and not where to go")))?;
                    address = resolve(&uri, location);
                }
                200..=299 | 416 => return Ok(answer),
                _ => return Err(Failure::Refused(refusal(&answer))),
            }
        }
        Err(wrong(format!("it redirects more than {MAX_REDIRECTS} times")))
    }
}

fn wrong(what: String) -> Failure {
    Failure::Wrong(HubFault::NoHub, what)
}

/// The value of a header, if it is plain text.
pub(super) fn text<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok().map(str::trim)
}

/// A server's words, fit for one line of a terminal.
pub(super) fn short(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

fn refusal(answer: &Answer) -> Refusal {
    let seconds = text(answer, "retry-after").and_then(|value| value.parse().ok()).or_else(|| {
        // `RateLimit: "api";r=0;t=55`: nothing remains, and in 55 seconds there is more.
        let fields = text(answer, "ratelimit")?;
        fields.split(';').find_map(|field| field.trim().strip_prefix("t=")?.parse().ok())
    });
    Refusal {
        status: answer.status().as_u16(),
        code: text(answer, "x-error-code").map(short).unwrap_or_default(),
        message: text(answer, "x-error-message").map(short).unwrap_or_default(),
        wait: seconds.map(Duration::from_secs),
    }
}

fn failure(error: ureq::Error, uri: &Uri) -> Failure {
    let host = uri.host().unwrap_or_default();
    match error {
        ureq::Error::HostNotFound => Failure::Cut(format!("the name `{host}` is not known here (DNS)")),
        ureq::Error::Timeout(_) => Failure::Cut(format!("`{host}` is silent")),
        // What the encryption says comes in this kind.
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            Failure::Barred(format!("`{host}` cannot be trusted: {error}"))
        }
        ureq::Error::Rustls(error) => Failure::Barred(format!("`{host}` cannot be trusted: {error}")),
        ureq::Error::Io(error) => Failure::Cut(format!("`{host}`: {error}")),
        ureq::Error::ConnectionFailed => Failure::Cut(format!("`{host}`: no connection")),
        // A name that cannot be looked up, or a server that breaks off within a head, are told in several ways.
        ureq::Error::Protocol(error) => Failure::Cut(format!("`{host}`: {error}")),
        other => Failure::Wrong(HubFault::Unreachable, format!("`{host}`: {other}")),
    }
}

/// Where `location` leads to, seen from `base`.
fn resolve(base: &Uri, location: &str) -> String {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    if location.contains("://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base: Uri = "https://hub.example:8443/org/name/resolve/main/x".parse().unwrap();
        for (location, address) in [
            ("https://cdn.example/x", "https://cdn.example/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/new/name", "https://hub.example:8443/new/name"),
            ("y?z=1", "https://hub.example:8443/org/name/resolve/main/y?z=1"),
        ] {
            assert_eq!(resolve(&base, location), address);
        }
    }

    #[test]
    fn another_port_or_scheme_is_another_place() {
        let origin = |address: &str| Origin::of(&address.parse().unwrap());
        assert_eq!(origin("https://Hub.example/x"), origin("https://hub.example:443/y"));
        assert_ne!(origin("https://hub.example/x"), origin("http://hub.example/x"));
        assert_ne!(origin("http://127.0.0.1:80/"), origin("http://127.0.0.1:81/"));
    }

    #[test]
    fn a_servers_words_are_one_short_line() {
        assert_eq!(short("a\x1b[31m\nb"), "a [31m b");
        assert_eq!(short(&"x".repeat(1000)).chars().count(), 201);
    }
}
