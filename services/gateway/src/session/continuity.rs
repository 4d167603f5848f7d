//! Whether somebody makes this session's video, and what to do while that is in doubt. Pure: time and what is known of the
//! cell are arguments.

use std::time::{Duration, Instant};

use contract::event::SessionState;
use contract::{Error, Incarnation, InstanceId, Reason};

use crate::cell::Snapshot;

/// Between attempts to find the session again.
const RETRY: Duration = Duration::from_millis(300);
/// Who was cut off from the broker too may be back a little later: only then is a session that nobody serves gone.
const MISSING: Duration = Duration::from_secs(2);
/// Signs of life in a row that found no session at a stage0 that is well: by then its death would be known.
const UNSERVED: u32 = 2;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The client hears that the picture stands still, and why.
    Tell(Error),
    /// The owner is heard again: does it still have the session? Answered by [`Continuity::asked`].
    Ask,
    /// Another life of the session, of at least this incarnation, at this stage0. Answered by [`Continuity::created`].
    Create(InstanceId, Incarnation),
    /// The picture goes on; this is what the session does.
    Settled(SessionState),
    GiveUp(Error),
    /// Another connection of the same client goes on with the session: it is no longer ours to end.
    TakenOver,
}

/// Which life of the session a message is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Past,
    Present,
    /// One that this gateway did not ask for.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Broker,
    Stage0,
}

impl Cause {
    fn error(self) -> Error {
        match self {
            Self::Broker => {
                Error::new(Reason::BrokerUnavailable, "the connection between the services was lost")
            }
            Self::Stage0 => {
                Error::new(Reason::Recovering, "the process that makes this stream stopped answering")
            }
        }
    }
}

#[derive(Debug)]
struct Trouble {
    cause: Cause,
    since: Instant,
    /// No attempt before this.
    next: Instant,
    /// Since then nobody has served the session.
    missing: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Continuity {
    /// None once a stage0 has said that it does not have the session.
    owner: Option<InstanceId>,
    incarnation: Incarnation,
    /// How long the picture may stand still.
    patience: Duration,
    trouble: Option<Trouble>,
    /// An answer is awaited.
    busy: bool,
    /// Another life was asked for, and it is not known yet what became of it.
    creating: bool,
    /// Signs of life in a row that nobody took.
    unserved: u32,
}

impl Continuity {
    pub(super) fn new(owner: Option<InstanceId>, incarnation: Incarnation, patience: Duration) -> Self {
        Self { owner, incarnation, patience, trouble: None, busy: false, creating: false, unserved: 0 }
    }

    /// Looks at the cell: whenever it has changed, and every now and then.
    pub(super) fn look(&mut self, now: Instant, cell: &Snapshot) -> Vec<Step> {
        let mut steps = Vec::new();
        let cause = self.cause(cell);
        if let Some(cause) = cause
            && self.trouble.as_ref().is_none_or(|trouble| trouble.cause != cause)
        {
            let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
            self.trouble = Some(Trouble { cause, since, next: now, missing: None });
            steps.push(Step::Tell(cause.error()));
        }
        let Some(trouble) = &self.trouble else { return steps };
        if now.saturating_duration_since(trouble.since) >= self.patience {
            steps.push(Step::GiveUp(trouble.cause.error()));
            return steps;
        }
        if self.busy || now < trouble.next {
            return steps;
        }
        let attempt = match (cause, &cell.stage0) {
            (None, _) => Step::Ask,
            (Some(Cause::Stage0), Some((stage0, _))) if cell.ready() => {
                // From now on the life before is history, whoever still speaks for it.
                self.incarnation = self.incarnation.next();
                self.creating = true;
                Step::Create(*stage0, self.incarnation)
            }
            _ => return steps,
        };
        self.busy = true;
        steps.push(attempt);
        steps
    }

    fn cause(&self, cell: &Snapshot) -> Option<Cause> {
        if !cell.connected {
            return Some(Cause::Broker);
        }
        let heard = self.owner.is_some_and(|owner| cell.alive.contains(&owner));
        (!heard).then_some(Cause::Stage0)
    }

    /// The owner's answer to [`Step::Ask`].
    pub(super) fn asked(
        &mut self,
        now: Instant,
        answer: Result<(Incarnation, SessionState), Error>,
    ) -> Option<Step> {
        self.busy = false;
        match answer {
            Ok((incarnation, state)) => match self.life(incarnation) {
                Life::Present => {
                    self.trouble = None;
                    return Some(Step::Settled(state));
                }
                Life::Foreign => return Some(Step::TakenOver),
                Life::Past => self.owner = None,
            },
            Err(error) if error.reason == Reason::NoSuchSession => self.owner = None,
            Err(error) if error.reason == Reason::NoResponders && self.is_missing(now) => self.owner = None,
            Err(_) => self.wait(now),
        }
        None
    }

    /// What became of a viewer's sign of life. A session that ended where nobody heard it ends here too.
    pub(super) fn kept(&mut self, answer: Result<(), Reason>) -> Option<Step> {
        let gone = matches!(answer, Err(Reason::NoSuchSession | Reason::NoResponders));
        self.unserved = if gone && self.trouble.is_none() { self.unserved + 1 } else { 0 };
        let ended = || Step::GiveUp(Error::new(Reason::SessionEnded, "the session has ended"));
        (self.unserved >= UNSERVED).then(ended)
    }

    /// The answer to [`Step::Create`].
    pub(super) fn created(
        &mut self,
        now: Instant,
        stage0: InstanceId,
        answer: Result<Incarnation, Error>,
    ) -> Option<Step> {
        self.busy = false;
        match answer {
            Ok(incarnation) => {
                self.owner = Some(stage0);
                self.incarnation = incarnation;
                self.creating = false;
                self.trouble = None;
            }
            // An attempt whose answer was lost may have made it: the next one has a higher number.
            Err(error) if error.retryable() || error.reason == Reason::SessionExists => self.wait(now),
            Err(error) => return Some(Step::GiveUp(error)),
        }
        None
    }

    fn is_missing(&mut self, now: Instant) -> bool {
        let since = self.trouble.as_mut().map(|trouble| *trouble.missing.get_or_insert(now));
        since.is_some_and(|since| now.saturating_duration_since(since) >= MISSING)
    }

    fn wait(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.next = now + RETRY;
        }
    }

    /// What becomes of a message of this incarnation.
    pub(super) fn life(&mut self, incarnation: Incarnation) -> Life {
        if incarnation < self.incarnation {
            return Life::Past;
        }
        if incarnation > self.incarnation {
            if !self.creating {
                return Life::Foreign;
            }
            // The life that we asked for: what is on record gave it a higher number.
            self.incarnation = incarnation;
        }
        Life::Present
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const FIRST: Incarnation = Incarnation(1);

    struct Cell {
        old: InstanceId,
        new: InstanceId,
        now: Instant,
    }

    impl Cell {
        fn new() -> (Self, Continuity) {
            let cell = Self { old: InstanceId::random(), new: InstanceId::random(), now: Instant::now() };
            let continuity = Continuity::new(Some(cell.old), FIRST, PATIENCE);
            (cell, continuity)
        }

        fn after(&self, seconds: u64) -> Instant {
            self.now + Duration::from_secs(seconds)
        }

        fn with(&self, alive: &[InstanceId], ready: bool) -> Snapshot {
            Snapshot {
                waiting_for: (!ready).then(|| "stage0".to_owned()),
                connected: true,
                stage0: alive.last().map(|instance| (*instance, None)),
                alive: alive.to_vec(),
                ..Snapshot::default()
            }
        }

        fn well(&self) -> Snapshot {
            self.with(&[self.old], true)
        }

        fn empty(&self) -> Snapshot {
            self.with(&[], false)
        }

        fn replaced(&self) -> Snapshot {
            self.with(&[self.new], true)
        }
    }

    fn told(steps: &[Step]) -> Option<Reason> {
        steps.iter().find_map(|step| match step {
            Step::Tell(error) => Some(error.reason),
            _ => None,
        })
    }

    fn error(reason: Reason) -> Error {
        Error::new(reason, "why")
    }

    #[test]
    fn while_its_stage0_lives_nothing_is_done() {
        let (cell, mut continuity) = Cell::new();
        assert_eq!(continuity.look(cell.now, &cell.well()), []);
        assert_eq!(continuity.look(cell.now, &cell.with(&[cell.old], false)), [], "a mesh that re-forms");
    }

    #[test]
    fn a_dead_stage0_is_told_once_and_replaced_when_another_is_ready() {
        let (cell, mut continuity) = Cell::new();
        assert_eq!(told(&continuity.look(cell.now, &cell.empty())), Some(Reason::Recovering));
        assert_eq!(continuity.look(cell.after(1), &cell.empty()), []);
        assert_eq!(continuity.look(cell.after(2), &cell.with(&[cell.new], false)), [], "not ready yet");
        let create = Step::Create(cell.new, Incarnation(2));
        assert_eq!(continuity.look(cell.after(3), &cell.replaced()), [create]);
        assert_eq!(continuity.look(cell.after(4), &cell.replaced()), [], "one attempt at a time");
        assert_eq!(continuity.created(cell.after(4), cell.new, Ok(Incarnation(2))), None);
        assert_eq!(continuity.look(cell.after(99), &cell.replaced()), []);
    }

    #[test]
    fn lower_incarnations_are_history_from_the_moment_another_life_is_asked_for() {
        let (cell, mut continuity) = Cell::new();
        assert_eq!(continuity.life(FIRST), Life::Present);
        continuity.look(cell.now, &cell.replaced());
        assert_eq!(continuity.life(FIRST), Life::Past);
        // What is on record may give the new life a higher number than was asked for.
        assert_eq!(continuity.life(Incarnation(5)), Life::Present);
        assert_eq!(continuity.life(Incarnation(4)), Life::Past);
        continuity.created(cell.now, cell.new, Ok(Incarnation(5)));
        assert_eq!(continuity.life(Incarnation(6)), Life::Foreign);
    }

    #[test]
    fn a_failed_attempt_is_made_again_with_a_higher_number_until_patience_ends() {
        let (cell, mut continuity) = Cell::new();
        continuity.look(cell.now, &cell.replaced());
        for (attempt, reason) in [(2, Reason::BudgetSpent), (3, Reason::NotReady), (4, Reason::SessionExists)]
        {
            assert_eq!(continuity.created(cell.after(attempt), cell.new, Err(error(reason))), None);
            assert_eq!(continuity.look(cell.after(attempt), &cell.replaced()), [], "not at once");
            let again = Step::Create(cell.new, Incarnation(attempt + 1));
            assert_eq!(continuity.look(cell.after(attempt + 1), &cell.replaced()), [again]);
        }
        assert!(matches!(continuity.look(cell.after(60), &cell.replaced())[..], [Step::GiveUp(_)]));
    }

    #[test]
    fn a_refusal_that_no_retry_mends_ends_the_session_with_it() {
        let (cell, mut continuity) = Cell::new();
        continuity.look(cell.now, &cell.replaced());
        let refusal = error(Reason::UnsupportedSize);
        let step = continuity.created(cell.now, cell.new, Err(refusal.clone()));
        assert_eq!(step, Some(Step::GiveUp(refusal)));
    }

    #[test]
    fn a_stage0_that_comes_back_is_asked_before_anything_is_created() {
        let (cell, mut continuity) = Cell::new();
        continuity.look(cell.now, &cell.empty());
        assert_eq!(continuity.look(cell.after(2), &cell.well()), [Step::Ask]);
        let settled = continuity.asked(cell.after(2), Ok((FIRST, SessionState::Streaming)));
        assert_eq!(settled, Some(Step::Settled(SessionState::Streaming)));
        assert_eq!(continuity.look(cell.after(3), &cell.well()), []);
    }

    #[test]
    fn one_that_came_back_without_the_session_makes_another_life_of_it() {
        let (cell, mut continuity) = Cell::new();
        continuity.look(cell.now, &cell.empty());
        continuity.look(cell.after(2), &cell.well());
        assert_eq!(continuity.asked(cell.after(2), Err(error(Reason::NoSuchSession))), None);
        let create = Step::Create(cell.old, Incarnation(2));
        assert!(continuity.look(cell.after(3), &cell.well()).contains(&create));
    }

    #[test]
    fn a_session_that_nobody_serves_is_gone_only_once_everybody_had_time_to_come_back() {
        let (cell, mut continuity) = Cell::new();
        continuity.look(cell.now, &Snapshot { connected: false, ..cell.well() });
        for second in 1..=2 {
            assert_eq!(continuity.look(cell.after(second), &cell.well()), [Step::Ask]);
            continuity.asked(cell.after(second), Err(error(Reason::NoResponders)));
        }
        assert_eq!(continuity.look(cell.after(3), &cell.well()), [Step::Ask]);
        continuity.asked(cell.after(3), Err(error(Reason::NoResponders)));
        let create = Step::Create(cell.old, Incarnation(2));
        assert!(continuity.look(cell.after(3), &cell.well()).contains(&create));
    }

    #[test]
    fn without_the_broker_the_client_is_told_and_afterwards_the_owner_asked() {
        let (cell, mut continuity) = Cell::new();
        let away = Snapshot { connected: false, ..cell.well() };
        assert_eq!(told(&continuity.look(cell.now, &away)), Some(Reason::BrokerUnavailable));
        assert_eq!(continuity.look(cell.after(30), &away), []);
        assert_eq!(continuity.look(cell.after(31), &cell.well()), [Step::Ask]);
        continuity.asked(cell.after(31), Err(error(Reason::BudgetSpent)));
        assert_eq!(continuity.look(cell.after(32), &cell.well()), [Step::Ask], "asked again");
    }

    #[test]
    fn a_stage0_that_died_while_the_broker_was_away_is_told_as_such() {
        let (cell, mut continuity) = Cell::new();
        continuity.look(cell.now, &Snapshot { connected: false, ..cell.well() });
        let steps = continuity.look(cell.after(9), &cell.replaced());
        assert_eq!(told(&steps), Some(Reason::Recovering));
        assert_eq!(steps.last(), Some(&Step::Create(cell.new, Incarnation(2))));
    }

    #[test]
    fn patience_is_bounded_whatever_is_missing() {
        for missing in [false, true] {
            let (cell, mut continuity) = Cell::new();
            let snapshot = Snapshot { connected: missing, ..cell.empty() };
            continuity.look(cell.now, &snapshot);
            assert_eq!(continuity.look(cell.after(59), &snapshot), []);
            assert!(matches!(continuity.look(cell.after(60), &snapshot)[..], [Step::GiveUp(_)]));
        }
    }

    #[test]
    fn a_session_whose_end_was_not_heard_ends_once_two_signs_of_life_in_a_row_found_nobody() {
        let (cell, mut continuity) = Cell::new();
        let gone = Err(Reason::NoResponders);
        for answer in [gone, Ok(()), gone, Err(Reason::BudgetSpent), Err(Reason::NoSuchSession)] {
            assert_eq!(continuity.kept(answer), None);
        }
        assert!(matches!(continuity.kept(gone), Some(Step::GiveUp(_))));

        let (_, mut continuity) = Cell::new();
        continuity.look(cell.now, &cell.empty());
        for _ in 0..9 {
            assert_eq!(continuity.kept(gone), None, "whoever died is replaced");
        }
    }

    #[test]
    fn a_session_that_another_connection_took_over_is_let_go() {
        let (cell, mut continuity) = Cell::new();
        assert_eq!(continuity.life(Incarnation(2)), Life::Foreign);
        continuity.look(cell.now, &Snapshot { connected: false, ..cell.well() });
        assert_eq!(continuity.look(cell.after(1), &cell.well()), [Step::Ask]);
        let taken = continuity.asked(cell.now, Ok((Incarnation(2), SessionState::Streaming)));
        assert_eq!(taken, Some(Step::TakenOver));
    }
}
