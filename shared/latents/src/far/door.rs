//! How the two ends find one another: stage0 comes to the leader with the name of the link, once for each end that asks.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Answer, Asker, Introduction, Wire};

/// A stranger keeps the door no longer.
const INTRODUCTION: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// The two connections of a link.
pub(super) struct Wires {
    pub(super) leader_asks: Wire,
    pub(super) stage0_asks: Wire,
}

/// Leader: waits for stage0, whose two connections are let in; whoever does not know the name is not.
pub(super) fn let_in(
    listener: &TcpListener,
    name: &str,
    is_over: &dyn Fn() -> bool,
    deadline: Instant,
) -> Result<Wires, String> {
    let failed = |error: std::io::Error| format!("stage0 cannot be waited for: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    let (mut leader_asks, mut stage0_asks) = (None, None);
    let (leader_asks, stage0_asks) = loop {
        if is_over() {
            return Err("it was closed while it waited for stage0".to_owned());
        }
        if Instant::now() >= deadline {
            return Err("stage0 did not come in time".to_owned());
        }
        match listener.accept() {
            Ok((stream, _)) => {
                let known = introduced(stream, deadline).filter(|(_, said)| said.name == name);
                match known {
                    Some((wire, Introduction { asker: Asker::Leader, .. })) => leader_asks = Some(wire),
                    Some((wire, Introduction { asker: Asker::Stage0, .. })) => stage0_asks = Some(wire),
                    None => {}
                }
            }
            // Nobody is there, or is any more.
            Err(_) => thread::sleep(PAUSE),
        }
        match (leader_asks.take(), stage0_asks.take()) {
            (Some(leader_asks), Some(stage0_asks)) => break (leader_asks, stage0_asks),
            some => (leader_asks, stage0_asks) = some,
        }
    };
    let mut wires = Wires { leader_asks, stage0_asks };
    for wire in [&mut wires.leader_asks, &mut wires.stage0_asks] {
        wire.send(&Answer::Ok(true), deadline).map_err(|error| format!("stage0 was not let in: {error}"))?;
    }
    Ok(wires)
}

fn introduced(stream: TcpStream, deadline: Instant) -> Option<(Wire, Introduction)> {
    let mut wire = Wire::new(stream).ok()?;
    let said = wire.receive(deadline.min(Instant::now() + INTRODUCTION)).ok()?;
    Some((wire, said))
}

/// stage0: goes to the leader and is let in.
pub(super) fn knock(address: SocketAddr, name: &str, deadline: Instant) -> Result<Wires, String> {
    let failed = |error: std::io::Error| format!("the leader at {address} did not let this end in: {error}");
    let connect = |asker| {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut wire = Wire::new(TcpStream::connect_timeout(&address, left)?)?;
        wire.send(&Introduction { name: name.to_owned(), asker }, deadline)?;
        Ok(wire)
    };
    let mut wires = Wires {
        leader_asks: connect(Asker::Leader).map_err(failed)?,
        stage0_asks: connect(Asker::Stage0).map_err(failed)?,
    };
    for wire in [&mut wires.leader_asks, &mut wires.stage0_asks] {
        let let_in = wire.receive::<Answer>(deadline).map_err(failed)?;
        let_in.map_err(|error| failed(std::io::Error::other(error)))?;
    }
    Ok(wires)
}
