//! One sender: whatever many tasks ask of stage0's mesh client at once leaves it in one order, with call ids that grow.

use std::time::Instant;

use contract::envelope::{Action as Ask, EnvelopeV1, HelloReply, MeshPhase, MeshState, Reply};
use contract::{CONTRACT_VERSION, Error, InstanceId, LeaseEpoch, MeshEpoch, Reason, SessionId, SessionSlot};
use mesh::controller::{Action, Controller, Input};
use mesh::{Ticket, Timing};
use proptest::prelude::*;

use crate::fixtures::{self, infer, ms};

/// What a task does when its turn comes.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// A session asks for a chunk with whatever parameters it has merged by now.
    Infer,
    UpdateParameters,
    Keepalive,
    Reset,
    Shutdown,
    /// The oldest or newest request under way is answered, well or badly.
    Answer {
        newest: bool,
        well: bool,
    },
    Time(u64),
    NewEpoch,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => Just(Turn::Infer),
        3 => Just(Turn::UpdateParameters),
        2 => Just(Turn::Keepalive),
        1 => Just(Turn::Reset),
        1 => Just(Turn::Shutdown),
        6 => (any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(newest, well)| Turn::Answer { newest, well }),
        4 => (1_u64..1500).prop_map(Turn::Time),
        1 => Just(Turn::NewEpoch),
    ]
}

struct Desk {
    now: Instant,
    controller: Controller,
    epoch: u64,
    seed: u64,
    sent: Vec<EnvelopeV1>,
    under_way: Vec<EnvelopeV1>,
    asked: u64,
    /// Tickets without an outcome.
    open: Vec<Ticket>,
    session: SessionId,
}

impl Desk {
    fn new() -> Self {
        let mut desk = Self {
            now: Instant::now(),
            controller: Controller::new(InstanceId::random(), Timing::default()),
            epoch: 7,
            seed: 0,
            sent: Vec::new(),
            under_way: Vec::new(),
            asked: 0,
            open: Vec::new(),
            session: SessionId::random(),
        };
        desk.tell(Input::Mesh { epoch: MeshEpoch(7) });
        desk
    }

    fn tell(&mut self, input: Input) {
        for action in self.controller.handle(self.now, input) {
            match action {
                Action::Send { envelope, deadline } => {
                    assert!(deadline > self.now, "it is sent with time left");
                    self.sent.push((*envelope).clone());
                    self.under_way.push(*envelope);
                }
                Action::Attach(hello) => self.tell(Input::Attached { lease: hello.lease, result: Ok(()) }),
                Action::Deliver { ticket, .. } => {
                    let at = self.open.iter().position(|open| *open == ticket);
                    self.open.remove(at.expect("a call ends once"));
                }
                Action::Exit { .. } => panic!("nobody fenced it"),
                _ => {}
            }
        }
    }

    fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Infer => {
                self.asked += 1;
                let ticket = Ticket(self.asked);
                let mut infer = infer(self.session, self.asked, 0);
                infer.base_seed = self.seed;
                self.open.push(ticket);
                let deadline = self.now + ms(2000);
                self.tell(Input::Infer { ticket, infer: Box::new(infer), deadline });
            }
            Turn::UpdateParameters => self.seed += 1,
            Turn::Keepalive => self.tell(Input::Tick),
            Turn::Reset => self.tell(Input::Reset { slot: SessionSlot(0) }),
            Turn::Shutdown => self.tell(Input::Shutdown { reason: "ops".into() }),
            Turn::Answer { newest, well } => {
                if self.under_way.is_empty() {
                    return;
                }
                let at = if newest { self.under_way.len() - 1 } else { 0 };
                let envelope = self.under_way.remove(at);
                let result = if well { Ok(self.reply(&envelope)) } else { Err(silence()) };
                self.tell(Input::Answered { call: envelope.call_id, result: Box::new(result) });
            }
            Turn::Time(time) => {
                self.now += ms(time);
                self.tell(Input::Tick);
            }
            Turn::NewEpoch => {
                self.epoch += 1;
                self.tell(Input::Mesh { epoch: MeshEpoch(self.epoch) });
            }
        }
    }

    fn reply(&self, envelope: &EnvelopeV1) -> Reply {
        match &envelope.action {
            Ask::Hello => Reply::Hello(Box::new(HelloReply {
                version: CONTRACT_VERSION,
                lease: LeaseEpoch(envelope.call_id.0),
                lease_ttl_ms: 3_000,
                link: fixtures::link(),
                model: fixtures::model(),
                world_size: fixtures::world(2),
                session_slots: 2,
            })),
            Ask::Infer(infer) => {
                Reply::Infer(Box::new(fixtures::result(envelope.call_id, envelope.mesh_epoch, infer)))
            }
            Ask::Noop => Reply::Noop(MeshState {
                mesh_epoch: envelope.mesh_epoch,
                phase: MeshPhase::Ready,
                running: None,
                last_call: Some(envelope.call_id),
            }),
            Ask::Reset { .. } => Reply::Reset,
            Ask::Shutdown { .. } => Reply::Shutdown,
            Ask::Bye => Reply::Bye,
        }
    }
}

fn silence() -> Error {
    Error::new(Reason::BudgetSpent, "no answer")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn concurrent_tasks_go_through_one_ordered_sender(turns in prop::collection::vec(turn(), 1..120)) {
        let mut desk = Desk::new();
        for turn in turns {
            desk.take(turn);
            let infers = |e: &&EnvelopeV1| matches!(e.action, Ask::Infer(_));
            let running = desk.controller.running();
            let expected = desk.under_way.iter().filter(infers).filter(|e| Some(e.call_id) == running).count();
            prop_assert_eq!(desk.open.len(), usize::from(running.is_some()), "at most one call is open");
            prop_assert!(expected <= 2, "it is asked once, and once more for its result");
        }
        // Nothing that was asked is left without an end.
        for _ in 0..5 {
            desk.take(Turn::Time(1500));
        }
        prop_assert_eq!(desk.open.len(), 0);
        let mut first: Vec<EnvelopeV1> = Vec::new();
        for envelope in desk.sent {
            match first.iter().find(|earlier| earlier.call_id == envelope.call_id) {
                Some(asked) => prop_assert_eq!(asked, &envelope, "asked again, to the letter"),
                None => first.push(envelope),
            }
        }
        for pair in first.windows(2) {
            prop_assert!(pair[0].call_id < pair[1].call_id, "{:?} then {:?}", pair[0], pair[1]);
            prop_assert!(pair[0].mesh_epoch <= pair[1].mesh_epoch);
            prop_assert_eq!(pair[0].controller, pair[1].controller);
        }
        // An update that came before a chunk was asked for is in it; none is in an earlier one.
        let seeds: Vec<u64> = first.iter().filter_map(|e| match &e.action {
            Ask::Infer(infer) => Some(infer.base_seed),
            _ => None,
        }).collect();
        prop_assert!(seeds.is_sorted());
    }
}
