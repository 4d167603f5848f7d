//! What every `LatentLink` owes both ends, generic over how a link is made.

pub(crate) mod remote;

use contract::tensor::{Dtype, TensorKey, TensorSpec};
use contract::{Generation, LinkSlot, Reason};
use latents::{LatentLink, Rings};
use tch::{Device, Kind, Tensor};

/// Both ends of one fresh link.
pub(crate) struct Ends {
    pub(crate) leader: Box<dyn LatentLink>,
    pub(crate) stage0: Box<dyn LatentLink>,
}

/// Makes a link with `slots_in`, `slots_out` slots of `slot_bytes`, and a link epoch.
pub(crate) type Make<'a> = &'a dyn Fn(u32, u32, u64, u64) -> Ends;

/// How a value from a message is made false, and what that is answered with.
pub(crate) type Lie<'a, T> = (&'a dyn Fn(&mut T), Reason);

pub(crate) const KEY: TensorKey = TensorKey::LatentsIn;

/// A tensor whose every element tells which write it came from.
pub(crate) fn picture(write: u32, numel: i64) -> Tensor {
    Tensor::full([numel], f64::from(write), (Kind::Float, Device::Cpu))
}

/// Of names: one for each test that sweeps, so that none sweeps another's.
pub(crate) fn prefix(test: &str) -> String {
    format!("kinemesh-test-{test}-{}", std::process::id())
}

pub(crate) fn rings(
    prefix: &str,
    slots_in: u32,
    slots_out: u32,
    slot_bytes: u64,
    link_epoch: u64,
) -> Rings<'_> {
    Rings { prefix, slots_in, slots_out, slot_bytes, link_epoch, bind: "127.0.0.1:0" }
}

/// Wherever the two are.
pub(crate) fn same(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.to_device(Device::Cpu), b.to_device(Device::Cpu));
    a.kind() == b.kind() && a.size() == b.size() && a.equal(&b)
}

pub(crate) fn every_promise(make: Make<'_>) {
    tensors_come_out_as_they_went_in(make);
    a_full_ring_is_busy_at_once(make);
    a_slot_is_given_back_only_by_its_holder(make);
    specs_of_the_past_and_of_other_links_are_stale(make);
    specs_that_lie_are_refused_and_change_nothing(make);
    a_quarantined_slot_rests_until_it_is_lifted(make);
    a_closed_end_fences_the_writer(make);
}

fn refused<T>(result: Result<T, contract::Error>, reason: Reason) {
    match result {
        Ok(_) => panic!("allowed: {reason:?} is expected"),
        Err(error) => assert_eq!(error.reason, reason, "{error}"),
    }
}

fn tensors_come_out_as_they_went_in(make: Make<'_>) {
    let Ends { mut leader, mut stage0 } = make(2, 2, 4096, 1);
    for kind in [Kind::Float, Kind::BFloat16] {
        for shape in [&[1, 3, 16, 4, 5][..], &[1024 / 2], &[0, 7], &[]] {
            let tensor = Tensor::randn(shape, (kind, Device::Cpu));
            let spec = stage0.write(TensorKey::ContextFrames, &tensor).unwrap();
            spec.expect(if kind == Kind::Float { Dtype::F32 } else { Dtype::Bf16 }, shape).unwrap();
            assert!(same(&leader.read(&spec).unwrap(), &tensor));
            leader.release(spec.slot, spec.generation).unwrap();

            let spec = leader.write(TensorKey::LatentsOut, &tensor).unwrap();
            assert!(same(&stage0.read(&spec).unwrap(), &tensor));
            stage0.release(spec.slot, spec.generation).unwrap();
        }
    }
    let strided = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4]).transpose(0, 1);
    let spec = stage0.write(KEY, &strided).unwrap();
    assert!(same(&leader.read(&spec).unwrap(), &strided));
    refused(stage0.write(KEY, &Tensor::zeros([4], (Kind::Int64, Device::Cpu))), Reason::BadDtype);
    refused(stage0.write(KEY, &picture(0, 1025)), Reason::PayloadTooLarge);
    refused(stage0.write(KEY, &Tensor::zeros([1; 9], (Kind::Float, Device::Cpu))), Reason::BadShape);
    assert_eq!(stage0.free_slots(), 1);
}

fn a_full_ring_is_busy_at_once(make: Make<'_>) {
    let Ends { mut leader, mut stage0 } = make(2, 1, 64, 1);
    let specs = [1, 2].map(|write| stage0.write(KEY, &picture(write, 8)).unwrap());
    assert_ne!(specs[0].slot, specs[1].slot);
    assert_eq!((stage0.free_slots(), leader.free_slots()), (0, 1));
    refused(stage0.write(KEY, &picture(3, 8)), Reason::SlotBusy);
    let _ = leader.read(&specs[1]).unwrap();
    refused(stage0.write(KEY, &picture(3, 8)), Reason::SlotBusy);
    leader.release(specs[1].slot, specs[1].generation).unwrap();
    let third = stage0.write(KEY, &picture(3, 8)).unwrap();
    assert_eq!(third.slot, specs[1].slot);
    assert!(third.generation > specs[1].generation);
    assert!(same(&leader.read(&specs[0]).unwrap(), &picture(1, 8)));
    assert!(same(&leader.read(&third).unwrap(), &picture(3, 8)));
}

fn a_slot_is_given_back_only_by_its_holder(make: Make<'_>) {
    let Ends { mut leader, mut stage0 } = make(2, 1, 64, 1);
    // Never sent: the writer takes it back, and a late reader learns so.
    let unsent = stage0.write(KEY, &picture(1, 8)).unwrap();
    stage0.release(unsent.slot, unsent.generation).unwrap();
    refused(leader.read(&unsent), Reason::StaleSlot);
    // Read: only the reader can, once; until then it may read again.
    let sent = stage0.write(KEY, &picture(2, 8)).unwrap();
    let _ = leader.read(&sent).unwrap();
    refused(stage0.release(sent.slot, sent.generation), Reason::SlotBusy);
    assert!(same(&leader.read(&sent).unwrap(), &picture(2, 8)));
    assert!(stage0.holds(sent.slot, sent.generation) && leader.holds(sent.slot, sent.generation));
    leader.release(sent.slot, sent.generation).unwrap();
    assert!(!stage0.holds(sent.slot, sent.generation));
    refused(leader.release(sent.slot, sent.generation), Reason::StaleSlot);
    refused(leader.release(LinkSlot(3), sent.generation), Reason::BadField);
    // Named and not wanted: the reader gives it back unread.
    let unwanted = stage0.write(KEY, &picture(3, 8)).unwrap();
    leader.release(unwanted.slot, unwanted.generation).unwrap();
    assert_eq!(stage0.free_slots(), 2);
}

fn specs_of_the_past_and_of_other_links_are_stale(make: Make<'_>) {
    let Ends { mut leader, mut stage0 } = make(1, 1, 64, 1);
    let old = stage0.write(KEY, &picture(1, 8)).unwrap();
    stage0.release(old.slot, old.generation).unwrap();
    let new = stage0.write(KEY, &picture(2, 8)).unwrap();
    refused(leader.read(&old), Reason::StaleSlot);
    refused(leader.release(old.slot, old.generation), Reason::StaleSlot);
    refused(stage0.release(old.slot, old.generation), Reason::StaleSlot);
    let Ends { leader: mut next_leader, stage0: mut next_stage0 } = make(1, 1, 64, 2);
    let other = next_stage0.write(KEY, &picture(3, 8)).unwrap();
    refused(next_leader.read(&new), Reason::StaleSlot);
    refused(leader.read(&other), Reason::StaleSlot);
    assert!(same(&leader.read(&new).unwrap(), &picture(2, 8)));
    assert!(same(&next_leader.read(&other).unwrap(), &picture(3, 8)));
}

fn specs_that_lie_are_refused_and_change_nothing(make: Make<'_>) {
    let Ends { mut leader, mut stage0 } = make(2, 1, 64, 1);
    let spec = stage0.write(KEY, &picture(1, 8)).unwrap();
    let lies: [Lie<'_, TensorSpec>; 10] = [
        (&|s| s.slot = LinkSlot(2), Reason::BadField),
        (&|s| s.slot = LinkSlot(u32::MAX), Reason::BadField),
        (&|s| s.byte_offset = u64::MAX, Reason::BadField),
        (&|s| s.byte_len = 16, Reason::BadShape),
        (&|s| s.dtype = Dtype::Bf16, Reason::BadShape),
        (&|s| (s.dtype, s.byte_len) = (Dtype::Bf16, 16), Reason::BadShape),
        (&|s| s.shape = vec![2, 4], Reason::BadShape),
        (&|s| s.shape = vec![-1, i64::MAX], Reason::BadShape),
        (&|s| (s.shape, s.byte_len) = (vec![1 << 20], 4 << 20), Reason::BadField),
        (&|s| s.generation = Generation(s.generation.0 | 1 << 63), Reason::StaleSlot),
    ];
    for (lie, reason) in lies {
        let mut spec = spec.clone();
        lie(&mut spec);
        refused(leader.read(&spec), reason);
    }
    refused(stage0.read(&spec), Reason::BadField);
    stage0.release(spec.slot, spec.generation).unwrap();
}

fn a_quarantined_slot_rests_until_it_is_lifted(make: Make<'_>) {
    let Ends { mut leader, mut stage0 } = make(2, 1, 64, 1);
    let timed_out = stage0.write(KEY, &picture(1, 8)).unwrap();
    stage0.quarantine(&[timed_out.slot, LinkSlot(2), LinkSlot(u32::MAX)]);
    // The late reader still gets its picture, and its giving back changes nothing yet.
    assert!(same(&leader.read(&timed_out).unwrap(), &picture(1, 8)));
    leader.release(timed_out.slot, timed_out.generation).unwrap();
    let next = stage0.write(KEY, &picture(2, 8)).unwrap();
    assert_ne!(next.slot, timed_out.slot);
    refused(stage0.write(KEY, &picture(3, 8)), Reason::SlotBusy);
    stage0.unquarantine_all();
    assert_eq!(stage0.free_slots(), 1);
    // Lifting takes back what the reader never gave back.
    let _ = leader.read(&next).unwrap();
    stage0.quarantine(&[next.slot]);
    stage0.unquarantine_all();
    assert_eq!(stage0.free_slots(), 2);
    refused(leader.read(&next), Reason::StaleSlot);
    refused(leader.release(next.slot, next.generation), Reason::StaleSlot);
}

fn a_closed_end_fences_the_writer(make: Make<'_>) {
    let Ends { leader, mut stage0 } = make(1, 1, 64, 1);
    drop(leader);
    refused(stage0.write(KEY, &picture(1, 8)), Reason::Fenced);
}
