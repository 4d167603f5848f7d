//! One end of the link, for the caller and for the thread that answers the other end.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use contract::{Error, LinkSlot, Reason};
use tch::Tensor;

use super::Carrier;
use super::door::Wires;
use super::wire::{Answer, Ask, Wire};
use crate::Condition;
use crate::ring::{Layout, Reader, Side};

/// Between two looks for the turn.
const PAUSE: Duration = Duration::from_micros(200);

pub(super) struct End {
    side: Side,
    layout: Arc<Layout>,
    /// What the other end reads.
    own: Reader,
    carrier: Arc<dyn Carrier>,
    state: Mutex<State>,
    changed: Condvar,
    /// To be shut down.
    connections: OnceLock<Vec<TcpStream>>,
    /// Where this end asks, once the link is open.
    asks: Mutex<Option<Wire>>,
    /// Leader: for as long as a tensor is carried, in either direction.
    turn: Mutex<()>,
}

enum State {
    Opening,
    Open,
    Over(String),
}

impl End {
    pub(super) fn new(layout: Arc<Layout>, side: Side, carrier: Arc<dyn Carrier>) -> Self {
        Self {
            side,
            own: Reader::new(Arc::clone(&layout), side),
            layout,
            carrier,
            state: Mutex::new(State::Opening),
            changed: Condvar::new(),
            connections: OnceLock::new(),
            asks: Mutex::new(None),
            turn: Mutex::new(()),
        }
    }

    pub(super) fn carrier(&self) -> &dyn Carrier {
        &*self.carrier
    }

    pub(super) fn own(&self) -> &Reader {
        &self.own
    }

    /// Of a slot in this end's ring.
    pub(super) fn position(&self, slot: LinkSlot) -> usize {
        (slot.0 - self.layout.ring(self.side).start) as usize
    }

    /// The carriers meet, and the link is open; the connection on which the other end asks.
    pub(super) fn open(&self, wires: Wires, deadline: Instant) -> Result<Wire, String> {
        let (asks, served) = match self.side {
            Side::Leader => (wires.leader_asks, wires.stage0_asks),
            Side::Stage0 => (wires.stage0_asks, wires.leader_asks),
        };
        let handles = [&asks, &served].into_iter().map(Wire::handle).collect::<Result<Vec<_>, _>>();
        let _ = self.connections.set(handles.map_err(|error| error.to_string())?);
        // The link may have been closed before there was anything to shut down.
        self.go_on(|_| {}).inspect_err(|_| self.shut_down())?;
        self.carrier.meet(deadline).map_err(|error| text(&error))?;
        *lock(&self.asks) = Some(asks);
        let opened = self.go_on(|state| *state = State::Open);
        self.changed.notify_all();
        // Closed while the carriers met: that they have is for nobody.
        opened.inspect_err(|why| self.carrier.end(why))?;
        Ok(served)
    }

    /// Unless the link is over.
    fn go_on(&self, step: impl FnOnce(&mut State)) -> Result<(), String> {
        let mut state = lock(&self.state);
        if let State::Over(why) = &*state {
            return Err(why.clone());
        }
        step(&mut state);
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(*lock(&self.state), State::Over(_))
    }

    pub(super) fn condition(&self) -> Condition {
        match &*lock(&self.state) {
            State::Opening => Condition::Opening,
            State::Open => Condition::Open,
            State::Over(why) => Condition::Failed(failure(why)),
        }
    }

    /// Ends the link, for the first reason that there is. Never blocks.
    pub(super) fn end(&self, why: &str) {
        if self.go_on(|state| *state = State::Over(why.to_owned())).is_err() {
            return;
        }
        self.shut_down();
        self.changed.notify_all();
        self.carrier.end(why);
    }

    fn shut_down(&self) {
        for connection in self.connections.get().into_iter().flatten() {
            // Closed already is what is wanted.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn fail(&self, why: &str) -> Error {
        self.end(why);
        match self.condition() {
            Condition::Failed(error) => error,
            Condition::Opening | Condition::Open => failure(why),
        }
    }

    /// Looks whether the other end is there, as far as can be seen without asking it.
    ///
    /// # Errors
    /// `fenced` when it is not, or the link is over for another reason.
    pub(super) fn check_other(&self) -> Result<(), Error> {
        let closed = lock(&self.asks).as_ref().is_some_and(Wire::is_closed);
        if closed {
            self.end("the other end has closed it or is gone");
        }
        match self.condition() {
            Condition::Failed(error) => Err(Error { reason: Reason::Fenced, ..error }),
            Condition::Opening | Condition::Open => Ok(()),
        }
    }

    /// Waits until the link is open.
    fn opened(&self, deadline: Instant) -> Result<(), Error> {
        let wait = deadline.saturating_duration_since(Instant::now());
        let opening = |state: &mut State| matches!(state, State::Opening);
        let waited = self.changed.wait_timeout_while(lock(&self.state), wait, opening);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open => Ok(()),
            State::Over(why) => Err(failure(why)),
            State::Opening => Err(Error::new(Reason::NotReady, "the link is still being opened")),
        }
    }

    /// Asks the other end and waits for its answer.
    pub(super) fn ask(&self, ask: &Ask, deadline: Instant) -> Answer {
        self.opened(deadline)?;
        let mut asks = lock(&self.asks);
        let wire = asks.as_mut().ok_or_else(|| failure("it has no connection"))?;
        let answered = wire.send(ask, deadline).and_then(|()| wire.receive::<Answer>(deadline));
        answered.unwrap_or_else(|error| Err(self.fail(&error.to_string())))
    }

    pub(super) fn receive(&self, tensor: &Tensor, len: usize, deadline: Instant) -> Result<(), Error> {
        if len == 0 {
            return Ok(());
        }
        self.carrier.receive(tensor, len, deadline).map_err(|error| self.fail(&text(&error)))
    }

    /// The right to have a tensor carried, until it is dropped. stage0 has it by the leader's answers.
    pub(super) fn turn(&self, deadline: Instant) -> Result<Option<MutexGuard<'_, ()>>, Error> {
        if self.side == Side::Stage0 {
            return Ok(None);
        }
        loop {
            match self.turn.try_lock() {
                Ok(turn) => return Ok(Some(turn)),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(Some(poisoned.into_inner())),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(Reason::SlotBusy, "the link carries another tensor"));
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What every call on a link that is over is answered with.
fn failure(why: &str) -> Error {
    Error::new(Reason::CallAborted, "the link between stage0 and the mesh is over").detail(why)
}

/// An error in full, for the reason of an end.
pub(super) fn text(error: &Error) -> String {
    match &error.detail {
        Some(detail) => format!("{}: {detail}", error.message),
        None => error.message.clone(),
    }
}
