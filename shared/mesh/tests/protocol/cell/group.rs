//! Collectives: ranks meet in a job of an epoch, or their time runs out, or one of them aborts for all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use contract::tp::PlanId;
use contract::{Error, MeshEpoch, Reason};
use mesh::leader::{self, LoadFailure, RunReport};
use mesh::worker;

use super::{Carriage, Cell, Event, Node};
use crate::fixtures::report;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    Load,
    Run(PlanId),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    waiting: BTreeMap<(MeshEpoch, Job), BTreeSet<Node>>,
    /// The newest epoch that was aborted; older ones are over as well.
    aborted: Option<MeshEpoch>,
    /// Generator forwards of the newest plan.
    expected: u32,
    /// One rank will count otherwise.
    pub(crate) lies: bool,
}

impl Groups {
    pub(super) fn nodes(&self, epoch: MeshEpoch, job: Job) -> BTreeSet<Node> {
        self.waiting.get(&(epoch, job)).cloned().unwrap_or_default()
    }

    pub(super) fn leave(&mut self, node: Node) {
        self.waiting.retain(|_, nodes| {
            nodes.remove(&node);
            !nodes.is_empty()
        });
    }

    /// Nobody meets in `epoch` or an older one any more.
    pub(super) fn close(&mut self, epoch: MeshEpoch) {
        self.aborted = self.aborted.max(Some(epoch));
    }

    pub(super) fn expect(&mut self, calls: u32) {
        self.expected = calls;
    }
}

impl Cell {
    pub(super) fn enter(&mut self, epoch: MeshEpoch, node: Node, job: Job, deadline: Instant) {
        if self.world.groups.aborted.is_some_and(|aborted| epoch <= aborted) {
            return self.job_done(epoch, node, job, Err(aborted()));
        }
        let nodes = self.world.groups.waiting.entry((epoch, job)).or_default();
        nodes.insert(node);
        let complete = nodes.len() == self.setup.ranks as usize;
        // Ranks that meet for the first time wait for one another no longer than this.
        let deadline = match job {
            Job::Load => deadline.min(self.now + self.setup.timing.connect),
            Job::Run(_) => deadline,
        };
        self.post(Carriage::At(deadline), Event::TimeUp(epoch, node, job));
        if complete {
            self.post(Carriage::Local, Event::Met(epoch, job));
        }
    }

    pub(super) fn met(&mut self, epoch: MeshEpoch, job: Job) {
        let nodes = self.world.groups.nodes(epoch, job);
        if nodes.len() == self.setup.ranks as usize {
            self.world.groups.waiting.remove(&(epoch, job));
            let lies = matches!(job, Job::Run(_)) && std::mem::take(&mut self.world.groups.lies);
            let calls = self.world.groups.expected;
            let report = RunReport { least_calls: calls - u32::from(lies), ..report(calls) };
            for node in nodes {
                self.job_done(epoch, node, job, Ok(report.clone()));
            }
        }
    }

    pub(super) fn time_up(&mut self, epoch: MeshEpoch, node: Node, job: Job) {
        if !self.world.groups.nodes(epoch, job).contains(&node) {
            return;
        }
        match job {
            // Whoever came too early goes alone.
            Job::Load => {
                if let Some(nodes) = self.world.groups.waiting.get_mut(&(epoch, job)) {
                    nodes.remove(&node);
                }
                self.job_done(epoch, node, job, Err(Error::new(Reason::Internal, "the ranks did not meet")));
            }
            Job::Run(_) => self.abort(epoch),
        }
    }

    /// Every rank that is in a run of the epoch comes out of it. Ranks that are only meeting cannot be aborted.
    pub(super) fn abort(&mut self, epoch: MeshEpoch) {
        let groups = &mut self.world.groups;
        groups.aborted = groups.aborted.max(Some(epoch));
        let runs = groups.waiting.keys().filter(|(e, job)| *e <= epoch && *job != Job::Load);
        for (epoch, job) in runs.copied().collect::<Vec<_>>() {
            for node in self.world.groups.waiting.remove(&(epoch, job)).unwrap_or_default() {
                self.job_done(epoch, node, job, Err(aborted()));
            }
        }
    }

    fn job_done(&mut self, epoch: MeshEpoch, node: Node, job: Job, result: Result<RunReport, Error>) {
        let loaded = |result: Result<RunReport, Error>| result.map(|_| ()).map_err(LoadFailure::Group);
        let event = match (node, job) {
            (Node::Worker(w), Job::Load) => {
                Event::Worker(w, worker::Input::Loaded { epoch, result: loaded(result) })
            }
            (Node::Worker(w), Job::Run(plan_id)) => {
                Event::Worker(w, worker::Input::Ran { epoch, plan_id, result: result.map(|_| ()) })
            }
            (_, Job::Load) => Event::Leader(leader::Input::Loaded { epoch, result: loaded(result) }),
            (_, Job::Run(plan_id)) => {
                Event::Leader(leader::Input::Ran { epoch, plan_id, result: result.map(Box::new) })
            }
        };
        self.post(Carriage::Local, event);
    }
}

fn aborted() -> Error {
    Error::new(Reason::CallAborted, "aborted")
}
