//! Prompt blending and transitions against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use std::collections::BTreeMap;

use support::{Golden, assert_close, device};
use tch::{Kind, Tensor};
use wan::blend::{Blender, Interpolation, Transition, blend};

/// What one blend is made of, where no tensors say it.
#[derive(serde::Deserialize)]
struct Case {
    #[serde(default)]
    ids: Vec<i64>,
    #[serde(default)]
    weights: Vec<f64>,
    method: Interpolation,
}

#[test]
fn golden_blends_and_transitions() {
    let io = Golden::open("embedding_blend");
    let cases = io.metadata("cases").expect("the cases in the metadata");
    let cases: BTreeMap<String, Case> = serde_json::from_str(cases).unwrap();
    for (name, case) in cases {
        let integers = |t: Tensor| Vec::<i64>::try_from(t).unwrap();
        let ids = io.find(&format!("{name}.ids")).map_or(case.ids, integers);
        let floats = |t: Tensor| Vec::<f64>::try_from(t.to_kind(Kind::Double)).unwrap();
        let weights = io.find(&format!("{name}.weights")).map_or(case.weights, floats);
        let embeds: Vec<Tensor> = ids.iter().map(|id| io.get(&format!("embed{id}"))).collect();
        io.check(&format!("{name}.output"), &blend(&embeds, &weights, case.method));
    }
    for (name, method) in [("linear", Interpolation::Linear), ("slerp", Interpolation::Slerp)] {
        check_transition(&io, &format!("transition_{name}.steps"), method);
    }
    check_pipeline(&io);
    io.assert_compared();
}

fn check_transition(io: &Golden, key: &str, method: Interpolation) {
    let Some(expected) = io.find(key) else { return };
    let (source, target) = (io.get("transition.source"), io.get("transition.target"));
    let count = u32::try_from(expected.size()[0]).unwrap();
    let mut transition = Transition::new(&source, &target, count, method).unwrap();
    let step = |_| {
        assert!(!transition.finished());
        transition.next()
    };
    let steps: Vec<Tensor> = (0..count).map(step).collect();
    io.check(key, &Tensor::stack(&steps, 0));
    assert!(transition.finished());
    assert!(transition.next().equal(&target), "{key}: it stays exactly at its target");
}

/// A run over several calls, of which one starts a transition from prompt to prompts. The file states it in words:
/// `prompt [0]; at call 2 a transition to prompts [1 (w 1), 2 (w 3)], 4 steps, linear; spatial method linear`.
struct Pipeline {
    /// Prompts and their weights.
    first: Vec<(i64, f64)>,
    call: usize,
    target: Vec<(i64, f64)>,
    steps: u32,
    temporal: Interpolation,
    spatial: Interpolation,
}

impl Pipeline {
    fn parse(text: &str) -> Option<Self> {
        let between = |from: &str, to: &str| Some(text.split_once(from)?.1.split_once(to)?.0.trim());
        let method = |name: &str| serde_json::from_value::<Interpolation>(name.into()).ok();
        let prompt = |text: &str| {
            let (id, weight) = text.trim().trim_end_matches(')').split_once(" (w ").unwrap_or((text, "1"));
            Some((id.trim().parse::<i64>().ok()?, weight.parse::<f64>().ok()?))
        };
        let prompts = |list: &str| list.split(',').map(prompt).collect::<Option<Vec<_>>>();
        let steps = between("prompts [", " steps")?.rsplit(' ').next()?;
        Some(Self {
            first: prompts(between("prompt [", "]")?)?,
            call: between("at call ", " ")?.parse().ok()?,
            target: prompts(between("prompts [", "]")?)?,
            steps: steps.parse().ok()?,
            temporal: method(between(" steps, ", ";")?)?,
            spatial: method(between("spatial method ", ";")?)?,
        })
    }
}

/// The reference is told of the transition on every call until it is over; the blender is told once.
fn check_pipeline(io: &Golden) {
    let [embeds, updated, active] =
        ["conditioning_embeds", "conditioning_embeds_updated", "transition_active"]
            .map(|name| format!("pipeline.{name}"));
    let Some(list) = [&embeds, &updated, &active].into_iter().find_map(|key| io.find(key)) else { return };
    let stated = io.metadata("pipeline").expect("the pipeline in the metadata");
    let pipeline = Pipeline::parse(stated).unwrap_or_else(|| panic!("pipeline: cannot read {stated:?}"));
    let mix = |prompts: &[(i64, f64)]| {
        let (ids, weights): (Vec<i64>, Vec<f64>) = prompts.iter().copied().unzip();
        let parts: Vec<Tensor> = ids.iter().map(|id| io.get(&format!("embed{id}"))).collect();
        blend(&parts, &weights, pipeline.spatial)
    };
    let mut blender = Blender::new(&mix(&pipeline.first));
    let (mut embeddings, mut changes, mut transitions) = (Vec::new(), Vec::new(), Vec::new());
    for call in 0..list.size()[0] as usize {
        if call == pipeline.call {
            blender.transition(&mix(&pipeline.target), pipeline.steps, pipeline.temporal);
        }
        let (embedding, changed, in_transition) = blender.advance();
        embeddings.push(embedding);
        changes.push(i64::from(changed));
        transitions.push(i64::from(in_transition));
    }
    io.check(&embeds, &Tensor::stack(&embeddings, 0));
    io.check_integers(&updated, &changes);
    io.check_integers(&active, &transitions);
}

/// Embedded prompts that are unlike one another.
fn embeds<const N: usize>() -> [Tensor; N] {
    std::array::from_fn(|seed| support::noise(seed as u64, &[1, 8, 16]))
}

#[test]
fn a_transition_of_one_step_is_at_its_target_at_once() {
    let [source, target] = embeds();
    let mut transition = Transition::new(&source, &target, 1, Interpolation::Slerp).unwrap();
    assert!(transition.next().equal(&target));
    assert!(transition.finished());
}

#[test]
fn a_transition_to_nowhere_is_skipped() {
    let [source, target] = embeds();
    assert!(Transition::new(&source, &target, 0, Interpolation::Linear).is_none());
    assert!(Transition::new(&source, &(&source + 1e-6), 4, Interpolation::Linear).is_none());
    let mut blender = Blender::new(&source);
    let _ = blender.advance();
    blender.transition(&target, 0, Interpolation::Linear);
    let (embedding, changed, in_transition) = blender.advance();
    assert!(embedding.equal(&target) && changed && !in_transition);
}

#[test]
fn a_new_prompt_ends_a_transition_and_an_equal_one_changes_nothing() {
    let [source, target, other] = embeds();
    let mut blender = Blender::new(&source);
    assert!(blender.advance().1, "the first embedding is new");
    blender.set(&source.copy());
    assert!(!blender.advance().1, "an equal prompt changes nothing");
    blender.transition(&target, 3, Interpolation::Linear);
    assert!(blender.advance().2);
    assert!(blender.heading().equal(&target));
    blender.set(&other);
    let (embedding, changed, in_transition) = blender.advance();
    assert!(embedding.equal(&other) && changed && !in_transition && !blender.in_transition());
}

#[test]
fn a_second_transition_starts_where_the_first_has_come_to() {
    let [source, target, other] = embeds();
    let mut blender = Blender::new(&source);
    blender.transition(&target, 5, Interpolation::Linear);
    for _ in 0..3 {
        let _ = blender.advance();
    }
    let reached = blender.current().copy();
    blender.transition(&other, 2, Interpolation::Linear);
    assert!(blender.advance().0.equal(&reached));
    assert!(blender.advance().0.equal(&other));
}

#[test]
fn slerp_keeps_rows_that_are_parallel_and_zero_rows() {
    let device = device();
    let rows = |values: &[f32; 6]| Tensor::from_slice(values).reshape([1, 3, 2]).to_device(device);
    let [a, b] = [[1.0, 0.0, 3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 3.0, 0.0, 0.0, 0.0]].map(|row| rows(&row));
    let mixed = blend(&[a, b], &[0.5, 0.5], Interpolation::Slerp);
    let half = 0.5_f32.sqrt();
    let expected = rows(&[half, half, 3.0, 0.0, 0.0, 0.0]);
    assert_close("rows", &mixed, &expected, 1e-6);
    assert!(mixed.isfinite().all().int64_value(&[]) == 1);
    assert_eq!(mixed.kind(), Kind::Float);
}
