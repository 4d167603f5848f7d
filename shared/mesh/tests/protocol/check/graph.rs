//! The explored graph, to ask what can be reached from where.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub(crate) struct Graph {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    edges: Vec<(u64, u64)>,
    marked: HashMap<u64, Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Ready,
    /// The search ends here: the mesh forms again, as it did before.
    Beyond,
}

impl Graph {
    pub(super) fn edge(&self, from: u64, to: u64, mark: Option<Mark>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.edges.push((from, to));
        if let Some(mark) = mark {
            inner.marked.insert(to, mark);
        }
    }

    /// States from which no marked one can be reached.
    pub(super) fn stranded(&self) -> HashSet<u64> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut stranded = HashSet::new();
        for (from, to) in &inner.edges {
            before.entry(*to).or_default().push(*from);
            stranded.extend([*from, *to]);
        }
        let mut reached: Vec<u64> = inner.marked.keys().copied().collect();
        while let Some(state) = reached.pop() {
            if stranded.remove(&state) {
                reached.extend(before.get(&state).into_iter().flatten());
            }
        }
        stranded
    }

    pub(super) fn count(&self, mark: Mark) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.marked.values().filter(|marked| **marked == mark).count()
    }
}
