//! A view of one XML element, with the few questions a reader of a configuration asks.
//!
//! Each question notes what is wrong and answers with what is there, so that reading goes on and one run
//! finds everything. Nothing here knows what the elements mean: `global` and `cluster` say that.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use roxmltree::Node;

use super::problem::Notes;
use super::value::Wanted;

/// Longest part of a wrong value that a message repeats, in characters: enough to find it again.
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

    /// The first child of this name, with no opinion on whether it should be there.
    pub(super) fn find(self, name: &str) -> Option<Element<'a>> {
        self.named(name).next()
    }

    /// Notes an error at the element itself.
    pub(super) fn error(self, message: impl Into<String>) {
        self.notes.error(self.node.range().start, message.into());
    }

    /// Notes an error at the element's value, which cannot stand for the reason given.
    pub(super) fn refuse(self, why: &str) {
        self.notes.error(self.value_at(), self.judgement(why));
    }

    /// Warns of the element's value for the reason given.
    pub(super) fn doubt(self, why: &str) {
        self.notes.warning(self.value_at(), self.judgement(why));
    }

    fn judgement(self, why: &str) -> String {
        let raw: String = self.texts().filter_map(|text| text.text()).collect();
        let raw = raw.trim();
        let shown: String = raw.chars().take(SHOWN_MAX).collect();
        let more = if shown.len() < raw.len() { "..." } else { "" };
        format!("<{}> is {shown:?}{more}: {why}", self.name())
    }

    /// Warns of whatever is in this element besides the children named.
    pub(super) fn holds_only(self, known: &[&str]) {
        for child in self.children().filter(|child| !known.contains(&child.name())) {
            let name = child.name();
            let hint = match nearest(name, known) {
                Some(near) => format!("did you mean <{near}>?"),
                None => format!("it is ignored; <{}> holds {}", self.name(), list(known)),
            };
            self.notes.warning(child.node.range().start, format!("unknown element <{name}>, {hint}"));
        }
        for attribute in self.node.attributes() {
            let message = format!(
                "unknown attribute {} of <{}>, it is ignored: values are elements here",
                attribute.name(),
                self.name()
            );
            self.notes.warning(attribute.range().start, message);
        }
        if !known.is_empty() && !self.value().is_empty() {
            let message = format!("text in <{}>, it is ignored: here only elements count", self.name());
            self.notes.warning(self.value_at(), message);
        }
    }

    /// The one child of this name, if there is any.
    pub(super) fn optional(self, name: &str) -> Option<Element<'a>> {
        for again in self.named(name).skip(1) {
            again.error(format!("<{name}> is given twice in <{}>: keep one", self.name()));
        }
        self.find(name)
    }

    /// The one child of this name, which must be there.
    pub(super) fn required(self, name: &str) -> Option<Element<'a>> {
        let child = self.optional(name);
        if child.is_none() {
            self.error(format!("<{}> has no <{name}>: add <{name}>...</{name}>", self.name()));
        }
        child
    }

    /// The children of this name, whose number must be in the range.
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
        self.named(name)
    }

    /// This element's value.
    pub(super) fn read<T>(self, parse: impl Fn(&str) -> Result<T, Wanted>) -> Option<T> {
        self.holds_only(&[]);
        let value = self.value();
        if value.is_empty() {
            self.error(format!("<{}> is empty: write a value", self.name()));
            return None;
        }
        parse(&value).map_err(|wanted| self.refuse(&format!("it must be {wanted}"))).ok()
    }

    /// The value of the child of this name, which must be there.
    pub(super) fn get<T>(self, name: &str, parse: impl Fn(&str) -> Result<T, Wanted>) -> Option<T> {
        self.required(name)?.read(parse)
    }

    /// The value of the child of this name, or what stands for an absent one.
    pub(super) fn get_or<T>(
        self,
        name: &str,
        absent: T,
        parse: impl Fn(&str) -> Result<T, Wanted>,
    ) -> Option<T> {
        self.optional(name).map_or(Some(absent), |child| child.read(parse))
    }

    /// This element's value, which must not have been seen before.
    pub(super) fn read_unique<T: Copy + Ord>(
        self,
        parse: impl Fn(&str) -> Result<T, Wanted>,
        seen: &mut BTreeSet<T>,
        owner: &str,
    ) -> Option<T> {
        let value = self.read(parse)?;
        if !seen.insert(value) {
            self.refuse(&format!("{owner} has it already; give each its own"));
        }
        Some(value)
    }

    /// The value of the child of this name, which must be there and must not have been seen before.
    pub(super) fn get_unique<T: Copy + Ord>(
        self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Wanted>,
        seen: &mut BTreeSet<T>,
        owner: &str,
    ) -> Option<T> {
        self.required(name)?.read_unique(parse, seen, owner)
    }

    fn texts(self) -> impl Iterator<Item = Node<'a, 'a>> {
        self.node.children().filter(Node::is_text)
    }

    /// The text of the element, without white space.
    fn value(self) -> String {
        let texts = self.texts().filter_map(|text| text.text());
        texts.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
    }

    /// Where the first visible character of the text stands.
    fn value_at(self) -> usize {
        let visible = |text: Node<'_, '_>| {
            let range = text.range();
            let raw = self.notes.text.get(range.clone())?;
            (!raw.trim().is_empty()).then(|| range.end.saturating_sub(raw.trim_start().len()))
        };
        self.texts().find_map(visible).unwrap_or(self.node.range().start)
    }
}

/// The known name that the one found is most likely a slip for. At this likeness `ip` finds `ipaddr`, and
/// words that only share a few letters find nothing.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let likeness = |known: &'n str| (strsim::jaro_winkler(&name.to_ascii_lowercase(), known), known);
    let close = known.iter().map(|known| likeness(known)).filter(|(likeness, _)| *likeness >= 0.8);
    close.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

fn list(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("<{name}>")).collect();
    if names.is_empty() { "a value".to_owned() } else { names.join(", ") }
}
