//! The one embedded file, with the sections in their places, and the header fields that keep a browser from anything else.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::board::Sections;

const TEMPLATE: &str = include_str!("page.html");

/// The page, and what a browser may do with it.
pub(super) struct Page {
    fields: String,
}

impl Page {
    pub fn new() -> Self {
        // Only the script and the style of the file itself: nothing that a peer says can become one.
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(between("<script>", "</script>")),
            hash(between("<style>", "</style>")),
        );
        let mut fields = String::new();
        for (name, value) in [
            ("Content-Security-Policy", policy.as_str()),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
            ("Allow", "GET"),
            ("Connection", "close"),
        ] {
            let _ = write!(fields, "{name}: {value}\r\n");
        }
        Page { fields }
    }

    /// Returns the head of an answer with this many bytes.
    pub fn head(&self, status: &str, kind: &str, length: usize) -> Vec<u8> {
        let Page { fields } = self;
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n{fields}\r\n"
        )
        .into()
    }

    /// Returns the head of a stream.
    pub fn stream_head(&self) -> Vec<u8> {
        let Page { fields } = self;
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{fields}\r\nretry: 2000\n\n").into()
    }

    /// The page with these sections.
    pub fn whole(&self, sections: &Sections) -> String {
        let mut page = String::new();
        let mut parts = TEMPLATE.split("<!--=");
        page += parts.next().unwrap_or_default();
        for part in parts {
            let (id, rest) = part.split_once("-->").unwrap_or_default();
            page += sections.of(id);
            page += rest;
        }
        page
    }
}

fn between(begin: &str, end: &str) -> &'static str {
    let rest = TEMPLATE.split_once(begin).map_or("", |(_, rest)| rest);
    rest.split_once(end).map_or("", |(text, _)| text)
}

/// A source of the policy: the text that has this hash.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", base64(&Sha256::digest(text)))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number =
            (0..3).fold(0_usize, |sum, at| sum << 8 | usize::from(three.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = DIGITS.get(number >> (18 - 6 * at) & 63).copied().unwrap_or(b'=');
            text.push(if at <= three.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = Page::new().whole(&Sections(vec![("peers", "<i>here</i>".into())]));
        assert!(page.contains("<i>here</i>") && !page.contains("<!--="), "{page}");
        for outside in ["http:", "https:", "src=", "@import", "url(", "style=", "onload="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!((page.matches("<script>").count(), page.matches("<style>").count()), (1, 1));
        let fields = Page::new().fields;
        assert!(fields.contains("script-src 'sha256-") && !fields.contains("unsafe"), "{fields}");
    }
}
