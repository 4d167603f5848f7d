//! The bytes on the wire: named fields, tolerant of what is new, strict about size.

use contract::codec::{MAX_PAYLOAD, decode, encode};
use contract::envelope::{Action, EnvelopeV1};
use contract::link::{LinkDescriptor, LinkKind, LinkMeeting};
use contract::media::{MAX_PART, MediaPart, VideoCodec};
use contract::model::Size;
use contract::{
    CacheEpoch, CallId, ChunkIndex, Incarnation, InstanceId, LeaseEpoch, MeshEpoch, Reason, SessionId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

fn noop() -> EnvelopeV1 {
    EnvelopeV1 {
        version: 1,
        call_id: CallId(7),
        mesh_epoch: MeshEpoch(3),
        controller: InstanceId(Uuid::from_u128(1)),
        lease: Some(LeaseEpoch(2)),
        action: Action::Noop,
    }
}

/// A change of these bytes is a change of the contract: raise `CONTRACT_VERSION`.
#[test]
fn an_envelope_has_these_bytes() {
    let golden = concat!(
        "86a776657273696f6e01a763616c6c5f696407aa6d6573685f65706f636803aa636f6e74726f6c6c6572c410",
        "00000000000000000000000000000001a56c6561736502a6616374696f6ea46e6f6f70"
    );
    let bytes = encode(&noop()).unwrap();
    assert_eq!(hex::encode(&bytes), golden);
    assert_eq!(decode::<EnvelopeV1>(&bytes).unwrap(), noop());
}

#[test]
fn unknown_fields_are_ignored_and_unknown_versions_refused() {
    #[derive(Serialize, Deserialize)]
    struct Newer {
        version: u16,
        call_id: CallId,
        mesh_epoch: MeshEpoch,
        controller: InstanceId,
        lease: Option<LeaseEpoch>,
        action: Action,
        invented_later: String,
    }
    let newer = Newer {
        version: 9,
        call_id: CallId(7),
        mesh_epoch: MeshEpoch(3),
        controller: InstanceId(Uuid::from_u128(1)),
        lease: None,
        action: Action::Bye,
        invented_later: "x".into(),
    };
    let read: EnvelopeV1 = decode(&encode(&newer).unwrap()).unwrap();
    let error = read.check_version().unwrap_err();
    assert_eq!(error.reason, Reason::UnsupportedVersion);
    assert_eq!(error.message, "envelope version 9: 1 is spoken here");
    assert_eq!(noop().check_version(), Ok(()));
}

/// One side of a cell may be older than the other, and knows the links in shared memory alone.
#[test]
fn a_link_says_where_its_ends_meet_only_where_they_have_to() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Older {
        kind: LinkKind,
        name: String,
        slots_in: u32,
        slots_out: u32,
        slot_bytes: u64,
        link_epoch: u64,
    }
    let shm = LinkDescriptor {
        kind: LinkKind::Shm,
        name: "x".into(),
        slots_in: 9,
        slots_out: 4,
        slot_bytes: 64,
        link_epoch: 3,
        meeting: None,
    };
    let older = Older {
        kind: LinkKind::Shm,
        name: "x".into(),
        slots_in: 9,
        slots_out: 4,
        slot_bytes: 64,
        link_epoch: 3,
    };
    assert_eq!(encode(&shm).unwrap(), encode(&older).unwrap());
    assert_eq!(decode::<LinkDescriptor>(&encode(&older).unwrap()).unwrap(), shm);
    let meeting = LinkMeeting { address: "10.0.0.7:4711".into(), rendezvous: vec![0xc1; 136] };
    let nccl = LinkDescriptor { kind: LinkKind::Nccl, meeting: Some(meeting), ..shm };
    assert_eq!(decode::<LinkDescriptor>(&encode(&nccl).unwrap()).unwrap(), nccl);
    assert!(LinkKind::ALL.map(LinkKind::as_str).contains(&"nccl"));
}

#[test]
fn garbage_and_oversize_are_refused_before_they_are_read() {
    assert_eq!(decode::<EnvelopeV1>(b"\xc1garbage").unwrap_err().reason, Reason::Malformed);
    let big = vec![0u8; MAX_PAYLOAD + 1];
    assert_eq!(decode::<EnvelopeV1>(&big).unwrap_err().reason, Reason::PayloadTooLarge);
}

#[test]
fn the_largest_media_part_fits_a_message() {
    let part = MediaPart {
        session: SessionId::random(),
        incarnation: Incarnation(u64::MAX),
        sequence: u64::MAX,
        part: u16::MAX,
        parts: u16::MAX,
        codec: VideoCodec::H264,
        keyframe: true,
        timestamp: u64::MAX,
        size: Size { width: u32::MAX, height: u32::MAX },
        cache_epoch: CacheEpoch(u64::MAX),
        chunk_index: ChunkIndex(u64::MAX),
        frame: u16::MAX,
        data: vec![0; MAX_PART],
    };
    let bytes = encode(&part).unwrap();
    assert_eq!(decode::<MediaPart>(&bytes).unwrap(), part);
}
