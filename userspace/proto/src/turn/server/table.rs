//! A table of an allocation: the first entry in place, a few in a list, many hashed.
//!
//! Most allocations have one peer. What a second one needs is allocated with it, and indexes only where
//! searching the list would take longer than a hash.

use ahash::RandomState;
use hashbrown::HashTable;

/// What a [`Table`] keeps, with so many keys that an entry is found by.
pub(crate) trait Entry {
    /// The hash of one of its keys: that of [`Key::hash`].
    fn hash(&self, key: usize, hasher: &RandomState) -> u64;
}

/// A key of an entry; no two entries of a table have the same.
pub(crate) trait Key<T>: Copy {
    /// Which of the entry's keys it is.
    const INDEX: usize;

    /// Whether it is this entry's.
    fn is_of(self, entry: &T) -> bool;

    fn hash(self, hasher: &RandomState) -> u64;
}

/// Entries with `KEYS` keys each.
#[derive(Debug)]
pub(crate) struct Table<T, const KEYS: usize> {
    first: Option<T>,
    more: Option<Box<More<T, KEYS>>>,
}

#[derive(Debug)]
struct More<T, const KEYS: usize> {
    list: Vec<T>,
    /// Indexes into `list`, by key; empty up to [`LINEAR`] entries.
    indexes: [HashTable<u16>; KEYS],
}

/// Up to this many a list is searched faster than a hash is computed.
const LINEAR: usize = 8;

impl<T, const KEYS: usize> Default for Table<T, KEYS> {
    fn default() -> Self {
        Self {
            first: None,
            more: None,
        }
    }
}

impl<T: Entry, const KEYS: usize> Table<T, KEYS> {
    #[inline]
    pub(crate) fn find(&self, key: impl Key<T>, hasher: &RandomState) -> Option<&T> {
        match &self.first {
            Some(first) if key.is_of(first) => Some(first),
            _ => {
                let more = self.more.as_ref()?;
                Some(&more.list[more.position(key, hasher)?])
            }
        }
    }

    /// Number of entries, expired ones included until they are swept.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.list.len())
    }

    /// Adds an entry with this key, or replaces it; its other keys must be those of the one before.
    pub(crate) fn insert(&mut self, key: impl Key<T>, entry: T, hasher: &RandomState) {
        debug_assert!(key.is_of(&entry));
        let Some(first) = &mut self.first else {
            self.first = Some(entry);
            return;
        };
        if key.is_of(first) {
            *first = entry;
            return;
        }
        let more = self.more.get_or_insert_default();
        if let Some(known) = more.position(key, hasher) {
            more.list[known] = entry;
            return;
        }
        more.list.push(entry);
        if more.list.len() == LINEAR + 1 {
            more.index_all(hasher);
        } else if more.list.len() > LINEAR {
            more.index(more.list.len() - 1, hasher);
        }
    }

    /// Keeps the entries for which `keep` says so; it may change all but their keys.
    pub(crate) fn retain(&mut self, hasher: &RandomState, mut keep: impl FnMut(&mut T) -> bool) {
        self.first.take_if(|first| !keep(first));
        if let Some(more) = &mut self.more {
            more.list.retain_mut(keep);
            if self.first.is_none() {
                self.first = more.list.pop();
            }
            more.index_all(hasher);
            if more.list.is_empty() {
                self.more = None;
            }
        }
    }

    /// All entries; their keys must stay as they are.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first
            .iter_mut()
            .chain(self.more.iter_mut().flat_map(|more| more.list.iter_mut()))
    }
}

impl<T, const KEYS: usize> Default for More<T, KEYS> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            indexes: std::array::from_fn(|_| HashTable::new()),
        }
    }
}

impl<T: Entry, const KEYS: usize> More<T, KEYS> {
    #[inline]
    fn position<K: Key<T>>(&self, key: K, hasher: &RandomState) -> Option<usize> {
        if self.list.len() <= LINEAR {
            return self.list.iter().position(|entry| key.is_of(entry));
        }
        let index = self.indexes[K::INDEX].find(key.hash(hasher), |index| {
            key.is_of(&self.list[usize::from(*index)])
        })?;
        Some(usize::from(*index))
    }

    /// Builds the indexes anew.
    fn index_all(&mut self, hasher: &RandomState) {
        self.indexes.iter_mut().for_each(HashTable::clear);
        if self.list.len() > LINEAR {
            (0..self.list.len()).for_each(|index| self.index(index, hasher));
        }
    }

    fn index(&mut self, index: usize, hasher: &RandomState) {
        let list = &self.list;
        let number = u16::try_from(index).expect("max_permissions and max_channels are u16");
        for (key, by_key) in self.indexes.iter_mut().enumerate() {
            let hash = |index: &u16| list[usize::from(*index)].hash(key, hasher);
            by_key.insert_unique(hash(&number), number, hash);
        }
    }
}
