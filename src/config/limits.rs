//! Limits of a file's form that are checked before the XML parser sees it.
//!
//! The parser compares each attribute with all others of its element, and each element inherits the namespaces of all
//! around it: time by the square of the file's length. One pass over the text, which keeps nothing, finds files that
//! would cost too much. It judges nothing else; the parser refuses text that is no XML. Called by `file`.

/// Most attributes of one element. A configuration needs none: values are elements.
const ATTRIBUTES_MAX: usize = 64;
/// Most attributes of a whole file.
const ALL_ATTRIBUTES_MAX: usize = 1000;
/// Most elements around one another: a configuration needs eight.
const DEPTH_MAX: usize = 64;

/// The limit that a text exceeds.
pub(super) struct Excess {
    /// The position, in bytes.
    pub(super) at: usize,
    /// A sentence.
    pub(super) what: String,
}

/// Returns the first limit that the text exceeds.
pub(super) fn excess(text: &str) -> Option<Excess> {
    let (mut all, mut depth) = (0_usize, 0_usize);
    let mut at = 0;
    while let Some(begin) = end_of(text, at, "<").map(|end| end.saturating_sub(1)) {
        let rest = text.get(begin..).unwrap_or_default();
        let end = match rest {
            _ if rest.starts_with("<!--") => end_of(text, begin.saturating_add(4), "-->"),
            _ if rest.starts_with("<![CDATA[") => end_of(text, begin, "]]>"),
            _ if rest.starts_with("<?") => end_of(text, begin, "?>"),
            _ if rest.starts_with("</") => {
                depth = depth.saturating_sub(1);
                end_of(text, begin, ">")
            }
            _ => {
                let tag = Tag::read(rest);
                all = all.saturating_add(tag.attributes);
                let excess = |what| Some(Excess { at: begin, what });
                if tag.attributes > ATTRIBUTES_MAX {
                    return excess(format!(
                        "an element with more than {ATTRIBUTES_MAX} attributes: values are elements here"
                    ));
                }
                if all > ALL_ATTRIBUTES_MAX {
                    return excess(format!(
                        "more than {ALL_ATTRIBUTES_MAX} attributes in this file: values are elements here"
                    ));
                }
                if !tag.is_empty {
                    depth = depth.saturating_add(1);
                }
                if depth > DEPTH_MAX {
                    return excess(format!(
                        "more than {DEPTH_MAX} elements around one another: no configuration has so many"
                    ));
                }
                begin.checked_add(tag.len)
            }
        };
        // The parser reports a construct without an end.
        at = end?;
    }
    None
}

/// Returns the position of the end of `what` in the text.
fn end_of(text: &str, from: usize, what: &str) -> Option<usize> {
    text.get(from..)?.find(what).map(|at| at.saturating_add(from).saturating_add(what.len()))
}

/// The start tag of an element.
struct Tag {
    attributes: usize,
    is_empty: bool,
    len: usize,
}

impl Tag {
    /// Reads from one angle bracket up to the other one or the text's end.
    fn read(text: &str) -> Self {
        let (mut attributes, mut quote, mut before) = (0_usize, None, b' ');
        for (at, byte) in text.bytes().enumerate() {
            match (quote, byte) {
                (Some(open), _) if open == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b'=') => attributes = attributes.saturating_add(1),
                (None, b'>') => {
                    return Tag { attributes, is_empty: before == b'/', len: at.saturating_add(1) };
                }
                (None, _) => {}
            }
            before = byte;
        }
        Tag { attributes, is_empty: true, len: text.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<(usize, String)> {
        excess(text).map(|excess| (excess.at, excess.what))
    }

    #[test]
    fn attributes_of_an_element_and_of_the_file_are_limited() {
        let tag = |n: usize| format!("<a {}/>", "x='1>' ".repeat(n));
        assert_eq!(found(&format!("<h>{}</h>", tag(ATTRIBUTES_MAX))), None);
        let (at, what) = found(&format!("<h>{}</h>", tag(ATTRIBUTES_MAX + 1))).unwrap();
        assert!(at == 3 && what.contains("more than 64 attributes"), "{at}: {what}");
        let fits = ALL_ATTRIBUTES_MAX / 50;
        assert_eq!(found(&tag(50).repeat(fits)), None);
        assert!(found(&tag(50).repeat(fits + 1)).unwrap().1.contains("1000 attributes"));
    }

    #[test]
    fn depth_is_limited() {
        let nest = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        assert_eq!(found(&nest(DEPTH_MAX).repeat(3)), None);
        assert_eq!(found(&nest(DEPTH_MAX + 1)).unwrap().0, 3 * DEPTH_MAX);
        assert_eq!(found(&"<a/>".repeat(1000)), None);
    }

    #[test]
    fn comments_and_the_like_have_no_elements_in_them() {
        let many = format!("<a {}>", "x='' ".repeat(100));
        for text in [format!("<!--{many}-->"), format!("<![CDATA[{many}]]>"), format!("<?p {many}?>")] {
            assert_eq!(found(&text), None);
            assert!(found(&format!("{text}{many}")).is_some_and(|(at, _)| at == text.len()));
        }
        for text in ["<", "<a", "<a b='", "<!--", "<![CDATA[", "</a", "", "a=b=c"] {
            assert_eq!(found(text), None);
        }
    }
}
