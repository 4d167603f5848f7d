//! A cell in simulated time, driven by dice: a network that drops, repeats, delays and so reorders messages, processes
//! that die, stand still or crawl, and a supervisor that starts again whatever ended.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use contract::envelope::MeshPhase;
use mesh::Timing;
use mesh::leader;

use crate::cell::{Carriage, Cell, Event, Node, Parcel, Setup};
use crate::fixtures::ms;

/// How bad the network is. Per cent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    pub(crate) drop: u64,
    pub(crate) repeat: u64,
    pub(crate) max_delay_ms: u64,
}

pub(crate) const PERFECT: Network = Network { drop: 0, repeat: 0, max_delay_ms: 2 };

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Kill(Node),
    /// SIGSTOP, and SIGCONT after this long.
    Freeze(Node, Duration),
    /// It runs every other tenth of a second, this often.
    Slow(Node, u64),
    /// SIGTERM.
    Drain(Node),
    /// The broker is away.
    Outage(Duration),
    /// So many captured messages are sent again.
    Replay(usize),
    /// One rank counts its forwards wrong.
    Lie,
    /// The leader key is somebody else's.
    LoseKey,
    /// The next reading of a link takes this long.
    SlowLink(Duration),
}

#[derive(Clone, Debug)]
enum Due {
    Parcel(Parcel),
    Ticks,
    Beats,
    Status,
    Ask(usize),
    Fault(Fault),
    Thaw(Node),
    Start(Node),
    BrokerBack,
}

/// Messages that a replay can choose from.
const CAPTURED: usize = 64;

pub(crate) struct Sim {
    pub(crate) cell: Cell,
    pub(crate) start: Instant,
    queue: BTreeMap<(Instant, u64), Due>,
    sequence: u64,
    pub(crate) dice: Dice,
    pub(crate) network: Network,
    broker_away: bool,
    slow_link: Option<Duration>,
    /// For processes that stand still.
    held: Vec<Parcel>,
    captured: VecDeque<Parcel>,
    starting: Vec<Node>,
}

/// Reproducible chance.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    /// 0 to `n - 1`.
    pub(crate) fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n.max(1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize]
    }
}

impl Sim {
    pub(crate) fn new(ranks: u32, controllers: usize, seed: u64, network: Network) -> Self {
        let start = Instant::now();
        let setup = Setup {
            ranks,
            controllers,
            warm_up_chunks: 3,
            timing: Timing::default(),
            call: ms(1500),
            sabotage: None,
        };
        let mut sim = Self {
            cell: Cell::new(start, setup),
            start,
            queue: BTreeMap::new(),
            sequence: 0,
            dice: Dice::new(seed),
            network,
            broker_away: false,
            slow_link: None,
            held: Vec::new(),
            captured: VecDeque::new(),
            starting: Vec::new(),
        };
        sim.carry();
        for due in [Due::Ticks, Due::Beats, Due::Status] {
            sim.after(ms(0), due);
        }
        for c in 0..controllers {
            sim.after(ms(100 + c as u64), Due::Ask(c));
        }
        sim
    }

    pub(crate) fn plan(&mut self, at: Duration, fault: Fault) {
        self.after(at, Due::Fault(fault));
    }

    pub(crate) fn ready(&self) -> bool {
        self.phase() == Some(MeshPhase::Ready)
    }

    pub(crate) fn phase(&self) -> Option<MeshPhase> {
        self.cell.leader.machine.as_ref().map(|leader| leader.view(self.cell.now).phase)
    }

    /// Runs until `done`, or for at most `time` since the start.
    pub(crate) fn run_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.start + time;
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > end {
                break;
            }
            let due = entry.remove();
            self.cell.now = at;
            self.step(due);
            self.carry();
            self.supervise();
            if let Some(broken) = self.cell.world.judge.broken() {
                panic!("{}: {}", broken.invariant, broken.how);
            }
            if done(self) {
                return true;
            }
        }
        done(self)
    }

    fn after(&mut self, delay: Duration, due: Due) {
        self.at(self.cell.now + delay, due);
    }

    fn at(&mut self, at: Instant, due: Due) {
        self.sequence += 1;
        self.queue.insert((at.max(self.cell.now), self.sequence), due);
    }

    /// Puts what the cell sent under way.
    fn carry(&mut self) {
        for parcel in std::mem::take(&mut self.cell.out) {
            match parcel.by {
                Carriage::At(at) => self.at(at, Due::Parcel(parcel)),
                Carriage::Local => {
                    let delay = self.work(&parcel);
                    self.after(delay, Due::Parcel(parcel));
                }
                Carriage::Net => self.send(&parcel),
            }
        }
    }

    fn work(&mut self, parcel: &Parcel) -> Duration {
        match &parcel.event {
            Event::Met(..) => ms(20 + self.dice.roll(60)),
            Event::Leader(leader::Input::EpochTaken { .. }) => ms(20),
            Event::Leader(leader::Input::Fetched { .. }) => self.slow_link.take().unwrap_or(ms(1)),
            _ => ms(1),
        }
    }

    /// Over the network: lost, once or twice, each copy after its own delay.
    fn send(&mut self, parcel: &Parcel) {
        if self.broker_away {
            return;
        }
        if self.captured.len() == CAPTURED {
            self.captured.pop_front();
        }
        self.captured.push_back(parcel.clone());
        let copies = if self.dice.roll(100) < self.network.drop {
            0
        } else if self.dice.roll(100) < self.network.repeat {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = ms(1 + self.dice.roll(self.network.max_delay_ms));
            self.after(delay, Due::Parcel(parcel.clone()));
        }
    }

    /// Whatever ended is started again.
    fn supervise(&mut self) {
        for node in self.cell.nodes() {
            if !self.cell.is_alive(node) && !self.starting.contains(&node) {
                self.starting.push(node);
                let pause = ms(200 + self.dice.roll(1000));
                self.after(pause, Due::Start(node));
            }
        }
    }

    fn step(&mut self, due: Due) {
        match due {
            Due::Parcel(parcel) => self.arrive(parcel),
            Due::Ticks => {
                self.cell.tick();
                self.after(self.cell.setup.timing.tick, Due::Ticks);
            }
            Due::Beats => {
                for event in self.cell.beats() {
                    self.after(ms(1), Due::Parcel(Parcel { event, by: Carriage::Local, life: None }));
                }
                self.after(ms(200), Due::Beats);
            }
            Due::Status => {
                for event in self.cell.statuses() {
                    self.send(&Parcel { event, by: Carriage::Net, life: None });
                }
                self.after(ms(500), Due::Status);
            }
            Due::Ask(c) => {
                if self.cell.may_request(c) {
                    self.cell.request(c);
                }
                let pause = ms(50 + self.dice.roll(200));
                self.after(pause, Due::Ask(c));
            }
            Due::Fault(fault) => self.strike(fault),
            Due::Thaw(node) => {
                self.cell.thaw(node);
                for parcel in std::mem::take(&mut self.held) {
                    self.arrive(parcel);
                }
            }
            Due::Start(node) => {
                self.starting.retain(|starting| *starting != node);
                self.cell.start(node);
            }
            Due::BrokerBack => self.broker_away = false,
        }
    }

    fn arrive(&mut self, parcel: Parcel) {
        let receiver = self.cell.receiver(&parcel.event);
        if self.cell.deliverable(&parcel) {
            self.cell.deliver(parcel);
        } else if receiver.is_none() {
            self.after(ms(50), Due::Parcel(parcel));
        } else if receiver.is_some_and(|node| self.cell.is_frozen(node)) {
            self.held.push(parcel);
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(node) => self.cell.kill(node),
            Fault::Freeze(node, time) => {
                if self.cell.is_alive(node) && !self.cell.is_frozen(node) {
                    self.cell.freeze(node);
                    self.after(time, Due::Thaw(node));
                }
            }
            Fault::Slow(node, times) => {
                self.strike(Fault::Freeze(node, ms(100)));
                if times > 1 {
                    self.plan(ms(200), Fault::Slow(node, times - 1));
                }
            }
            Fault::Drain(node) => {
                if self.cell.is_alive(node) && !self.cell.is_frozen(node) {
                    self.cell.drain(node);
                }
            }
            Fault::Outage(time) => {
                self.broker_away = true;
                self.after(time, Due::BrokerBack);
            }
            Fault::Replay(count) => {
                for _ in 0..count.min(self.captured.len()) {
                    let at = self.dice.roll(self.captured.len() as u64) as usize;
                    let mut parcel = self.captured[at].clone();
                    // A budget is relative: whoever sends the bytes again gives them a fresh one.
                    if let Event::Leader(leader::Input::Call { deadline, .. }) = &mut parcel.event {
                        *deadline = self.cell.now + ms(1000);
                    }
                    let delay = ms(self.dice.roll(50));
                    self.after(delay, Due::Parcel(parcel));
                }
            }
            Fault::Lie => self.cell.world.groups.lies = true,
            Fault::LoseKey => {
                if !self.cell.is_frozen(Node::Leader) {
                    let reason = "the leader key is held by another".to_owned();
                    self.cell.tell_leader(leader::Input::EpochLost { reason });
                }
            }
            Fault::SlowLink(time) => self.slow_link = Some(time),
        }
    }
}
