//! Prompt blending and transitions against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::{Golden, TOLERANCE, assert_close};
use tch::{Kind, Tensor};
use wan::blend::{Blender, Interpolation, Transition, blend};

fn io() -> Golden {
    Golden::open("embedding_blend")
}

#[derive(serde::Deserialize)]
struct Case {
    ids: Vec<usize>,
    weights: Vec<f64>,
    method: Interpolation,
}

#[test]
fn golden_blends() {
    let io = io();
    let cases: std::collections::BTreeMap<String, Case> =
        serde_json::from_str(&io.metadata("cases").unwrap()).unwrap();
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let embeds: Vec<Tensor> = case.ids.iter().map(|id| io.get(&format!("embed{id}"))).collect();
        let output = blend(&embeds, &case.weights, case.method);
        assert_close(&name, &output, &io.get(&format!("{name}.output")), TOLERANCE);
    }
}

#[test]
fn golden_transitions() {
    let io = io();
    let (source, target) = (io.get("transition.source"), io.get("transition.target"));
    for (name, method) in [("linear", Interpolation::Linear), ("slerp", Interpolation::Slerp)] {
        let steps = io.get(&format!("transition_{name}.steps"));
        let count = u32::try_from(steps.size()[0]).unwrap();
        let mut transition = Transition::new(&source, &target, count, method).unwrap();
        for step in 0..count {
            assert!(!transition.finished());
            let embedding = transition.next();
            assert_close(&format!("{name} step {step}"), &embedding, &steps.get(step.into()), TOLERANCE);
        }
        assert!(transition.finished());
        assert!(transition.next().equal(&target), "{name} stays exactly at its target");
    }
}

/// The reference is told of the transition on every call until it is over; the blender is told once.
#[test]
fn golden_pipeline_walks_to_the_blend_and_stays_there() {
    let io = io();
    let expected = io.get("pipeline.conditioning_embeds");
    let updated = Vec::<i64>::try_from(io.get("pipeline.conditioning_embeds_updated")).unwrap();
    let active = Vec::<i64>::try_from(io.get("pipeline.transition_active")).unwrap();
    let mut blender = Blender::new(&blend(&[io.get("embed0")], &[1.0], Interpolation::Linear));
    for call in 0..updated.len() {
        if call == 2 {
            let target = blend(&[io.get("embed1"), io.get("embed2")], &[1.0, 3.0], Interpolation::Linear);
            blender.transition(&target, 4, Interpolation::Linear);
        }
        let (embedding, changed, in_transition) = blender.advance();
        assert_close(&format!("call {call}"), &embedding, &expected.get(call as i64), TOLERANCE);
        assert_eq!(i64::from(changed), updated[call], "call {call}: changed");
        assert_eq!(i64::from(in_transition), active[call], "call {call}: transition active");
    }
}

#[test]
fn a_transition_of_one_step_is_at_its_target_at_once() {
    let io = io();
    let (source, target) = (io.get("transition.source"), io.get("transition.target"));
    let mut transition = Transition::new(&source, &target, 1, Interpolation::Slerp).unwrap();
    assert!(transition.next().equal(&target));
    assert!(transition.finished());
}

#[test]
fn a_transition_to_nowhere_is_skipped() {
    let io = io();
    let (source, target) = (io.get("transition.source"), io.get("transition.target"));
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
    let io = io();
    let (source, target) = (io.get("transition.source"), io.get("transition.target"));
    let mut blender = Blender::new(&source);
    assert!(blender.advance().1, "the first embedding is new");
    blender.set(&source.copy());
    assert!(!blender.advance().1, "an equal prompt changes nothing");
    blender.transition(&target, 3, Interpolation::Linear);
    assert!(blender.advance().2);
    assert!(blender.heading().equal(&target));
    let other = io.get("embed5");
    blender.set(&other);
    let (embedding, changed, in_transition) = blender.advance();
    assert!(embedding.equal(&other) && changed && !in_transition && !blender.in_transition());
}

#[test]
fn a_second_transition_starts_where_the_first_has_come_to() {
    let io = io();
    let (source, target, other) =
        (io.get("transition.source"), io.get("transition.target"), io.get("embed5"));
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
    let a = Tensor::from_slice(&[1.0_f32, 0.0, 3.0, 0.0, 0.0, 0.0]).reshape([1, 3, 2]);
    let b = Tensor::from_slice(&[0.0_f32, 1.0, 3.0, 0.0, 0.0, 0.0]).reshape([1, 3, 2]);
    let mixed = blend(&[a, b], &[0.5, 0.5], Interpolation::Slerp);
    let half = 0.5_f32.sqrt();
    let expected = Tensor::from_slice(&[half, half, 3.0, 0.0, 0.0, 0.0]).reshape([1, 3, 2]);
    assert_close("rows", &mixed, &expected, 1e-6);
    assert!(mixed.isfinite().all().int64_value(&[]) == 1);
    assert_eq!(mixed.kind(), Kind::Float);
}
