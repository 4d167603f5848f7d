//! Encoded clips, kept on the device and slowly exchanged for new ones: drawing and encoding a clip costs more than a step
//! of the transformer on it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::codec::{Codec, Encoded, upload};
use crate::samples::{Sample, World};

#[derive(Debug)]
pub struct Bank {
    /// `[N, 9, z, h, w]`
    latents: Tensor,
    /// `[N, 1, z, h, w]`
    heads: Tensor,
    /// `[N, 9, 1, h, w]`
    objects: Tensor,
    samples: Vec<Sample>,
    world: World,
    seed: u64,
    /// Clips made so far.
    made: u64,
}

/// A batch of one chunk: what it is made from and what it should be.
#[derive(Debug)]
pub struct Batch {
    /// Which clips.
    pub rows: Vec<usize>,
    /// Which chunk of them.
    pub chunk: usize,
    /// `[B, 3, z, h, w]`
    pub target: Tensor,
    /// `[B, 3, z, h, w]` but for the first chunk.
    pub context: Option<Tensor>,
    /// Where the target's objects are, `[B, 3, 1, h, w]`.
    pub objects: Tensor,
}

impl Bank {
    pub fn new(size: usize, world: World, seed: u64, codec: &Codec) -> Self {
        let mut bank = Self {
            latents: Tensor::new(),
            heads: Tensor::new(),
            objects: Tensor::new(),
            samples: Vec::new(),
            world,
            seed,
            made: 0,
        };
        let mut parts = Vec::new();
        while bank.samples.len() < size {
            let (samples, encoded) = bank.make((size - bank.samples.len()).min(256), codec);
            bank.samples.extend(samples);
            parts.push(encoded);
        }
        let all = |of: fn(&Encoded) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        bank.latents = all(|part| &part.latents);
        bank.heads = all(|part| &part.heads);
        bank.objects = all(|part| &part.objects);
        bank
    }

    fn make(&mut self, count: usize, codec: &Codec) -> (Vec<Sample>, Encoded) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_mul(7_919).wrapping_add(self.made));
        self.made += count as u64;
        let mut samples: Vec<Sample> = (0..count).map(|_| Sample::draw(self.world, &mut rng)).collect();
        // However small a bank is, it has a start.
        samples.iter_mut().take(1).for_each(|sample| sample.start = sample.start.or(Some((0.0, 0.0))));
        let clips: Vec<_> = samples.iter().map(|sample| sample.frames(&mut rng)).collect();
        (samples, codec.encode(&clips))
    }

    /// Exchanges `count` clips.
    pub fn refresh(&mut self, count: usize, codec: &Codec) {
        let at = usize::try_from(self.made).unwrap_or(0) % self.samples.len();
        let count = count.min(self.samples.len() - at);
        if count == 0 {
            return;
        }
        let (samples, encoded) = self.make(count, codec);
        for (all, new) in [
            (&self.latents, &encoded.latents),
            (&self.heads, &encoded.heads),
            (&self.objects, &encoded.objects),
        ] {
            all.narrow(0, at as i64, count as i64).copy_(new);
        }
        for (slot, sample) in self.samples[at..at + count].iter_mut().zip(samples) {
            *slot = sample;
        }
    }

    pub fn sample(&self, row: usize) -> &Sample {
        &self.samples[row]
    }

    /// Draws a batch of chunk `chunk`, if wanted of clips that start a stream only.
    pub fn draw(&self, chunk: usize, size: usize, started: bool, rng: &mut impl Rng) -> Batch {
        let mut rows = Vec::with_capacity(size);
        while rows.len() < size {
            let row = rng.random_range(0..self.samples.len());
            if !started || self.samples[row].start.is_some() {
                rows.push(row);
            }
        }
        let places = self.places(&rows);
        let of = |all: &Tensor, chunk: usize| all.narrow(1, 3 * chunk as i64, 3).index_select(0, &places);
        let (target, objects) = (of(&self.latents, chunk), of(&self.objects, chunk));
        let context = (chunk > 0).then(|| {
            let before = of(&self.latents, chunk - 1);
            if chunk == 1 { before } else { with_head(&self.heads.index_select(0, &places), &before) }
        });
        Batch { rows, chunk, target, context, objects }
    }

    fn places(&self, rows: &[usize]) -> Tensor {
        let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        upload(&Tensor::from_slice(&rows), self.device())
    }

    pub fn device(&self) -> Device {
        self.latents.device()
    }

    /// `[B, 3, z, h, w]`
    pub fn latents_of(&self, rows: &[usize], chunk: usize) -> Tensor {
        self.latents.narrow(1, 3 * chunk as i64, 3).index_select(0, &self.places(rows))
    }
}

/// A context whose first latent is `head` and whose others are the last two of `before`.
pub fn with_head(head: &Tensor, before: &Tensor) -> Tensor {
    Tensor::cat(&[head, &before.narrow(1, 1, 2)], 1)
}
