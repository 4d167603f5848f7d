//! Colour, shape, motion and background of prompts that are streamed for some chunks, by whether training showed their like.

use demo_world::measure::{Score, Seen};

use super::{Row, Section, Theatre, Wish, looked_at};

/// What became of a wish.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub wish: Wish,
    pub seen: Seen,
}

/// Streams every wish in a session of its own and looks at its last chunks.
pub async fn outcomes(theatre: &Theatre, wishes: Vec<Wish>, chunks: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for wish in wishes {
        let frames = looked_at(&theatre.show(&wish, chunks).await);
        let seen = theatre.look(&frames, &wish.scene);
        outcomes.push(Outcome { wish, seen });
    }
    outcomes
}

#[must_use]
pub fn score<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Score {
    let mut score = Score::default();
    for Outcome { wish, seen } in outcomes {
        score.add(&wish.scene, seen);
    }
    score
}

#[must_use]
pub fn section(outcomes: &[Outcome], chunks: usize) -> Section {
    let of =
        |held_out: bool| score(outcomes.iter().filter(|outcome| outcome.wish.scene.held_out() == held_out));
    let rows = vec![
        Row::of(&format!("after {chunks} chunks, combinations that training showed"), &of(false)),
        Row::of(&format!("after {chunks} chunks, held out of training"), &of(true)),
        Row::of(&format!("after {chunks} chunks, all"), &score(outcomes)),
    ];
    Section { name: "prompts", rows, remark: None }
}
