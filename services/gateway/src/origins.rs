//! Which web pages may use the gateway. A browser sends the origin of the page with what the page asks for, and lets any
//! page of the world ask a server that listens on its own machine.

use std::fmt;
use std::net::IpAddr;

use contract::{Error, Reason};

/// What `gateway.allowed_origins` says.
#[derive(Clone, Debug)]
pub(crate) struct AllowedOrigins {
    any: bool,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    scheme: String,
    host: String,
    /// Absent: any.
    port: Option<u16>,
}

/// `scheme://host[:port]` as a browser sends it.
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let (host, port) = split_port(authority);
        let port = match port {
            None => default_port(scheme),
            Some(port) => Some(port.parse().ok()?),
        };
        (!scheme.is_empty() && is_host(host)).then_some(Self { scheme, host, port })
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let (head, any_port) = text.strip_suffix(":*").map_or((text, false), |head| (head, true));
        let origin = Origin::parse(head)?;
        let port = if any_port { None } else { Some(origin.port?) };
        Some(Self { scheme: origin.scheme.to_lowercase(), host: origin.host.to_lowercase(), port })
    }

    fn matches(&self, origin: &Origin<'_>) -> bool {
        self.scheme.eq_ignore_ascii_case(origin.scheme)
            && self.host.eq_ignore_ascii_case(origin.host)
            && self.port.is_none_or(|port| origin.port == Some(port))
    }
}

impl AllowedOrigins {
    /// # Errors
    /// `bad_field` for an entry that is no origin.
    pub(crate) fn parse(entries: &[String]) -> Result<Self, Error> {
        let patterns = entries.iter().filter(|entry| *entry != "*").map(|entry| {
            Pattern::parse(entry).ok_or_else(|| {
                let expected = "SCHEME://HOST[:PORT] is expected, such as https://studio.example, or \"*\"";
                Error::new(Reason::BadField, format!("{entry:?}: {expected}"))
            })
        });
        Ok(Self {
            any: entries.iter().any(|entry| entry == "*"),
            patterns: patterns.collect::<Result<_, _>>()?,
        })
    }

    /// Every web page may ask.
    pub(crate) fn any(&self) -> bool {
        self.any
    }

    /// Whether a page of `origin` may use the server that it asked as `host` (the `Host` header).
    pub(crate) fn allow(&self, origin: &str, host: Option<&str>) -> bool {
        if self.any {
            return true;
        }
        let Some(origin) = Origin::parse(origin) else { return false };
        self.patterns.iter().any(|pattern| pattern.matches(&origin))
            || host.is_some_and(|host| is_same(&origin, host))
    }

    /// Whether a server on loopback answers to `host`. Other names lead to it only where a foreign name server says so:
    /// its page would be of the same origin as the server.
    pub(crate) fn know_host(&self, host: &str) -> bool {
        let (name, _) = split_port(host);
        self.any
            || is_loopback(name)
            || self.patterns.iter().any(|pattern| pattern.host.eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for AllowedOrigins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server's own")?;
        for Pattern { scheme, host, port } in &self.patterns {
            match port {
                Some(port) => write!(f, ", {scheme}://{host}:{port}")?,
                None => write!(f, ", {scheme}://{host}:*")?,
            }
        }
        Ok(())
    }
}

/// A name or address that stands for this machine.
pub(crate) fn is_loopback(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

/// Behind a proxy that ends TLS the scheme is not the one the server sees, so names and ports decide.
fn is_same(origin: &Origin<'_>, host: &str) -> bool {
    let (name, port) = split_port(host);
    let port = port.map_or_else(|| default_port(origin.scheme), |port| port.parse().ok());
    origin.host.eq_ignore_ascii_case(name) && origin.port == port
}

/// `host[:port]`; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn is_host(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    inner.map_or_else(|| !text.is_empty() && text.chars().all(named), |inner| inner.parse::<IpAddr>().is_ok())
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[&str]) -> AllowedOrigins {
        AllowedOrigins::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn pages_of_the_server_itself_and_of_listed_origins_may_ask() {
        let allowed = of(&["http://localhost:*", "https://studio.example", "http://[::1]:*"]);
        let host = Some("box.example:8000");
        for origin in [
            "http://localhost:5173",
            "http://localhost",
            "http://LOCALHOST:1",
            "https://studio.example",
            "https://studio.example:443",
            "http://[::1]:9",
            "http://box.example:8000",
        ] {
            assert!(allowed.allow(origin, host), "{origin}");
        }
        for origin in [
            "https://evil.example",
            "http://studio.example",
            "https://studio.example:444",
            "https://studio.example.evil.example",
            "http://localhost.evil.example:5173",
            "http://localhost:5173@evil.example",
            "http://box.example",
            "https://localhost:5173",
            "null",
            "",
        ] {
            assert!(!allowed.allow(origin, host), "{origin}");
        }
        assert!(allowed.allow("https://box.example", Some("box.example")), "TLS ended before the server");
        assert!(of(&["*"]).allow("null", None));
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_and_listed_hosts_are_known() {
        let allowed = of(&["https://studio.example"]);
        for host in
            ["localhost:8000", "127.0.0.1", "127.3.2.1:80", "[::1]:8000", "a.localhost", "studio.example"]
        {
            assert!(allowed.know_host(host), "{host}");
        }
        for host in ["evil.example:8000", "10.0.0.1:8000", "localhost.evil.example", "0.0.0.0", ""] {
            assert!(!allowed.know_host(host), "{host}");
        }
        assert!(of(&["*"]).know_host("evil.example"));
    }

    #[test]
    fn what_is_no_origin_is_refused_by_value() {
        for entry in
            ["studio.example", "https://", "https://a b", "https://a:port", "https://a/path", "app://a", ""]
        {
            let error = AllowedOrigins::parse(&[entry.to_owned()]).unwrap_err();
            assert!(error.message.contains(&format!("{entry:?}")), "{error}");
        }
        assert_eq!(of(&["app://a:*", "http://b"]).to_string(), "the server's own, app://a:*, http://b:80");
    }
}
