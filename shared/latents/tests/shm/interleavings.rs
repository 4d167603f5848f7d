use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::thread;

use contract::tensor::TensorSpec;
use contract::{Generation, LinkSlot, Reason};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tch::Tensor;

use crate::contract_of_links::{Ends, KEY, picture};
use crate::ends;

const SLOTS: u32 = 3;
const NUMEL: i64 = 64;

/// What either end of the `in` ring may do, with any spec that was ever named.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Read(usize),
    GiveBackByReader(usize),
    GiveBackByWriter(usize),
    Quarantine(u32),
    Lift,
}

fn step() -> impl Strategy<Value = Step> {
    // Recent specs are the ones that may still be good.
    let spec = 0..6_usize;
    prop_oneof![
        4 => Just(Step::Write),
        4 => spec.clone().prop_map(Step::Read),
        3 => spec.clone().prop_map(Step::GiveBackByReader),
        2 => spec.prop_map(Step::GiveBackByWriter),
        1 => (0..SLOTS).prop_map(Step::Quarantine),
        1 => Just(Step::Lift),
    ]
}

/// What the rules say of one slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// `None`: free.
    holds: Option<Generation>,
    read: bool,
    quarantined: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_steps_follows_the_rules(steps in prop::collection::vec(step(), 1..120)) {
        let Ends { mut leader, mut stage0 } = ends(SLOTS, 1, 4 * NUMEL as u64, 3);
        let mut slots: BTreeMap<u32, Slot> = (0..SLOTS).map(|slot| (slot, Slot::default())).collect();
        let mut named: Vec<(TensorSpec, Tensor)> = Vec::new();
        for step in steps {
            let pick = |back: usize| named.iter().rev().nth(back);
            match step {
                Step::Write => {
                    let tensor = picture(named.len() as u32 + 1, NUMEL);
                    let free = slots.values().any(|slot| slot.holds.is_none() && !slot.quarantined);
                    match stage0.write(KEY, &tensor) {
                        Ok(spec) => {
                            let slot = slots.get_mut(&spec.slot.0).unwrap();
                            prop_assert!(slot.holds.is_none() && !slot.quarantined);
                            (slot.holds, slot.read) = (Some(spec.generation), false);
                            named.push((spec, tensor));
                        }
                        Err(error) => prop_assert!(!free && error.reason == Reason::SlotBusy),
                    }
                }
                Step::Read(back) => if let Some((spec, tensor)) = pick(back) {
                    let slot = slots.get_mut(&spec.slot.0).unwrap();
                    let good = slot.holds == Some(spec.generation);
                    match leader.read(spec) {
                        Ok(read) => {
                            prop_assert!(good && read.equal(tensor));
                            slot.read = true;
                        }
                        Err(error) => prop_assert!(!good && error.reason == Reason::StaleSlot),
                    }
                }
                Step::GiveBackByReader(back) => if let Some((spec, _)) = pick(back) {
                    let slot = slots.get_mut(&spec.slot.0).unwrap();
                    let good = slot.holds == Some(spec.generation);
                    prop_assert_eq!(leader.release(spec.slot, spec.generation).is_ok(), good);
                    if good { slot.holds = None; }
                }
                Step::GiveBackByWriter(back) => if let Some((spec, _)) = pick(back) {
                    let slot = slots.get_mut(&spec.slot.0).unwrap();
                    let good = slot.holds == Some(spec.generation) && !slot.read;
                    prop_assert_eq!(stage0.release(spec.slot, spec.generation).is_ok(), good);
                    if good { slot.holds = None; }
                }
                Step::Quarantine(slot) => {
                    stage0.quarantine(&[LinkSlot(slot)]);
                    slots.get_mut(&slot).unwrap().quarantined = true;
                }
                Step::Lift => {
                    stage0.unquarantine_all();
                    slots.values_mut().filter(|slot| slot.quarantined).for_each(|slot| *slot = Slot::default());
                }
            }
            let free = slots.values().filter(|slot| slot.holds.is_none() && !slot.quarantined).count();
            prop_assert_eq!(stage0.free_slots(), free);
        }
    }
}

/// The writer takes slots back by force while the reader copies: whatever read succeeds is one whole picture.
#[test]
fn a_racing_reader_gets_a_whole_picture_or_an_error() {
    let numel = 16 * 1024;
    let Ends { mut leader, mut stage0 } = ends(3, 1, 4 * numel as u64, 1);
    let (named, specs) = sync_channel::<(u32, TensorSpec)>(8);
    let reader = thread::spawn(move || {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut good, mut recent) = (0, Vec::new());
        for (write, spec) in specs {
            recent.push((write, spec));
            let (write, spec) = &recent[recent.len() - 1 - rng.random_range(0..recent.len().min(4))];
            match leader.read(spec) {
                Ok(tensor) => {
                    assert!(tensor.equal(&picture(*write, numel)));
                    good += 1;
                }
                Err(error) => assert_eq!(error.reason, Reason::StaleSlot, "{error}"),
            }
            if rng.random() {
                let _ = leader.release(spec.slot, spec.generation);
            }
        }
        good
    });
    let mut rng = StdRng::seed_from_u64(2);
    let mut write = 0;
    while write < 5_000 {
        match stage0.write(KEY, &picture(write, numel)) {
            Ok(spec) => {
                named.send((write, spec)).unwrap();
                write += 1;
            }
            Err(error) => {
                assert_eq!(error.reason, Reason::SlotBusy, "{error}");
                stage0.quarantine(&[LinkSlot(rng.random_range(0..3))]);
                stage0.unquarantine_all();
            }
        }
    }
    drop(named);
    assert!(reader.join().unwrap() > 0);
}
