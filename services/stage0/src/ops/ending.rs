//! How this stage0 ends when an operator wants it: what was answered, and what is left to do. Pure.

use contract::ops::OpsAccepted;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// End the sessions and exit.
    Drain,
    /// The same, and stop the mesh.
    Shutdown,
}

/// A shutdown contains a drain, and may still be asked for while the sessions of a drain end.
#[derive(Debug, Default)]
pub(super) struct Ending {
    asked: Vec<(Wish, OpsAccepted)>,
    leaving: bool,
}

impl Ending {
    /// What was answered to this wish, or to one that contains it.
    pub(super) fn answered(&self, wish: Wish) -> Option<&OpsAccepted> {
        let same = self.asked.iter().find(|(asked, _)| *asked == wish);
        same.or_else(|| self.asked.iter().find(|(asked, _)| *asked > wish)).map(|(_, answer)| answer)
    }

    /// Keeps the answer. Returns whether it is the first, so that the end begins with it; `None` if it came too late to be
    /// done.
    pub(super) fn accept(&mut self, wish: Wish, answer: OpsAccepted) -> Option<bool> {
        if self.leaving {
            return None;
        }
        self.asked.push((wish, answer));
        Some(self.asked.len() == 1)
    }

    /// The sessions are gone: nothing new is accepted from here on. Returns the most that was asked for.
    pub(super) fn leave(&mut self) -> Option<Wish> {
        self.leaving = true;
        self.asked.iter().map(|(wish, _)| *wish).max()
    }
}

#[cfg(test)]
mod tests {
    use contract::ids::{InstanceId, SessionId};

    use super::*;

    fn answer(will: &str) -> OpsAccepted {
        OpsAccepted {
            will: will.to_owned(),
            instance: InstanceId::random(),
            sessions: vec![SessionId::random()],
            within_ms: 7_000,
            done_when: String::new(),
        }
    }

    #[test]
    fn the_same_wish_has_the_same_answer_ever_after() {
        let (mut ending, drain) = (Ending::default(), answer("drain"));
        assert_eq!(ending.answered(Wish::Drain), None);
        assert_eq!(ending.accept(Wish::Drain, drain.clone()), Some(true));
        assert_eq!(ending.answered(Wish::Drain), Some(&drain));
        assert_eq!(ending.leave(), Some(Wish::Drain));
        assert_eq!(ending.answered(Wish::Drain), Some(&drain));
    }

    #[test]
    fn a_shutdown_may_follow_a_drain_until_the_sessions_are_gone() {
        let mut ending = Ending::default();
        ending.accept(Wish::Drain, answer("drain"));
        assert_eq!(ending.answered(Wish::Shutdown), None, "a drain stops no mesh");
        assert_eq!(ending.accept(Wish::Shutdown, answer("shutdown")), Some(false));
        assert_eq!(ending.leave(), Some(Wish::Shutdown));

        let mut ending = Ending::default();
        ending.accept(Wish::Drain, answer("drain"));
        ending.leave();
        assert_eq!(ending.accept(Wish::Shutdown, answer("shutdown")), None);
    }

    #[test]
    fn a_drain_is_contained_in_a_shutdown() {
        let (mut ending, shutdown) = (Ending::default(), answer("shutdown"));
        ending.accept(Wish::Shutdown, shutdown.clone());
        assert_eq!(ending.answered(Wish::Drain), Some(&shutdown));
    }
}
