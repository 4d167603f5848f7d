//! The liveness socket: one connection from each worker, each with a thread of its own that does nothing but beats.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use contract::tp::Beat;
use contract::{Error, MeshEpoch, Reason};
use mesh::leader::Input;
use mesh::liveness::{BEAT_INTERVAL, BeatReader, encode_beat};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::board::Board;
use crate::driver::Event;

/// How long a read may block, so that beats leave in time.
const READ_WAIT: Duration = Duration::from_millis(50);
const WRITE_WAIT: Duration = Duration::from_millis(500);
/// A connection says who it is within this time.
const INTRODUCTION: Duration = Duration::from_secs(2);
const MAX_CONNECTIONS: usize = 128;

/// Binds the socket and serves it from then on; returns the address that workers are told.
///
/// # Errors
/// `bad_field` for an address that cannot be bound.
pub(crate) fn start(bind: &str, board: Arc<Board>, events: mpsc::Sender<Event>) -> Result<String, Error> {
    let refused =
        |e: std::io::Error| Error::new(Reason::BadField, format!("mesh.liveness_bind {bind:?}: {e}"));
    let listener = TcpListener::bind(bind).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?.to_string();
    thread::Builder::new()
        .name("km-liveness".to_owned())
        .spawn(move || accept(&listener, &board, &events))
        .map_err(refused)?;
    Ok(address)
}

fn accept(listener: &TcpListener, board: &Arc<Board>, events: &mpsc::Sender<Event>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            warn!(MAX_CONNECTIONS, "too many liveness connections: one was refused");
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (board, events, counted) = (Arc::clone(board), events.clone(), Arc::clone(&open));
        let started = thread::Builder::new().name("km-beats".to_owned()).spawn(move || {
            serve(stream, &board, &events);
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = started {
            open.fetch_sub(1, Ordering::Relaxed);
            warn!(%error, "a liveness thread cannot be started");
        }
    }
}

fn serve(mut stream: TcpStream, board: &Board, events: &mpsc::Sender<Event>) {
    let mut worker: Option<Beat> = None;
    let why = match exchange(&mut stream, board, events, &mut worker) {
        Ok(()) => return,
        Err(error) => error.to_string(),
    };
    debug!(why, "a liveness connection ended");
    if let Some(Beat { mesh_epoch, rank, instance, .. }) = worker {
        let gone = Input::Gone { epoch: mesh_epoch, rank, instance, why };
        // Ends with the process if the driver is gone.
        let _ = events.blocking_send(Event::Machine(gone));
    }
}

/// Beats both ways until the connection or the worker's epoch ends.
fn exchange(
    stream: &mut TcpStream,
    board: &Board,
    events: &mpsc::Sender<Event>,
    worker: &mut Option<Beat>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_WAIT))?;
    stream.set_write_timeout(Some(WRITE_WAIT))?;
    let opened = Instant::now();
    let mut sent: Option<Instant> = None;
    let (mut reader, mut buffer) = (BeatReader::default(), [0_u8; 4096]);
    loop {
        let now = Instant::now();
        match worker.as_ref().map(|beat| beat.mesh_epoch) {
            Some(epoch) if board.epoch() != Some(epoch) => return send(stream, board, epoch, now),
            Some(epoch) if sent.is_none_or(|sent| now - sent >= BEAT_INTERVAL) => {
                send(stream, board, epoch, now)?;
                sent = Some(now);
            }
            None if now - opened > INTRODUCTION => return Ok(()),
            _ => {}
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(std::io::Error::new(ErrorKind::UnexpectedEof, "connection closed")),
            Ok(n) => reader.extend(&buffer[..n]),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
        while let Some(beat) = reader.next_beat().map_err(std::io::Error::other)? {
            *worker = Some(beat.clone());
            // A full queue loses a beat, not the worker: the next one is 200 ms away.
            let _ = events.try_send(Event::Machine(Input::Beat(beat)));
        }
    }
}

fn send(stream: &mut TcpStream, board: &Board, epoch: MeshEpoch, now: Instant) -> std::io::Result<()> {
    let bytes = encode_beat(&board.beat(epoch, now)).map_err(std::io::Error::other)?;
    stream.write_all(&bytes)
}
