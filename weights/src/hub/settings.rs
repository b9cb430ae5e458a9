//! What the environment says about the hub: the same variables, with the same meaning, as `huggingface_hub` reads.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use ureq::tls::{Certificate, PemItem, parse_pem};

use super::name::PUBLIC_ENDPOINT;
use crate::{Error, HubFault, Result};

/// How often and how long to try again.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// Tries in a row without a byte gained, at most.
    pub attempts: u32,
    /// The pause after the first; each further one is twice as long.
    pub first_wait: Duration,
    /// The longest pause, and the longest that a server may ask for.
    pub longest_wait: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 5, first_wait: Duration::from_secs(1), longest_wait: Duration::from_secs(60) }
    }
}

/// Where the hub is, where its files are kept, and how it is talked to.
#[derive(Clone)]
pub struct Settings {
    /// `https://host[:port]`, without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint's host, and to no other.
    pub token: Option<String>,
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    /// Never open a connection.
    pub offline: bool,
    /// How often to try again.
    pub retries: Retries,
    /// The longest silence of a server.
    pub silence: Duration,
    /// Certificates to trust instead of those of the public authorities.
    pub roots: Option<Vec<Certificate<'static>>>,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` hold.
    pub proxy: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(not shown)");
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("retries", &self.retries)
            .field("silence", &self.silence)
            .field("roots", &self.roots.as_ref().map(Vec::len))
            .field("proxy", &self.proxy)
            .finish()
    }
}

impl Settings {
    /// What the environment says.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `HF_ENDPOINT` | the hub's address |
    /// | `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` | where files are kept: the first that is set, the latter two with `hub` and `huggingface/hub` below |
    /// | `HF_TOKEN`, `HF_TOKEN_PATH` | the token, or the file that holds it (else `token` in `HF_HOME`) |
    /// | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | send no token |
    /// | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `1`, `true`, `yes` or `on`: open no connection |
    /// | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds that a server may be silent |
    /// | `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` | a PEM file of certificates to trust instead of the public authorities' |
    ///
    /// # Errors
    /// If a variable holds what cannot be used; the sentence names it.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| env::var_os(name))
    }

    /// As [`from_env`](Self::from_env) with variables from elsewhere.
    ///
    /// # Errors
    /// If a variable holds what cannot be used; the sentence names it.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let refuse = |name: &str, what: String| Error::Hub { model: name.to_string(), fault: HubFault::Request, what };
        let text = |name: &str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value.trim().to_string()).filter(|value| !value.is_empty())),
            Some(Err(_)) => Err(refuse(name, "the variable should hold plain text; correct or unset it".into())),
        };
        let yes = |name: &str| -> Result<bool> {
            Ok(text(name)?
                .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")))
        };

        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| PUBLIC_ENDPOINT.to_string());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if !is_endpoint(&endpoint) {
            let what =
                format!("`{}` is no address like `{PUBLIC_ENDPOINT}`; correct or unset it", endpoint.escape_debug());
            return Err(refuse("HF_ENDPOINT", what));
        }

        let user = set("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let path = |name: &str| set(name).map(|value| expand(PathBuf::from(value), &user));
        let home = path("HF_HOME")
            .unwrap_or_else(|| path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache")).join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));

        let mut token =
            text("HF_TOKEN")?.or(text("HUGGING_FACE_HUB_TOKEN")?).map(|token| (token, "HF_TOKEN".to_string()));
        if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN")? {
            token = None;
        } else if token.is_none() {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            // Without the file there is no token, and most models need none.
            token = fs::read_to_string(&file)
                .ok()
                .map(|token| (token.trim().to_string(), file.display().to_string()))
                .filter(|(token, _)| !token.is_empty());
        }
        if let Some((token, from)) = &token
            && !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(refuse(from, "the token should be one word of plain characters; copy it again".into()));
        }

        let silence = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => 30,
            Some(value) => match value.parse() {
                Ok(seconds @ 1..=86_400) => seconds,
                _ => {
                    let what = format!("expected seconds, 1 to 86400, found `{}`", value.escape_debug());
                    return Err(refuse("HF_HUB_DOWNLOAD_TIMEOUT", what));
                }
            },
        };
        let offline = yes("HF_HUB_OFFLINE")? || yes("TRANSFORMERS_OFFLINE")?;
        let roots = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"].into_iter().find_map(|name| Some((name, path(name)?)));
        let roots = match roots {
            Some((name, file)) if !offline => Some(certificates(&file).map_err(|what| refuse(name, what))?),
            _ => None,
        };
        Ok(Self {
            endpoint,
            token: token.map(|(token, _)| token),
            cache,
            offline,
            retries: Retries::default(),
            silence: Duration::from_secs(silence),
            roots,
            proxy: true,
        })
    }
}

/// The certificates in a PEM file.
fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let text =
        fs::read(file).map_err(|error| format!("{} cannot be read: {error}; correct or unset it", file.display()))?;
    let certificate = |item: Result<PemItem<'static>, ureq::Error>| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let found: Vec<_> = parse_pem(&text).filter_map(certificate).collect();
    match found.is_empty() {
        true => Err(format!("{} holds no PEM certificate; correct or unset it", file.display())),
        false => Ok(found),
    }
}

fn is_endpoint(text: &str) -> bool {
    text.parse::<ureq::http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
            && !text.contains('@')
    })
}

/// `~/x` below the user's folder.
fn expand(path: PathBuf, user: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => user.join(rest),
        Err(_) => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Settings::from_variables(value)
    }

    #[test]
    fn the_cache_lies_where_the_first_variable_says() {
        for (variables, cache) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HOME", "/u"), ("HF_HOME", "~/h")], "/u/h/hub"),
            (&[("HOME", "/u"), ("HF_HOME", "")], "/u/.cache/huggingface/hub"),
        ] {
            assert_eq!(settings(variables).unwrap().cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_before_the_file_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let token = |more: &[(&str, &str)]| {
            let settings = settings(&[&[("HF_HOME", home)], more].concat()).unwrap();
            assert!(!format!("{settings:?}").contains("hf_"), "{settings:?}");
            settings.token
        };
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", " hf_variable ")]).as_deref(), Some("hf_variable"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere/at/all")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn offline_has_the_spellings_of_the_hub() {
        for (value, offline) in [("1", true), ("TRUE", true), ("yes", true), ("On", true), ("0", false), ("", false)] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "ftp://host"),
            ("HF_ENDPOINT", "http://user:secret@host"),
            ("HF_TOKEN", "two words"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
            ("SSL_CERT_FILE", "/nowhere/at/all"),
            ("REQUESTS_CA_BUNDLE", "Cargo.toml"),
        ] {
            let error = settings(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
        assert_eq!(settings(&[("HF_ENDPOINT", "http://127.0.0.1:80/")]).unwrap().endpoint, "http://127.0.0.1:80");
    }
}
