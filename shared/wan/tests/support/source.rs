//! A source of parameters that keeps what was asked of it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tch::Tensor;
use wan::weights::{TensorSource, WeightsError};

/// Counts the elements that are read of each tensor.
pub(crate) struct Counting<S> {
    inner: S,
    read: Mutex<BTreeMap<String, usize>>,
}

impl<S: TensorSource> Counting<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, read: Mutex::default() }
    }

    /// Elements read so far, by name.
    pub(crate) fn read(self) -> BTreeMap<String, usize> {
        self.read.into_inner().unwrap()
    }

    fn count(&self, name: &str, tensor: Tensor) -> Tensor {
        *self.read.lock().unwrap().entry(name.to_owned()).or_default() += tensor.numel();
        tensor
    }
}

impl<S: TensorSource> TensorSource for Counting<S> {
    fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        Ok(self.count(name, self.inner.get(name, shape)?))
    }

    fn narrow(
        &self,
        name: &str,
        shape: &[i64],
        dim: usize,
        start: i64,
        len: i64,
    ) -> Result<Tensor, WeightsError> {
        Ok(self.count(name, self.inner.narrow(name, shape, dim, start, len)?))
    }

    fn fingerprint(&self) -> &str {
        self.inner.fingerprint()
    }
}
