//! A bounded cache of two generations: when the young one is full it becomes the old one, and the old one is forgotten.
//! What is asked for again moves to the young one. Less exact than LRU, and needs no list.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

#[derive(Debug)]
pub(super) struct Cache<K, V> {
    generations: Mutex<(HashMap<K, V>, HashMap<K, V>)>,
    capacity: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Holds at most twice `capacity`.
    pub(super) fn new(capacity: usize) -> Self {
        Self { generations: Mutex::default(), capacity }
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let mut both = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = both.0.get(key) {
            return Some(value.clone());
        }
        let (key, value) = both.1.remove_entry(key)?;
        self.put(&mut both, key, value.clone());
        Some(value)
    }

    pub(super) fn insert(&self, key: K, value: V) {
        let mut both = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut both, key, value);
    }

    fn put(&self, both: &mut (HashMap<K, V>, HashMap<K, V>), key: K, value: V) {
        if both.0.len() >= self.capacity {
            both.1 = std::mem::take(&mut both.0);
        }
        both.0.insert(key, value);
    }
}

#[cfg(test)]
impl<K, V> Cache<K, V> {
    pub(super) fn len(&self) -> usize {
        let both = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        both.0.len() + both.1.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_size_is_bounded() {
        let cache = Cache::new(10);
        cache.insert(0, "kept");
        for i in 1..1_000 {
            cache.insert(i, "other");
            assert_eq!(cache.get(&0), Some("kept"), "{i}");
        }
        assert_eq!(cache.get(&1), None);
        assert!(cache.len() <= 20);
    }
}
