//! `nats/nats-server.conf` against the table of subjects: who may say what, who may hear it, and nobody else.

use std::collections::{BTreeMap, BTreeSet};

use contract::subjects::{self, Ops};
use contract::{CellId, Incarnation, InstanceId, MeshEpoch, Rank, SessionId};
use xtask::layout::Layout;
use xtask::setup::credentials::USERS;

const EVERYBODY: &[&str] = &["gateway", "stage0", "leader", "worker"];

#[derive(Debug, Default)]
struct Grants {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

/// The permissions of each user, read from the one form in which the file states them.
fn grants() -> BTreeMap<String, Grants> {
    let path = Layout::new(None).nats_config();
    let text = std::fs::read_to_string(&path).expect("the broker's configuration");
    let mut grants = BTreeMap::<String, Grants>::new();
    let (mut user, mut publishes) = (String::new(), true);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("user: ") {
            user = name.to_owned();
        } else if line == "publish: [" || line == "subscribe: [" {
            publishes = line.starts_with("publish");
        } else if let Some(subject) = line.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            let of_user = grants.entry(user.clone()).or_default();
            let list = if publishes { &mut of_user.publish } else { &mut of_user.subscribe };
            list.push(subject.to_owned());
        }
    }
    grants
}

/// NATS wildcards: `*` is one token, `>` the rest.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

fn who(subject: &str, list: impl Fn(&Grants) -> &[String]) -> BTreeSet<String> {
    let may = |grants: &Grants| list(grants).iter().any(|pattern| covers(pattern, subject));
    grants().iter().filter(|(_, grants)| may(grants)).map(|(user, _)| user.clone()).collect()
}

fn assert_directions(subject: &str, speakers: &[&str], listeners: &[&str]) {
    let set = |users: &[&str]| users.iter().map(|user| (*user).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(who(subject, |grants| &grants.publish), set(speakers), "publish {subject}");
    assert_eq!(who(subject, |grants| &grants.subscribe), set(listeners), "subscribe {subject}");
}

#[test]
fn every_user_of_the_credentials_has_grants_and_so_has_the_guest() {
    let users: Vec<String> = grants().into_keys().collect();
    let mut expected = [USERS.as_slice(), &["guest"]].concat();
    expected.sort_unstable();

    assert_eq!(users, expected);
}

#[test]
fn session_subjects_are_between_gateway_and_stage0() {
    let (cell, session) = (CellId::default(), SessionId::random());

    assert_directions(&subjects::session_create(&cell), &["gateway"], &["stage0"]);
    assert_directions(&subjects::session_params(session), &["gateway"], &["stage0"]);
    assert_directions(&subjects::session_control(session), &["gateway"], &["stage0"]);
    assert_directions(&subjects::media_out(session), &["stage0"], &["gateway"]);
    // An operator may watch.
    assert_directions(&subjects::session_event(session), &["stage0"], &["gateway", "ops"]);
}

#[test]
fn mesh_subjects_belong_to_the_mesh_and_stage0() {
    let (cell, epoch, rank) = (CellId::default(), MeshEpoch(7), Rank(1));

    assert_directions(&subjects::mesh_call(&cell, epoch), &["stage0"], &["leader"]);
    assert_directions(&subjects::tp_join(&cell), &["worker"], &["leader"]);
    for of_rank in [subjects::tp_plan, subjects::tp_go, subjects::tp_cancel] {
        assert_directions(&of_rank(&cell, epoch, rank), &["leader"], &["worker"]);
    }
    for of_all in [subjects::tp_noop, subjects::tp_shutdown] {
        assert_directions(&of_all(&cell, epoch), &["leader"], &["worker"]);
    }
}

#[test]
fn every_service_reports_its_status_and_only_an_operator_commands_a_cell() {
    let cell = CellId::default();
    let listeners = [EVERYBODY, &["ops"]].concat();

    assert_directions(&subjects::cell_status(&cell), EVERYBODY, &listeners);
    for verb in Ops::ALL {
        let speakers: &[&str] = if verb == Ops::Status { &["ops", "guest"] } else { &["ops"] };
        // The gateway stands in for a stage0 that is gone, to be looked at.
        let answerers: &[&str] = if verb == Ops::Status { &["stage0", "gateway"] } else { &["stage0"] };
        assert_directions(&subjects::ops(&cell, verb), speakers, answerers);
    }
}

#[test]
fn the_gateway_and_the_leader_ask_whether_those_they_need_are_there() {
    let subject = subjects::presence(&CellId::default(), InstanceId::random());

    assert_directions(&subject, &["gateway", "leader"], &["stage0", "leader"]);
}

#[test]
fn whoever_answers_an_operator_asks_the_flight_recorders() {
    let subject = subjects::recorder(&CellId::default(), InstanceId::random());

    assert_directions(&subject, &["stage0", "gateway"], &["stage0", "leader", "worker"]);
}

#[test]
fn only_the_leader_touches_its_bucket() {
    let key = format!("$KV.{}.{}", subjects::LEADER_BUCKET, subjects::leader_key(&CellId::default()));
    let create = format!("$JS.API.STREAM.CREATE.KV_{}", subjects::LEADER_BUCKET);

    assert_directions(&key, &["leader"], &[]);
    assert_directions(&create, &["leader"], &[]);
    assert_directions("$JS.API.STREAM.DELETE.KV_other", &[], &[]);
}

#[test]
fn only_stage0_touches_what_sessions_leave() {
    let (bucket, session) = (subjects::CONTINUATION_BUCKET, SessionId::random());
    let head = subjects::continuation_head(session);
    let part = subjects::continuation_part(session, Incarnation(3), 1, 0);

    for key in [head, part] {
        assert_directions(&format!("$KV.{bucket}.{key}"), &["stage0"], &[]);
        let get = format!("$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{key}");
        assert_directions(&get, &["stage0"], &[]);
    }
    for verb in ["CREATE", "INFO"] {
        assert_directions(&format!("$JS.API.STREAM.{verb}.KV_{bucket}"), &["stage0"], &[]);
    }
    for verb in ["DELETE", "PURGE", "UPDATE"] {
        assert_directions(&format!("$JS.API.STREAM.{verb}.KV_{bucket}"), &[], &[]);
    }
}

#[test]
fn an_inbox_is_its_owners() {
    for user in USERS {
        assert_directions(&format!("_INBOX_{user}.x.1"), &[user], &[user]);
    }
}
