//! The leader, driven by hand.

mod calls;
mod life;

use std::time::{Duration, Instant};

use crate::fixtures::{self, infer, ms};
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
    /// The plan that was fetched last, and the forwards it implies.
    plan: u64,
    calls: u32,
}

impl Rig {
    fn forming(ranks: u32) -> Self {
        let now = Instant::now();
        let (leader, first) = Leader::new(now, fixtures::leader_config(ranks));
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
            plan: 0,
            calls: 0,
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
        while self.phase() == MeshPhase::Warming {
            let (plan, calls) = (self.plan, self.calls);
            self.tell(Input::Fetched { plan_id: PlanId(plan), result: Ok(()) });
            self.acknowledge(plan, Verb::Plan);
            self.acknowledge(plan, Verb::Go);
            self.ran(plan, Ok(fixtures::report(calls)));
        }
        assert_eq!(self.phase(), MeshPhase::Ready);
    }

    fn phase(&self) -> MeshPhase {
        self.leader.view(self.now).phase
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        let actions = self.leader.handle(self.now, input);
        for action in &actions {
            if let Action::Fetch { plan, .. } = action {
                (self.plan, self.calls) = (plan.plan_id.0, plan.expected_generator_calls);
            }
        }
        actions
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
        let request =
            JoinRequest { version: CONTRACT_VERSION, instance, parity: fixtures::parity(), holds: None };
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
        self.beat_as(false)
    }

    fn beat_as(&mut self, leaving: bool) -> Vec<Action> {
        let beat = Beat {
            mesh_epoch: self.epoch,
            rank: Rank(1),
            instance: self.worker,
            phase: MeshPhase::Ready,
            busy_ms: None,
            leaving,
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
        let open = |action: &Action| match action {
            Action::OpenLink { lease } => Some(*lease),
            _ => None,
        };
        let lease = actions.iter().find_map(open).unwrap();
        let answered = self.tell(Input::LinkOpened { lease, result: Ok(fixtures::link()) });
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
