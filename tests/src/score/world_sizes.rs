//! Whether the number of ranks can be seen: the same seeds and prompts at several world sizes, frame against frame.

use indicatif::ProgressBar;
use serde_json::json;

use super::{Section, Theatre, Wish};
use crate::screening::Shown;

/// How far the same chunks of two meshes are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apart {
    pub chunks: usize,
    /// Chunks whose latents are the same bit for bit.
    pub equal_latents: usize,
    /// Of a channel of a pixel, 0..=255.
    pub largest_difference: u8,
    /// Of the frame that differs most, in dB; infinite where none differs.
    pub lowest_psnr: f64,
}

/// # Panics
/// If the films are of different lengths.
#[must_use]
pub fn apart(one: &[Shown], other: &[Shown]) -> Apart {
    assert_eq!(one.len(), other.len(), "films of the same length");
    let same = one.iter().zip(other).filter(|(a, b)| a.report.latents == b.report.latents).count();
    let frames = |film: &[Shown]| film.iter().flat_map(|shown| shown.frames.clone()).collect::<Vec<_>>();
    let (mut largest_difference, mut lowest_psnr) = (0, f64::INFINITY);
    for (a, b) in frames(one).iter().zip(&frames(other)) {
        let off = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
        let squares: f64 = off.clone().map(|off| f64::from(off).powi(2)).sum();
        largest_difference = off.max().unwrap_or(0).max(largest_difference);
        lowest_psnr = lowest_psnr.min(10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10());
    }
    Apart { chunks: one.len(), equal_latents: same, largest_difference, lowest_psnr }
}

/// The wishes' films at a world size, one after another.
pub async fn film(world_size: u16, wishes: &[Wish], chunks: usize, bar: &ProgressBar) -> Vec<Shown> {
    let theatre = Theatre::open(world_size, bar).await;
    let mut film = Vec::new();
    for wish in wishes {
        film.extend(theatre.show(wish, chunks).await);
    }
    theatre.close().await;
    film
}

/// Compares with the first of the world sizes.
pub async fn section(world_sizes: &[u16], wishes: &[Wish], chunks: usize, bar: &ProgressBar) -> Section {
    let (mut first, mut lines, mut numbers) = (None, Vec::new(), Vec::new());
    for world_size in world_sizes {
        let film = film(*world_size, wishes, chunks, bar).await;
        let Some((compared, with)) = &first else {
            first = Some((film, *world_size));
            continue;
        };
        let apart = apart(compared, &film);
        let Apart { chunks, equal_latents, largest_difference, lowest_psnr } = apart;
        let pixels = if largest_difference == 0 {
            "every pixel of every frame is the same".to_owned()
        } else {
            format!(
                "pixels differ by {largest_difference} at most, the worst frame is at {lowest_psnr:.1} dB"
            )
        };
        lines.push(format!(
            "World size {world_size} against {with}, {chunks} chunks: latents are the same bit for bit in {equal_latents}, {pixels}."
        ));
        numbers.push(
            json!({"world_sizes": [with, world_size], "chunks": chunks, "equal_latents": equal_latents,
            "largest_difference": largest_difference, "lowest_psnr": lowest_psnr}),
        );
    }
    Section { name: "world sizes", rows: Vec::new(), remark: Some((lines.join("\n"), json!(numbers))) }
}
