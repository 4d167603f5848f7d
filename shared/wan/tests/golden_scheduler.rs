//! The flow-match schedule against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::{Golden, TOLERANCE, assert_close};
use tch::Tensor;
use wan::scheduler::FlowScheduler;

/// Runs `check` for each shift that the set has.
fn for_each_shift(check: impl Fn(&FlowScheduler, &dyn Fn(&str) -> Tensor)) {
    let golden = Golden::open("flow_scheduler");
    let shifts = golden.numbered("shift", ".sigmas");
    assert!(!shifts.is_empty());
    for shift in shifts {
        check(&FlowScheduler::new(shift as f64), &|key| golden.get(&format!("shift{shift}.{key}")));
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.try_into().unwrap()
}

#[test]
fn golden_tables() {
    for_each_shift(|scheduler, get| {
        assert_close("sigmas", &Tensor::from_slice(scheduler.sigmas()), &get("sigmas"), 2e-7);
        assert_close("timesteps", &Tensor::from_slice(scheduler.timesteps()), &get("timesteps"), 2e-4);
    });
}

#[test]
fn golden_lookup_takes_the_nearest_row() {
    for_each_shift(|scheduler, get| {
        let indices = Vec::<i64>::try_from(get("lookup.index")).unwrap();
        let sigmas = floats(&get("lookup.sigma"));
        for ((timestep, index), sigma) in floats(&get("lookup.timestep")).into_iter().zip(indices).zip(sigmas)
        {
            assert_eq!(scheduler.index(timestep.into()) as i64, index, "timestep {timestep}");
            assert!((scheduler.sigma(timestep.into()) - sigma).abs() <= 2e-7, "timestep {timestep}");
        }
    });
}

#[test]
fn golden_conversions_between_noise_flow_and_clean() {
    for_each_shift(|scheduler, get| {
        for (i, timestep) in floats(&get("lookup.timestep")).into_iter().enumerate() {
            let (t, row) = (f64::from(timestep), |key: &str| get(key).get(i as i64));
            let (clean, noise, flow) = (row("x0"), row("noise"), row("flow_pred"));
            let noisy = scheduler.add_noise(&clean, &noise, t).unwrap();
            assert_close("add_noise", &noisy, &row("add_noise"), 1e-6);
            let x0 = scheduler.x0_from_flow(&flow, &row("add_noise"), t).unwrap();
            assert_close("x0_from_flow", &x0, &row("x0_from_flow"), TOLERANCE);
            let back = scheduler.flow_from_x0(&row("x0_from_flow"), &row("add_noise"), t).unwrap();
            assert_close("flow_from_x0", &back, &row("flow_from_x0"), TOLERANCE);
        }
    });
}

#[test]
fn golden_euler_step() {
    for_each_shift(|scheduler, get| {
        for (i, row) in Vec::<i64>::try_from(get("step.rows")).unwrap().into_iter().enumerate() {
            let timestep = f64::from(floats(&get("lookup.timestep"))[row as usize]);
            let (flow, x) = (get("flow_pred").get(row), get("add_noise").get(row));
            let stepped = scheduler.step(&flow, &x, timestep).unwrap();
            assert_close("step", &stepped, &get("step.prev_sample").get(i as i64), 1e-6);
        }
    });
}

#[test]
fn golden_warped_steps_and_krea_schedules() {
    for_each_shift(|scheduler, get| {
        let warped = |steps: &[u32]| steps.iter().map(|s| scheduler.warp(*s).unwrap()).collect::<Vec<_>>();
        let check = |key: &str, found: &[f32]| assert_close(key, &Tensor::from_slice(found), &get(key), 2e-4);
        check("warped.1000_750_500_250", &warped(&[1000, 750, 500, 250]));
        check("warped.1000_750", &warped(&[1000, 750]));
        check("krea_schedule.4steps", &scheduler.krea_schedule(4, 1.0));
        check("krea_schedule.5steps", &scheduler.krea_schedule(5, 1.0));
    });
}

#[test]
fn a_step_above_the_table_has_no_warped_timestep() {
    let scheduler = FlowScheduler::new(5.0);
    assert_eq!(scheduler.warp(1001), None);
    assert_eq!(scheduler.warp(0), Some(0.0));
}
