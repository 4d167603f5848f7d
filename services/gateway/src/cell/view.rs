//! The state of a cell as a function of the status messages and the time they came.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bus::presence::Presence;
use contract::model::ModelInfo;
use contract::status::{MeshStatus, ProcessStatus, Role, STATUS_TIMEOUT_MS, Stage0Status};
use contract::{CellId, Error, InstanceId, Reason};

/// Whoever tells nothing for so long is taken for dead.
const SILENT: Duration = Duration::from_millis(STATUS_TIMEOUT_MS);
/// A process that died stays listed this long, so that "gone" and "never seen" can be told apart no longer than needed.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// Processes kept at a time; a cell has far fewer.
const MAX_PROCESSES: usize = 256;

#[derive(Debug)]
pub(crate) struct CellView {
    cell: CellId,
    connected: Option<Instant>,
    seen: HashMap<InstanceId, Seen>,
}

#[derive(Debug)]
struct Seen {
    status: ProcessStatus,
    at: Instant,
    /// It once said that it is there.
    answered: bool,
    /// And since its last status the broker said that it is not.
    gone: bool,
}

/// What holds now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// Why the cell is not ready; absent when it is.
    pub(crate) waiting_for: Option<String>,
    pub(crate) connected: bool,
    pub(crate) model: Option<ModelInfo>,
    /// The instance of stage0 in charge, and all that are alive.
    pub(crate) stage0: Option<(InstanceId, Option<Stage0Status>)>,
    pub(crate) alive: Vec<InstanceId>,
    pub(crate) mesh: Option<MeshStatus>,
}

impl Snapshot {
    pub(crate) fn ready(&self) -> bool {
        self.connected && self.waiting_for.is_none() && self.stage0.is_some()
    }

    /// # Errors
    /// `broker_unavailable` or `not_ready`, naming what is waited for.
    pub(crate) fn check_ready(&self) -> Result<(), Error> {
        if self.ready() {
            return Ok(());
        }
        let reason = if self.connected { Reason::NotReady } else { Reason::BrokerUnavailable };
        let waiting_for = self.waiting_for.as_deref().unwrap_or("stage0");
        Err(Error::new(reason, format!("the cell is not ready: waiting for {waiting_for}")))
    }
}

impl CellView {
    pub(crate) fn new(cell: CellId) -> Self {
        Self { cell, connected: None, seen: HashMap::new() }
    }

    pub(crate) fn observe(&mut self, now: Instant, status: ProcessStatus) {
        if status.cell != self.cell
            || (self.seen.len() >= MAX_PROCESSES && !self.seen.contains_key(&status.instance))
        {
            return;
        }
        let answered = self.seen.get(&status.instance).is_some_and(|seen| seen.answered);
        self.seen.insert(status.instance, Seen { status, at: now, answered, gone: false });
    }

    /// Whom to ask whether they are there: those without whom the cell is not ready. Nobody until all had the time to
    /// reconnect.
    pub(crate) fn to_ask(&self, now: Instant) -> Vec<InstanceId> {
        let settled = |since: Instant| now.saturating_duration_since(since) >= SILENT;
        if !self.connected.is_some_and(settled) {
            return Vec::new();
        }
        let wanted = |seen: &&Seen| matches!(seen.status.role, Role::Stage0 | Role::MeshLeader) && !seen.gone;
        self.seen.values().filter(wanted).map(|seen| seen.status.instance).collect()
    }

    /// What became of such a question. A process that never answered may know nothing of it.
    pub(crate) fn asked(&mut self, instance: InstanceId, presence: Presence) {
        let Some(seen) = self.seen.get_mut(&instance) else { return };
        match presence {
            Presence::Here => seen.answered = true,
            Presence::Gone => seen.gone = seen.answered,
            Presence::Unknown => {}
        }
    }

    pub(crate) fn set_connected(&mut self, now: Instant, connected: bool) {
        if connected && self.connected.is_none() {
            // Nobody could be heard; they all get the time to speak again.
            self.seen.values_mut().for_each(|seen| (seen.at, seen.gone) = (now, false));
        }
        self.connected = connected.then(|| self.connected.unwrap_or(now));
    }

    /// This process did not run for `gap`: silence during it accuses nobody.
    pub(crate) fn discount(&mut self, gap: Duration) {
        self.seen.values_mut().for_each(|seen| seen.at += gap);
    }

    pub(crate) fn forget_the_dead(&mut self, now: Instant) {
        self.seen.retain(|_, seen| now.saturating_duration_since(seen.at) < FORGET_AFTER);
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Snapshot {
        // While the broker is away nobody can be heard, and nobody is taken for dead.
        let fresh = |seen: &&Seen| {
            self.connected.is_none() || (!seen.gone && now.saturating_duration_since(seen.at) <= SILENT)
        };
        let of_role = |role: Role| {
            let candidates = self.seen.values().filter(fresh).filter(move |seen| seen.status.role == role);
            // A ready one before one that is starting or leaving, then the one heard last.
            candidates
                .max_by_key(|seen| (seen.status.ready, !seen.status.draining, seen.at))
                .map(|seen| &seen.status)
        };
        let (stage0, leader) = (of_role(Role::Stage0), of_role(Role::MeshLeader));
        let mesh = leader.and_then(|leader| leader.mesh.clone());
        let stage0_status = stage0.and_then(|stage0| stage0.stage0.clone());
        Snapshot {
            waiting_for: self.waiting_for(stage0, leader),
            connected: self.connected.is_some(),
            model: stage0_status
                .as_ref()
                .map(|status| status.model.clone())
                .or_else(|| mesh.as_ref().and_then(|mesh| mesh.model.clone())),
            stage0: stage0.map(|stage0| (stage0.instance, stage0_status)),
            alive: {
                let mut alive: Vec<_> =
                    self.seen.values().filter(fresh).map(|seen| seen.status.instance).collect();
                alive.sort_unstable();
                alive
            },
            mesh,
        }
    }

    fn waiting_for(&self, stage0: Option<&ProcessStatus>, leader: Option<&ProcessStatus>) -> Option<String> {
        let unready = |name: &str, status: &ProcessStatus| {
            let text = status.waiting_for.clone().unwrap_or_else(|| "starting".to_owned());
            (!status.ready)
                .then(|| format!("{name}: {}", if status.draining { "draining".to_owned() } else { text }))
        };
        if self.connected.is_none() {
            return Some("broker".to_owned());
        }
        let Some(leader) = leader else { return Some("mesh: no leader".to_owned()) };
        if let Some(text) = unready("mesh", leader) {
            return Some(text);
        }
        let Some(stage0) = stage0 else { return Some("stage0".to_owned()) };
        unready("stage0", stage0).or_else(|| stage0.draining.then(|| "stage0: draining".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: Role, ready: bool, waiting_for: Option<&str>) -> ProcessStatus {
        ProcessStatus {
            version: contract::CONTRACT_VERSION,
            cell: CellId::default(),
            role,
            instance: InstanceId::random(),
            build: "test".to_owned(),
            ready,
            waiting_for: waiting_for.map(str::to_owned),
            draining: false,
            uptime_ms: 1,
            pid: 1,
            rss_bytes: 0,
            mesh: None,
            stage0: None,
        }
    }

    fn connected(now: Instant) -> CellView {
        let mut view = CellView::new(CellId::default());
        view.set_connected(now, true);
        view
    }

    #[test]
    fn readiness_names_the_first_thing_that_is_missing() {
        let now = Instant::now();
        let waiting = |view: &CellView| view.snapshot(now).waiting_for.unwrap_or_default();
        assert_eq!(waiting(&CellView::new(CellId::default())), "broker");
        let mut view = connected(now);
        assert_eq!(waiting(&view), "mesh: no leader");
        let leader = status(Role::MeshLeader, false, Some("warming 2/3"));
        view.observe(now, leader.clone());
        assert_eq!(waiting(&view), "mesh: warming 2/3");
        view.observe(now, ProcessStatus { ready: true, waiting_for: None, ..leader });
        assert_eq!(waiting(&view), "stage0");
        let stage0 = status(Role::Stage0, false, Some("lease"));
        view.observe(now, stage0.clone());
        assert_eq!(waiting(&view), "stage0: lease");
        view.observe(now, ProcessStatus { ready: true, waiting_for: None, ..stage0.clone() });
        assert!(view.snapshot(now).ready());
        view.observe(now, ProcessStatus { ready: true, draining: true, ..stage0 });
        assert_eq!(waiting(&view), "stage0: draining");
    }

    #[test]
    fn who_is_silent_too_long_is_gone_unless_nobody_could_be_heard() {
        let now = Instant::now();
        let mut view = connected(now);
        let stage0 = status(Role::Stage0, true, None);
        view.observe(now, status(Role::MeshLeader, true, None));
        view.observe(now, stage0.clone());
        let late = now + Duration::from_millis(STATUS_TIMEOUT_MS + 100);
        assert!(!view.snapshot(late).alive.contains(&stage0.instance));

        view.discount(Duration::from_secs(1));
        assert!(view.snapshot(late).ready(), "this process slept itself");

        view.set_connected(now, false);
        let later = now + Duration::from_secs(20);
        assert_eq!(view.snapshot(later).waiting_for.as_deref(), Some("broker"));
        assert!(view.snapshot(later).alive.contains(&stage0.instance));
        view.set_connected(later, true);
        assert!(view.snapshot(later).ready());
    }

    #[test]
    fn who_was_there_and_is_not_is_gone_at_once_until_it_is_heard_again() {
        let now = Instant::now();
        let mut view = connected(now);
        let stage0 = status(Role::Stage0, true, None);
        view.observe(now, status(Role::MeshLeader, true, None));
        view.observe(now, stage0.clone());
        assert!(view.to_ask(now).is_empty(), "everybody has the time to connect");
        let later = now + SILENT;
        assert_eq!(view.to_ask(later).len(), 2);

        view.asked(stage0.instance, Presence::Gone);
        assert!(view.snapshot(later).ready(), "it never said that it is there");
        view.asked(stage0.instance, Presence::Here);
        view.asked(stage0.instance, Presence::Unknown);
        assert!(view.snapshot(later).ready(), "no answer says nothing");
        view.asked(stage0.instance, Presence::Gone);
        assert_eq!(view.snapshot(later).waiting_for.as_deref(), Some("stage0"));
        assert!(!view.snapshot(later).alive.contains(&stage0.instance));

        view.observe(later, stage0.clone());
        assert!(view.snapshot(later).ready());
        view.asked(stage0.instance, Presence::Gone);
        view.set_connected(later, false);
        view.set_connected(later, true);
        assert!(view.snapshot(later).ready(), "it could not answer either");
    }

    #[test]
    fn a_successor_that_is_ready_stands_before_its_predecessor() {
        let now = Instant::now();
        let mut view = connected(now);
        let old = status(Role::Stage0, false, Some("lease"));
        let new = status(Role::Stage0, true, None);
        view.observe(now, new.clone());
        view.observe(now + Duration::from_millis(1), old);
        assert_eq!(view.snapshot(now).stage0.unwrap().0, new.instance);
        assert_eq!(view.snapshot(now).alive.len(), 2);
    }

    #[test]
    fn another_cells_status_is_ignored() {
        let now = Instant::now();
        let mut view = connected(now);
        let other = ProcessStatus { cell: "cell1".parse().unwrap(), ..status(Role::MeshLeader, true, None) };
        view.observe(now, other);
        assert!(view.snapshot(now).alive.is_empty());
    }
}
