//! Who of a cell was heard when, and the report that an operator gets of it. Pure: statuses and time are given.
//!
//! Whoever answers `ops.{cell}.status` keeps one: stage0, or the gateway while no stage0 is heard.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use contract::ops::{CellReport, Observer, ProcessReport, ProcessState};
use contract::status::{ProcessStatus, Role, STATUS_TIMEOUT_MS};
use contract::{CellId, InstanceId, Rank};

/// Processes remembered, whatever the broker brings.
const PROCESSES: usize = 256;
/// A process that fell silent stays listed this long, unless another takes its place.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Instances of one place that are told apart; older ones are only counted.
const LIVES: usize = 64;
const TIMEOUT: Duration = Duration::from_millis(STATUS_TIMEOUT_MS);

/// What one instance at a time is: a role, and for ranks which.
type Place = (Role, Option<Rank>);

#[derive(Debug)]
pub struct Census {
    since: Instant,
    heard: HashMap<InstanceId, Heard>,
    lives: HashMap<Place, Lives>,
}

#[derive(Debug)]
struct Heard {
    status: ProcessStatus,
    at: Instant,
}

/// Instances of a place in the order they were first heard.
#[derive(Debug, Default)]
struct Lives {
    last: VecDeque<InstanceId>,
    before: u32,
}

impl Lives {
    fn hear(&mut self, instance: InstanceId) {
        if !self.last.contains(&instance) {
            if self.last.len() == LIVES {
                self.last.pop_front();
                self.before += 1;
            }
            self.last.push_back(instance);
        }
    }

    fn before(&self, instance: InstanceId) -> u32 {
        let place = self.last.iter().position(|known| *known == instance).unwrap_or(0);
        self.before + u32::try_from(place).unwrap_or(u32::MAX)
    }
}

impl Census {
    /// One that counts from `now` on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, heard: HashMap::new(), lives: HashMap::new() }
    }

    /// A status came.
    pub fn hear(&mut self, now: Instant, status: ProcessStatus) {
        let place = place(&status);
        self.heard.retain(|instance, heard| {
            let silence = now.saturating_duration_since(heard.at);
            let replaced = *instance != status.instance
                && place.is_some()
                && self::place(&heard.status) == place
                && silence >= TIMEOUT;
            silence < REMEMBERED && !replaced
        });
        if self.heard.len() >= PROCESSES && !self.heard.contains_key(&status.instance) {
            return;
        }
        if let Some(place) = place {
            self.lives.entry(place).or_default().hear(status.instance);
        }
        self.heard.insert(status.instance, Heard { status, at: now });
    }

    /// Every process heard within [`STATUS_TIMEOUT_MS`], and when.
    pub fn live(&self, now: Instant) -> impl Iterator<Item = (&ProcessStatus, Instant)> {
        let heard = self.heard.values().filter(move |heard| heard.speaks(now));
        heard.map(|heard| (&heard.status, heard.at))
    }

    /// What is known, as `observer` tells it: by role and rank.
    #[must_use]
    pub fn report(&self, now: Instant, cell: &CellId, observer: (Role, InstanceId)) -> CellReport {
        let mut processes: Vec<_> = self.heard.values().map(|heard| self.process(now, heard)).collect();
        let rank = |process: &ProcessReport| process.status.mesh.as_ref().and_then(|mesh| mesh.rank);
        processes.sort_by_key(|process| (process.status.role, rank(process), process.age_ms));
        // The one heard last speaks for the cell, alive or not.
        let stage0 = processes
            .iter_mut()
            .filter(|process| process.status.role == Role::Stage0)
            .min_by_key(|process| process.age_ms);
        let mut report = CellReport {
            cell: cell.clone(),
            answered_by: Observer {
                role: observer.0,
                instance: observer.1,
                observing_ms: millis(now.saturating_duration_since(self.since)),
            },
            ready: false,
            waiting_for: Some("stage0".to_owned()),
            draining: false,
            sessions: Vec::new(),
            processes: Vec::new(),
        };
        if let Some(ProcessReport { state, status, .. }) = stage0 {
            if let Some(stage0) = &mut status.stage0 {
                report.sessions = std::mem::take(&mut stage0.reports);
            }
            if *state != ProcessState::Silent {
                report.ready = status.ready;
                report.waiting_for = status.waiting_for.clone();
                report.draining = status.draining;
            }
        }
        report.processes = processes;
        report
    }

    fn process(&self, now: Instant, heard: &Heard) -> ProcessReport {
        let Heard { status, at } = heard;
        let lives = place(status).and_then(|place| self.lives.get(&place));
        let state = match status {
            _ if !heard.speaks(now) => ProcessState::Silent,
            _ if status.draining => ProcessState::Draining,
            _ if status.ready => ProcessState::Ready,
            _ => ProcessState::Waiting,
        };
        ProcessReport {
            state,
            age_ms: millis(now.saturating_duration_since(*at)),
            restarts: lives.map_or(0, |lives| lives.before(status.instance)),
            status: status.clone(),
            recorder: None,
        }
    }
}

impl Heard {
    fn speaks(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < TIMEOUT
    }
}

/// `None` for a worker without a rank: it has no place yet.
fn place(status: &ProcessStatus) -> Option<Place> {
    let rank = status.mesh.as_ref().and_then(|mesh| mesh.rank);
    match status.role {
        Role::TpWorker => rank.map(|rank| (status.role, Some(rank))),
        role => Some((role, None)),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use contract::envelope::MeshPhase;
    use contract::status::MeshStatus;
    use contract::{CONTRACT_VERSION, WorldSize};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn process(role: Role, rank: Option<u32>) -> ProcessStatus {
        let mesh = MeshStatus {
            rank: rank.map(Rank),
            world_size: WorldSize::ONE,
            phase: MeshPhase::Ready,
            epoch: None,
            lease: None,
            lease_holder: None,
            running: None,
            last_call: None,
            running_plan: None,
            last_plan: None,
            last_fault: None,
            chunks: None,
            beats: Vec::new(),
            model: None,
        };
        ProcessStatus {
            version: CONTRACT_VERSION,
            cell: CellId::default(),
            role,
            instance: InstanceId::random(),
            build: String::new(),
            ready: true,
            waiting_for: None,
            draining: false,
            uptime_ms: 0,
            pid: 1,
            rss_bytes: 0,
            mesh: (role != Role::Stage0).then_some(mesh),
            stage0: None,
        }
    }

    fn report(census: &Census, now: Instant) -> CellReport {
        census.report(now, &CellId::default(), (Role::Gateway, InstanceId::random()))
    }

    #[test]
    fn a_silent_process_is_listed_as_such_until_another_has_its_place() {
        let start = Instant::now();
        let mut census = Census::new(start);
        let (first, second) = (process(Role::TpWorker, Some(1)), process(Role::TpWorker, Some(1)));
        census.hear(start, first);
        let later = start + 4_000 * MS;
        let silent = &report(&census, later).processes[0];
        assert_eq!((silent.state, silent.age_ms, silent.restarts), (ProcessState::Silent, 4_000, 0));
        assert_eq!(census.live(later).count(), 0);
        census.hear(later, second.clone());
        let processes = report(&census, later).processes;
        let shown: Vec<_> = processes.iter().map(|p| (p.status.instance, p.restarts, p.state)).collect();
        assert_eq!(shown, [(second.instance, 1, ProcessState::Ready)]);
        assert!(
            report(&census, later + REMEMBERED).processes.len() == 1,
            "shown until somebody else is heard"
        );
        census.hear(later + REMEMBERED, process(Role::Gateway, None));
        assert_eq!(report(&census, later + REMEMBERED).processes.len(), 1);
    }

    #[test]
    fn another_rank_is_no_restart_and_a_worker_without_a_rank_has_no_place() {
        let now = Instant::now();
        let mut census = Census::new(now);
        for rank in [Some(1), Some(2), None, None] {
            census.hear(now, process(Role::TpWorker, rank));
        }
        let processes = report(&census, now).processes;
        assert_eq!(processes.iter().map(|p| p.restarts).collect::<Vec<_>>(), [0, 0, 0, 0]);
    }

    #[test]
    fn a_cell_without_a_stage0_waits_for_it() {
        let now = Instant::now();
        let mut census = Census::new(now);
        census.hear(now, process(Role::Stage0, None));
        let alive = report(&census, now + 100 * MS);
        assert_eq!((alive.ready, alive.waiting_for, alive.answered_by.observing_ms), (true, None, 100));
        let dead = report(&census, now + TIMEOUT);
        assert_eq!((dead.ready, dead.waiting_for.as_deref()), (false, Some("stage0")));
    }

    #[test]
    fn what_the_broker_brings_is_bounded() {
        let now = Instant::now();
        let mut census = Census::new(now);
        (0..PROCESSES + 9).for_each(|_| census.hear(now, process(Role::MeshLeader, None)));
        let processes = report(&census, now).processes;
        assert_eq!(processes.len(), PROCESSES);
        let most = processes.iter().map(|p| p.restarts).max();
        assert_eq!(most, Some(u32::try_from(PROCESSES).unwrap() - 1));
    }
}
