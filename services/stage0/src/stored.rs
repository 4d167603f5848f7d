//! Tensors as they are kept between the lives of a session.

use contract::continuation::StoredTensor;
use contract::error::{Error, Reason};
use tch::Tensor;

use crate::envelope;

/// # Errors
/// `bad_dtype` for one that no link carries.
pub(crate) fn tensor(tensor: &Tensor) -> Result<StoredTensor, Error> {
    let (dtype, data) = envelope::bytes(tensor)?;
    Ok(StoredTensor { dtype, shape: tensor.size(), data })
}

/// On the CPU, in the dtype it was stored in.
///
/// # Errors
/// `bad_shape` if it has another shape than `shape`.
pub(crate) fn shaped(stored: &StoredTensor, shape: &[i64]) -> Result<Tensor, Error> {
    stored.check()?;
    if stored.shape != shape {
        let text = format!("a stored tensor has shape {:?}: {shape:?} is expected", stored.shape);
        return Err(Error::new(Reason::BadShape, text));
    }
    Tensor::f_from_data_size(&stored.data, shape, envelope::kind(stored.dtype))
        .map_err(|e| Error::new(Reason::Internal, "a stored tensor cannot be read").detail(e.to_string()))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_tensor_comes_back_bit_by_bit_in_both_dtypes() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let original = Tensor::randn([1, 3, 2, 5], (Kind::Float, Device::Cpu)).to_kind(kind);
            let back = shaped(&tensor(&original.transpose(1, 2)).unwrap(), &[1, 2, 3, 5]).unwrap();
            assert!(back.kind() == kind && back.equal(&original.transpose(1, 2)));
        }
    }
}
