//! What a change of the prompt in mid-stream does: whether what is new is there within two chunks, and whether a
//! transition is one.

use contract::ChunkIndex;
use demo_world::caption::{Style, caption};
use demo_world::measure::Seen;
use demo_world::scene::{Colour, Scene};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::json;

use super::section::{ATTRIBUTES, right};
use super::wish::{numbers, prompts, split};
use super::{Row, Section, Theatre, Wish};
use crate::screening::Shown;

/// The chunk after which a change is sent.
const SETTLED: ChunkIndex = ChunkIndex(3);
/// Chunks that a change may take.
const WITHIN: u64 = 2;
/// Chunks that are looked at then.
const LOOKED_AT: u64 = 4;
/// Chunks of a transition, and how many later it must be over.
const WALK: u64 = 4;
const OVER: u64 = WALK + 2;
/// Chunks that one case takes on the whole, about: a change is taken up a chunk or two after it is sent.
pub const CHUNKS: usize = 12;
/// Frames in which an object has one colour, about.
const MOMENT: usize = 3;
/// Colours of a transition are so far apart, in RGB.
const FAR: f32 = 120.0;
/// Between this and the rest of the way, a colour is neither the old nor the new one.
const BETWEEN: f32 = 0.25;

/// So many changes at once, and so many transitions.
pub async fn section(theatre: &Theatre, cases: usize, seed: u64) -> Section {
    let (mut arrived, mut asked, mut whole) = ([0_usize; 4], [0_usize; 4], 0);
    for number in 0..cases {
        let (from, to) = changed(seed, number);
        let wanted = different(&from.scene, &to.scene);
        let there = right(&to.scene, &at_once(theatre, &from, &to).await);
        for n in 0..ATTRIBUTES.len() {
            asked[n] += usize::from(wanted[n]);
            arrived[n] += usize::from(wanted[n] && there[n]);
        }
        whole += usize::from((0..ATTRIBUTES.len()).all(|n| there[n] || !wanted[n]));
    }
    let mut passed = 0;
    for number in 0..cases {
        let (from, to) = recoloured(seed, number);
        passed += usize::from(passes_between(theatre, &from, &to).await);
    }
    let percent = |count: usize, of: usize| (of > 0).then(|| 100.0 * count as f64 / of as f64);
    let row = Row {
        what: format!("after a change, what is new is there after {WITHIN} chunks"),
        clips: cases,
        percent: std::array::from_fn(|n| percent(arrived[n], asked[n])),
    };
    let [all, between] = [whole, passed].map(|count| percent(count, cases).unwrap_or(0.0));
    let text = format!(
        "All that is new is there after {WITHIN} chunks in {all:.1} % of {cases} changes; a transition of {WALK} chunks from one \
         colour to another passes through colours between them in {between:.1} % of {cases}."
    );
    let numbers = json!({"all_new": all, "passes_between": between, "asked": asked});
    Section { name: "change", rows: vec![row], remark: Some((text, numbers)) }
}

/// A wish, and another one that can be told from it.
fn changed(seed: u64, number: usize) -> (Wish, Wish) {
    let mut rng = numbers(seed, number);
    let scene = Scene::draw(split(number), &mut rng);
    let to = loop {
        let to = scene.changed(split(number), &mut rng);
        if different(&scene, &to).contains(&true) {
            break to;
        }
    };
    put(scene, to, seed + number as u64, &mut rng)
}

/// A wish, and the same in a colour that is far from its own.
fn recoloured(seed: u64, number: usize) -> (Wish, Wish) {
    let mut rng = numbers(seed, number);
    let scene = Scene::draw(split(number), &mut rng);
    let far = |colour: &&Colour| length(minus(colour.rgb(), scene.colour.rgb())) > FAR;
    let colours: Vec<_> = Colour::ALL.iter().filter(far).collect();
    let colour = **colours.choose(&mut rng).expect("colours are far apart");
    put(scene, Scene { colour, ..scene }, seed + number as u64, &mut rng)
}

fn put(from: Scene, to: Scene, seed: u64, rng: &mut impl Rng) -> (Wish, Wish) {
    let mut put = |scene| Wish { scene, text: caption(&scene, Style::Varied, rng), seed };
    (put(from), put(to))
}

fn different(one: &Scene, other: &Scene) -> [bool; 4] {
    [
        one.colour != other.colour,
        one.shape != other.shape,
        one.motion != other.motion,
        one.background != other.background,
    ]
}

async fn at_once(theatre: &Theatre, from: &Wish, to: &Wish) -> Seen {
    let mut screening = theatre.begin(from).await;
    screening.until(SETTLED).await;
    let at = screening.update(&json!({"prompts": prompts(&to.text)})).await;
    let film = screening.until(ChunkIndex(at.0 + WITHIN + LOOKED_AT - 1)).await;
    screening.end().await;
    theatre.passed(CHUNKS);
    theatre.look(&frames(&film, at.0 + WITHIN..), &to.scene)
}

/// Whether the object's colour is between the first and the last one for a moment.
async fn passes_between(theatre: &Theatre, from: &Wish, to: &Wish) -> bool {
    let mut screening = theatre.begin(from).await;
    let mut film = screening.until(SETTLED).await;
    let walk = json!({"transition": {"target_prompts": prompts(&to.text), "num_steps": WALK}});
    let at = screening.update(&walk).await;
    film.extend(screening.until(ChunkIndex(at.0 + OVER)).await);
    screening.end().await;
    theatre.passed(CHUNKS);
    let colour = |frames: &[Vec<u8>]| {
        let seen = theatre.look(frames, &to.scene);
        seen.colour.map(|_| seen.rgb)
    };
    let [before, after] = [at.0 - 1, at.0 + OVER].map(|chunk| colour(&frames(&film, chunk..=chunk)));
    let (Some(before), Some(after)) = (before, after) else { return false };
    let way = minus(after, before);
    if length(way) < FAR / 2.0 {
        return false;
    }
    frames(&film, at.0..at.0 + OVER).chunks(MOMENT).filter_map(colour).any(|now| {
        let gone = dot(minus(now, before), way) / dot(way, way);
        (BETWEEN..=1.0 - BETWEEN).contains(&gone)
    })
}

fn frames(film: &[Shown], chunks: impl std::ops::RangeBounds<u64>) -> Vec<Vec<u8>> {
    let within = film.iter().filter(|shown| chunks.contains(&shown.report.chunk_index.0));
    within.flat_map(|shown| shown.frames.clone()).collect()
}

fn minus(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    std::array::from_fn(|n| a[n] - b[n])
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(a: [f32; 3]) -> f32 {
    dot(a, a).sqrt()
}
