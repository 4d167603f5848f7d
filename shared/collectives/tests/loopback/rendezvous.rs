use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use collectives::loopback::{Loopback, Rendezvous};
use collectives::{Collective, CollectiveError};

use crate::contract::soon;

fn file(rendezvous: &Rendezvous) -> PathBuf {
    PathBuf::from("/dev/shm").join(str::from_utf8(&rendezvous.to_bytes()[8..]).unwrap())
}

#[test]
fn the_name_is_gone_once_the_group_has_formed() {
    let rendezvous = Rendezvous::create(2).unwrap();
    assert!(file(&rendezvous).exists());
    let group = thread::scope(|scope| {
        let peer = scope.spawn(|| Loopback::connect(&rendezvous, 1, 2, soon()).unwrap());
        [Loopback::connect(&rendezvous, 0, 2, soon()).unwrap(), peer.join().unwrap()]
    });
    assert!(!file(&rendezvous).exists());
    drop(rendezvous);
    thread::scope(|scope| {
        scope.spawn(|| group[0].barrier(soon()).unwrap());
        group[1].barrier(soon()).unwrap();
    });
}

#[test]
fn a_group_that_never_forms_leaves_nothing() {
    let rendezvous = Rendezvous::create(2).unwrap();
    let file = file(&rendezvous);
    drop(rendezvous);
    assert!(!file.exists());
}

#[test]
fn a_missing_rank_fails_the_forming_for_all_by_the_deadline() {
    let rendezvous = Rendezvous::create(3).unwrap();
    let deadline = Instant::now() + Duration::from_millis(200);
    thread::scope(|scope| {
        let patient = scope.spawn(|| Loopback::connect(&rendezvous, 1, 3, soon()).unwrap_err());
        let error = Loopback::connect(&rendezvous, 0, 3, deadline).unwrap_err();
        let CollectiveError::Timeout { op: "connect", missing, .. } = error else { panic!("{error:?}") };
        assert!(missing.contains(&2));
        let error = patient.join().unwrap();
        assert!(matches!(error, CollectiveError::Aborted { .. } | CollectiveError::Io(_)), "{error:?}");
    });
    assert!(Instant::now() < deadline + Duration::from_secs(1));
    assert!(!file(&rendezvous).exists());
}

#[test]
fn who_does_not_belong_is_refused() {
    let rendezvous = Rendezvous::create(2).unwrap();
    let refused = |result: Result<Loopback, CollectiveError>, word: &str| {
        let Err(CollectiveError::Io(text)) = result else { panic!("{result:?}") };
        assert!(text.contains(word), "{text}");
    };
    refused(Loopback::connect(&rendezvous, 2, 2, soon()), "rank is 2");
    refused(Loopback::connect(&rendezvous, 0, 3, soon()), "world size is 3");
    thread::scope(|scope| {
        let first = scope.spawn(|| Loopback::connect(&rendezvous, 0, 2, soon()));
        let second = scope.spawn(|| Loopback::connect(&rendezvous, 1, 2, soon()));
        let group = [first.join().unwrap().unwrap(), second.join().unwrap().unwrap()];
        refused(Loopback::connect(&rendezvous, 1, 2, soon()), "segment");
        assert_eq!((group[0].rank(), group[1].rank(), group[1].world_size()), (0, 1, 2));
    });
}

#[test]
fn a_rank_that_is_taken_is_refused_and_the_group_forms_all_the_same() {
    let rendezvous = Rendezvous::create(2).unwrap();
    thread::scope(|scope| {
        let results: Vec<_> =
            (0..2).map(|_| scope.spawn(|| Loopback::connect(&rendezvous, 1, 2, soon()))).collect();
        // One of the two has been refused by now or finds the name gone later; either way the other one joins us.
        let ours = Loopback::connect(&rendezvous, 0, 2, soon()).unwrap();
        let joined: Vec<_> = results.into_iter().filter_map(|r| r.join().unwrap().ok()).collect();
        assert_eq!((ours.rank(), joined.len()), (0, 1));
    });
}

#[test]
fn bytes_that_are_no_rendezvous_are_refused() {
    let good = Rendezvous::create(2).unwrap().to_bytes();
    let mut world_of_none = good.clone();
    world_of_none[4..8].fill(0);
    let other_name = [&good[..8], b"../../etc/passwd"].concat();
    for bytes in [&[][..], b"KML1", &good[1..], &world_of_none, &other_name] {
        assert!(matches!(Rendezvous::from_bytes(bytes), Err(CollectiveError::Io(_))), "{bytes:?}");
    }
    assert!(Rendezvous::from_bytes(&good).is_ok());
}

#[test]
fn names_in_shared_memory_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let rendezvous = Rendezvous::create(1).unwrap();
    assert_eq!(fs::metadata(file(&rendezvous)).unwrap().permissions().mode() & 0o777, 0o600);
}
