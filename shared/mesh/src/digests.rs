use std::collections::VecDeque;

use contract::Digest;

/// What is held per conditioning digest, bounded, least recently used out first. All ranks run the same plans in the
/// same order, so all hold the same digests; the leader's admission asks its own copy.
#[derive(Clone, Debug)]
pub struct DigestCache<T> {
    capacity: usize,
    held: VecDeque<(Digest, T)>,
}

impl<T> DigestCache<T> {
    /// `capacity` is at least 1.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), held: VecDeque::new() }
    }

    #[must_use]
    pub fn holds(&self, digest: &Digest) -> bool {
        self.held.iter().any(|(held, _)| held == digest)
    }

    /// The value, which becomes the most recently used.
    pub fn touch(&mut self, digest: &Digest) -> Option<&T> {
        let at = self.held.iter().position(|(held, _)| held == digest)?;
        let entry = self.held.remove(at)?;
        self.held.push_back(entry);
        self.held.back().map(|(_, value)| value)
    }

    /// Stores or replaces the value as the most recently used.
    pub fn insert(&mut self, digest: Digest, value: T) {
        self.held.retain(|(held, _)| *held != digest);
        if self.held.len() == self.capacity {
            self.held.pop_front();
        }
        self.held.push_back((digest, value));
    }

    pub fn clear(&mut self) {
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_digest_goes_first() {
        let digest = |n: u8| Digest::of(&[&[n]]);
        let mut cache = DigestCache::new(2);
        cache.insert(digest(1), 1);
        cache.insert(digest(2), 2);
        assert_eq!(cache.touch(&digest(1)), Some(&1));
        cache.insert(digest(3), 3);
        assert!(cache.holds(&digest(1)) && cache.holds(&digest(3)) && !cache.holds(&digest(2)));
    }
}
