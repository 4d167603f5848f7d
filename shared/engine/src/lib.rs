//! The lockstep engine of one rank: its shard of the generator, its end of the collective, and the one thread that runs
//! plans on them. Plans go in, counts and digests come out, on rank 0 with the latents.
//!
//! The engine decides nothing: it runs what it is given, in order, each with a deadline. A monitor thread aborts the
//! collective when the deadline of what runs has passed.

mod arguments;
mod config;
mod executor;
mod failure;
mod info;
mod load;
mod monitor;
mod placement;
mod progress;
mod run;
pub mod settings;
mod tensors;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Instant;

use collectives::{Collective, CollectiveError, Rendezvous};
use contract::tp::Plan;
use contract::{Error, Rank, Reason, WorldSize};
use mesh::leader::LoadFailure;
use tch::Device;
use tokio::sync::oneshot;

pub use self::config::{EngineConfig, check_transport, check_world_size, compute_kind};
pub use self::info::{fingerprint, model_info};
pub use self::load::meet;
use self::monitor::Monitor;
pub use self::placement::{Demand, Place, PlacementSection, Room, When, check_stage0};
pub use self::progress::Reading;
pub use self::run::Outcome;
pub use self::tensors::CallTensors;

/// Commands that wait for the executor. The protocol has one run at a time; a load may follow an aborted run.
const QUEUE: usize = 4;

/// The place of one rank in one mesh epoch.
#[derive(Debug)]
pub struct Group {
    pub rank: Rank,
    pub world_size: WorldSize,
    /// `None` at world size 1.
    pub rendezvous: Option<Rendezvous>,
    /// The ranks must have met by then; it cannot be aborted, so keep it short.
    pub meet_by: Instant,
}

/// How a rank meets the others of its epoch: [`meet`], or something around it. Blocks until `meet_by` at most.
pub type Meet = Box<dyn Fn(Group, Device) -> Result<Arc<dyn Collective>, CollectiveError> + Send>;

enum Command {
    Load { group: Group, deadline: Instant, done: oneshot::Sender<Result<(), LoadFailure>> },
    Run { job: Box<Job>, done: oneshot::Sender<Result<Outcome, Error>> },
}

struct Job {
    plan: Plan,
    /// On rank 0 only.
    tensors: Option<CallTensors>,
    deadline: Instant,
}

/// A handle on the executor thread. Dropping the last one ends the thread once it is idle.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    monitor: Arc<Monitor>,
    device: Device,
}

impl Engine {
    /// Starts the executor and its monitor; nothing is loaded yet.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn spawn(config: EngineConfig) -> Result<Self, Error> {
        Self::spawn_with(config, Box::new(meet))
    }

    /// An engine whose caller says how the ranks meet.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with(config: EngineConfig, meet: Meet) -> Result<Self, Error> {
        let device = config.device;
        let (commands, queue) = sync_channel(QUEUE);
        let monitor = Monitor::start().map_err(|e| no_thread(&e))?;
        let executor = executor::Executor::new(config, Arc::clone(&monitor), meet);
        thread::Builder::new()
            .name("km-engine".to_owned())
            .spawn(move || executor.serve(&queue))
            .map_err(|e| no_thread(&e))?;
        Ok(Self { commands, monitor, device })
    }

    /// Where this rank computes, which says over what it meets the others.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Meets the other ranks, loads this rank's shard unless it is in memory already, then: all-reduce(min) of load_ok,
    /// barrier. The collective of an earlier epoch is dropped and every slot is empty afterwards.
    pub fn load(&self, group: Group, deadline: Instant) -> oneshot::Receiver<Result<(), LoadFailure>> {
        let (done, result) = oneshot::channel();
        if let Err(refused) = self.commands.try_send(Command::Load { group, deadline, done })
            && let (Command::Load { done, .. }, error) = refused_by(refused)
        {
            let _ = done.send(Err(LoadFailure::Group(error)));
        }
        result
    }

    /// Runs a plan in lockstep with the other ranks. `tensors` are given on rank 0 and nowhere else.
    pub fn run(
        &self,
        plan: Plan,
        tensors: Option<CallTensors>,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<Outcome, Error>> {
        let (done, result) = oneshot::channel();
        let job = Box::new(Job { plan, tensors, deadline });
        if let Err(refused) = self.commands.try_send(Command::Run { job, done })
            && let (Command::Run { done, .. }, error) = refused_by(refused)
        {
            let _ = done.send(Err(error));
        }
        result
    }

    /// Makes every blocked collective call of this rank return, and what was queued before this fail. Never blocks.
    pub fn abort(&self, reason: &str) {
        self.monitor.abort(reason);
    }
}

fn refused_by(refused: TrySendError<Command>) -> (Command, Error) {
    match refused {
        TrySendError::Full(command) => {
            (command, Error::new(Reason::QueueFull, format!("{QUEUE} commands already wait for the engine")))
        }
        TrySendError::Disconnected(command) => {
            (command, Error::new(Reason::Internal, "the engine's executor has ended"))
        }
    }
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::new(Reason::Internal, "an engine thread cannot be started").detail(error.to_string())
}
