//! The one thread that touches model and collective.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use collectives::Collective;
use contract::{Digest, Rank, WorldSize};
use mesh::DigestCache;
use tch::Tensor;
use tracing::debug;
use wan::generator::Generator;

use crate::config::EngineConfig;
use crate::monitor::Monitor;
use crate::{Command, Job, Meet};

pub(crate) struct Executor {
    pub(crate) config: EngineConfig,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) meet: Meet,
    /// The shard in memory and whose it is; kept over epochs.
    pub(crate) loaded: Option<(Rank, WorldSize, Generator)>,
    pub(crate) collective: Option<Arc<dyn Collective>>,
    pub(crate) conditionings: DigestCache<Tensor>,
    /// Which conditioning each slot holds.
    pub(crate) prompts: Vec<Option<Digest>>,
}

impl Executor {
    pub(crate) fn new(config: EngineConfig, monitor: Arc<Monitor>, meet: Meet) -> Self {
        Self {
            monitor,
            meet,
            loaded: None,
            collective: None,
            conditionings: DigestCache::new(config.conditionings),
            prompts: vec![None; config.slots],
            config,
        }
    }

    pub(crate) fn serve(mut self, queue: &Receiver<Command>) {
        tch::set_num_threads(i32::try_from(self.config.threads).unwrap_or(1).max(1));
        while let Ok(command) = queue.recv() {
            // Whoever asked may be gone; the work was done all the same.
            match command {
                Command::Load { group, deadline, done } => {
                    self.monitor.begin_load();
                    self.monitor.arm(deadline);
                    let result = self.load(group, deadline);
                    self.monitor.disarm();
                    let _ = done.send(result);
                }
                Command::Run { job, done } => {
                    let Job { plan, tensors, deadline } = *job;
                    self.monitor.arm(deadline);
                    let result = self.run(&plan, tensors, deadline);
                    self.monitor.disarm();
                    if let Err(error) = &result {
                        debug!(plan = plan.plan_id.0, %error, "the run failed");
                    }
                    let _ = done.send(result);
                }
            }
        }
    }
}
