//! What the leader admits, refuses, sends and answers.

use super::*;

#[test]
fn a_call_is_planned_acknowledged_gone_and_answered() {
    let mut rig = Rig::ready();
    let call = rig.run(0, 5);
    assert_eq!(state(&rig.ask(Ask::Noop)).running, Some(call.call_id));
    rig.acknowledge(5, Verb::Go);
    let result = result(&rig.ran(5, Ok(fixtures::report(2))));
    assert_eq!((result.call_id, result.mesh_current_start_frame), (call.call_id, 3));
    assert_eq!(rig.phase(), MeshPhase::Ready);
}

#[test]
fn the_same_call_attaches_while_it_runs_and_gets_its_result_again_afterwards() {
    let mut rig = Rig::ready();
    let call = rig.run(0, 5);
    assert_eq!(rig.call(call.clone()), [], "it waits for the running call");
    let both = answers(&rig.ran(5, Ok(fixtures::report(2))));
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
    rig.ran(5, Ok(fixtures::report(2)));
    rig.run(1, 6);
    rig.ran(6, Ok(fixtures::report(3)));
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

/// A HELLO that is refused, and whom the leader looks for because of it.
fn refused_hello(rig: &mut Rig) -> Option<Lease> {
    let actions = rig.ask(Ask::Hello);
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::LeaseHeld);
    actions.iter().find_map(|action| match action {
        Action::Seek { lease } => Some(*lease),
        _ => None,
    })
}

#[test]
fn a_holder_that_stays_away_loses_its_lease_to_whoever_asks() {
    let mut rig = Rig::ready();
    let held = Lease { controller: rig.controller, epoch: rig.lease };
    rig.controller = InstanceId::random();
    assert_eq!(refused_hello(&mut rig), Some(held));
    assert_eq!(refused_hello(&mut rig), None, "it is being looked for");
    rig.tell(Input::Sought { lease: held, gone: true });

    assert_eq!(refused_hello(&mut rig), Some(held), "it may be connecting again");
    rig.pass(Timing::default().absence);
    rig.tell(Input::Sought { lease: held, gone: true });
    rig.hello();
    assert!(rig.lease > held.epoch);
}

#[test]
fn a_holder_that_is_found_or_speaks_keeps_its_lease() {
    let mut rig = Rig::ready();
    let (holder, held) = (rig.controller, Lease { controller: rig.controller, epoch: rig.lease });
    let rival = InstanceId::random();
    let look = |rig: &mut Rig, gone| {
        rig.controller = rival;
        assert_eq!(refused_hello(rig), Some(held));
        rig.pass(Timing::default().absence);
        rig.tell(Input::Sought { lease: held, gone });
    };
    look(&mut rig, true);
    look(&mut rig, false);
    look(&mut rig, true);
    // What was asked before it spoke says nothing, and is not asked again meanwhile.
    rig.controller = rival;
    assert_eq!(refused_hello(&mut rig), Some(held));
    rig.controller = holder;
    assert!(answer(&rig.ask(Ask::Noop)).is_ok());
    rig.controller = rival;
    assert_eq!(refused_hello(&mut rig), None);
    rig.tell(Input::Sought { lease: held, gone: true });
    look(&mut rig, true);

    rig.controller = rival;
    assert!(refused_hello(&mut rig).is_some());
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
    let both = answers(&rig.tell(Input::LinkOpened { lease, result: Ok(fixtures::link()) }));
    assert!(both.len() == 2 && both[0] == both[1]);
    assert_eq!(answer(&rig.call(hello)), both[0]);
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
fn a_hello_that_is_heard_again_takes_no_lease() {
    let mut rig = Rig::forming(1);
    let old = rig.envelope(Ask::Hello);
    rig.call(old.clone());
    rig.hello();
    let lease = rig.lease;
    assert_eq!(answer(&rig.call(old.clone())).unwrap_err().reason, Reason::StaleCall);
    assert!(answer(&rig.ask(Ask::Noop)).is_ok(), "lease {lease} is still obeyed");
    assert_eq!(answer(&rig.ask(Ask::Bye)), Ok(Reply::Bye));
    assert_eq!(answer(&rig.call(old)).unwrap_err().reason, Reason::StaleCall);
}

#[test]
fn a_call_whose_lease_is_gone_before_go_is_cancelled() {
    let mut rig = Rig::ready();
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    rig.tell(Input::Fetched { plan_id: PlanId(5), result: Ok(()) });
    rig.hello();
    let actions = rig.acknowledge(5, Verb::Plan);
    assert_eq!(sent(&actions), [Verb::Cancel]);
    assert!(!actions.iter().any(|a| matches!(a, Action::Run { .. })), "{actions:?}");
    rig.acknowledge(5, Verb::Cancel);
    assert_eq!(rig.phase(), MeshPhase::Ready);
}

#[test]
fn a_reset_while_its_slot_is_in_use_is_not_forgotten() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    assert_eq!(answer(&rig.ask(Ask::Reset { slot: SessionSlot(0) })), Ok(Reply::Reset));
    assert!(answer(&rig.ran(5, Ok(fixtures::report(2)))).is_ok());
    assert!(rig.refused(|i| *i = infer(i.session, 1, 1)).message.contains("dirty"));
}

#[test]
fn a_call_whose_link_is_still_read_is_answered_in_time_but_not_over() {
    let mut rig = Rig::ready();
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    let actions = rig.pass(ms(5_050));
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::BudgetSpent);
    let told = state(&rig.ask(Ask::Noop));
    assert_eq!((told.phase, told.running.is_some()), (MeshPhase::Busy, true));
    rig.tell(Input::Fetched { plan_id: PlanId(5), result: Ok(()) });
    let told = state(&rig.ask(Ask::Noop));
    assert_eq!((told.phase, told.running), (MeshPhase::Ready, None));
}

#[test]
fn a_link_that_is_read_for_ever_ends_the_epoch() {
    let mut rig = Rig::ready();
    let infer = rig.infer(0);
    rig.ask(Ask::Infer(Box::new(infer)));
    let actions = rig.pass(ms(5_050) + Timing::default().abort);
    assert!(actions.contains(&Action::CloseEpoch), "{actions:?}");
}
