//! Whether sentences were learnt by heart: the same scenes and seeds in sentence forms that training never showed.

use super::shown::{Outcome, score};
use super::{Row, Section};

/// `learnt` and `other` are of the same scenes.
#[must_use]
pub fn section(learnt: &[Outcome], other: &[Outcome]) -> Section {
    let learnt = Row::of("sentence forms of training", &score(learnt));
    let other = Row::of("the same scenes in other forms and orders", &score(other));
    let difference = other.minus(&learnt, "difference in points");
    Section { name: "paraphrase", rows: vec![learnt, other, difference], remark: None }
}
