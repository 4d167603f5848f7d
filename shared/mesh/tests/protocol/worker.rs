//! What a worker acknowledges, refuses, runs, and when it leaves.

use std::time::{Duration, Instant};

use crate::fixtures::{self, SIZE, model, ms, world};
use contract::envelope::MeshPhase;
use contract::model::TpPlan;
use contract::tp::{Ack, Assignment, Beat, JoinReply, Plan, PlanId, PlanRef, PlanRequest, TpShutdown};
use contract::{
    CONTRACT_VERSION, CacheEpoch, Digest, Error, InstanceId, MeshEpoch, Rank, Reason, SessionSlot,
};
use mesh::leader::LoadFailure;
use mesh::worker::{Action, Input, Worker};
use mesh::{ExitCode, Ticket, Timing};

pub(crate) const EPOCH: MeshEpoch = MeshEpoch(4);

struct Rig {
    now: Instant,
    worker: Worker,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        Self { now, worker: Worker::new(now, fixtures::worker_config()) }
    }

    /// Joined and loaded.
    fn ready() -> Self {
        let mut rig = Self::new();
        rig.tell(Input::Tick);
        rig.tell(Input::JoinAnswered(Ok(JoinReply::Assigned(assignment(EPOCH)))));
        rig.tell(Input::Loaded { epoch: EPOCH, result: Ok(()) });
        rig.tell(Input::Beat(beat(EPOCH, MeshPhase::Ready)));
        assert_eq!(rig.worker.view().phase, MeshPhase::Ready);
        rig
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        self.worker.handle(self.now, input)
    }

    fn after(&mut self, time: Duration, input: Input) -> Vec<Action> {
        self.now += time;
        self.tell(input)
    }

    /// Ticks as a shell does, so that time passes without this rank being late itself.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            actions.extend(self.after(ms(50), Input::Tick));
        }
        actions
    }

    fn plan(&mut self, plan: &Plan) -> Result<Ack, Error> {
        let digest = plan.digest().unwrap();
        self.plan_as(plan, digest)
    }

    fn plan_as(&mut self, plan: &Plan, digest: Digest) -> Result<Ack, Error> {
        let request = Box::new(PlanRequest { version: CONTRACT_VERSION, plan: plan.clone(), digest });
        answer(&self.tell(Input::Plan { ticket: Ticket(1), request }))
    }

    fn go(&mut self, plan: &Plan) -> (Result<Ack, Error>, bool) {
        let actions = self.tell(Input::Go { ticket: Ticket(2), reference: reference(plan) });
        (answer(&actions), actions.iter().any(|a| matches!(a, Action::Run { .. })))
    }

    fn cancel(&mut self, plan: &Plan) -> Result<Ack, Error> {
        answer(&self.tell(Input::Cancel { ticket: Ticket(3), reference: reference(plan) }))
    }
}

fn answer(actions: &[Action]) -> Result<Ack, Error> {
    let answered = |action: &Action| match action {
        Action::Answer { result, .. } => Some(result.clone()),
        _ => None,
    };
    actions.iter().find_map(answered).unwrap()
}

pub(crate) fn assignment(mesh_epoch: MeshEpoch) -> Assignment {
    Assignment {
        mesh_epoch,
        rank: Rank(1),
        world_size: world(2),
        tp_plan: TpPlan::V1GeneratorOnly,
        collective: vec![1],
        liveness: "127.0.0.1:1".into(),
    }
}

pub(crate) fn beat(mesh_epoch: MeshEpoch, phase: MeshPhase) -> Beat {
    Beat {
        mesh_epoch,
        rank: Rank::LEADER,
        instance: format!("{:032x}", 1).parse().unwrap(),
        phase,
        busy_ms: None,
        leaving: false,
        fault: None,
    }
}

fn plan(id: u64) -> Plan {
    Plan {
        mesh_epoch: EPOCH,
        plan_id: PlanId(id),
        slot: SessionSlot(0),
        cache_epoch: CacheEpoch(1),
        size: SIZE,
        current_start_frame: 0,
        num_latent_frames: 3,
        denoising_steps: vec![1000, 500],
        do_kv_recompute: false,
        init_cache: true,
        reset_kv_cache: false,
        reset_crossattn_cache: false,
        base_seed: 1,
        kv_cache_attention_bias: 0.3,
        expected_generator_calls: model().expected_calls(2, false),
        conditioning: Digest::of(&[b"prompt"]),
        conditioning_follows: true,
    }
}

fn reference(plan: &Plan) -> PlanRef {
    PlanRef {
        mesh_epoch: plan.mesh_epoch,
        plan_id: plan.plan_id,
        digest: plan.digest().unwrap(),
        budget_ms: 1000,
    }
}

fn exit_of(actions: &[Action]) -> Option<(ExitCode, String)> {
    actions.iter().find_map(|action| match action {
        Action::Exit { code, reason } => Some((*code, reason.clone())),
        _ => None,
    })
}

#[test]
fn plan_go_and_cancel_are_idempotent() {
    let mut rig = Rig::ready();
    let first = plan(1);
    assert_eq!(rig.plan(&first), rig.plan(&first));
    let (acked, runs) = rig.go(&first);
    assert!(acked.is_ok() && runs);
    let (again, runs) = rig.go(&first);
    assert!(again.is_ok() && !runs, "a repeated go runs once");
    assert!(rig.plan(&first).is_ok(), "a repeated plan of a running one is acknowledged");
    rig.tell(Input::Ran { epoch: EPOCH, plan_id: PlanId(1), result: Ok(()) });
    assert!(rig.go(&first).0.is_ok() && !rig.go(&first).1, "a go that comes late changes nothing");

    let second = plan(2);
    rig.plan(&second).unwrap();
    assert!(rig.cancel(&second).is_ok() && rig.cancel(&second).is_ok());
    assert_eq!(rig.go(&second).0.unwrap_err().reason, Reason::StaleCall, "cancelled is cancelled");
}

#[test]
fn nothing_runs_without_a_go_for_exactly_the_armed_plan() {
    let mut rig = Rig::ready();
    let (refused, runs) = rig.go(&plan(1));
    assert!(refused.is_err() && !runs);
    rig.plan(&plan(1)).unwrap();
    let mut other = plan(1);
    other.base_seed = 2;
    let (refused, runs) = rig.go(&other);
    assert!(refused.is_err() && !runs);
    let mut late = reference(&plan(1));
    late.budget_ms = 0;
    let actions = rig.tell(Input::Go { ticket: Ticket(9), reference: late });
    assert!(answer(&actions).is_err() && actions.len() == 1);
}

#[test]
fn a_cancel_that_overtakes_its_plan_keeps_it_out() {
    let mut rig = Rig::ready();
    rig.cancel(&plan(1)).unwrap();
    assert_eq!(rig.plan(&plan(1)).unwrap_err().reason, Reason::StaleCall);
    rig.plan(&plan(2)).unwrap();
}

#[test]
fn a_running_plan_is_neither_cancelled_nor_replaced() {
    let mut rig = Rig::ready();
    rig.plan(&plan(1)).unwrap();
    assert!(rig.go(&plan(1)).1);
    assert_eq!(rig.cancel(&plan(1)).unwrap_err().reason, Reason::StaleCall);
    assert_eq!(rig.plan(&plan(2)).unwrap_err().reason, Reason::Busy);
}

#[test]
fn a_plan_that_cannot_run_here_is_nacked_with_the_reason() {
    type Spoil = fn(&mut Plan);
    let cases: [(Reason, Spoil); 7] = [
        (Reason::StaleEpoch, |p| p.mesh_epoch = MeshEpoch(3)),
        (Reason::BadField, |p| p.slot = SessionSlot(3)),
        (Reason::BadField, |p| p.num_latent_frames = 2),
        (Reason::BadSteps, |p| p.denoising_steps = vec![500, 1000]),
        (Reason::CallCount, |p| p.expected_generator_calls = 9),
        (Reason::UnsupportedSize, |p| p.size.width = 64),
        (Reason::UnknownConditioning, |p| p.conditioning_follows = false),
    ];
    for (reason, spoil) in cases {
        let mut rig = Rig::ready();
        let mut plan = plan(1);
        spoil(&mut plan);
        assert_eq!(rig.plan(&plan).unwrap_err().reason, reason);
    }
    let mut rig = Rig::ready();
    let error = rig.plan_as(&plan(1), Digest::of(&[b"other"])).unwrap_err();
    assert!(error.message.contains("digest"), "{error}");
    rig.plan(&plan(1)).unwrap();
    let mut other = plan(1);
    other.base_seed = 2;
    assert_eq!(rig.plan(&other).unwrap_err().reason, Reason::StaleCall);
}

#[test]
fn without_its_leader_a_worker_drops_the_epoch_keeps_its_shard_and_asks_again() {
    let mut rig = Rig::ready();
    let actions = rig.tell(Input::LeaderGone { epoch: EPOCH, why: "connection closed".into() });
    assert!(actions.iter().any(|a| matches!(a, Action::Leave { .. })));
    let asked = rig.pass(ms(50));
    let Some(Action::AskJoin(request)) = asked.first() else { panic!("{asked:?}") };
    assert_eq!(request.holds, Some((Rank(1), world(2))));
    // The epoch it left is not entered again by a late answer.
    assert_eq!(rig.tell(Input::JoinAnswered(Ok(JoinReply::Assigned(assignment(EPOCH))))), []);
    rig.pass(ms(300));
    let entered = rig.tell(Input::JoinAnswered(Ok(JoinReply::Assigned(assignment(MeshEpoch(5))))));
    assert!(matches!(entered.first(), Some(Action::Enter(_))));
}

#[test]
fn the_watchdog_aborts_what_runs_and_the_engine_must_be_idle_before_it_joins_again() {
    let mut rig = Rig::ready();
    rig.plan(&plan(1)).unwrap();
    assert!(rig.go(&plan(1)).0.is_ok());
    let actions = rig.pass(Timing::default().watchdog + ms(100));
    assert!(actions.iter().any(|a| matches!(a, Action::Abort { .. })));
    assert!(!actions.iter().any(|a| matches!(a, Action::AskJoin(_))));
    let error = Error::new(Reason::CallAborted, "aborted");
    rig.tell(Input::Ran { epoch: EPOCH, plan_id: PlanId(1), result: Err(error) });
    assert!(rig.pass(ms(50)).iter().any(|a| matches!(a, Action::AskJoin(_))));
}

#[test]
fn an_engine_that_does_not_come_back_needs_a_restart() {
    let mut rig = Rig::ready();
    rig.plan(&plan(1)).unwrap();
    assert!(rig.go(&plan(1)).0.is_ok());
    rig.tell(Input::LeaderGone { epoch: EPOCH, why: "connection closed".into() });
    let timing = Timing::default();
    let (code, _) = exit_of(&rig.pass(timing.abort + timing.connect + ms(100))).unwrap();
    assert_eq!(code, ExitCode::NeedsRestart);
}

#[test]
fn a_worker_without_any_leader_ends_orphaned_and_one_that_waits_for_others_does_not() {
    let mut rig = Rig::new();
    let grace = Timing::default().orphan_grace;
    let (code, _) = exit_of(&rig.pass(grace + ms(100))).unwrap();
    assert_eq!(code, ExitCode::Orphaned);

    let mut rig = Rig::new();
    for _ in 0..300 {
        assert_eq!(exit_of(&rig.pass(ms(1000))), None);
        rig.tell(Input::JoinAnswered(Ok(JoinReply::Waiting { joined: 1, world_size: world(4) })));
    }
}

#[test]
fn a_refusal_for_good_ends_the_worker_with_2_and_its_message() {
    let mut rig = Rig::new();
    rig.tell(Input::Tick);
    let refused = Error::new(Reason::TpPlanMismatch, "tp_plan: leader a, worker b (set by X)");
    let (code, reason) = exit_of(&rig.tell(Input::JoinAnswered(Err(refused)))).unwrap();
    assert_eq!(code, ExitCode::Configuration);
    assert!(reason.contains("(set by X)"));

    let mut rig = Rig::new();
    rig.tell(Input::Tick);
    let full = Error::new(Reason::MeshFull, "all 2 ranks are taken");
    assert_eq!(exit_of(&rig.tell(Input::JoinAnswered(Err(full)))), None);
    let away = Error::new(Reason::NoResponders, "nobody");
    rig.pass(ms(300));
    assert_eq!(exit_of(&rig.tell(Input::JoinAnswered(Err(away)))), None);
}

#[test]
fn failed_weights_end_the_rank_and_a_failed_meeting_does_not() {
    let load = |failure| {
        let mut rig = Rig::new();
        rig.tell(Input::Tick);
        rig.tell(Input::JoinAnswered(Ok(JoinReply::Assigned(assignment(EPOCH)))));
        exit_of(&rig.tell(Input::Loaded { epoch: EPOCH, result: Err(failure) }))
    };
    let error = || Error::new(Reason::BadField, "no such file");
    assert_eq!(load(LoadFailure::Own(error())).unwrap().0, ExitCode::Failed);
    assert_eq!(load(LoadFailure::NoRoom(error())).unwrap().0, ExitCode::Configuration);
    assert_eq!(load(LoadFailure::Peer(error())).unwrap().0, ExitCode::Failed);
    assert_eq!(load(LoadFailure::Stuck(error())).unwrap().0, ExitCode::NeedsRestart);
    assert_eq!(load(LoadFailure::Group(error())), None);
}

#[test]
fn asked_to_stop_a_worker_finishes_its_run_and_ends_with_0() {
    let mut rig = Rig::ready();
    rig.plan(&plan(1)).unwrap();
    assert!(rig.go(&plan(1)).0.is_ok());
    assert_eq!(exit_of(&rig.tell(Input::Drain)), None);
    assert!(rig.worker.view().draining);
    let actions = rig.tell(Input::Ran { epoch: EPOCH, plan_id: PlanId(1), result: Ok(()) });
    assert_eq!(exit_of(&actions), None, "the leader has yet to end the epoch");
    let actions = rig.tell(Input::LeaderGone { epoch: EPOCH, why: "connection closed".into() });
    assert_eq!(exit_of(&actions).unwrap().0, ExitCode::Asked);

    let mut stuck = Rig::ready();
    stuck.plan(&plan(1)).unwrap();
    assert!(stuck.go(&plan(1)).0.is_ok());
    stuck.tell(Input::Drain);
    assert_eq!(exit_of(&stuck.pass(Timing::default().drain + ms(100))).unwrap().0, ExitCode::Asked);
}

#[test]
fn only_a_shutdown_of_its_own_epoch_ends_a_worker() {
    let shutdown = |mesh_epoch| Input::Shutdown(TpShutdown { mesh_epoch, reason: "ops".into() });
    let mut rig = Rig::ready();
    assert_eq!(exit_of(&rig.tell(shutdown(MeshEpoch(3)))), None);
    assert_eq!(exit_of(&rig.tell(shutdown(EPOCH))).unwrap().0, ExitCode::Asked);
}

#[test]
fn a_shutdown_is_heard_after_the_abort_that_came_with_it() {
    let shutdown = |mesh_epoch| Input::Shutdown(TpShutdown { mesh_epoch, reason: "ops".into() });
    let mut rig = Rig::ready();
    rig.tell(Input::LeaderGone { epoch: EPOCH, why: "connection closed".into() });
    assert_eq!(exit_of(&rig.tell(shutdown(MeshEpoch(3)))), None);
    assert_eq!(exit_of(&rig.tell(shutdown(EPOCH))).unwrap().0, ExitCode::Asked);
}

#[test]
fn a_leader_that_says_faulted_is_left() {
    let mut rig = Rig::ready();
    let actions = rig.tell(Input::Beat(beat(EPOCH, MeshPhase::Faulted)));
    assert!(actions.iter().any(|a| matches!(a, Action::Leave { .. })));
}

#[test]
fn two_leaders_of_one_epoch_are_believed_by_nobody() {
    let mut rig = Rig::ready();
    let other = Beat { instance: InstanceId::random(), ..beat(EPOCH, MeshPhase::Ready) };
    let actions = rig.tell(Input::Beat(other));
    assert!(actions.iter().any(|a| matches!(a, Action::Leave { .. })), "{actions:?}");
    assert!(rig.worker.view().last_fault.unwrap().contains("claims it as well"));
}

#[test]
fn an_engine_that_outstays_its_deadline_is_aborted() {
    let mut rig = Rig::ready();
    rig.plan(&plan(1)).unwrap();
    assert!(rig.go(&plan(1)).1);
    let actions = rig.pass(ms(1_050));
    assert!(actions.iter().any(|a| matches!(a, Action::Abort { .. })), "{actions:?}");
    assert_eq!(rig.worker.view().phase, MeshPhase::Faulted);
}
