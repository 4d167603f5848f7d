//! Whether a stream holds out: the same scores after many chunks as after few.

use demo_world::measure::Score;

use super::{Row, Section, Theatre, Wish, looked_at};

pub async fn section(theatre: &Theatre, wishes: &[Wish], early: usize, late: usize) -> Section {
    let mut scores = [Score::default(); 2];
    for wish in wishes {
        let mut screening = theatre.begin(wish).await;
        for (score, chunks) in scores.iter_mut().zip([early, late.saturating_sub(early)]) {
            let frames = looked_at(&theatre.watch(&mut screening, chunks).await);
            score.add(&wish.scene, &theatre.look(&frames, &wish.scene));
        }
        screening.end().await;
    }
    let [early, late] = [(early, scores[0]), (late, scores[1])]
        .map(|(chunks, score)| Row::of(&format!("long streams, after {chunks} chunks"), &score));
    let difference = late.minus(&early, "difference in points");
    Section { name: "long", rows: vec![early, late, difference], remark: None }
}
