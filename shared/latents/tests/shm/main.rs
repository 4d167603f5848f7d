//! The shared memory link against the contract of every link, under random and concurrent use, and between processes.
#![allow(clippy::unwrap_used, reason = "a test helper that cannot go on panics")]

#[path = "../contract/mod.rs"]
mod contract_of_links;
mod interleavings;
mod processes;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use contract::Reason;
use contract::link::{LinkDescriptor, LinkKind};
use latents::shm;
use tch::Device;

use crate::contract_of_links::remote::{self, Remote};
use crate::contract_of_links::{Ends, Lie, every_promise, prefix, rings};

fn ends(slots_in: u32, slots_out: u32, slot_bytes: u64, link_epoch: u64) -> Ends {
    let (leader, descriptor) =
        shm::create(&rings(&prefix("ends"), slots_in, slots_out, slot_bytes, link_epoch)).unwrap();
    let stage0 = latents::open(&descriptor, Device::Cpu).unwrap();
    Ends { leader: Box::new(leader), stage0 }
}

fn file(descriptor: &LinkDescriptor) -> PathBuf {
    PathBuf::from("/dev/shm").join(&descriptor.name)
}

#[test]
fn it_keeps_every_promise_of_a_link() {
    every_promise(&ends);
}

#[test]
fn stage0() {
    remote::serve(latents::open);
}

#[test]
fn it_keeps_every_promise_between_two_processes() {
    every_promise(&|slots_in, slots_out, slot_bytes, link_epoch| {
        let prefix = prefix("remote");
        let (leader, descriptor) =
            shm::create(&rings(&prefix, slots_in, slots_out, slot_bytes, link_epoch)).unwrap();
        Ends { leader: Box::new(leader), stage0: Box::new(Remote::open("stage0", &descriptor, "cpu")) }
    });
}

#[test]
fn a_kind_that_does_not_go_with_the_device_is_refused() {
    let prefix = prefix("kinds");
    for kind in [LinkKind::CudaIpc, LinkKind::Nccl] {
        let refused = latents::create(kind, Device::Cpu, &rings(&prefix, 1, 1, 64, 1)).err().unwrap();
        assert_eq!(refused.reason, Reason::UnsupportedParameter);
        let expected = format!("link kind {}: a process that computes on cpu has shm", kind.as_str());
        assert_eq!(
            (refused.message, latents::check(kind, Device::Cpu).unwrap_err().message),
            (expected.clone(), expected)
        );
    }
    let (_leader, mut descriptor) = shm::create(&rings(&prefix, 1, 1, 64, 1)).unwrap();
    descriptor.kind = LinkKind::CudaIpc;
    assert_eq!(latents::open(&descriptor, Device::Cpu).err().unwrap().reason, Reason::UnsupportedParameter);
}

#[test]
fn it_is_private_and_has_no_name_once_both_have_it() {
    let (_leader, descriptor) = shm::create(&rings(&prefix("private"), 1, 1, 64, 1)).unwrap();
    assert_eq!(fs::metadata(file(&descriptor)).unwrap().permissions().mode() & 0o777, 0o600);
    let _stage0 = shm::open(&descriptor).unwrap();
    assert!(!file(&descriptor).exists());
    assert_eq!(shm::open(&descriptor).unwrap_err().reason, Reason::NotReady);
}

#[test]
fn a_link_that_nobody_opened_goes_with_its_leader() {
    let (leader, descriptor) = shm::create(&rings(&prefix("unopened"), 1, 1, 64, 1)).unwrap();
    assert_eq!(latents::remove_stale(&prefix("unopened")).unwrap(), 0);
    drop(leader);
    assert!(!file(&descriptor).exists());
    assert_eq!(shm::open(&descriptor).unwrap_err().reason, Reason::NotReady);
}

#[test]
fn descriptors_from_messages_are_checked() {
    let (_leader, good) = shm::create(&rings(&prefix("lies"), 1, 1, 64, 7)).unwrap();
    let lies: [Lie<'_, LinkDescriptor>; 7] = [
        (&|d| d.kind = LinkKind::Nccl, Reason::UnsupportedParameter),
        (&|d| d.name = "../../etc/passwd".to_owned(), Reason::NotReady),
        (&|d| d.slots_in = 0, Reason::BadField),
        (&|d| d.slots_out = u32::MAX, Reason::BadField),
        (&|d| d.slot_bytes = u64::MAX, Reason::BadField),
        (&|d| d.slot_bytes = 1 << 20, Reason::NotReady),
        (&|d| d.link_epoch = 8, Reason::NotReady),
    ];
    for (lie, reason) in lies {
        let mut descriptor = good.clone();
        lie(&mut descriptor);
        assert_eq!(shm::open(&descriptor).unwrap_err().reason, reason);
    }
    assert!(shm::open(&good).is_ok());
    assert_eq!(shm::create(&rings("no/slash", 1, 1, 64, 1)).unwrap_err().reason, Reason::Internal);
}
