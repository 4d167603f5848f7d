//! How a run ends: refused, failed, or with a report that is checked before anyone hears of it.

use std::time::Instant;

use contract::envelope::{MeshPhase, MeshTimings, Reply, ResultV1};
use contract::tp::PlanId;
use contract::{CONTRACT_VERSION, Error, MeshEpoch, Reason};

use super::run::{Asked, Purpose, Run};
use super::{Action, Actions, Job, Kept, Leader, RunReport};
use crate::{ExitCode, invariants};

impl Leader {
    /// The run ends before any rank entered a collective.
    pub(super) fn finish_refused(&mut self, now: Instant, error: Error, out: &mut Actions) {
        let is_call = self.run.as_ref().is_some_and(Run::is_call);
        if !is_call {
            return self.fault(now, &error, out);
        }
        self.end_run(Err(error), out);
        self.idle(now, out);
    }

    /// Answers everyone who waits for the run, keeps the outcome for a re-ask, and forgets the run.
    pub(super) fn end_run(&mut self, outcome: Result<Reply, Error>, out: &mut Actions) {
        let Some(Run { purpose: Purpose::Call(asked), .. }) = self.run.take() else { return };
        let answer = |ticket| Action::Answer { ticket, result: outcome.clone() };
        out.extend(asked.waiters.iter().copied().map(answer));
        if self.lease.current() == Some(asked.lease) {
            let Asked { lease, call, digest, .. } = asked;
            self.kept = Some(Kept { lease, call, digest, outcome });
        }
    }

    /// Whoever waits hears `error` now; the run itself goes on to its end.
    pub(super) fn drop_waiters(&mut self, error: &Error, out: &mut Actions) {
        if let Some(Run { purpose: Purpose::Call(asked), .. }) = &mut self.run {
            let waiters = std::mem::take(&mut asked.waiters);
            let answer = |ticket| Action::Answer { ticket, result: Err(error.clone()) };
            out.extend(waiters.into_iter().map(answer));
        }
    }

    pub(super) fn ran(
        &mut self,
        now: Instant,
        epoch: MeshEpoch,
        plan_id: PlanId,
        result: Result<Box<RunReport>, Error>,
        out: &mut Actions,
    ) {
        if self.engine == Some(Job::Run(epoch, plan_id)) {
            self.engine = None;
        }
        let current = self.is_current(epoch) && self.run.as_ref().is_some_and(|r| r.plan.plan_id == plan_id);
        if !current {
            return self.form_again(now, out);
        }
        let checked = result.and_then(|report| self.check_report(*report));
        match checked {
            Ok(report) => self.finish(now, report, out),
            Err(error) => self.fault(now, &error, out),
        }
    }

    fn check_report(&self, report: RunReport) -> Result<RunReport, Error> {
        let Some(run) = &self.run else { return Ok(report) };
        let expected = run.plan.expected_generator_calls;
        invariants::observed_equals_expected(expected, report.least_calls, report.most_calls)?;
        if !report.digests_agree {
            let text = format!("plan {}: ranks disagree on their output", run.plan.plan_id.0);
            return Err(Error::new(Reason::DigestMismatch, text));
        }
        if matches!(run.purpose, Purpose::Canary) {
            invariants::canary_is_the_first(self.canary.as_ref(), &report.digest)?;
        }
        Ok(report)
    }

    fn finish(&mut self, now: Instant, report: RunReport, out: &mut Actions) {
        let Some(run) = &self.run else { return };
        match &run.purpose {
            Purpose::WarmUp => {
                self.run = None;
                self.warmed += 1;
                self.warm_up(now, out);
            }
            Purpose::Canary => {
                self.run = None;
                self.canary = Some(report.digest);
                self.formed_before = true;
                self.faults_in_a_row = 0;
                self.idle(now, out);
            }
            Purpose::Call(asked) => {
                let in_force = self.lease.current();
                let outcome = match invariants::one_lease_is_obeyed(asked.lease, in_force) {
                    Err(violation) => Err(violation.into()),
                    Ok(()) => result(run, asked, report),
                };
                if outcome.is_ok() {
                    self.slots.finished(&asked.infer);
                }
                self.end_run(outcome, out);
                self.idle(now, out);
            }
        }
    }

    fn idle(&mut self, now: Instant, out: &mut Actions) {
        if self.draining.is_some() {
            return self.exit(now, ExitCode::Asked, "asked to stop".to_owned(), out);
        }
        self.set_phase(now, MeshPhase::Ready);
        self.let_leavers_go(now, out);
    }
}

fn result(run: &Run, asked: &Asked, report: RunReport) -> Result<Reply, Error> {
    let latents_out =
        report.latents_out?.ok_or_else(|| Error::new(Reason::Internal, "the engine delivered no latents"))?;
    let infer = &asked.infer;
    Ok(Reply::Infer(Box::new(ResultV1 {
        version: CONTRACT_VERSION,
        call_id: asked.call,
        session: infer.session,
        chunk_index: infer.chunk_index,
        cache_epoch: infer.cache_epoch,
        mesh_epoch: run.plan.mesh_epoch,
        observed_generator_calls: report.most_calls,
        mesh_current_start_frame: infer.current_start_frame + u64::from(infer.num_latent_frames),
        timings: MeshTimings { plan_us: run.plan_us, go_us: run.go_us, ..report.timings },
        output_digest: Some(report.digest),
        latents_out,
    })))
}
