//! Things by a key that is never another thing's.

/// The key of a thing. It stays a safe value after the thing is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("memory holds fewer than 2^32");
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            index
        });
        let slot = &mut self.slots[index as usize];
        let key = Key {
            index,
            generation: slot.generation,
        };
        slot.value = Some(make(key));
        key
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        let current = slot.generation == key.generation;
        slot.value.as_ref().filter(|_| current)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        let current = slot.generation == key.generation;
        slot.value.as_mut().filter(|_| current)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let slot = &mut self.slots[key.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        slot.value.take()
    }

    /// All there are, in an order that depends on what was done alone.
    pub(super) fn keys(&self) -> Vec<Key> {
        let live = |(index, slot): (usize, &Slot<T>)| {
            slot.value.as_ref()?;
            Some(Key {
                index: u32::try_from(index).ok()?,
                generation: slot.generation,
            })
        };
        self.slots.iter().enumerate().filter_map(live).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_worth_nothing_once_its_thing_is_gone() {
        let mut slab = Slab::new();
        let first = slab.insert_with(|_| 1);
        assert_eq!(slab.remove(first), Some(1));
        assert_eq!(slab.remove(first), None);
        let second = slab.insert_with(|_| 2);
        assert_ne!(first, second);
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&2)));
        assert_eq!(slab.get_mut(first), None);
        assert_eq!((slab.len(), slab.keys()), (1, vec![second]));
    }
}
