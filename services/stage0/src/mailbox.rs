//! What waits for a session's chunk loop: merged parameter updates, wishes, and the answer of a call.
//!
//! There is one of each at most, so nothing here can grow. Endpoints and the mesh client put things in; the loop is the
//! only one that takes them out, and waits here for everything it waits for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contract::error::{Error, Reason};
use contract::params::Parameters;

use crate::attendance::{Attendance, Patience, Viewers};
use crate::mesh_client::Outcome;

/// All updates that came since the last chunk started, as one.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    pub parameters: Parameters,
    /// Highest update number seen so far.
    pub update: u64,
    /// When the newest of these updates came; `None` without any.
    pub arrived: Option<Instant>,
}

/// What comes while a call is in flight.
pub(crate) enum News {
    Outcome(Outcome),
    /// Prompts that the next chunk will need, of an update that came meanwhile.
    Prompts(Vec<String>),
}

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Somebody asked for it: the words are theirs.
    Asked(String),
    NobodyWatches,
    /// The process drains.
    Process(Error),
    /// The process goes away, the session need not: another one may go on with it.
    HandOver(Error),
    /// A later life of the session has begun; it does the talking.
    Superseded,
}

/// Which call an answer is of: a session's calls are numbered as they are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked(u64);

struct State {
    waiting: Drained,
    /// Update number of the newest prompts that were told of.
    told: u64,
    paused: bool,
    viewers: Viewers,
    /// The call whose answer is awaited, or was taken.
    asked: Asked,
    outcome: Option<Outcome>,
    ending: Option<Ending>,
}

pub(crate) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl State {
    /// Texts of the prompts that wait, once for each update.
    fn untold_prompts(&mut self) -> Option<Vec<String>> {
        if self.told == self.waiting.update {
            return None;
        }
        self.told = self.waiting.update;
        let Parameters { prompts, transition, .. } = &self.waiting.parameters;
        let target = transition.iter().flat_map(|transition| &transition.target_prompts);
        let texts: Vec<_> =
            prompts.iter().flatten().chain(target).map(|prompt| prompt.text.clone()).collect();
        (!texts.is_empty()).then_some(texts)
    }
}

impl Mailbox {
    /// Holds the parameters that the session is created with; they contain all updates up to number `update`.
    pub(crate) fn new(initial: Parameters, update: u64, patience: Patience, now: Instant) -> Self {
        let paused = initial.paused == Some(true);
        let waiting = Drained { parameters: initial, update, arrived: Some(now) };
        let viewers = Viewers::new(patience, now);
        let asked = Asked::default();
        let state = State { waiting, told: update, paused, viewers, asked, outcome: None, ending: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Merges an update; returns its number. A pause in it holds at once.
    pub(crate) fn update(&self, parameters: Parameters, now: Instant) -> u64 {
        self.put(|state| {
            state.paused = parameters.paused.unwrap_or(state.paused);
            state.waiting.update += 1;
            state.waiting.parameters.merge(parameters);
            state.waiting.arrived = Some(now);
            state.waiting.update
        })
    }

    pub(crate) fn reset(&self, now: Instant) {
        self.update(Parameters { reset_cache: Some(true), ..Parameters::default() }, now);
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.put(|state| state.paused = paused);
    }

    /// Somebody watches.
    pub(crate) fn viewer(&self, now: Instant) {
        self.put(|state| state.viewers.seen(now));
    }

    /// Whether somebody who watches can say so.
    pub(crate) fn can_hear(&self, hears: bool, now: Instant) {
        self.put(|state| state.viewers.can_hear(hears, now));
    }

    /// Nobody has watched for so long that the session makes nothing.
    pub(crate) fn is_unwatched(&self, now: Instant) -> bool {
        self.lock().viewers.attendance(now) != Attendance::Watched
    }

    /// A call is about to be made: the answers of those before it are not wanted any more.
    pub(crate) fn ask(&self) -> Asked {
        let mut state = self.lock();
        state.asked.0 += 1;
        state.outcome = None;
        state.asked
    }

    /// The answer of a call; one that came too late is dropped.
    pub(crate) fn deliver(&self, asked: Asked, outcome: Outcome) {
        self.put(|state| {
            if state.asked == asked {
                state.outcome = Some(outcome);
            }
        });
    }

    /// The first ending counts.
    pub(crate) fn end(&self, ending: Ending) {
        self.put(|state| state.ending.get_or_insert(ending).clone());
    }

    /// Everything that waits; afterwards nothing does.
    pub(crate) fn drain(&self) -> Drained {
        let mut state = self.lock();
        let update = state.waiting.update;
        std::mem::replace(&mut state.waiting, Drained { update, ..Drained::default() })
    }

    /// Whether an update that waits asks for a hard cut, so that the chunk in hand would never be seen.
    pub(crate) fn wants_reset(&self) -> bool {
        self.lock().waiting.parameters.reset_cache == Some(true)
    }

    pub(crate) fn should_pause(&self, now: Instant) -> bool {
        let state = self.lock();
        state.paused || state.viewers.attendance(now) == Attendance::Paused
    }

    /// # Errors
    /// Why the session must end.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Ending> {
        let state = self.lock();
        match &state.ending {
            Some(ending) => Err(ending.clone()),
            None if state.viewers.attendance(now) == Attendance::Over => Err(Ending::NobodyWatches),
            None => Ok(()),
        }
    }

    /// Waits until something is put in, at most for `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        // A change between two looks of the caller would be missed; so nobody waits long here.
        let limit = limit.min(Duration::from_millis(50));
        drop(self.changed.wait_timeout(self.lock(), limit));
    }

    /// Waits for the answer of the call in flight, or for prompts to come.
    ///
    /// # Errors
    /// Why the session must end meanwhile.
    pub(crate) fn news(&self, until: Instant) -> Result<News, Ending> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if let Some(ending) = &state.ending {
                return Err(ending.clone());
            }
            if let Some(outcome) = state.outcome.take() {
                return Ok(News::Outcome(outcome));
            }
            if let Some(texts) = state.untold_prompts() {
                return Ok(News::Prompts(texts));
            }
            if now >= until {
                let error = Error::new(Reason::BudgetSpent, "the mesh client did not answer in time");
                return Ok(News::Outcome(Outcome::failed(error)));
            }
            let left = (until - now).min(Duration::from_secs(1));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::params::Prompt;

    use super::*;

    const PATIENCE: Patience =
        Patience { pause_after: Duration::from_secs(10), end_after: Duration::from_secs(60) };

    fn mailbox() -> Mailbox {
        Mailbox::new(Parameters::default(), 0, PATIENCE, Instant::now())
    }

    fn seed(seed: u64) -> Parameters {
        Parameters { base_seed: Some(seed), ..Parameters::default() }
    }

    #[test]
    fn all_updates_that_wait_are_taken_as_one_and_the_last_value_wins() {
        let (mailbox, now) = (mailbox(), Instant::now());
        mailbox.drain();
        mailbox.update(seed(1), now);
        mailbox.reset(now);
        let last = mailbox.update(seed(2), now);
        let drained = mailbox.drain();
        assert_eq!((drained.update, drained.parameters.base_seed), (last, Some(2)));
        assert_eq!(drained.parameters.reset_cache, Some(true), "a one-shot is kept");
        let drained = mailbox.drain();
        assert_eq!((drained.update, drained.arrived), (last, None));
        assert!(drained.parameters.is_empty());
    }

    #[test]
    fn a_pause_holds_at_once_whether_asked_for_by_control_or_parameters() {
        let (mailbox, now) = (mailbox(), Instant::now());
        mailbox.update(Parameters { paused: Some(true), ..Parameters::default() }, now);
        assert!(mailbox.should_pause(now));
        mailbox.pause(false);
        assert!(!mailbox.should_pause(now));
    }

    #[test]
    fn a_session_that_nobody_watches_pauses_and_ends() {
        let (mailbox, now) = (mailbox(), Instant::now());
        assert!(mailbox.should_pause(now + Duration::from_secs(20)));
        assert_eq!(mailbox.check(now + Duration::from_secs(70)), Err(Ending::NobodyWatches));
        mailbox.viewer(now + Duration::from_secs(65));
        assert_eq!(mailbox.check(now + Duration::from_secs(70)), Ok(()));
    }

    #[test]
    fn the_late_answer_of_an_earlier_call_is_not_taken_for_that_of_the_next() {
        let mailbox = mailbox();
        let failed = |text: &str| Outcome::failed(Error::new(Reason::RankLost, text));
        let first = mailbox.ask();
        let second = mailbox.ask();
        mailbox.deliver(second, failed("second"));
        mailbox.deliver(first, failed("first"));
        let Ok(News::Outcome(outcome)) = mailbox.news(Instant::now()) else { panic!("an outcome is there") };
        assert_eq!(
            outcome.result.err().unwrap().to_string(),
            failed("second").result.err().unwrap().to_string()
        );
    }

    #[test]
    fn prompts_that_come_while_a_call_is_in_flight_are_told_once_and_still_wait() {
        let (mailbox, now) = (mailbox(), Instant::now());
        let told = || match mailbox.news(now).unwrap() {
            News::Prompts(texts) => texts,
            News::Outcome(_) => Vec::new(),
        };
        assert!(told().is_empty());
        mailbox.update(seed(1), now);
        assert!(told().is_empty(), "there is no prompt in it");
        let fox = vec![Prompt { text: "a fox".to_owned(), weight: 1.0 }];
        mailbox.update(Parameters { prompts: Some(fox), ..Parameters::default() }, now);
        assert_eq!(told(), ["a fox"]);
        assert!(told().is_empty());
        assert!(mailbox.drain().parameters.prompts.is_some());
    }

    #[test]
    fn the_first_reason_to_end_counts() {
        let mailbox = mailbox();
        mailbox.end(Ending::Asked("bye".to_owned()));
        mailbox.end(Ending::NobodyWatches);
        assert_eq!(mailbox.check(Instant::now()), Err(Ending::Asked("bye".to_owned())));
    }
}
