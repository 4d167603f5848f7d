//! The link without shared memory against the contract of every link, with both ends in one process and in two, and what it promises
//! beyond it: nothing waits longer than it says, whatever becomes of the other end. What carries the bytes is a socket here; NCCL, which
//! takes its place between GPUs, has the same tests in `nccl_link`.
#![allow(clippy::unwrap_used, reason = "a test helper that cannot go on panics")]

mod carrier;
#[path = "../contract/mod.rs"]
mod contract_of_links;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use contract::link::{LinkDescriptor, LinkKind};
use contract::tensor::TensorKey;
use contract::{Error, Reason};
use latents::far::{self, FarLink, OPENING, TRANSFER};
use latents::{Condition, LatentLink, Rings, nccl};
use tch::Device;

use crate::carrier::{Faults, Socket};
use crate::contract_of_links::remote::{self, Remote, settled};
use crate::contract_of_links::{Ends, KEY, Lie, every_promise, picture, prefix, rings, same};

/// More than a busy machine takes to do what has no bound of its own here.
const SLACK: Duration = Duration::from_secs(2);

fn leader(
    slots_in: u32,
    slots_out: u32,
    slot_bytes: u64,
    epoch: u64,
    faults: Faults,
) -> (FarLink, LinkDescriptor) {
    let (carrier, rendezvous) = Socket::leader(slots_out, slot_bytes, faults);
    far::create(carrier, rendezvous, &rings(&prefix("far"), slots_in, slots_out, slot_bytes, epoch)).unwrap()
}

fn stage0_with(descriptor: &LinkDescriptor, faults: Faults) -> Result<FarLink, Error> {
    let rendezvous = descriptor.meeting.as_ref().map(|meeting| meeting.rendezvous.clone());
    let rendezvous = rendezvous.unwrap_or_else(|| b"127.0.0.1:1".to_vec());
    let (slots, bytes) = (descriptor.slots_in.min(8), descriptor.slot_bytes.min(1 << 24));
    far::open(Socket::stage0(&rendezvous, slots, bytes, faults), descriptor)
}

fn open(descriptor: &LinkDescriptor, _: Device) -> Result<Box<dyn LatentLink>, Error> {
    Ok(Box::new(stage0_with(descriptor, Faults::default())?))
}

fn ends(slots_in: u32, slots_out: u32, slot_bytes: u64, link_epoch: u64) -> Ends {
    let (leader, descriptor) = leader(slots_in, slots_out, slot_bytes, link_epoch, Faults::default());
    let stage0 = open(&descriptor, Device::Cpu).unwrap();
    assert_eq!((settled(&leader), settled(&*stage0)), (Condition::Open, Condition::Open));
    Ends { leader: Box::new(leader), stage0 }
}

fn why(condition: &Condition) -> String {
    match condition {
        Condition::Failed(error) => {
            assert_eq!(error.reason, Reason::CallAborted);
            error.detail.clone().unwrap()
        }
        other => panic!("{other:?}: a failed link is expected"),
    }
}

/// Waits for what another thread or process has to notice first.
fn fails(link: &dyn LatentLink) -> String {
    let until = Instant::now() + SLACK;
    while link.condition() == Condition::Open && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    why(&link.condition())
}

#[test]
fn stage0() {
    remote::serve(open);
}

#[test]
fn it_keeps_every_promise_of_a_link() {
    every_promise(&ends);
}

#[test]
fn it_keeps_every_promise_between_two_processes() {
    every_promise(&|slots_in, slots_out, slot_bytes, link_epoch| {
        let (leader, descriptor) = leader(slots_in, slots_out, slot_bytes, link_epoch, Faults::default());
        Ends { leader: Box::new(leader), stage0: Box::new(Remote::open("stage0", &descriptor, "cpu")) }
    });
}

#[test]
fn both_ends_read_at_once_and_one_tensor_is_carried_at_a_time() {
    let Ends { mut leader, mut stage0 } = ends(1, 1, 1 << 16, 1);
    for round in 0..200 {
        let (there, back) = (picture(round, 1 << 14), picture(1000 + round, 1 << 14));
        let to_leader = stage0.write(KEY, &there).unwrap();
        let to_stage0 = leader.write(TensorKey::LatentsOut, &back).unwrap();
        // The carriers themselves see to it that no two transfers meet.
        let reader = thread::spawn(move || {
            assert!(same(&leader.read(&to_leader).unwrap(), &there));
            leader.release(to_leader.slot, to_leader.generation).unwrap();
            leader
        });
        assert!(same(&stage0.read(&to_stage0).unwrap(), &back));
        stage0.release(to_stage0.slot, to_stage0.generation).unwrap();
        leader = reader.join().unwrap();
    }
}

#[test]
fn a_killed_stage0_is_noticed_and_the_next_link_knows_nothing_of_it() {
    let (mut leader_end, descriptor) = leader(2, 2, 64, 1, Faults::default());
    let mut stage0 = Remote::open("stage0", &descriptor, "cpu");
    let spec = stage0.write(KEY, &picture(1, 8)).unwrap();
    drop(stage0);
    fails(&leader_end);
    assert_eq!(leader_end.read(&spec).unwrap_err().reason, Reason::CallAborted);
    assert_eq!(leader_end.write(KEY, &picture(2, 8)).unwrap_err().reason, Reason::Fenced);
    assert!(!leader_end.holds(spec.slot, spec.generation));
    let Ends { mut leader, mut stage0 } = ends(2, 2, 64, 2);
    assert_eq!(leader.read(&spec).unwrap_err().reason, Reason::StaleSlot);
    let spec = stage0.write(KEY, &picture(3, 8)).unwrap();
    assert!(same(&leader.read(&spec).unwrap(), &picture(3, 8)));
}

#[test]
fn a_stage0_that_stands_still_ends_a_read_in_time_and_finds_the_link_closed() {
    let (mut leader, descriptor) = leader(2, 2, 64, 1, Faults::default());
    let mut stage0 = Remote::open("stage0", &descriptor, "cpu");
    let spec = stage0.write(KEY, &picture(1, 8)).unwrap();
    stage0.stand_still();
    let started = Instant::now();
    let error = leader.read(&spec).unwrap_err();
    let took = started.elapsed();
    assert!(took >= TRANSFER && took < TRANSFER + SLACK, "{took:?}");
    assert_eq!(error.reason, Reason::CallAborted);
    assert!(error.detail.unwrap().contains("did not answer in time"));
    // Once over, nothing is waited for.
    let started = Instant::now();
    leader.read(&spec).unwrap_err();
    drop(leader);
    assert!(started.elapsed() < TRANSFER, "{:?}", started.elapsed());
    stage0.go_on();
    assert!(!fails(&stage0).is_empty());
}

#[test]
fn whoever_closes_a_link_ends_a_read_that_waits() {
    let (mut leader, descriptor) = leader(2, 2, 64, 1, Faults::default());
    let (told, stands) = mpsc::sync_channel(1);
    let mut stage0 = stage0_with(&descriptor, Faults { stalls: Some(told), ..Faults::default() }).unwrap();
    assert_eq!((settled(&leader), settled(&stage0)), (Condition::Open, Condition::Open));
    let spec = stage0.write(KEY, &picture(1, 8)).unwrap();
    let closer = leader.closer().unwrap();
    let started = Instant::now();
    let reader = thread::spawn(move || leader.read(&spec).unwrap_err());
    stands.recv_timeout(SLACK).unwrap();
    closer.close("the test is over");
    assert_eq!(reader.join().unwrap().detail.unwrap(), "the test is over");
    assert!(started.elapsed() < TRANSFER, "{:?}", started.elapsed());
}

#[test]
fn a_transfer_that_fails_ends_the_link_at_both_ends() {
    let faults = Faults { fails_after: Some(AtomicU32::new(1)), ..Faults::default() };
    let (mut leader, descriptor) = leader(2, 2, 64, 1, faults);
    let mut stage0 = open(&descriptor, Device::Cpu).unwrap();
    assert_eq!((settled(&leader), settled(&*stage0)), (Condition::Open, Condition::Open));
    let specs = [1, 2].map(|write| stage0.write(KEY, &picture(write, 8)).unwrap());
    assert!(same(&leader.read(&specs[0]).unwrap(), &picture(1, 8)));
    let started = Instant::now();
    let error = leader.read(&specs[1]).unwrap_err();
    assert_eq!(error.reason, Reason::CallAborted);
    assert!(error.detail.unwrap().contains("it was made to fail"));
    fails(&*stage0);
    assert_eq!(stage0.write(KEY, &picture(3, 8)).unwrap_err().reason, Reason::Fenced);
    assert!(started.elapsed() < TRANSFER + SLACK);
}

#[test]
fn carriers_that_do_not_meet_are_told_of_at_both_ends() {
    let never = || Faults { never_meets: true, ..Faults::default() };
    let started = Instant::now();
    let (leader, descriptor) = leader(1, 1, 64, 1, never());
    let stage0 = stage0_with(&descriptor, never()).unwrap();
    for end in [&leader, &stage0] {
        assert_eq!(why(&settled(end)), "a tensor did not get through: there is nobody");
    }
    assert!(started.elapsed() < OPENING);
}

#[test]
fn a_link_that_is_not_open_yet_is_written_to_and_a_read_waits_for_it() {
    let (mut leader, descriptor) = leader(1, 1, 64, 1, Faults::default());
    assert_eq!(leader.condition(), Condition::Opening);
    let spec = leader.write(TensorKey::LatentsOut, &picture(1, 8)).unwrap();
    let mut stage0 = open(&descriptor, Device::Cpu).unwrap();
    assert!(same(&stage0.read(&spec).unwrap(), &picture(1, 8)));
}

#[test]
fn a_link_that_nobody_comes_to_is_not_ready_and_goes_with_its_leader() {
    let (mut leader_end, descriptor) = leader(1, 1, 64, 1, Faults::default());
    // Of another link that has the same epoch, so that only the link itself is in the way.
    let Ends { leader: _other, mut stage0 } = ends(1, 1, 64, 1);
    let spec = stage0.write(KEY, &picture(1, 8)).unwrap();
    let started = Instant::now();
    assert_eq!(leader_end.read(&spec).unwrap_err().reason, Reason::NotReady);
    assert!(started.elapsed() < TRANSFER + SLACK);
    drop(leader_end);
    let late = open(&descriptor, Device::Cpu).unwrap();
    assert!(why(&settled(&*late)).contains("did not let this end in"));
}

#[test]
fn whoever_does_not_know_the_name_is_not_let_in() {
    let (leader, descriptor) = leader(1, 1, 64, 1, Faults::default());
    let address = descriptor.meeting.clone().unwrap().address;
    let mut strangers: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(&address).unwrap()).collect();
    strangers[1].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    strangers[2].write_all(&u32::MAX.to_le_bytes()).unwrap();
    let guess = LinkDescriptor { name: format!("{}0", descriptor.name), ..descriptor.clone() };
    let guessed = open(&guess, Device::Cpu).unwrap();
    let stage0 = open(&descriptor, Device::Cpu).unwrap();
    assert_eq!((settled(&leader), settled(&*stage0)), (Condition::Open, Condition::Open));
    why(&settled(&*guessed));
}

#[test]
fn descriptors_from_messages_are_checked() {
    let (_leader, good) = leader(1, 1, 64, 7, Faults::default());
    let lies: [Lie<'_, LinkDescriptor>; 6] = [
        (&|d| d.kind = LinkKind::Shm, Reason::UnsupportedParameter),
        (&|d| d.meeting = None, Reason::BadField),
        (&|d| d.meeting.as_mut().unwrap().address = "leader.example:1".to_owned(), Reason::BadField),
        (&|d| d.slots_in = 0, Reason::BadField),
        (&|d| d.slots_out = u32::MAX, Reason::BadField),
        (&|d| d.slot_bytes = u64::MAX, Reason::BadField),
    ];
    for (lie, reason) in lies {
        let mut descriptor = good.clone();
        lie(&mut descriptor);
        assert_eq!(stage0_with(&descriptor, Faults::default()).err().unwrap().reason, reason);
    }
    // What is not NCCL's is refused before a GPU is looked for.
    let refused = nccl::open(0, &good).err().unwrap();
    assert_eq!(refused.reason, Reason::BadField);
    assert!(refused.message.contains("two NCCL ranks"), "{refused}");
}

#[test]
fn an_address_that_stage0_could_not_be_told_is_refused() {
    for bind in ["0.0.0.0:0", "[::]:0", "127.0.0.1", "here", "127.0.0.1:70000"] {
        let error = far::check_bind(bind).unwrap_err();
        assert_eq!(error.reason, Reason::BadField);
        assert!(error.message.contains(bind), "{error}");
    }
    assert_eq!(far::check_bind("127.0.0.1:0"), Ok(()));
}

#[test]
fn the_next_link_listens_where_the_one_before_it_did() {
    let (first, descriptor) = leader(1, 1, 64, 1, Faults::default());
    let address = descriptor.meeting.as_ref().unwrap().address.clone();
    let stage0 = open(&descriptor, Device::Cpu).unwrap();
    assert_eq!(settled(&first), Condition::Open);
    let again = |epoch| {
        let prefix = prefix("again");
        let rings = Rings { bind: &address, ..rings(&prefix, 1, 1, 64, epoch) };
        let (carrier, rendezvous) = Socket::leader(1, 64, Faults::default());
        far::create(carrier, rendezvous, &rings).unwrap()
    };
    // Open still, and then one that nobody came to, closed a moment ago.
    let (second, _) = again(2);
    drop((first, stage0));
    drop(second);
    let (third, descriptor) = again(3);
    let stage0 = open(&descriptor, Device::Cpu).unwrap();
    assert_eq!((settled(&third), settled(&*stage0)), (Condition::Open, Condition::Open));
}

/// Wherever it has not been set up, as where tests run without a GPU.
#[test]
fn without_the_library_a_process_on_a_gpu_is_told_what_it_can_have() {
    let Err(missing) = collectives::nccl::available() else { return };
    let error = latents::check(LinkKind::Nccl, Device::Cuda(0)).unwrap_err();
    assert_eq!(error.reason, Reason::UnsupportedParameter);
    let expected =
        format!("link kind nccl: {missing}; without it a process that computes on cuda has shm or cuda-ipc");
    assert_eq!(error.message, expected);
}
