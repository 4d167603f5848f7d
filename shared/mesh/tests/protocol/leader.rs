//! What the leader admits, refuses, sends and answers.

use std::time::{Duration, Instant};

use crate::sim::{self, infer, ms};
use contract::envelope::{Action as Ask, EnvelopeV1, Infer, Lease, MeshPhase, MeshState, Reply, ResultV1};
use contract::tp::{Beat, JoinReply, JoinRequest, PlanId};
use contract::{
    CONTRACT_VERSION, CallId, Digest, Error, InstanceId, LeaseEpoch, MeshEpoch, Rank, Reason, SessionId,
    SessionSlot,
};
use mesh::leader::{Action, Input, Leader, LoadFailure, RunReport, Verb};
use mesh::{ExitCode, Ticket, Timing};

struct Rig {
    now: Instant,
    leader: Leader,
    worker: InstanceId,
    controller: InstanceId,
    lease: LeaseEpoch,
    next: u64,
    session: SessionId,
    epoch: MeshEpoch,
}

impl Rig {
    fn forming(ranks: u32) -> Self {
        let now = Instant::now();
        let (leader, first) = Leader::new(now, sim::leader_config(ranks));
        assert_eq!(first, [Action::TakeEpoch]);
        let mut rig = Self {
            now,
            leader,
            worker: InstanceId::random(),
            controller: InstanceId::random(),
            lease: LeaseEpoch(0),
            next: 1,
            session: SessionId::random(),
            epoch: MeshEpoch(0),
        };
        rig.take_epoch(7);
        rig
    }

    fn take_epoch(&mut self, epoch: u64) {
        self.epoch = MeshEpoch(epoch);
        let taken =
            Input::EpochTaken { epoch: self.epoch, collective: vec![1], liveness: "127.0.0.1:1".into() };
        self.tell(taken);
    }

    /// Two ranks, warm, with a lease.
    fn ready() -> Self {
        let mut rig = Self::forming(2);
        rig.form();
        rig.hello();
        rig
    }

    fn form(&mut self) {
        self.join().expect("a worker that fits is taken");
        self.beat();
        let epoch = self.epoch;
        self.tell(Input::Loaded { epoch, result: Ok(()) });
        let mut plan = 1;
        while self.phase() == MeshPhase::Warming {
            let calls = if plan == 1 || plan == 4 { 2 } else { 3 };
            self.tell(Input::Fetched { plan_id: PlanId(plan), result: Ok(()) });
            self.acknowledge(plan, Verb::Plan);
            self.acknowledge(plan, Verb::Go);
            self.ran(plan, Ok(sim::report(calls)));
            plan += 1;
        }
        assert_eq!(self.phase(), MeshPhase::Ready);
    }

    fn phase(&self) -> MeshPhase {
        self.leader.view(self.now).phase
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        self.leader.handle(self.now, input)
    }

    /// Ticks and beats, as time passes in a healthy mesh.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            self.now += ms(50);
            actions.extend(self.beat());
            actions.extend(self.tell(Input::Tick));
        }
        actions
    }

    fn join(&mut self) -> Result<JoinReply, Error> {
        self.join_as(self.worker)
    }

    fn join_as(&mut self, instance: InstanceId) -> Result<JoinReply, Error> {
        let request = JoinRequest { version: CONTRACT_VERSION, instance, parity: sim::parity(), holds: None };
        let actions = self.tell(Input::Join { ticket: Ticket(1), request });
        actions
            .into_iter()
            .find_map(|action| match action {
                Action::AnswerJoin { result, .. } => Some(result),
                _ => None,
            })
            .unwrap()
    }

    fn beat(&mut self) -> Vec<Action> {
        let beat = Beat {
            mesh_epoch: self.epoch,
            rank: Rank(1),
            instance: self.worker,
            phase: MeshPhase::Ready,
            busy_ms: None,
            leaving: false,
            fault: None,
        };
        self.tell(Input::Beat(beat))
    }

    fn acknowledge(&mut self, plan: u64, verb: Verb) -> Vec<Action> {
        self.respond(plan, verb, Ok(()))
    }

    fn respond(&mut self, plan: u64, verb: Verb, result: Result<(), Error>) -> Vec<Action> {
        let epoch = self.epoch;
        self.tell(Input::Answered { epoch, rank: Rank(1), verb, plan_id: PlanId(plan), result })
    }

    fn ran(&mut self, plan: u64, result: Result<RunReport, Error>) -> Vec<Action> {
        let epoch = self.epoch;
        self.tell(Input::Ran { epoch, plan_id: PlanId(plan), result: result.map(Box::new) })
    }

    fn envelope(&mut self, action: Ask) -> EnvelopeV1 {
        let call_id = CallId(self.next);
        self.next += 1;
        EnvelopeV1 {
            version: CONTRACT_VERSION,
            call_id,
            mesh_epoch: self.epoch,
            controller: self.controller,
            lease: (!matches!(action, Ask::Hello)).then_some(self.lease),
            action,
        }
    }

    fn call(&mut self, envelope: EnvelopeV1) -> Vec<Action> {
        let deadline = self.now + ms(5_000);
        let digest = Digest::of(&[&contract::codec::encode(&envelope).unwrap()]);
        let ticket = Ticket(100 + envelope.call_id.0);
        self.tell(Input::Call { ticket, envelope: Box::new(envelope), digest, deadline })
    }

    fn ask(&mut self, action: Ask) -> Vec<Action> {
        let envelope = self.envelope(action);
        self.call(envelope)
    }

    fn hello(&mut self) {
        let actions = self.ask(Ask::Hello);
        let [Action::OpenLink { lease }] = actions[..] else { panic!("{actions:?}") };
        let answered = self.tell(Input::LinkOpened { lease, result: Ok(sim::link()) });
        let Ok(Reply::Hello(hello)) = answer(&answered) else { panic!("{answered:?}") };
        self.lease = hello.lease;
    }

    fn infer(&self, index: u64) -> Infer {
        infer(self.session, 1, index)
    }

    /// A call up to the point where all ranks run it; warm-up took plans 1 to 4.
    fn run(&mut self, index: u64, plan: u64) -> EnvelopeV1 {
        let infer = self.infer(index);
        let envelope = self.envelope(Ask::Infer(Box::new(infer)));
        self.call(envelope.clone());
        self.tell(Input::Fetched { plan_id: PlanId(plan), result: Ok(()) });
        let actions = self.acknowledge(plan, Verb::Plan);
        assert!(actions.iter().any(|a| matches!(a, Action::Run { .. })), "{actions:?}");
        envelope
    }

    fn refused(&mut self, spoil: impl FnOnce(&mut Infer)) -> Error {
        let mut infer = self.infer(0);
        spoil(&mut infer);
        let actions = self.ask(Ask::Infer(Box::new(infer)));
        assert!(sent(&actions).is_empty(), "a worker heard of a refused call");
        answer(&actions).unwrap_err()
    }
}

fn answers(actions: &[Action]) -> Vec<Result<Reply, Error>> {
    let answered = |action: &Action| match action {
        Action::Answer { result, .. } => Some(result.clone()),
        _ => None,
    };
    actions.iter().filter_map(answered).collect()
}

fn answer(actions: &[Action]) -> Result<Reply, Error> {
    answers(actions).into_iter().next().unwrap()
}

fn result(actions: &[Action]) -> ResultV1 {
    match answer(actions) {
        Ok(Reply::Infer(result)) => *result,
        other => panic!("{other:?}"),
    }
}

fn sent(actions: &[Action]) -> Vec<Verb> {
    let verb = |action: &Action| match action {
        Action::Send { verb, .. } => Some(*verb),
        _ => None,
    };
    actions.iter().filter_map(verb).collect()
}

fn exit_of(actions: &[Action]) -> Option<ExitCode> {
    actions.iter().find_map(|action| match action {
        Action::Exit { code, .. } => Some(*code),
        _ => None,
    })
}

fn state(actions: &[Action]) -> MeshState {
    match answer(actions) {
        Ok(Reply::Noop(state)) => state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_is_planned_acknowledged_gone_and_answered() {
    let mut rig = Rig::ready();
    let call = rig.run(0, 5);
    assert_eq!(state(&rig.ask(Ask::Noop)).running, Some(call.call_id));
    rig.acknowledge(5, Verb::Go);
    let result = result(&rig.ran(5, Ok(sim::report(2))));
    assert_eq!((result.call_id, result.mesh_current_start_frame), (call.call_id, 3));
    assert_eq!(rig.phase(), MeshPhase::Ready);
}

#[test]
fn the_same_call_attaches_while_it_runs_and_gets_its_result_again_afterwards() {
    let mut rig = Rig::ready();
    let call = rig.run(0, 5);
    assert_eq!(rig.call(call.clone()), [], "it waits for the running call");
    let both = answers(&rig.ran(5, Ok(sim::report(2))));
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], both[1]);
    assert_eq!(answer(&rig.call(call.clone())), both[0]);
    let mut other = call;
    let Ask::Infer(infer) = &mut other.action else { panic!() };
    infer.base_seed = 99;
    assert_eq!(answer(&rig.call(other)).unwrap_err().reason, Reason::StaleCall);
}

#[test]
fn a_nack_cancels_the_plan_everywhere_and_names_rank_and_reason() {
    let mut rig = Rig::ready();
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    assert_eq!(sent(&rig.tell(Input::Fetched { plan_id: PlanId(5), result: Ok(()) })), [Verb::Plan]);
    let nack = Error::new(Reason::UnknownConditioning, "conditioning x is not held here");
    assert_eq!(sent(&rig.respond(5, Verb::Plan, Err(nack))), [Verb::Cancel]);
    let error = answer(&rig.acknowledge(5, Verb::Cancel)).unwrap_err();
    assert_eq!(error.reason, Reason::UnknownConditioning);
    assert!(error.message.starts_with("rank 1 refuses the plan"), "{error}");
    assert_eq!(rig.phase(), MeshPhase::Ready);
}

#[test]
fn lost_messages_are_sent_again_and_missing_acknowledgements_cancel() {
    let mut rig = Rig::ready();
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    rig.tell(Input::Fetched { plan_id: PlanId(5), result: Ok(()) });
    assert_eq!(sent(&rig.pass(ms(300))), [Verb::Plan]);
    let actions = rig.pass(Timing::default().plan);
    assert!(sent(&actions).contains(&Verb::Cancel), "{actions:?}");
    let actions = rig.pass(ms(600));
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::CallAborted);
    assert_eq!(rig.phase(), MeshPhase::Ready);

    // go is sent until each rank has it, while the run goes on.
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    rig.tell(Input::Fetched { plan_id: PlanId(6), result: Ok(()) });
    assert_eq!(sent(&rig.acknowledge(6, Verb::Plan)), [Verb::Go]);
    assert_eq!(sent(&rig.pass(ms(300))), [Verb::Go]);
    rig.acknowledge(6, Verb::Go);
    assert!(sent(&rig.pass(ms(600))).is_empty());
}

#[test]
fn stale_tensors_are_refused_before_any_worker_hears_of_the_call() {
    let mut rig = Rig::ready();
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    let stale = Error::new(Reason::StaleSlot, "slot 0 holds generation 2");
    let actions = rig.tell(Input::Fetched { plan_id: PlanId(5), result: Err(stale) });
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::StaleSlot);
    assert!(sent(&actions).is_empty());
    assert_eq!(rig.phase(), MeshPhase::Ready);
}

#[test]
fn each_refusal_names_its_reason() {
    type Spoil = fn(&mut Infer);
    let cases: [(Reason, Spoil); 6] = [
        (Reason::CallCount, |i| i.expected_generator_calls = 9),
        (Reason::BadSteps, |i| i.denoising_steps = vec![500, 1000]),
        (Reason::TpPlanMismatch, |i| i.tp_plan = Some(contract::model::TpPlan::V0FullPipeline)),
        (Reason::BadField, |i| i.session_slot = SessionSlot(2)),
        (Reason::UnknownConditioning, |i| i.tensors.truncate(1)),
        (Reason::StaleEpoch, |i| *i = infer(i.session, 1, 1)),
    ];
    for (reason, spoil) in cases {
        assert_eq!(Rig::ready().refused(spoil).reason, reason);
    }
    let mut rig = Rig::ready();
    let mut old = rig.envelope(Ask::Noop);
    old.version = 9;
    assert_eq!(answer(&rig.call(old)).unwrap_err().reason, Reason::UnsupportedVersion);
    let mut other_epoch = rig.envelope(Ask::Noop);
    other_epoch.mesh_epoch = MeshEpoch(6);
    assert_eq!(answer(&rig.call(other_epoch)).unwrap_err().reason, Reason::StaleEpoch);
}

#[test]
fn a_history_goes_on_only_where_it_is() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    rig.ran(5, Ok(sim::report(2)));
    rig.run(1, 6);
    rig.ran(6, Ok(sim::report(3)));
    let error = rig.refused(|i| *i = infer(i.session, 1, 1));
    assert!(error.message.contains("continues at 6"), "{error}");
    assert_eq!(rig.refused(|i| *i = infer(i.session, 0, 0)).reason, Reason::StaleEpoch);
    assert_eq!(answer(&rig.ask(Ask::Reset { slot: SessionSlot(0) })), Ok(Reply::Reset));
    assert!(rig.refused(|i| *i = infer(i.session, 1, 2)).message.contains("dirty"));
    // After a fault a session goes on with init_cache and context frames.
    let mut infer = infer(rig.session, 2, 2);
    infer.init_cache = true;
    let actions = rig.ask(Ask::Infer(Box::new(infer)));
    assert!(matches!(actions[..], [Action::Fetch { .. }]), "{actions:?}");
}

#[test]
fn busy_is_answered_at_once_and_a_noop_always() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    assert_eq!(rig.refused(|_| {}).reason, Reason::Busy);
    assert_eq!(state(&rig.ask(Ask::Noop)).phase, MeshPhase::Busy);

    let mut forming = Rig::forming(2);
    forming.hello();
    assert_eq!(forming.refused(|_| {}).reason, Reason::NotReady);
    assert_eq!(state(&forming.ask(Ask::Noop)).phase, MeshPhase::Forming);
}

#[test]
fn one_controller_is_obeyed_and_older_leases_are_fenced() {
    let mut rig = Rig::ready();
    let first = (rig.controller, rig.lease);
    rig.controller = InstanceId::random();
    assert_eq!(answer(&rig.ask(Ask::Hello)).unwrap_err().reason, Reason::LeaseHeld);
    rig.pass(Timing::default().lease_ttl + ms(100));
    rig.next = 1;
    rig.hello();
    assert!(rig.lease > first.1);
    let second = (rig.controller, rig.lease);
    (rig.controller, rig.lease) = first;
    assert_eq!(answer(&rig.ask(Ask::Noop)).unwrap_err().reason, Reason::Fenced);
    (rig.controller, rig.lease) = second;
    assert!(answer(&rig.ask(Ask::Noop)).is_ok());
    assert_eq!(answer(&rig.ask(Ask::Bye)), Ok(Reply::Bye));
    assert_eq!(answer(&rig.ask(Ask::Noop)).unwrap_err().reason, Reason::NoLease);
}

#[test]
fn an_expired_lease_goes_on_while_nobody_else_took_it() {
    let mut rig = Rig::ready();
    rig.pass(Timing::default().lease_ttl * 2);
    assert_eq!(rig.leader.view(rig.now).lease, None);
    assert!(answer(&rig.ask(Ask::Noop)).is_ok());
    assert_eq!(rig.leader.view(rig.now).lease, Some(rig.lease));
}

#[test]
fn call_ids_only_grow_and_a_repeated_hello_gets_its_lease_again() {
    let mut rig = Rig::ready();
    let noop = rig.envelope(Ask::Noop);
    assert!(answer(&rig.call(noop.clone())).is_ok());
    assert_eq!(answer(&rig.call(noop)).unwrap_err().reason, Reason::StaleCall);

    let mut rig = Rig::forming(1);
    let hello = rig.envelope(Ask::Hello);
    rig.call(hello.clone());
    assert_eq!(rig.call(hello.clone()), [], "it waits for the link");
    let lease = Lease { controller: rig.controller, epoch: LeaseEpoch(1) };
    let both = answers(&rig.tell(Input::LinkOpened { lease, result: Ok(sim::link()) }));
    assert!(both.len() == 2 && both[0] == both[1]);
    assert_eq!(answer(&rig.call(hello)), both[0]);
}

#[test]
fn a_lost_rank_ends_the_call_the_epoch_and_nothing_else() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    let (epoch, instance) = (rig.epoch, rig.worker);
    let gone = Input::Gone { epoch, rank: Rank(1), instance, why: "connection closed".into() };
    let actions = rig.tell(gone);
    let error = answer(&actions).unwrap_err();
    assert_eq!(error.reason, Reason::RankLost);
    assert!(error.message.contains("rank 1"), "{error}");
    assert!(actions.contains(&Action::CloseEpoch));
    assert!(!actions.contains(&Action::TakeEpoch), "the engine still runs");
    let aborted = Error::new(Reason::CallAborted, "aborted");
    assert!(rig.ran(5, Err(aborted)).contains(&Action::TakeEpoch));
    rig.take_epoch(9);
    rig.worker = InstanceId::random();
    rig.form();
}

#[test]
fn a_silent_worker_is_lost_and_a_leader_that_slept_accuses_nobody() {
    let mut rig = Rig::ready();
    rig.tell(Input::Tick);
    rig.now += ms(3_000);
    rig.tell(Input::Tick);
    assert_eq!(rig.phase(), MeshPhase::Ready);
    for _ in 0..20 {
        rig.now += ms(50);
        rig.tell(Input::Tick);
    }
    assert_eq!(rig.phase(), MeshPhase::Forming);
    assert!(rig.leader.view(rig.now).last_fault.unwrap().contains("no beat"));
}

#[test]
fn a_call_that_does_not_end_is_answered_at_its_deadline_and_a_stuck_engine_needs_a_restart() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    let actions = rig.pass(ms(5_050));
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::BudgetSpent);
    assert!(actions.iter().any(|a| matches!(a, Action::Abort { .. })));
    assert_eq!(exit_of(&rig.pass(Timing::default().abort + ms(100))), Some(ExitCode::NeedsRestart));
}

#[test]
fn wrong_counts_and_digests_are_faults_that_name_both_values() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    let report = RunReport { least_calls: 1, most_calls: 2, ..sim::report(2) };
    let error = answer(&rig.ran(5, Ok(report))).unwrap_err();
    assert_eq!(error.reason, Reason::CountMismatch);
    assert!(error.message.contains("1 to 2") && error.message.contains("2 are expected"), "{error}");

    let mut rig = Rig::ready();
    rig.run(0, 5);
    let report = RunReport { digests_agree: false, ..sim::report(2) };
    assert_eq!(answer(&rig.ran(5, Ok(report))).unwrap_err().reason, Reason::DigestMismatch);
}

#[test]
fn ranks_are_given_once_and_the_mesh_is_then_full() {
    let mut rig = Rig::forming(2);
    let Ok(JoinReply::Assigned(first)) = rig.join() else { panic!() };
    let Ok(JoinReply::Assigned(again)) = rig.join() else { panic!() };
    assert_eq!(first, again);
    assert_eq!(rig.join_as(InstanceId::random()).unwrap_err().reason, Reason::MeshFull);
    let mut larger = Rig::forming(4);
    assert!(matches!(larger.join(), Ok(JoinReply::Waiting { joined: 1, .. })));
    assert_eq!(larger.leader.view(larger.now).waiting_for.unwrap(), "workers 1/3");
}

#[test]
fn a_worker_that_holds_a_shard_gets_its_rank_back() {
    let mut rig = Rig::forming(4);
    let holds = |rank| Some((Rank(rank), sim::world(4)));
    let mut join = |instance, holds| {
        let request = JoinRequest { version: CONTRACT_VERSION, instance, parity: sim::parity(), holds };
        rig.tell(Input::Join { ticket: Ticket(1), request })
    };
    let (a, b, c) = (InstanceId::random(), InstanceId::random(), InstanceId::random());
    join(a, None);
    join(b, holds(1));
    join(c, holds(3));
    for (instance, rank) in [(a, 2), (b, 1), (c, 3)] {
        let Ok(JoinReply::Assigned(assignment)) = rig.join_as(instance) else { panic!() };
        assert_eq!(assignment.rank, Rank(rank));
    }
}

#[test]
fn weights_that_do_not_load_end_the_first_forming() {
    let load = |failure| {
        let mut rig = Rig::forming(2);
        rig.join().unwrap();
        let epoch = rig.epoch;
        rig.tell(Input::Loaded { epoch, result: Err(failure) })
    };
    let error = || Error::new(Reason::BadField, "no such file");
    assert_eq!(exit_of(&load(LoadFailure::Own(error()))), Some(ExitCode::Failed));
    assert_eq!(exit_of(&load(LoadFailure::Peer(error()))), Some(ExitCode::Failed));
    assert_eq!(exit_of(&load(LoadFailure::Stuck(error()))), Some(ExitCode::NeedsRestart));
    let met_nobody = load(LoadFailure::Group(error()));
    assert_eq!(exit_of(&met_nobody), None);
    assert!(met_nobody.contains(&Action::TakeEpoch));
}

#[test]
fn formations_that_fail_again_and_again_need_a_restart() {
    let mut rig = Rig::forming(2);
    for epoch in 8..20 {
        rig.join().unwrap();
        let current = rig.epoch;
        let failure = LoadFailure::Group(Error::new(Reason::Internal, "nobody came"));
        let actions = rig.tell(Input::Loaded { epoch: current, result: Err(failure) });
        if let Some(code) = exit_of(&actions) {
            assert_eq!(code, ExitCode::NeedsRestart);
            return;
        }
        rig.take_epoch(epoch);
    }
    panic!("it tries for ever");
}

#[test]
fn another_canary_than_the_first_is_a_fault() {
    let mut rig = Rig::ready();
    let (epoch, instance) = (rig.epoch, rig.worker);
    rig.tell(Input::Gone { epoch, rank: Rank(1), instance, why: "eof".into() });
    rig.take_epoch(9);
    rig.worker = InstanceId::random();
    rig.join().unwrap();
    rig.beat();
    rig.tell(Input::Loaded { epoch: MeshEpoch(9), result: Ok(()) });
    for plan in 1..=4 {
        rig.tell(Input::Fetched { plan_id: PlanId(plan), result: Ok(()) });
        rig.acknowledge(plan, Verb::Plan);
        let calls = if plan == 1 || plan == 4 { 2 } else { 3 };
        let digest = Digest::of(&[b"another picture"]);
        rig.ran(plan, Ok(RunReport { digest, ..sim::report(calls) }));
    }
    assert_ne!(rig.phase(), MeshPhase::Ready);
    assert!(rig.leader.view(rig.now).last_fault.unwrap().contains("canary digest"));
}

#[test]
fn asked_to_stop_it_finishes_the_call_refuses_others_and_ends_with_0() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    assert_eq!(exit_of(&rig.tell(Input::Drain)), None);
    assert_eq!(rig.refused(|_| {}).reason, Reason::Draining);
    let actions = rig.ran(5, Ok(sim::report(2)));
    assert!(answer(&actions).is_ok());
    assert_eq!(exit_of(&actions), Some(ExitCode::Asked));
    assert_eq!(answer(&rig.ask(Ask::Noop)).unwrap_err().reason, Reason::Draining);

    let mut stuck = Rig::ready();
    stuck.run(0, 5);
    stuck.tell(Input::Drain);
    let actions = stuck.pass(Timing::default().drain + ms(100));
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::Draining);
    assert_eq!(exit_of(&actions), Some(ExitCode::Asked));
}

#[test]
fn a_leader_that_lost_its_key_needs_a_restart() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    let actions = rig.tell(Input::EpochLost { reason: "leader.cell0 is held by another".into() });
    assert!(answer(&actions).is_err());
    assert_eq!(exit_of(&actions), Some(ExitCode::NeedsRestart));
}

#[test]
fn shutdown_tells_the_workers_and_ends_with_0() {
    let mut rig = Rig::ready();
    let actions = rig.ask(Ask::Shutdown { reason: "ops".into() });
    assert!(actions.iter().any(|a| matches!(a, Action::PublishShutdown(_))));
    assert_eq!(exit_of(&actions), Some(ExitCode::Asked));
}
