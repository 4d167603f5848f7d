//! The residual stream between the layers of a block: what a layer puts out is added, and the next one's input is a norm.

use tch::{TchError, Tensor};

use super::DitError;
use super::fused::AddNorm;
use super::norm::layer_norm;
use super::ops::Ops;

/// A layer norm followed by scale and shift: `[dim]` each, or `[T, 1, dim]` with one row for each frame or one for all.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub scale: &'a Tensor,
    pub shift: &'a Tensor,
    pub eps: f64,
}

/// Tokens `[F, S, dim]`, to which layers add. Where there is a kernel for both, an addition waits for the norm after it.
#[derive(Debug)]
pub struct Residual<'a> {
    x: Tensor,
    waiting: Option<Addition>,
    ops: &'a Ops,
}

#[derive(Debug)]
struct Addition {
    y: Tensor,
    gate: Option<Tensor>,
}

impl Addition {
    fn apply(&self, x: &mut Tensor) -> Result<(), TchError> {
        match &self.gate {
            Some(gate) => x.f_addcmul_(&self.y, gate),
            None => x.f_add_(&self.y),
        }
        .map(drop)
    }
}

impl<'a> Residual<'a> {
    /// Takes `x` over: it is changed in place.
    pub fn new(x: Tensor, ops: &'a Ops) -> Self {
        Self { x, waiting: None, ops }
    }

    pub fn size(&self) -> Vec<i64> {
        self.x.size()
    }

    /// Adds `gate * y`, or `y`; `y` has the shape of the tokens, a gate is `[T, 1, dim]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn add(&mut self, y: Tensor, gate: Option<&Tensor>) -> Result<(), TchError> {
        self.finish()?;
        self.waiting = Some(Addition { y, gate: gate.map(Tensor::shallow_clone) });
        if self.ops.fused().is_none() {
            self.finish()?;
        }
        Ok(())
    }

    /// The norm of the tokens, with all that was added.
    ///
    /// # Errors
    /// The shapes do not fit; the device has no memory.
    pub fn norm(&mut self, norm: Norm) -> Result<Tensor, DitError> {
        let Norm { scale, shift, eps } = norm;
        if let Some(fused) = self.ops.fused() {
            let normed = self.x.f_empty_like()?;
            let waiting = self.waiting.take();
            let added = waiting.as_ref().map(|added| (&added.y, added.gate.as_ref()));
            fused.add_norm(AddNorm { x: &self.x, added, scale, shift, eps, normed: &normed })?;
            return Ok(normed);
        }
        if scale.size()[0] == scale.numel() as i64 || scale.size()[0] == 1 {
            // One row for all tokens is what a norm's own affine part is: one pass over the tokens instead of two.
            let row = |x: &Tensor| x.f_flatten(0, -1);
            return Ok(layer_norm(&self.x, Some((&row(scale)?, &row(shift)?)), eps)?);
        }
        Ok(shift.f_addcmul(&layer_norm(&self.x, None, eps)?, scale)?)
    }

    /// The tokens, with all that was added.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn tensor(&mut self) -> Result<&Tensor, TchError> {
        self.finish()?;
        Ok(&self.x)
    }

    fn finish(&mut self) -> Result<(), TchError> {
        self.waiting.take().map_or(Ok(()), |added| added.apply(&mut self.x))
    }
}
