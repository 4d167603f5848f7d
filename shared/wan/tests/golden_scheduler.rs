//! The flow-match schedule against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use std::collections::BTreeMap;

use support::{Golden, TOLERANCE, assert_close, json_if_present};
use tch::Tensor;
use wan::scheduler::FlowScheduler;

/// Sigmas of a table, and timesteps, which are a thousand times as large.
const SIGMAS: f64 = 2e-7;
const TIMESTEPS: f64 = 2e-4;

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.try_into().unwrap()
}

/// The schedule whose keys begin with `shift<number>.`, and the rest of the key.
fn shift_of(key: &str) -> Option<(f64, &str)> {
    let rest = key.strip_prefix("shift")?;
    // A shift may have a decimal point of its own.
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let number = rest[..end].trim_end_matches('.');
    Some((number.parse().ok()?, rest[number.len()..].strip_prefix('.')?))
}

fn warped(scheduler: &FlowScheduler, steps: &[u32]) -> Vec<f32> {
    steps.iter().map(|step| scheduler.warp(*step).unwrap()).collect()
}

/// What Krea's own server runs, of the length that `<n>steps` says.
fn krea_schedule(scheduler: &FlowScheduler, length: &str) -> Vec<f32> {
    scheduler.krea_schedule(length.strip_suffix("steps").unwrap().parse().unwrap(), 1.0)
}

#[test]
fn golden_schedules() {
    let golden = Golden::open("flow_scheduler");
    let mut prefixes: Vec<&str> =
        golden.names().filter_map(|key| key.strip_suffix(shift_of(key)?.1)).collect();
    prefixes.dedup();
    for prefix in prefixes {
        let (shift, _) = shift_of(prefix).unwrap();
        let scheduler = FlowScheduler::new(shift);
        check_tables(&golden, prefix, &scheduler);
        check_lookups_and_conversions(&golden, prefix, &scheduler);
    }
    golden.assert_compared();
}

fn check_tables(golden: &Golden, prefix: &str, scheduler: &FlowScheduler) {
    let check = |key: &str, found: &[f32], tolerance| {
        golden.check_within(&format!("{prefix}{key}"), &Tensor::from_slice(found), tolerance);
    };
    check("sigmas", scheduler.sigmas(), SIGMAS);
    check("timesteps", scheduler.timesteps(), TIMESTEPS);
    for steps in golden.between(&format!("{prefix}warped."), "") {
        let stated: Vec<u32> = steps.split('_').map(|step| step.parse().unwrap()).collect();
        check(&format!("warped.{steps}"), &warped(scheduler, &stated), TIMESTEPS);
    }
    for length in golden.between(&format!("{prefix}krea_schedule."), "") {
        check(&format!("krea_schedule.{length}"), &krea_schedule(scheduler, length), TIMESTEPS);
    }
}

/// Row `i` of the tensors belongs to timestep `i` of those that are looked up.
fn check_lookups_and_conversions(golden: &Golden, prefix: &str, scheduler: &FlowScheduler) {
    let key = |name: &str| format!("{prefix}{name}");
    let timesteps: Vec<f64> =
        floats(&golden.get(&key("lookup.timestep"))).into_iter().map(f64::from).collect();
    let indices: Vec<i64> = timesteps.iter().map(|t| scheduler.index(*t) as i64).collect();
    golden.check_integers(&key("lookup.index"), &indices);
    let sigmas: Vec<f32> = timesteps.iter().map(|t| scheduler.sigma(*t)).collect();
    golden.check_within(&key("lookup.sigma"), &Tensor::from_slice(&sigmas), SIGMAS);

    let input = |name: &str| golden.get(&key(name));
    let (clean, noise, flow) = (input("x0"), input("noise"), input("flow_pred"));
    let by_row = |convert: &dyn Fn(i64, f64) -> Tensor| {
        Tensor::stack(&(0..).zip(&timesteps).map(|(row, t)| convert(row, *t)).collect::<Vec<_>>(), 0)
    };
    // Each conversion starts from the reference's numbers, where the set has them.
    let check = |name: &str, found: Tensor, tolerance| {
        golden.check_within(&key(name), &found, tolerance);
        golden.find(&key(name)).unwrap_or(found)
    };
    let noisy = by_row(&|row, t| scheduler.add_noise(&clean.get(row), &noise.get(row), t).unwrap());
    let noisy = check("add_noise", noisy, 1e-6);
    let x0 = by_row(&|row, t| scheduler.x0_from_flow(&flow.get(row), &noisy.get(row), t).unwrap());
    let x0 = check("x0_from_flow", x0, TOLERANCE);
    let back = by_row(&|row, t| scheduler.flow_from_x0(&x0.get(row), &noisy.get(row), t).unwrap());
    let _ = check("flow_from_x0", back, TOLERANCE);

    if let Some(rows) = golden.find(&key("step.rows")) {
        let step =
            |row: i64| scheduler.step(&flow.get(row), &noisy.get(row), timesteps[row as usize]).unwrap();
        let rows: Vec<i64> = rows.try_into().unwrap();
        let stepped: Vec<Tensor> = rows.into_iter().map(step).collect();
        let _ = check("step.prev_sample", Tensor::stack(&stepped, 0), 1e-6);
    }
}

/// The file repeats the short lists of the other one, for people to read.
#[test]
fn golden_schedules_as_lists() {
    #[derive(serde::Deserialize)]
    struct Lookup {
        timestep: Vec<f64>,
        index: Vec<i64>,
        sigma: Vec<f32>,
    }
    let Some(lists) = json_if_present::<BTreeMap<String, serde_json::Value>>("flow_scheduler.json") else {
        return;
    };
    let mut compared = 0;
    for (key, value) in &lists {
        let Some((shift, name)) = shift_of(key) else { continue };
        let scheduler = FlowScheduler::new(shift);
        let check = |found: &[f32], tolerance| {
            let expected: Vec<f32> = serde_json::from_value(value.clone()).unwrap();
            assert_close(key, &Tensor::from_slice(found), &Tensor::from_slice(&expected), tolerance);
        };
        let length = value.as_array().map_or(0, Vec::len);
        let sigmas = scheduler.sigmas();
        if let Some(steps) = name.strip_prefix("warped.") {
            check(&warped(&scheduler, &serde_json::from_str::<Vec<u32>>(steps).unwrap()), TIMESTEPS);
        } else if let Some(length) = name.strip_prefix("krea_schedule.") {
            check(&krea_schedule(&scheduler, length), TIMESTEPS);
        } else if name == "sigmas_head" {
            check(&sigmas[..length], SIGMAS);
        } else if name == "sigmas_tail" {
            check(&sigmas[sigmas.len() - length..], SIGMAS);
        } else if name == "lookup" {
            let lookup: Lookup = serde_json::from_value(value.clone()).unwrap();
            for ((timestep, index), sigma) in lookup.timestep.into_iter().zip(lookup.index).zip(lookup.sigma)
            {
                assert_eq!(scheduler.index(timestep) as i64, index, "{key} {timestep}");
                let off = f64::from((scheduler.sigma(timestep) - sigma).abs());
                assert!(off <= SIGMAS, "{key} {timestep}: sigma off by {off:e}");
            }
        } else {
            panic!("flow_scheduler.json: unknown key {key}");
        }
        compared += 1;
    }
    assert!(compared > 0, "flow_scheduler.json: nothing to compare with among {:?}", lists.keys());
}

#[test]
fn a_step_above_the_table_has_no_warped_timestep() {
    let scheduler = FlowScheduler::new(5.0);
    assert_eq!(scheduler.warp(1001), None);
    assert_eq!(scheduler.warp(0), Some(0.0));
}
