//! What a pass needs of its timesteps. It depends on nothing else, and a schedule has a handful of them: so it is kept, and
//! of known timesteps nothing is computed, and nothing travels to the device, for which the host would have to wait.

use tch::{TchError, Tensor};

use super::block::{Block, Modulations};
use super::embed::Embeddings;

/// Sets of timesteps that are kept.
pub(crate) const KEPT: usize = 16;

#[derive(Debug)]
pub(super) struct Time {
    /// `[T, dim]`, what the head uses.
    pub(super) e: Tensor,
    /// What each block uses.
    pub(super) blocks: Vec<Modulations>,
}

impl Time {
    /// All that it holds.
    pub(super) fn tensors(&self) -> impl Iterator<Item = Tensor> {
        std::iter::once(&self.e)
            .chain(self.blocks.iter().flat_map(Modulations::tensors))
            .map(Tensor::shallow_clone)
    }
}

#[derive(Debug, Default)]
pub(super) struct Times(Vec<(Vec<u64>, Time)>);

impl Times {
    /// One row for each timestep.
    pub(super) fn get(
        &mut self,
        embeddings: &Embeddings,
        blocks: &[Block],
        timesteps: &[f64],
    ) -> Result<&Time, TchError> {
        let key: Vec<u64> = timesteps.iter().map(|timestep| timestep.to_bits()).collect();
        let at = match self.0.iter().position(|(known, _)| *known == key) {
            Some(at) => at,
            None => {
                let time = embeddings.time(timesteps)?;
                let blocks = blocks.iter().map(|block| block.modulations(&time.e0));
                let made = Time { e: time.e, blocks: blocks.collect::<Result<_, _>>()? };
                if self.0.len() == KEPT {
                    drop(self.0.remove(0));
                }
                self.0.push((key, made));
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].1)
    }
}
