use contract::tensor::Dtype;
use contract::{Error, Reason};
use tch::{Device, Kind, TchError, Tensor};

/// Most dimensions of a tensor on a link.
pub(crate) const MAX_DIMS: usize = 8;

pub(crate) fn dtype_of(kind: Kind) -> Result<Dtype, Error> {
    match kind {
        Kind::Float => Ok(Dtype::F32),
        Kind::BFloat16 => Ok(Dtype::Bf16),
        other => {
            Err(Error::new(Reason::BadDtype, format!("dtype is {other:?}: a link carries f32 and bf16")))
        }
    }
}

pub(crate) fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

/// Bytes of a dense tensor of this shape.
pub(crate) fn bytes_of(shape: &[i64], dtype: Dtype) -> Result<u64, Error> {
    let bad = || Error::new(Reason::BadShape, format!("shape {shape:?} is not one a link carries"));
    if shape.len() > MAX_DIMS {
        return Err(bad());
    }
    let numel = shape.iter().try_fold(1_u64, |numel, dim| numel.checked_mul(u64::try_from(*dim).ok()?));
    numel.and_then(|numel| numel.checked_mul(dtype.bytes() as u64)).ok_or_else(bad)
}

/// `tensor` itself where it already is dense and on the device it has to be on, else a copy that is. From a GPU to the CPU
/// this waits for the stream that computes it.
pub(crate) fn dense(tensor: &Tensor, device: impl Fn(&Tensor) -> Device) -> Result<Tensor, Error> {
    if !tensor.defined() {
        return Err(Error::new(Reason::BadShape, "the tensor is not defined"));
    }
    let placed = tensor.f_to_device(device(tensor)).and_then(|tensor| tensor.f_contiguous());
    placed.map_err(|error| torch(&error))
}

/// A tensor with memory of its own, not yet written.
pub(crate) fn empty(shape: &[i64], dtype: Dtype, device: Device) -> Result<Tensor, Error> {
    Tensor::f_empty(shape, (kind_of(dtype), device)).map_err(|error| torch(&error))
}

fn torch(error: &TchError) -> Error {
    Error::new(Reason::Internal, "a tensor could not be copied for the link").detail(error.to_string())
}
