//! The sections of the page as they stand, and who waits for the next ones.
//!
//! One thread writes, the clients' threads read. Nobody waits for a reader.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};

/// The sections, each with the id of its place in the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sections(pub Vec<(&'static str, String)>);

impl Sections {
    /// The text of a section.
    pub fn of(&self, id: &str) -> &str {
        self.0.iter().find(|(known, _)| *known == id).map_or("", |(_, text)| text)
    }

    /// The sections that another one does not have, as JSON on one line; `None` where there are none.
    pub fn changes(&self, known: &Sections) -> Option<Value> {
        let changed = self.0.iter().filter(|(id, text)| known.0.is_empty() || known.of(id) != text);
        let mut fields = Map::new();
        fields.extend(changed.map(|(id, text)| ((*id).to_owned(), text.as_str().into())));
        (!fields.is_empty()).then(|| fields.into())
    }
}

/// The newest sections.
#[derive(Default)]
pub(super) struct Board {
    /// Held for moments; no other lock is taken within.
    now: Mutex<Arc<Sections>>,
    changed: Condvar,
}

impl Board {
    pub fn put(&self, sections: Sections) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(sections);
        self.changed.notify_all();
    }

    pub fn now(&self) -> Arc<Sections> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The sections once they are others than these, or as they are when so much time has passed.
    pub fn wait(&self, known: &Arc<Sections>, limit: Duration) -> Arc<Sections> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |now: &mut Arc<Sections>| *now == *known;
        let waited = self.changed.wait_timeout_while(now, limit, same);
        Arc::clone(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_told() {
        let old = Sections(vec![("a", "1".into()), ("b", "2".into())]);
        let new = Sections(vec![("a", "1".into()), ("b", "<3>\n".into())]);
        assert_eq!(new.changes(&old).unwrap().to_string(), r#"{"b":"<3>\n"}"#);
        assert_eq!(new.changes(&new), None);
        assert_eq!(old.changes(&Sections::default()).unwrap().to_string(), r#"{"a":"1","b":"2"}"#);
    }
}
