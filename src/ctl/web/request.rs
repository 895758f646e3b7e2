//! Requests of browsers: what is read of them, and which are answered.
//!
//! Only `GET` of two paths, and only where the header `Host` names this server: a foreign page whose name was made to
//! lead here is refused. Knows no socket. Used by the server.

use std::net::IpAddr;

/// Longest request in bytes, header fields included: browsers send along what other services of the same host have
/// stored with them.
pub(super) const REQUEST_MAX: usize = 16 * 1024;

/// The target of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The page.
    Page,
    /// The page's sections as they change.
    Stream,
}

/// Returns true if all of a request's header is there.
pub(super) fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|four| four == b"\r\n\r\n") || request.windows(2).any(|two| two == b"\n\n")
}

/// Judges a request that came to this address of the machine.
///
/// # Errors
/// The status that says what is wrong with it, and a sentence.
pub(super) fn judge(request: &[u8], here: IpAddr, names: &[String]) -> Result<Asked, (&'static str, String)> {
    let bad = |why: &str| ("400 Bad Request", why.to_owned());
    let text = std::str::from_utf8(request).map_err(|_| bad("this is no request"))?;
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = words[..] else { return Err(bad("this is no request")) };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(bad("this is no request of HTTP/1 to this server"));
    }
    let mut hosts = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then_some(value.trim())
    });
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(bad("one header field Host is needed"));
    };
    if !is_host(host, here, names) {
        let shown: String = host.chars().take(100).filter(|c| !c.is_control()).collect();
        let why = format!("\"{shown}\" is not a name of this server; option --allow-host allows it");
        return Err(("403 Forbidden", why));
    }
    let asked = match target.split('?').next() {
        Some("/") => Asked::Page,
        Some("/events") => Asked::Stream,
        _ => return Err(("404 Not Found", "there is only /".into())),
    };
    if method == "GET" { Ok(asked) } else { Err(("405 Method Not Allowed", "only GET is answered".into())) }
}

/// Returns true if a Host field names this server: by the address that the request came to, as localhost, or by an
/// allowed name. Any port will do, since a tunnel may have its own.
fn is_host(host: &str, here: IpAddr, names: &[String]) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
        None => host.split_once(':').map_or((host, Some("")), |(name, port)| (name, Some(port))),
    };
    if !port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok()) {
        return false;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse() == Ok(here.to_canonical())
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(request: &str) -> Result<Asked, &'static str> {
        let names = ["mirror.example".to_owned()];
        judge(request.as_bytes(), "127.0.0.1".parse().unwrap(), &names)
            .map_err(|(status, _)| status.split(' ').next().unwrap())
    }

    #[test]
    fn only_two_paths_are_there_and_only_for_get() {
        let host = "Host: localhost:9465\r\n\r\n";
        assert_eq!(ask(&format!("GET / HTTP/1.1\r\n{host}")), Ok(Asked::Page));
        assert_eq!(ask(&format!("GET /?a=b HTTP/1.1\n{host}")), Ok(Asked::Page));
        assert_eq!(ask(&format!("GET /events HTTP/1.1\r\n{host}")), Ok(Asked::Stream));
        for (line, status) in [
            ("POST / HTTP/1.1", "405"),
            ("HEAD /events HTTP/1.1", "405"),
            ("GET /favicon.ico HTTP/1.1", "404"),
            ("GET //events HTTP/1.1", "404"),
            ("GET http://elsewhere/ HTTP/1.1", "400"),
            ("GET / HTTP/2", "400"),
            ("GET  / HTTP/1.1", "400"),
            ("", "400"),
        ] {
            assert_eq!(ask(&format!("{line}\r\n{host}")), Err(status), "{line}");
        }
    }

    #[test]
    fn a_foreign_host_is_refused() {
        let host = |field: &str| ask(&format!("GET / HTTP/1.1\r\nA: b\r\n{field}\r\nB: c\r\n\r\n"));
        for field in [
            "Host: 127.0.0.1:9465",
            "host:127.0.0.1",
            "HOST: LocalHost",
            "Host: localhost.:80",
            "Host: Mirror.example:1",
        ] {
            assert_eq!(host(field), Ok(Asked::Page), "{field}");
        }
        for field in [
            "Host: evil.example",
            "Host: 127.0.0.1.evil.example:9465",
            "Host: 127.0.0.2",
            "Host: evil.mirror.example",
            "Host: localhost:evil",
            "Host: localhost:70000",
            "Host: [::1]",
            "Host: [127.0.0.1]x",
            "Host:",
        ] {
            assert_eq!(host(field), Err("403"), "{field}");
        }
        for field in ["X-Host: localhost", "Host: localhost\r\nHost: localhost"] {
            assert_eq!(host(field), Err("400"), "{field}");
        }
        let six = judge(b"GET / HTTP/1.1\r\nHost: [::1]:9465\r\n\r\n", "::1".parse().unwrap(), &[]);
        assert_eq!(six, Ok(Asked::Page));
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(judge(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", mapped, &[]), Ok(Asked::Page));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = judge(&bytes, "127.0.0.1".parse().unwrap(), &[]);
        }
    }
}
