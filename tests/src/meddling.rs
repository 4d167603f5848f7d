//! What becomes of single messages that cross a proxy: lost, repeated, kept to be sent again.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::frames::Message;
use crate::wait;

/// How long a message that is to be meddled with may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passes,
    Lost,
    Twice,
}

impl Fate {
    pub(crate) fn copies(self) -> usize {
        match self {
            Self::Lost => 0,
            Self::Passes => 1,
            Self::Twice => 2,
        }
    }
}

type Decide = Box<dyn FnMut(&Message) -> Fate + Send>;

/// Decides for each message; the default lets all of them pass.
#[derive(Default)]
pub struct Meddler(Option<Decide>);

impl fmt::Debug for Meddler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Meddler" } else { "Meddler(none)" })
    }
}

impl Meddler {
    pub fn new(decide: impl FnMut(&Message) -> Fate + Send + 'static) -> Self {
        Self(Some(Box::new(decide)))
    }

    pub(crate) fn fate(&mut self, message: &Message) -> Fate {
        self.0.as_mut().map_or(Fate::Passes, |decide| decide(message))
    }
}

/// Messages that were meddled with, in order.
#[derive(Clone, Debug, Default)]
pub struct Caught(Arc<Mutex<Vec<Message>>>);

impl Caught {
    fn note(&self, message: &Message) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
    }

    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until there are so many.
    ///
    /// # Panics
    /// If they do not come.
    pub async fn reach(&self, count: usize) {
        wait::until(&format!("{count} messages to meddle with"), PATIENCE, || async {
            (self.messages().len() >= count).then_some(())
        })
        .await;
    }
}

/// The first `count` messages that `of` picks are lost.
#[must_use]
pub fn lose(count: usize, of: impl Fn(&Message) -> bool + Send + 'static) -> (Meddler, Caught) {
    let caught = Caught::default();
    let seen = caught.clone();
    let meddler = Meddler::new(move |message| {
        if !of(message) || seen.messages().len() >= count {
            return Fate::Passes;
        }
        seen.note(message);
        Fate::Lost
    });
    (meddler, caught)
}

/// The answers to the first `count` requests that `of` picks are lost, on their way to whoever asked.
#[must_use]
pub fn lose_answers(count: usize, of: impl Fn(&Message) -> bool + Send + 'static) -> (Meddler, Caught) {
    let caught = Caught::default();
    let (seen, mut awaited) = (caught.clone(), BTreeSet::new());
    let meddler = Meddler::new(move |message| {
        if of(message)
            && message.published
            && let Some(reply) = &message.reply
            && seen.messages().len() + awaited.len() < count
        {
            awaited.insert(reply.clone());
        }
        if message.published || !awaited.remove(&message.subject) {
            return Fate::Passes;
        }
        seen.note(message);
        Fate::Lost
    });
    (meddler, caught)
}

/// Every message that `of` picks comes twice.
#[must_use]
pub fn repeat(of: impl Fn(&Message) -> bool + Send + 'static) -> (Meddler, Caught) {
    let caught = Caught::default();
    let seen = caught.clone();
    let meddler = Meddler::new(move |message| {
        if !of(message) {
            return Fate::Passes;
        }
        seen.note(message);
        Fate::Twice
    });
    (meddler, caught)
}

/// Every message that `of` picks is written down.
#[must_use]
pub fn capture(of: impl Fn(&Message) -> bool + Send + 'static) -> (Meddler, Caught) {
    let caught = Caught::default();
    let seen = caught.clone();
    let meddler = Meddler::new(move |message| {
        if of(message) {
            seen.note(message);
        }
        Fate::Passes
    });
    (meddler, caught)
}
