//! A view of one XML element, with the operations that a reader of a configuration needs.
//!
//! Each operation notes problems and returns the values that are there, so that reading goes on and one run finds
//! everything. Nothing here knows what the elements mean: `global` and `cluster` do.

use std::ops::RangeInclusive;

use roxmltree::Node;

use super::add_new;
use super::problem::{Notes, shorten};
use super::value::{Wanted, is_number};

/// Longest part of a wrong value that a message repeats, in characters: enough to find it in the file.
const SHOWN_MAX: usize = 60;

#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    node: Node<'a, 'a>,
    notes: &'a Notes<'a>,
}

impl<'a> Element<'a> {
    pub(super) fn new(node: Node<'a, 'a>, notes: &'a Notes<'a>) -> Self {
        Element { node, notes }
    }

    pub(super) fn name(&self) -> &'a str {
        self.node.tag_name().name()
    }

    fn children(self) -> impl Iterator<Item = Element<'a>> {
        self.node.children().filter(Node::is_element).map(move |node| Element { node, ..self })
    }

    pub(super) fn named(self, name: &str) -> impl Iterator<Item = Element<'a>> {
        self.children().filter(move |child| child.name() == name)
    }

    /// Returns the first child of this name, without a check whether it should be there.
    pub(super) fn find(self, name: &str) -> Option<Element<'a>> {
        self.named(name).next()
    }

    /// Notes an error at the element itself.
    pub(super) fn error(self, message: impl Into<String>) {
        self.notes.error(self.node.range().start, || message.into());
    }

    /// Notes an error at the element's value, with the reason.
    pub(super) fn refuse(self, why: &str) {
        self.notes.error(self.value_at(), || self.judgement(why));
    }

    /// Notes a warning at the element's value, with the reason.
    pub(super) fn doubt(self, why: &str) {
        self.notes.warning(self.value_at(), || self.judgement(why));
    }

    fn judgement(self, why: &str) -> String {
        let raw: String = self.texts().filter_map(|text| text.text()).collect();
        let raw = raw.trim();
        let shown: String = raw.chars().take(SHOWN_MAX).collect();
        let more = if shown.len() < raw.len() { "..." } else { "" };
        format!("<{}> is {shown:?}{more}: {why}", self.name())
    }

    /// Warns of everything in this element besides the children named.
    pub(super) fn holds_only(self, known: &[&str]) {
        for child in self.children().filter(|child| !known.contains(&child.name())) {
            self.notes.warning(child.node.range().start, || {
                let name = child.name();
                let hint = match nearest(name, known) {
                    Some(near) => format!("did you mean <{near}>?"),
                    None => format!("it is ignored; <{}> holds {}", self.name(), list(known)),
                };
                format!("unknown element <{}>, {hint}", shown(name))
            });
        }
        for attribute in self.node.attributes() {
            self.notes.warning(attribute.range().start, || {
                let (name, of) = (shown(attribute.name()), self.name());
                format!("unknown attribute {name} of <{of}>, it is ignored: values are elements here")
            });
        }
        if !known.is_empty() && !self.value().is_empty() {
            self.notes.warning(self.value_at(), || {
                format!("text in <{}>, it is ignored: here only elements count", self.name())
            });
        }
    }

    /// Returns the one child of this name, if there is any.
    pub(super) fn optional(self, name: &str) -> Option<Element<'a>> {
        for again in self.named(name).skip(1) {
            again.error(format!("<{name}> is given twice in <{}>: keep one", self.name()));
        }
        self.find(name)
    }

    /// Returns the one child of this name, which must be there.
    pub(super) fn required(self, name: &str) -> Option<Element<'a>> {
        let child = self.optional(name);
        if child.is_none() {
            self.error(format!("<{}> has no <{name}>: add <{name}>...</{name}>", self.name()));
        }
        child
    }

    /// Returns the children of this name, whose number must be in the range; those beyond its end are not read.
    pub(super) fn list(
        self,
        name: &'a str,
        count: RangeInclusive<usize>,
    ) -> impl Iterator<Item = Element<'a>> {
        let (least, most) = count.into_inner();
        if self.named(name).count() < least {
            self.error(format!("<{}> has no <{name}>: add at least one", self.name()));
        }
        if let Some(over) = self.named(name).nth(most) {
            let found = self.named(name).count();
            over.error(format!("<{}> has {found} <{name}>: {most} is the most there can be", self.name()));
        }
        self.named(name).take(most)
    }

    /// Returns this element's value.
    pub(super) fn read<T>(self, parse: impl Fn(&str) -> Result<T, Wanted>) -> Option<T> {
        parse(&self.checked_value()?).map_err(|wanted| self.refuse_for(&wanted)).ok()
    }

    /// Returns the value of an element that holds nothing else; reports one that is empty. Apart from `read`, which
    /// there is once for every type.
    fn checked_value(self) -> Option<String> {
        self.holds_only(&[]);
        let value = self.value();
        if value.is_empty() {
            self.error(format!("<{}> is empty: write a value", self.name()));
            return None;
        }
        Some(value)
    }

    fn refuse_for(self, wanted: &str) {
        self.refuse(&format!("it must be {wanted}"));
    }

    /// Returns the value of the child of this name, which must be there.
    pub(super) fn get<T>(self, name: &str, parse: impl Fn(&str) -> Result<T, Wanted>) -> Option<T> {
        self.required(name)?.read(parse)
    }

    /// Returns the value of the child of this name, or the default if there is none.
    pub(super) fn get_or<T>(
        self,
        name: &str,
        absent: T,
        parse: impl Fn(&str) -> Result<T, Wanted>,
    ) -> Option<T> {
        self.optional(name).map_or(Some(absent), |child| child.read(parse))
    }

    /// Returns this element's value, which must not have been seen before.
    pub(super) fn read_unique<T: Copy + Ord>(
        self,
        parse: impl Fn(&str) -> Result<T, Wanted>,
        seen: &mut Vec<T>,
        owner: &str,
    ) -> Option<T> {
        let value = self.read(parse)?;
        if !add_new(seen, value) {
            self.refuse_again(owner);
        }
        Some(value)
    }

    /// Returns the value of the child of this name, which must be there and must not have been seen before.
    pub(super) fn get_unique<T: Copy + Ord>(
        self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Wanted>,
        seen: &mut Vec<T>,
        owner: &str,
    ) -> Option<T> {
        self.required(name)?.read_unique(parse, seen, owner)
    }

    /// Refuses a value that another element has.
    pub(super) fn refuse_again(self, owner: &str) {
        self.refuse(&format!("{owner} has it already; give each its own"));
    }

    /// Returns true if the value is a name other than that of every machine for itself.
    pub(super) fn holds_other_name(self) -> bool {
        let value = self.value();
        !is_number(&value) && !value.contains("localhost")
    }

    fn texts(self) -> impl Iterator<Item = Node<'a, 'a>> {
        self.node.children().filter(Node::is_text)
    }

    /// Returns the text of the element, without white space.
    fn value(self) -> String {
        let texts = self.texts().filter_map(|text| text.text());
        texts.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
    }

    /// Returns the offset of the first visible character of the text.
    fn value_at(self) -> usize {
        let visible = |text: Node<'_, '_>| {
            let range = text.range();
            let raw = self.notes.text.get(range.clone())?;
            (!raw.trim().is_empty()).then(|| range.end.saturating_sub(raw.trim_start().len()))
        };
        self.texts().find_map(visible).unwrap_or(self.node.range().start)
    }
}

/// Returns the known name of which the given one is most likely a misspelling. At this likeness `ip` finds `ipaddr`,
/// and words that only share a few letters find nothing.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    if name.len() > SHOWN_MAX {
        return None;
    }
    let likeness = |known: &'n str| (strsim::jaro_winkler(&name.to_ascii_lowercase(), known), known);
    let close = known.iter().map(|known| likeness(known)).filter(|(likeness, _)| *likeness >= 0.8);
    close.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Returns the part of a name that a message repeats.
fn shown(name: &str) -> String {
    shorten(name.to_owned(), SHOWN_MAX)
}

fn list(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("<{name}>")).collect();
    if names.is_empty() { "a value".to_owned() } else { names.join(", ") }
}
