//! stage0's side: what is sent when, what is accepted, and what follows a time-out.

use std::time::{Duration, Instant};

use crate::fixtures::{self, infer, ms};
use contract::envelope::{
    Action as Ask, EnvelopeV1, HelloReply, Infer, MeshPhase, MeshState, Reply, ResultV1,
};
use contract::{
    CONTRACT_VERSION, CacheEpoch, CallId, Error, InstanceId, LeaseEpoch, LinkSlot, MeshEpoch, Reason,
    SessionId,
};
use mesh::controller::{Action, Controller, Input, never_began};
use mesh::{ExitCode, Ticket, Timing};

const EPOCH: MeshEpoch = MeshEpoch(7);

struct Rig {
    now: Instant,
    controller: Controller,
}

impl Rig {
    fn new() -> Self {
        Self { now: Instant::now(), controller: Controller::new(InstanceId::random(), Timing::default()) }
    }

    fn attached() -> Self {
        let mut rig = Self::new();
        let hello = sent(&rig.tell(Input::Mesh { epoch: EPOCH }));
        assert!(matches!(hello.action, Ask::Hello));
        rig.answered(hello.call_id, Ok(Reply::Hello(Box::new(hello_reply()))));
        let attached = Input::Attached { lease: LeaseEpoch(3), result: Ok(()) };
        assert!(matches!(rig.tell(attached)[..], [Action::Ready(_)]));
        rig
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        self.controller.handle(self.now, input)
    }

    fn answered(&mut self, call: CallId, result: Result<Reply, Error>) -> Vec<Action> {
        self.tell(Input::Answered { call, result: Box::new(result) })
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            self.now += ms(50);
            actions.extend(self.tell(Input::Tick));
        }
        actions
    }

    fn infer(&mut self, infer: Infer) -> Vec<Action> {
        let deadline = self.now + ms(2_000);
        self.tell(Input::Infer { ticket: Ticket(1), infer: Box::new(infer), deadline })
    }
}

fn hello_reply() -> HelloReply {
    HelloReply {
        version: CONTRACT_VERSION,
        lease: LeaseEpoch(3),
        lease_ttl_ms: 3_000,
        link: fixtures::link(),
        model: fixtures::model(),
        world_size: fixtures::world(2),
        session_slots: 2,
    }
}

fn sent(actions: &[Action]) -> EnvelopeV1 {
    let envelope = |action: &Action| match action {
        Action::Send { envelope, .. } => Some((**envelope).clone()),
        _ => None,
    };
    actions.iter().find_map(envelope).unwrap()
}

fn delivered(actions: &[Action]) -> Result<(), Error> {
    let result = |action: &Action| match action {
        Action::Deliver { result, .. } => Some(result.clone().map(|_| ())),
        _ => None,
    };
    actions.iter().find_map(result).unwrap()
}

fn result_of(call: CallId, session: SessionId) -> ResultV1 {
    fixtures::result(call, EPOCH, &infer(session, 1, 0))
}

fn no_answer() -> Error {
    Error::new(Reason::BudgetSpent, "no answer")
}

fn idle_at(last: CallId) -> Reply {
    Reply::Noop(MeshState {
        mesh_epoch: EPOCH,
        phase: MeshPhase::Ready,
        running: None,
        last_call: Some(last),
    })
}

#[test]
fn a_call_that_fails_preflight_is_never_sent() {
    let mut rig = Rig::attached();
    let mut bad = infer(SessionId::random(), 1, 0);
    bad.expected_generator_calls = 9;
    let actions = rig.infer(bad);
    assert!(matches!(actions[..], [Action::Deliver { .. }]), "{actions:?}");
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::CallCount);
    let detached = Rig::new().infer(infer(SessionId::random(), 1, 0));
    assert_eq!(delivered(&detached).unwrap_err().reason, Reason::Recovering);
}

#[test]
fn call_ids_grow_over_all_actions_and_a_noop_goes_out_every_second() {
    let mut rig = Rig::attached();
    let first = sent(&rig.pass(ms(1_050)));
    assert!(matches!(first.action, Ask::Noop));
    rig.answered(first.call_id, Ok(idle_at(first.call_id)));
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0)));
    assert!(call.call_id > first.call_id && call.lease == Some(LeaseEpoch(3)));
    let second = sent(&rig.pass(ms(550)));
    assert!(matches!(second.action, Ask::Noop) && second.call_id > call.call_id, "the call blocks nothing");
    assert!(rig.pass(ms(900)).is_empty(), "one NOOP at a time");
}

#[test]
fn only_current_results_with_the_expected_count_are_accepted() {
    type Spoil = fn(&mut ResultV1);
    let cases: [(Reason, Spoil); 4] = [
        (Reason::StaleEpoch, |r| r.cache_epoch = CacheEpoch(2)),
        (Reason::StaleEpoch, |r| r.mesh_epoch = MeshEpoch(6)),
        (Reason::CountMismatch, |r| r.observed_generator_calls = 3),
        (Reason::UnsupportedVersion, |r| r.version = 2),
    ];
    for (reason, spoil) in cases {
        let mut rig = Rig::attached();
        let session = SessionId::random();
        let call = sent(&rig.infer(infer(session, 1, 0))).call_id;
        let mut result = result_of(call, session);
        spoil(&mut result);
        let actions = rig.answered(call, Ok(Reply::Infer(Box::new(result))));
        assert_eq!(delivered(&actions).unwrap_err().reason, reason);
    }
    let mut rig = Rig::attached();
    let session = SessionId::random();
    let call = sent(&rig.infer(infer(session, 1, 0))).call_id;
    let good = Reply::Infer(Box::new(result_of(call, session)));
    assert!(delivered(&rig.answered(call, Ok(good.clone()))).is_ok());
    assert!(rig.answered(call, Ok(good)).is_empty(), "a repeated result is dropped");
}

#[test]
fn after_a_time_out_the_call_is_quarantined_until_the_mesh_says_it_is_over() {
    let mut rig = Rig::attached();
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0))).call_id;
    let actions = rig.answered(call, Err(Error::new(Reason::BudgetSpent, "no answer")));
    assert!(actions.contains(&Action::Quarantine { call }));
    let refused = rig.infer(infer(SessionId::random(), 2, 0));
    assert_eq!(delivered(&refused).unwrap_err().reason, Reason::SlotBusy, "its slots may still be read");
    let mut elsewhere = infer(SessionId::random(), 2, 0);
    elsewhere.tensors.iter_mut().for_each(|spec| spec.slot = LinkSlot(1));
    assert_eq!(delivered(&rig.infer(elsewhere)).unwrap_err().reason, Reason::Busy);

    let noop = sent(&rig.pass(ms(300))).call_id;
    let busy =
        MeshState { mesh_epoch: EPOCH, phase: MeshPhase::Busy, running: Some(call), last_call: Some(noop) };
    assert!(rig.answered(noop, Ok(Reply::Noop(busy))).is_empty());
    let noop = sent(&rig.pass(ms(300))).call_id;
    assert_eq!(rig.answered(noop, Ok(idle_at(noop))), [Action::Release { call }]);
    assert!(matches!(sent(&rig.infer(infer(SessionId::random(), 2, 0))).action, Ask::Infer(_)));
}

#[test]
fn what_the_leader_refuses_is_over_at_once() {
    let mut rig = Rig::attached();
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0))).call_id;
    let actions = rig.answered(call, Err(Error::new(Reason::StaleSlot, "slot 0")));
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::StaleSlot);
    assert_eq!(rig.controller.quarantined(), None);
}

#[test]
fn a_fenced_controller_ends_its_calls_and_its_process() {
    let mut rig = Rig::attached();
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0))).call_id;
    let actions = rig.answered(call, Err(Error::new(Reason::Fenced, "lease 4 is in force")));
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::Fenced);
    assert!(actions.iter().any(|a| matches!(a, Action::Exit { code: ExitCode::NeedsRestart, .. })));
    assert_eq!(
        delivered(&rig.infer(infer(SessionId::random(), 1, 0))).unwrap_err().reason,
        Reason::SessionEnded
    );
}

#[test]
fn a_newer_mesh_epoch_ends_the_lease_and_asks_for_another() {
    let mut rig = Rig::attached();
    rig.infer(infer(SessionId::random(), 1, 0));
    assert!(rig.tell(Input::Mesh { epoch: EPOCH }).is_empty());
    let actions = rig.tell(Input::Mesh { epoch: MeshEpoch(8) });
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::CallAborted);
    assert!(actions.iter().any(|a| matches!(a, Action::Lost(_))));
    let hello = sent(&actions);
    assert!(matches!(hello.action, Ask::Hello) && hello.mesh_epoch == MeshEpoch(8) && hello.lease.is_none());
}

#[test]
fn a_held_lease_is_asked_for_again_and_a_lost_one_at_once() {
    let mut rig = Rig::new();
    let hello = sent(&rig.tell(Input::Mesh { epoch: EPOCH })).call_id;
    let held = Error::new(Reason::LeaseHeld, "controller x holds the lease");
    assert!(matches!(rig.answered(hello, Err(held))[..], [Action::Refused(_)]));
    assert!(matches!(sent(&rig.pass(ms(300))).action, Ask::Hello));

    let mut rig = Rig::attached();
    let noop = sent(&rig.pass(ms(1_050))).call_id;
    let actions = rig.answered(noop, Err(Error::new(Reason::NoLease, "no lease")));
    assert!(actions.iter().any(|a| matches!(a, Action::Lost(_))));
    assert!(matches!(sent(&actions).action, Ask::Hello));
}

#[test]
fn a_link_that_failed_takes_its_lease_and_its_call_along_and_another_is_asked_for() {
    let mut rig = Rig::attached();
    rig.infer(infer(SessionId::random(), 1, 0));
    let failed = || Error::new(Reason::CallAborted, "the link is over");
    let actions = rig.tell(Input::LinkFailed { error: failed() });
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::CallAborted);
    assert!(actions.iter().any(|action| matches!(action, Action::Lost(_))));
    assert!(rig.controller.attached().is_none());
    // Told again, as by a shell that looks at every tick, it is no news.
    assert!(rig.tell(Input::LinkFailed { error: failed() }).is_empty());
    assert!(matches!(sent(&rig.pass(ms(300))).action, Ask::Hello));
}

#[test]
fn bye_releases_the_lease_and_ends_everything() {
    let mut rig = Rig::attached();
    let actions = rig.tell(Input::Bye);
    assert!(matches!(sent(&actions).action, Ask::Bye));
    assert!(rig.pass(ms(3_000)).is_empty());
}

#[test]
fn a_shell_that_lost_an_answer_does_not_hold_a_call_for_ever() {
    let mut rig = Rig::attached();
    rig.infer(infer(SessionId::random(), 1, 0));
    let actions = rig.pass(ms(2_000) + Timing::default().control + ms(50));
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::BudgetSpent);
}

/// A keepalive beside a running call: its id, and the call's.
fn keepalive_beside_a_call(rig: &mut Rig) -> (CallId, CallId) {
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0)));
    let noop = sent(&rig.pass(ms(550)));
    assert!(matches!(noop.action, Ask::Noop));
    (noop.call_id, call.call_id)
}

#[test]
fn a_leader_that_nobody_can_reach_ends_the_call_and_the_lease_before_the_calls_own_time() {
    let mut rig = Rig::attached();
    let (noop, _) = keepalive_beside_a_call(&mut rig);
    let actions = rig.answered(noop, Err(Error::new(Reason::NoResponders, "nobody serves it")));
    let error = delivered(&actions).unwrap_err();
    assert_eq!(error.reason, Reason::CallAborted, "the call may have begun");
    assert!(actions.iter().any(|action| matches!(action, Action::Lost(_))));
    assert_eq!(rig.controller.quarantined(), None);
}

#[test]
fn a_leader_that_does_not_answer_a_keepalive_is_not_waited_for_but_its_call_is_quarantined() {
    let mut rig = Rig::attached();
    let (noop, call) = keepalive_beside_a_call(&mut rig);
    let actions = rig.answered(noop, Err(no_answer()));
    let error = delivered(&actions).unwrap_err();
    assert_eq!((error.reason, error.message.as_str()), (Reason::RankLost, "rank 0: no answer for 1000 ms"));
    assert_eq!(rig.controller.quarantined(), Some(call));
    let again = sent(&rig.pass(ms(300)));
    rig.answered(again.call_id, Ok(idle_at(call)));
    assert_eq!(rig.controller.quarantined(), None);
}

#[test]
fn a_keepalive_from_before_the_call_says_nothing_about_it() {
    let mut rig = Rig::attached();
    let noop = sent(&rig.pass(ms(1_050))).call_id;
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0))).call_id;
    assert_eq!(rig.answered(noop, Err(no_answer())), []);
    assert_eq!(rig.controller.running(), Some(call));
    assert!(matches!(sent(&rig.pass(ms(550))).action, Ask::Noop), "the next one does");
}

/// A call that the leader says it is done with, while its answer does not come.
fn lost_result(rig: &mut Rig, session: SessionId) -> EnvelopeV1 {
    let call = sent(&rig.infer(infer(session, 1, 0)));
    let noop = sent(&rig.pass(ms(550))).call_id;
    assert!(rig.answered(noop, Ok(idle_at(noop))).is_empty());
    call
}

#[test]
fn a_result_that_is_lost_is_asked_for_again_with_the_same_call() {
    let mut rig = Rig::attached();
    let session = SessionId::random();
    let call = lost_result(&mut rig, session);
    assert!(rig.pass(ms(200)).is_empty(), "the answer may be just behind the keepalive's");
    let actions = rig.pass(ms(100));
    let [Action::Send { envelope, deadline }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(**envelope, call);
    assert!(*deadline <= rig.now + ms(1_000), "it has no more time than any keepalive");
    let result = Reply::Infer(Box::new(result_of(call.call_id, session)));
    assert!(delivered(&rig.answered(call.call_id, Ok(result))).is_ok());
    assert_eq!(rig.answered(call.call_id, Err(no_answer())), [], "the first request's end is nobody's");
}

#[test]
fn an_answer_that_comes_late_is_taken_and_nothing_is_asked_again() {
    let mut rig = Rig::attached();
    let session = SessionId::random();
    let call = lost_result(&mut rig, session).call_id;
    let result = Reply::Infer(Box::new(result_of(call, session)));
    assert!(delivered(&rig.answered(call, Ok(result))).is_ok());
    assert!(rig.pass(ms(400)).is_empty());
}

#[test]
fn a_call_whose_result_is_lost_twice_ends_long_before_its_own_time() {
    let mut rig = Rig::attached();
    let call = lost_result(&mut rig, SessionId::random()).call_id;
    assert_eq!(sent(&rig.pass(ms(300))).call_id, call);
    let again = rig.pass(ms(600));
    assert!(
        again
            .iter()
            .all(|action| !matches!(action, Action::Send { envelope, .. } if envelope.call_id == call))
    );
    assert_eq!(delivered(&rig.answered(call, Err(no_answer()))).unwrap_err().reason, Reason::BudgetSpent);
    assert_eq!(rig.controller.quarantined(), Some(call));
}

#[test]
fn a_call_that_never_reached_the_mesh_ends_as_one_that_never_began() {
    let mut rig = Rig::attached();
    let call = lost_result(&mut rig, SessionId::random()).call_id;
    rig.pass(ms(300));
    let stale = Error::new(Reason::StaleCall, "a higher id was seen");
    let error = delivered(&rig.answered(call, Err(stale))).unwrap_err();
    assert!(never_began(error.reason), "{error}");
    assert_eq!(rig.controller.quarantined(), None);
}

#[test]
fn what_was_asked_before_the_lease_says_nothing_about_it() {
    let mut rig = Rig::attached();
    let noop = sent(&rig.pass(ms(1_050))).call_id;
    let hello = sent(&rig.tell(Input::Mesh { epoch: MeshEpoch(8) })).call_id;
    assert!(hello > noop, "call ids do not start again");
    let fenced = Error::new(Reason::Fenced, "lease 4 is in force");
    assert_eq!(rig.answered(noop, Err(fenced)), []);
    assert!(rig.answered(noop, Ok(Reply::Hello(Box::new(hello_reply())))).is_empty());
    let actions = rig.answered(hello, Ok(Reply::Hello(Box::new(hello_reply()))));
    assert!(matches!(actions[..], [Action::Attach(_)]));
}

#[test]
fn a_rank_that_is_lost_leaves_the_slots_of_its_call_in_quarantine() {
    let mut rig = Rig::attached();
    let call = sent(&rig.infer(infer(SessionId::random(), 1, 0))).call_id;
    let actions = rig.answered(call, Err(Error::new(Reason::RankLost, "rank 1: connection closed")));
    assert_eq!(delivered(&actions).unwrap_err().reason, Reason::RankLost);
    assert_eq!(rig.controller.quarantined(), Some(call));
    rig.tell(Input::Mesh { epoch: MeshEpoch(8) });
    assert_eq!(rig.controller.quarantined(), None);
}

#[test]
fn a_keepalive_that_the_broker_did_not_take_says_nothing_about_the_leader() {
    let mut rig = Rig::attached();
    let (noop, call) = keepalive_beside_a_call(&mut rig);
    assert_eq!(rig.answered(noop, Err(Error::new(Reason::BrokerUnavailable, "away"))), []);
    assert_eq!(rig.controller.running(), Some(call));
}

#[test]
fn a_hello_reply_that_cannot_be_used_is_refused_aloud() {
    let mut rig = Rig::new();
    let hello = sent(&rig.tell(Input::Mesh { epoch: EPOCH })).call_id;
    let reply = HelloReply { version: 9, ..hello_reply() };
    let actions = rig.answered(hello, Ok(Reply::Hello(Box::new(reply))));
    let [Action::Refused(error)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(error.reason, Reason::UnsupportedVersion);
}
