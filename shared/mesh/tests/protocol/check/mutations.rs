//! Evidence that the check can fail: a defect around a machine is found, as the breach of the invariant it breaks.

use super::{Bounds, check, setup};
use crate::cell::{Sabotage, Setup};

#[test]
fn each_defect_breaks_its_invariant() {
    let cases = [
        (Sabotage::RunsOnPlan, "go before collective"),
        (Sabotage::SameEpochTwice, "one leader per epoch"),
        (Sabotage::ReadsAnyLink, "one lease is obeyed"),
        (Sabotage::DeliversOldResults, "result is current"),
        (Sabotage::MiscountsResults, "observed equals expected"),
        (Sabotage::WritesQuarantinedSlots, "no slot is read and written"),
        (Sabotage::ForgetsToDeliver, "every call ends"),
        (Sabotage::IgnoresDrain, "drain ends"),
    ];
    for (sabotage, invariant) in cases {
        let bounds = Bounds { faults: 1, epochs: 2, duplicates: 0, calls: 2 };
        let found = check(Setup { sabotage: Some(sabotage), ..setup(2, 1) }, bounds);
        let broken = found.broken.map(|(broken, _)| broken.invariant);
        assert_eq!(broken, Some(invariant), "{sabotage:?} after {} states", found.states);
    }
}

#[test]
fn a_mesh_that_cannot_come_back_is_found() {
    let sabotage = Some(Sabotage::NeverFormsAgain);
    let found =
        check(Setup { sabotage, ..setup(2, 1) }, Bounds { faults: 1, epochs: 2, duplicates: 0, calls: 0 });
    assert!(found.stranded > 0 && !found.way.is_empty());
}
