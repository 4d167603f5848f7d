//! How an end answers what the other end asks of its ring.

use std::time::Instant;

use contract::Error;
use contract::tensor::TensorSpec;

use super::TRANSFER;
use super::end::{End, text};
use super::wire::{Answer, Ask, Wire};

/// Why a question was not answered with yes.
enum Failed {
    /// By the ring: the link goes on.
    Refused(Error),
    /// The link does not.
    Broken(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Answers until the link is over; why it is.
pub(super) fn serve(end: &End, mut wire: Wire) -> String {
    loop {
        let ask = match wire.next(|| end.is_over()) {
            Ok(Some(ask)) => ask,
            Ok(None) => return "it was closed here".to_owned(),
            Err(error) => return error.to_string(),
        };
        let deadline = Instant::now() + TRANSFER;
        let answer = match answer(end, &mut wire, ask, deadline) {
            Ok(yes) => Answer::Ok(yes),
            Err(Failed::Refused(error)) => Err(error),
            Err(Failed::Broken(why)) => return why,
        };
        if let Err(error) = wire.send(&answer, deadline) {
            return error.to_string();
        }
    }
}

fn answer(end: &End, wire: &mut Wire, ask: Ask, deadline: Instant) -> Result<bool, Failed> {
    match ask {
        Ask::Read(spec) => lend(end, wire, &spec, deadline).map(|()| true),
        Ask::Took => Err(Failed::Broken("the other end took what it had not asked for".to_owned())),
        Ask::Release(slot, generation) => Ok(end.own().release(slot, generation).map(|()| true)?),
        Ask::Holds(slot, generation) => Ok(end.own().holds(slot, generation)),
    }
}

/// Holds a slot for its reader, and sends what is in it; the answer is the one to `Took`.
fn lend(end: &End, wire: &mut Wire, spec: &TensorSpec, deadline: Instant) -> Result<(), Failed> {
    let len = end.own().check(spec)?;
    let _turn = end.turn(deadline)?;
    let reading = end.own().begin(spec)?;
    wire.send(&Answer::Ok(true), deadline)?;
    if len > 0 {
        let sent = end.carrier().send(end.position(spec.slot), len, deadline);
        sent.map_err(|error| Failed::Broken(text(&error)))?;
    }
    match wire.receive(deadline)? {
        Ask::Took => Ok(end.own().end(reading)?),
        _ => Err(Failed::Broken("the other end asks on before it has taken what it asked for".to_owned())),
    }
}
