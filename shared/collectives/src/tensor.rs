use tch::{Device, Kind, Tensor};

use crate::CollectiveError;

/// Element types that every transport carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F64,
    Bf16,
    I64,
}

impl Dtype {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::F32 => 1,
            Self::F64 => 2,
            Self::Bf16 => 3,
            Self::I64 => 4,
        }
    }

    pub(crate) fn of(code: u32) -> Option<Self> {
        [Self::F32, Self::F64, Self::Bf16, Self::I64].into_iter().find(|dtype| dtype.code() == code)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::Bf16 => 2,
        }
    }

    fn of_kind(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Float => Some(Self::F32),
            Kind::Double => Some(Self::F64),
            Kind::BFloat16 => Some(Self::Bf16),
            Kind::Int64 => Some(Self::I64),
            _ => None,
        }
    }
}

/// The memory of a tensor that passed the checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elements {
    /// Aligned for the dtype. Not to be used when `numel` is 0.
    pub(crate) data: *mut u8,
    pub(crate) numel: usize,
    pub(crate) dtype: Dtype,
}

impl Elements {
    /// # Errors
    /// `BadTensor` unless `tensor` is defined, dense, contiguous, on `device` and of a dtype that is carried.
    pub(crate) fn of(tensor: &mut Tensor, device: Device) -> Result<Self, CollectiveError> {
        let bad = |text: String| Err(CollectiveError::BadTensor(text));
        if !tensor.defined() {
            return bad("the tensor is not defined".to_owned());
        }
        if tensor.device() != device {
            return bad(format!(
                "the tensor is on {:?}: this group carries those on {device:?}",
                tensor.device()
            ));
        }
        let Some(dtype) = Dtype::of_kind(tensor.kind()) else {
            return bad(format!("dtype is {:?}: f32, f64, bf16 and i64 are carried", tensor.kind()));
        };
        if tensor.is_sparse() || tensor.is_mkldnn() || !tensor.is_contiguous() {
            return bad(format!("the tensor of shape {:?} is not contiguous", tensor.size()));
        }
        let (data, numel) = (tensor.data_ptr().cast::<u8>(), tensor.numel());
        if numel > 0 && (data.is_null() || !data.addr().is_multiple_of(dtype.bytes())) {
            return bad(format!("the tensor's memory is not aligned for {}", dtype.as_str()));
        }
        Ok(Self { data, numel, dtype })
    }

    /// The element at `start`, which is at most `numel`.
    pub(crate) fn at(&self, start: usize) -> *mut u8 {
        debug_assert!(start <= self.numel);
        self.data.wrapping_add(start * self.dtype.bytes())
    }
}
