//! From an epoch without workers to loaded weights on every rank.

use std::time::Instant;

use contract::envelope::MeshPhase;
use contract::tp::{Assignment, Beat, JoinReply, JoinRequest};
use contract::{Error, MeshEpoch, Rank, Reason};

use super::{Action, Actions, Formation, Job, Leader, LoadFailure, draining_error};
use crate::{ExitCode, invariants, parity};

impl Leader {
    pub(super) fn epoch_taken(&mut self, now: Instant, formation: Formation, out: &mut Actions) {
        if self.phase != MeshPhase::Forming || self.epoch.is_some() {
            return;
        }
        if let Err(violation) = invariants::epochs_only_grow(self.last_epoch, formation.epoch) {
            return self.exit(now, ExitCode::NeedsRestart, violation.to_string(), out);
        }
        self.last_epoch = Some(formation.epoch);
        self.epoch = Some(formation);
        self.warmed = 0;
        self.assign(now, out);
    }

    /// Parity first: a worker that can never belong here must hear it in whatever state the mesh is.
    pub(super) fn join(
        &mut self,
        now: Instant,
        request: &JoinRequest,
        out: &mut Actions,
    ) -> Result<JoinReply, Error> {
        parity::check(&self.config.parity, request)?;
        if self.draining.is_some() {
            return Err(draining_error());
        }
        let instance = request.instance;
        if let Some((rank, member)) = self.members.rank_of(instance) {
            if !member.connected {
                return self.assignment(rank);
            }
            // It was here and asks again: it dropped the epoch, and the mesh is short of a rank.
            self.rank_lost(now, format!("rank {rank}: dropped the epoch and asks to join again"), out);
        }
        if self.phase != MeshPhase::Forming && self.phase != MeshPhase::Faulted {
            let world = self.config.world_size;
            return Err(Error::new(Reason::MeshFull, format!("all {world} ranks are taken")));
        }
        self.members.wait(now, instance, request.holds);
        self.assign(now, out);
        match self.members.rank_of(instance) {
            Some((rank, _)) => self.assignment(rank),
            None => {
                Ok(JoinReply::Waiting { joined: self.members.waiting(), world_size: self.config.world_size })
            }
        }
    }

    fn assignment(&self, rank: Rank) -> Result<JoinReply, Error> {
        let formation = self
            .epoch
            .as_ref()
            .ok_or_else(|| Error::new(Reason::Recovering, "the mesh is between two epochs"))?;
        Ok(JoinReply::Assigned(Assignment {
            mesh_epoch: formation.epoch,
            rank,
            world_size: self.config.world_size,
            tp_plan: self.config.tp_plan,
            collective: formation.collective.clone(),
            liveness: formation.liveness.clone(),
        }))
    }

    fn assign(&mut self, now: Instant, out: &mut Actions) {
        let Some(epoch) = self.epoch.as_ref().map(|formation| formation.epoch) else { return };
        match self.members.assign(now, self.config.world_size, &self.config.timing) {
            Ok(false) => {}
            Ok(true) => {
                self.set_phase(now, MeshPhase::Loading);
                self.engine = Some(Job::Load(epoch));
                out.push(Action::Load { epoch, deadline: now + self.config.timing.load });
            }
            Err(violation) => self.violated(now, violation, out),
        }
    }

    pub(super) fn beat(&mut self, now: Instant, beat: &Beat, out: &mut Actions) {
        if !self.is_current(beat.mesh_epoch) {
            return;
        }
        let timing = self.config.timing;
        if !self.members.heard(now, beat.rank, beat.instance, beat.leaving, &timing) {
            return;
        }
        if let Some(fault) = &beat.fault {
            return self.rank_lost(now, format!("rank {}: {fault}", beat.rank), out);
        }
        if matches!(self.phase, MeshPhase::Loading | MeshPhase::Warming | MeshPhase::Ready) {
            self.let_leavers_go(now, out);
        }
    }

    /// A worker that announced its end waits to be let go, and is let go when no call runs: nothing is lost, and the
    /// epoch ends without a fault.
    pub(super) fn let_leavers_go(&mut self, now: Instant, out: &mut Actions) {
        if let Some(rank) = self.members.leaving() {
            let error = Error::new(Reason::Recovering, format!("rank {rank} leaves: the mesh forms again"));
            self.last_fault = Some(error.to_string());
            self.end_epoch(now, &error, out);
            self.form_again(now, out);
        }
    }

    pub(super) fn loaded(
        &mut self,
        now: Instant,
        epoch: MeshEpoch,
        result: Result<(), LoadFailure>,
        out: &mut Actions,
    ) {
        if self.engine == Some(Job::Load(epoch)) {
            self.engine = None;
        }
        match &result {
            Err(LoadFailure::Stuck(error)) => {
                return self.exit(now, ExitCode::NeedsRestart, error.to_string(), out);
            }
            // At the first forming every rank says why and ends; later only the failing one does. That rank may be gone, and
            // the epoch with it, before this is known here.
            Err(LoadFailure::Peer(error)) if !self.formed_before => {
                return self.load_failed(now, ExitCode::Failed, error, out);
            }
            _ => {}
        }
        if !self.is_current(epoch) || self.phase != MeshPhase::Loading {
            return self.form_again(now, out);
        }
        match result {
            Ok(()) => {
                self.set_phase(now, MeshPhase::Warming);
                self.warm_up(now, out);
            }
            Err(LoadFailure::Own(error)) => self.load_failed(now, ExitCode::Failed, &error, out),
            Err(LoadFailure::NoRoom(error)) => self.load_failed(now, ExitCode::Configuration, &error, out),
            Err(failure) => self.fault(now, failure.error(), out),
        }
    }

    /// The engine has a deadline of its own; this is for one that forgot it.
    pub(super) fn tick_load(&mut self, now: Instant, out: &mut Actions) {
        let took = now.saturating_duration_since(self.phase_since);
        if self.phase == MeshPhase::Loading && took >= self.config.timing.load {
            let text = format!("the weights did not load within {} s", took.as_secs());
            self.fault(now, &Error::new(Reason::BudgetSpent, text), out);
        }
    }

    fn load_failed(&mut self, now: Instant, code: ExitCode, error: &Error, out: &mut Actions) {
        self.exit(now, code, format!("loading failed: {error}"), out);
    }
}
