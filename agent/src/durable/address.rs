//! The address of a Durable Object's volume: `do://listen:8000`, `do+wss://host/container/id`. It must not touch the
//! network, and no error may repeat a secret.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::blob::{StoreError, decode_escapes, redact};

/// The variable that holds the token of a Worker.
pub const TOKEN: &str = "STORESHIM_TOKEN";

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The Durable Object connects to us.
    Listen(SocketAddr),
    /// We connect to its Worker.
    Remote(Remote),
}

/// A volume behind a Worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Encrypted.
    pub tls: bool,
    /// Host, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path of the volume in the Worker, without a slash at the end.
    pub path: String,
    /// What the Worker lets in.
    pub token: Token,
}

impl Remote {
    /// Host and port as they stand in URLs.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    /// A URL below the volume; `scheme` is that of plain connections.
    #[must_use]
    pub fn url(&self, scheme: &str, below: &str) -> String {
        let s = if self.tls { "s" } else { "" };
        format!("{scheme}{s}://{}{}/.storeshim/{below}", self.authority(), self.path)
    }
}

/// A secret, which does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Whether a URL is one of a Durable Object.
#[must_use]
pub fn is_durable(url: &str) -> bool {
    ["do://", "do+ws://", "do+wss://"].iter().any(|scheme| url.starts_with(scheme))
}

impl Address {
    /// Parses `url`; `env` gives the environment's variables.
    ///
    /// # Errors
    /// `Invalid`, with what to write instead.
    pub fn parse(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let shown = redact(url);
        let invalid = |what: &str| StoreError::Invalid(format!("the backend URL '{shown}' {what}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("has no scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "do" => parse_listen(rest, query).map_err(invalid),
            "do+ws" | "do+wss" if query.is_empty() => {
                parse_remote(scheme == "do+wss", rest, env).map(Self::Remote).map_err(invalid)
            }
            "do+ws" | "do+wss" => {
                Err(invalid("has parameters, of which there are none for this scheme; remove them"))
            }
            _ => Err(invalid(
                "is not one of a Durable Object; write do://listen:8000 or do+wss://host/container/id",
            )),
        }
    }
}

fn parse_listen(rest: &str, query: &str) -> Result<Address, &'static str> {
    const WRITE: &str = "does not say where to listen; write do://listen:8000";
    let port = rest.trim_end_matches('/').strip_prefix("listen:").ok_or(WRITE)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or(WRITE)?;
    let ip = match query.split_once('=') {
        None if query.is_empty() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(("bind", ip)) => {
            ip.parse().map_err(|_| "has a malformed address to listen on; write bind=127.0.0.1")?
        }
        _ => return Err("has an unknown parameter; known is bind"),
    };
    Ok(Address::Listen(SocketAddr::new(ip, port)))
}

fn parse_remote(tls: bool, rest: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Remote, &'static str> {
    let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = place.rsplit_once('@').map_or((None, place), |(user, host)| (Some(user), host));
    let host_and_port = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(host, port)| (host, port.strip_prefix(':'))),
        None => Some(host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)))),
    };
    let (host, port) = host_and_port.ok_or("has a malformed host; write [address]:port for IPv6")?;
    let usable = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(usable) {
        return Err("names no usable host; write do+wss://host/container/id");
    }
    let port = match port {
        None => {
            if tls {
                443
            } else {
                80
            }
        }
        Some(port) => port.parse().map_err(|_| "has a malformed port; write host:port")?,
    };
    let path = path.trim_end_matches('/');
    if path.is_empty()
        || !path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>#{}\\^`|".contains(&byte))
    {
        return Err(
            "has no usable path of a volume; write do+wss://host/container/id, escaped as in a browser",
        );
    }
    let given = user.map(|user| decode_escapes(user).ok_or("has a malformed %-escape; write %25 for %"));
    let token = match given.transpose()?.filter(|token| !token.is_empty()) {
        Some(token) => token.strip_prefix(':').map_or(token.clone(), str::to_owned),
        None => env(TOKEN)
            .filter(|token| !token.is_empty())
            .ok_or("needs the token that the Worker lets in; put it into STORESHIM_TOKEN")?,
    };
    if !token.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(
            "has a token with letters that a header cannot carry; choose another with `wrangler secret put`",
        );
    }
    Ok(Remote { tls, host: host.to_owned(), port, path: path.to_owned(), token: Token(token) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(url: &str) -> Result<Address, StoreError> {
        Address::parse(url, &|name| (name == TOKEN).then(|| "hunter2".to_owned()))
    }

    fn remote(url: &str) -> Remote {
        match parse(url).unwrap() {
            Address::Remote(remote) => remote,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn good_addresses() {
        assert_eq!(parse("do://listen:8000").unwrap(), Address::Listen("0.0.0.0:8000".parse().unwrap()));
        let bound = parse("do://listen:8000?bind=::1").unwrap();
        assert_eq!(bound, Address::Listen("[::1]:8000".parse().unwrap()));
        let one = remote("do+wss://h.example/container/a%20b/");
        assert_eq!(one.url("ws", "agent"), "wss://h.example/container/a%20b/.storeshim/agent");
        assert_eq!(one.token, Token("hunter2".into()));
        let two = remote("do+ws://se%40cret@[::1]:8787/container/x");
        assert_eq!(two.url("http", "packs/00"), "http://[::1]:8787/container/x/.storeshim/packs/00");
        assert_eq!(two.token, Token("se@cret".into()));
        assert!(!format!("{two:?}").contains("cret"));
    }

    #[test]
    fn bad_addresses_say_what_to_write_and_never_the_token() {
        for (url, said) in [
            ("do://8000", "where to listen"),
            ("do://listen:0", "where to listen"),
            ("do://listen:8000?bond=1", "unknown parameter"),
            ("do+wss:///x", "no usable host"),
            ("do+wss://hunter2@h", "no usable path"),
            ("do+wss://hunter2@h:x/p", "malformed port"),
            ("do+wss://h/p?token=hunter2", "parameters"),
            ("do+wss://hunter2%zz@h/p", "%-escape"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        }
        let error = Address::parse("do+wss://h/container/x", &|_| None).unwrap_err().to_string();
        assert!(error.contains("STORESHIM_TOKEN"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(tail in "[a-z0-9:/?&=%@\\[\\].]{0,40}") {
            for scheme in ["do", "do+ws", "do+wss"] {
                let _ = parse(&format!("{scheme}://{tail}"));
            }
        }
    }
}
