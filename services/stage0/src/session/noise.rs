//! A chunk's noise: it depends on the seed and the place alone, so it can be drawn while the mesh makes the chunk before.

use contract::error::Error;
use contract::model::{ModelInfo, Size};
use contract::tensor::TensorKey;
use wan::noise::block_noise;

use super::chunk::{index_u64, torch};
use crate::envelope::Cargo;

/// The noise of one session, in chunks.
#[derive(Debug)]
pub(super) struct Noise {
    model: ModelInfo,
    size: Size,
    ahead: Option<Drawn>,
}

#[derive(Debug)]
struct Drawn {
    seed: u64,
    first: u64,
    noise: Cargo,
}

impl Noise {
    pub(super) fn new(model: &ModelInfo, size: Size) -> Self {
        Self { model: model.clone(), size, ahead: None }
    }

    /// Draws that of the chunk that begins with latent frame `first`, for [`take`](Self::take) to find.
    ///
    /// # Errors
    /// libtorch refuses the shape.
    pub(super) fn draw_ahead(&mut self, seed: u64, first: u64) -> Result<(), Error> {
        let noise = self.draw(seed, first)?;
        self.ahead = Some(Drawn { seed, first, noise });
        Ok(())
    }

    /// `[1, frames, C, h, w]`, drawn now unless it was drawn ahead.
    ///
    /// # Errors
    /// As [`draw_ahead`](Self::draw_ahead).
    pub(super) fn take(&mut self, seed: u64, first: u64) -> Result<Cargo, Error> {
        match self.ahead.take() {
            Some(ahead) if (ahead.seed, ahead.first) == (seed, first) => Ok(ahead.noise),
            _ => self.draw(seed, first),
        }
    }

    fn draw(&self, seed: u64, first: u64) -> Result<Cargo, Error> {
        let shape = self.model.latent_shape(self.size, self.model.frames_per_chunk);
        let [_, frames, channels, rows, columns] = shape;
        let noise = block_noise(seed, index_u64(first), frames, channels, rows, columns)
            .map_err(|e| torch("no noise can be drawn", &e))?;
        Cargo::new(TensorKey::LatentsIn, &noise, self.model.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope;
    use crate::history::tests::model;

    #[test]
    fn what_was_drawn_ahead_is_taken_for_its_seed_and_place_and_for_no_other() {
        let mut noise = Noise::new(&model(), Size { width: 64, height: 64 });
        let mut taken = |ahead: Option<(u64, u64)>, seed, first| {
            if let Some((seed, first)) = ahead {
                noise.draw_ahead(seed, first).unwrap();
            }
            envelope::digest(noise.take(seed, first).unwrap().tensor()).unwrap()
        };
        let expected = taken(None, 42, 3);
        assert_eq!(taken(Some((42, 3)), 42, 3), expected);
        assert_eq!(taken(Some((42, 6)), 42, 3), expected, "another place was expected: a cut");
        assert_eq!(taken(Some((7, 3)), 42, 3), expected, "the seed has changed since");
        assert_ne!(taken(Some((7, 3)), 7, 3), expected);
    }
}
