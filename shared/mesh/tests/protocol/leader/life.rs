//! How a mesh forms, what ends an epoch, and what ends the leader.

use super::*;

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
fn wrong_counts_and_digests_are_faults_that_name_both_values() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    let report = RunReport { least_calls: 1, most_calls: 2, ..fixtures::report(2) };
    let error = answer(&rig.ran(5, Ok(report))).unwrap_err();
    assert_eq!(error.reason, Reason::CountMismatch);
    assert!(error.message.contains("1 to 2") && error.message.contains("2 are expected"), "{error}");

    let mut rig = Rig::ready();
    rig.run(0, 5);
    let report = RunReport { digests_agree: false, ..fixtures::report(2) };
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
    let holds = |rank| Some((Rank(rank), fixtures::world(4)));
    let mut join = |instance, holds| {
        let request = JoinRequest { version: CONTRACT_VERSION, instance, parity: fixtures::parity(), holds };
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
    assert_eq!(exit_of(&load(LoadFailure::NoRoom(error()))), Some(ExitCode::Configuration));
    assert_eq!(exit_of(&load(LoadFailure::Peer(error()))), Some(ExitCode::Failed));
    assert_eq!(exit_of(&load(LoadFailure::Stuck(error()))), Some(ExitCode::NeedsRestart));
    // The rank that failed may be gone before its failure is known here.
    let mut late = Rig::forming(2);
    late.join().unwrap();
    let epoch = late.epoch;
    late.tell(Input::Gone { epoch, rank: Rank(1), instance: late.worker, why: "eof".into() });
    let actions = late.tell(Input::Loaded { epoch, result: Err(LoadFailure::Peer(error())) });
    assert_eq!(exit_of(&actions), Some(ExitCode::Failed));
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
    for _ in 0..4 {
        let (plan, calls) = (rig.plan, rig.calls);
        rig.tell(Input::Fetched { plan_id: PlanId(plan), result: Ok(()) });
        rig.acknowledge(plan, Verb::Plan);
        let digest = Digest::of(&[b"another picture"]);
        rig.ran(plan, Ok(RunReport { digest, ..fixtures::report(calls) }));
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
    let actions = rig.ran(5, Ok(fixtures::report(2)));
    assert!(answer(&actions).is_ok());
    assert_eq!(exit_of(&actions), Some(ExitCode::Asked));
    assert_eq!(answer(&rig.ask(Ask::Noop)).unwrap_err().reason, Reason::Draining);

    let mut stuck = Rig::ready();
    stuck.run(0, 5);
    stuck.tell(Input::Drain);
    let actions = stuck.pass(Timing::default().drain + ms(100));
    assert_eq!(answer(&actions).unwrap_err().reason, Reason::CallAborted, "it had begun");
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

#[test]
fn what_an_older_epoch_fetched_is_not_taken_for_the_new_ones() {
    let mut rig = Rig::ready();
    let old = rig.plan;
    let (epoch, instance) = (rig.epoch, rig.worker);
    rig.tell(Input::Gone { epoch, rank: Rank(1), instance, why: "eof".into() });
    rig.take_epoch(9);
    rig.worker = InstanceId::random();
    rig.form();
    assert!(rig.plan > old, "plans of one leader are numbered once");
}

#[test]
fn a_worker_that_leaves_is_let_go_when_no_call_runs() {
    let mut rig = Rig::ready();
    assert!(rig.beat_as(true).contains(&Action::CloseEpoch));
    assert_eq!(rig.phase(), MeshPhase::Forming);

    let mut rig = Rig::ready();
    rig.run(0, 5);
    assert_eq!(rig.beat_as(true), []);
    let actions = rig.ran(5, Ok(fixtures::report(2)));
    assert!(answer(&actions).is_ok());
    assert!(actions.contains(&Action::CloseEpoch));

    let mut rig = Rig::forming(2);
    rig.join().unwrap();
    assert!(rig.beat_as(true).contains(&Action::CloseEpoch), "no warm-up for a rank that goes");
}

#[test]
fn weights_that_never_load_end_the_epoch() {
    let mut rig = Rig::forming(2);
    rig.join().unwrap();
    let actions = rig.pass(Timing::default().load + ms(50));
    assert!(actions.contains(&Action::CloseEpoch));
    assert!(rig.leader.view(rig.now).last_fault.unwrap().contains("did not load"));
}

#[test]
fn a_worker_that_stopped_asking_is_given_no_rank() {
    let now = Instant::now();
    let (mut leader, _) = Leader::new(now, fixtures::leader_config(2));
    let instance = InstanceId::random();
    let request =
        JoinRequest { version: CONTRACT_VERSION, instance, parity: fixtures::parity(), holds: None };
    leader.handle(now, Input::Join { ticket: Ticket(1), request });
    let later = now + Timing::default().join_forget + ms(50);
    let epoch = MeshEpoch(7);
    let taken = Input::EpochTaken { epoch, collective: vec![1], liveness: "127.0.0.1:1".into() };
    assert_eq!(leader.handle(later, taken), []);
    assert_eq!(leader.view(later).phase, MeshPhase::Forming);
}

#[test]
fn a_leader_that_ends_takes_no_new_epoch_and_says_so_once() {
    let mut rig = Rig::ready();
    rig.run(0, 5);
    rig.tell(Input::Drain);
    let (epoch, instance) = (rig.epoch, rig.worker);
    let mut actions = rig.tell(Input::Gone { epoch, rank: Rank(1), instance, why: "eof".into() });
    actions.extend(rig.pass(Timing::default().drain + ms(100)));
    assert!(!actions.contains(&Action::TakeEpoch));
    let exits = actions.iter().filter(|a| matches!(a, Action::Exit { .. })).count();
    assert_eq!(exits, 1, "{actions:?}");
}
