//! Numbered places for what is under way: operations and requests. A place that was given back is used again.
//!
//! Must never move an entry: its number is the ticket that a disk or a peer answers with. Used by the core alone.

/// Entries by number.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Takes an entry in, and gives its number.
    pub fn insert(&mut self, entry: T) -> u32 {
        if let Some(number) = self.free.pop() {
            if let Some(place) = self.places.get_mut(number as usize) {
                *place = Some(entry);
            }
            return number;
        }
        self.places.push(Some(entry));
        // There are never more than fit in memory, by far.
        (self.places.len() - 1) as u32
    }

    /// The entry of a number.
    pub fn get(&self, number: u32) -> Option<&T> {
        self.places.get(number as usize)?.as_ref()
    }

    /// The entry of a number, to change it.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.places.get_mut(number as usize)?.as_mut()
    }

    /// Takes an entry out; its number may be given to another.
    pub fn remove(&mut self, number: u32) -> Option<T> {
        let entry = self.places.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(entry)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries with their numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().enumerate().filter_map(|(number, place)| Some((number as u32, place.as_ref()?)))
    }
}
