//! How many forward passes were made, counted on the device: a pass that a captured graph makes counts like any other, and
//! nobody waits for the number before it is asked for.

use tch::{Device, Kind, TchError, Tensor};

/// `[1]`, int64.
#[derive(Debug)]
pub struct ForwardCount(Tensor);

impl ForwardCount {
    pub(super) fn zero(device: Device) -> Result<Self, TchError> {
        Ok(Self(Tensor::f_zeros([1], (Kind::Int64, device))?))
    }

    /// In the order of the device's work.
    pub(super) fn add_one(&mut self) -> Result<(), TchError> {
        self.0.f_add_scalar_(1).map(|_| ())
    }

    /// The count as it is once the work so far is done.
    pub(crate) fn so_far(&self) -> Result<Self, TchError> {
        Ok(Self(self.0.f_detach_copy()?))
    }

    /// Passes between an earlier count and this one.
    pub(crate) fn since(&self, earlier: &Self) -> Result<Self, TchError> {
        Ok(Self(self.0.f_sub(&earlier.0)?))
    }

    /// The number; waits until the device has come so far.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&self) -> Result<u64, TchError> {
        Ok(self.0.f_int64_value(&[0])?.cast_unsigned())
    }
}
