//! Whether what a service will hold fits its device: said before anything is loaded, and refused where it does not.

use contract::{Error, Reason, WorldSize};
use device::Memory;
use serde::{Deserialize, Serialize};
use tch::Device;
use wan::config::ModelConfig;
use wan::memory::{self, Gib, Need};

use crate::EngineConfig;

/// What else computes on the device of a rank.
///
/// A rank is told, and not stage 0: one of the two has to count both, and a rank knows how many sessions there can be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlacementSection {
    pub stage0: bool,
    /// Ranks on this device, this one included.
    pub ranks: u32,
}

impl Default for PlacementSection {
    fn default() -> Self {
        Self { stage0: false, ranks: 1 }
    }
}

/// Where a rank computes, beside whom, and with what else than its engine.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub beside: PlacementSection,
    /// Bytes of the device that may be used.
    pub limit: Option<u64>,
    /// Bytes of the link's slots, on the rank that makes them on this device.
    pub link: u64,
}

/// A device and its memory.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    device: Device,
    memory: Memory,
}

impl Room {
    /// As the device is now, of which `limit` bytes may be used.
    ///
    /// # Errors
    /// `internal` when the device does not say what it has.
    pub fn of(device: Device, limit: Option<u64>) -> Result<Self, Error> {
        let memory = Memory::of(device).map_err(|e| {
            Error::new(Reason::Internal, format!("the memory of {} is not known: {e}", name(device)))
        })?;
        Ok(Self { device, memory: memory.within(limit) })
    }
}

/// What of the device can be taken for what is to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing of it is loaded yet: all of it together must be free.
    BeforeAll,
    /// Others may have loaded theirs, or not yet: the own part must be free, and the device large enough for all.
    BesideOthers,
}

/// What is to be on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    who: String,
    own: Need,
    beside: Vec<(String, Need)>,
}

impl Demand {
    /// Of stage 0.
    #[must_use]
    pub fn of_stage0(model: &ModelConfig, sessions: u32, device: Device) -> Self {
        let options = (crate::compute_kind(device), device);
        let own = memory::Stage0 { model, sessions, options }.need();
        Self { who: "stage0".to_owned(), own, beside: Vec::new() }
    }

    /// Of one rank of a group, and of what shares its device.
    #[must_use]
    pub fn of_rank(engine: &EngineConfig, world: WorldSize) -> Self {
        let (world, beside) = (world.get(), &engine.place.beside);
        // One slot is not for sessions.
        let sessions = u32::try_from(engine.slots).unwrap_or(u32::MAX).saturating_sub(1);
        let conditionings = u32::try_from(engine.conditionings).unwrap_or(u32::MAX);
        let options = (engine.kind(), engine.device);
        let rank = memory::Rank {
            model: &engine.model,
            world,
            sessions,
            conditionings,
            options,
            graphs: engine.graphs,
        };
        let rank = rank.need();
        let mut others = Vec::new();
        match beside.ranks.saturating_sub(1) {
            0 => {}
            1 => others.push(("another rank".to_owned(), rank.clone())),
            more => others.push((format!("{more} more ranks"), rank.clone().times(more))),
        }
        if beside.stage0 {
            let stage0 = Self::of_stage0(&engine.model, sessions, engine.device);
            others.push((stage0.who, stage0.own));
        }
        Self { who: format!("a rank of {world}"), own: rank.and("link", engine.place.link), beside: others }
    }

    fn total(&self) -> u64 {
        self.own.total() + self.beside.iter().map(|(_, need)| need.total()).sum::<u64>()
    }

    fn fits(&self, memory: Memory, when: When) -> bool {
        match when {
            When::BeforeAll => self.total() <= memory.free,
            When::BesideOthers => self.own.total() <= memory.free && self.total() <= memory.total,
        }
    }

    /// All that is needed, part by part.
    fn listed(&self) -> String {
        let mut text = format!("{} needs {}", self.who, self.own);
        for (who, need) in &self.beside {
            text.push_str(&format!("; {who} beside it needs {need}"));
        }
        if !self.beside.is_empty() {
            text.push_str(&format!("; together {}", Gib(self.total())));
        }
        text
    }

    /// What is needed and what there is, in one line, if it fits. `instead` is asked for other settings where it does not:
    /// of each list, the first that would fit is named.
    ///
    /// # Errors
    /// `bad_field`: who needs how much for what, what the device has, and what would fit.
    pub fn check(
        &self,
        room: Room,
        when: When,
        instead: impl FnOnce() -> Vec<Vec<(String, Self)>>,
    ) -> Result<String, Error> {
        let Room { device, memory } = room;
        let has = format!("{} has {} free of {}", name(device), Gib(memory.free), Gib(memory.total));
        let needed = self.listed();
        if self.fits(memory, when) {
            return Ok(format!("{needed}; {has}"));
        }
        let would: Vec<String> = instead()
            .into_iter()
            .filter_map(|choices| choices.into_iter().find(|(_, demand)| demand.fits(memory, when)))
            .map(|(setting, demand)| format!("{setting} ({})", Gib(demand.total())))
            .collect();
        let would = if would.is_empty() {
            "no other setting of this model fits".to_owned()
        } else {
            format!("would fit: {}", would.join(", "))
        };
        Err(Error::new(Reason::BadField, format!("not enough memory: {needed}; {has}; {would}")))
    }
}

impl EngineConfig {
    /// Whether a rank of a group of that size fits its device, in one line.
    ///
    /// # Errors
    /// As [`Demand::check`], and what [`Room::of`] says.
    pub fn check_memory(&self, world: WorldSize, when: When) -> Result<String, Error> {
        let room = Room::of(self.device, self.place.limit)?;
        Demand::of_rank(self, world).check(room, when, || self.instead(world))
    }

    /// Fewer sessions, more ranks, smaller pictures.
    fn instead(&self, world: WorldSize) -> Vec<Vec<(String, Demand)>> {
        let with = |setting: String, change: &dyn Fn(&mut Self), world: WorldSize| {
            let mut other = self.clone();
            change(&mut other);
            (setting, Demand::of_rank(&other, world))
        };
        let slots = (2..self.slots).rev();
        let slots = slots.map(|slots| {
            with(format!("mesh.session_slots {}", slots - 1), &|other| other.slots = slots, world)
        });
        // Ranks that are all on one device stay there, however many.
        let together = world.get() > 1 && self.place.beside.ranks == world.get();
        let larger = self.model.valid_world_sizes().into_iter().filter(|size| *size > world.get());
        let larger = larger.filter_map(|size| WorldSize::try_from(size).ok()).map(|size| {
            let change = |other: &mut Self| {
                if together {
                    other.place.beside.ranks = size.get();
                }
            };
            with(format!("mesh.world_size {size}"), &change, size)
        });
        let smaller = smaller_models(&self.model)
            .into_iter()
            .map(|(setting, model)| with(setting, &|other| other.model = model.clone(), world));
        let plain = (self.graphs && self.device.is_cuda())
            .then(|| with("mesh.cuda_graphs false".to_owned(), &|other| other.graphs = false, world));
        vec![plain.into_iter().collect(), slots.collect(), larger.collect(), smaller.collect()]
    }
}

/// Whether stage 0 fits its device, in one line.
///
/// # Errors
/// As [`Demand::check`], and what [`Room::of`] says.
pub fn check_stage0(
    model: &ModelConfig,
    sessions: u32,
    device: Device,
    limit: Option<u64>,
) -> Result<String, Error> {
    let instead = || {
        let fewer = (1..sessions)
            .rev()
            .map(|n| (format!("stage0.max_sessions {n}"), Demand::of_stage0(model, n, device)));
        let smaller = smaller_models(model)
            .into_iter()
            .map(|(setting, model)| (setting, Demand::of_stage0(&model, sessions, device)));
        vec![fewer.collect(), smaller.collect()]
    };
    let room = Room::of(device, limit)?;
    Demand::of_stage0(model, sessions, device).check(room, When::BesideOthers, instead)
}

/// The model without its largest pictures, step by step, and the setting that makes it so.
fn smaller_models(model: &ModelConfig) -> Vec<(String, ModelConfig)> {
    let pixels = |(height, width): &(u32, u32)| u64::from(*height) * u64::from(*width);
    let mut counts: Vec<u64> = model.sizes.iter().map(pixels).collect();
    counts.sort_unstable();
    counts.dedup();
    counts.pop();
    let smaller = |most: &u64| {
        let sizes: Vec<_> = model.sizes.iter().copied().filter(|size| pixels(size) <= *most).collect();
        let names: Vec<_> = sizes.iter().map(|(height, width)| format!("{height}x{width}")).collect();
        (format!("model.sizes {}", names.join(",")), ModelConfig { sizes, ..model.clone() })
    };
    counts.iter().rev().map(smaller).collect()
}

fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use wan::weights::Weights;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn world(size: u32) -> WorldSize {
        WorldSize::try_from(size).unwrap()
    }

    /// A rank of 14B on a GPU; nothing of it is ever made.
    fn engine(stage0: bool, ranks: u32) -> EngineConfig {
        EngineConfig {
            model: ModelConfig::named("wan-14b").unwrap(),
            weights: Weights::Synthetic { seed: 1 },
            device: Device::Cuda(0),
            threads: 1,
            slots: 3,
            conditionings: 16,
            graphs: true,
            place: Place { beside: PlacementSection { stage0, ranks }, ..Place::default() },
        }
    }

    fn room(free: u64, total: u64) -> Room {
        Room { device: Device::Cuda(0), memory: Memory { total, free } }
    }

    fn refused(engine: &EngineConfig, world: WorldSize, room: Room, when: When) -> String {
        let demand = Demand::of_rank(engine, world);
        demand.check(room, when, || engine.instead(world)).unwrap_err().message
    }

    #[test]
    fn what_fits_is_said_part_by_part() {
        let demand = Demand::of_rank(&engine(true, 1), world(1));
        let line = demand.check(room(78 * GIB, 79 * GIB), When::BeforeAll, Vec::new).unwrap();
        for part in ["a rank of 1 needs", "weights 26.61", "kv caches", "stage0 beside it needs", "together"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(line.ends_with("cuda:0 has 78.00 GiB free of 79.00 GiB"), "{line}");
    }

    #[test]
    fn a_refusal_says_what_is_needed_what_there_is_and_what_would_fit() {
        let text = refused(&engine(false, 1), world(1), room(42 * GIB, 42 * GIB), When::BesideOthers);
        for part in
            ["weights 26.61", "cuda:0 has 42.00 GiB free", "mesh.world_size 2 (", "model.sizes 320x576"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = refused(&engine(false, 1), world(1), room(48 * GIB, 48 * GIB), When::BesideOthers);
        assert!(text.contains("graphs 1.08") && text.contains("mesh.cuda_graphs false (47.5"), "{text}");
        let text = refused(&engine(false, 1), world(8), room(GIB, GIB), When::BesideOthers);
        assert!(text.ends_with("no other setting of this model fits"), "{text}");
    }

    #[test]
    fn stage0_on_the_same_gpu_is_counted_whether_it_has_loaded_or_not() {
        let alone = Demand::of_rank(&engine(false, 1), world(1)).total();
        let both = Demand::of_rank(&engine(true, 1), world(1)).total();
        assert!(both > alone + 10 * GIB, "stage0 of 14B has an encoder of more than 10 GiB");
        // Large enough for each, not for both; nobody has loaded yet, so all of it is free.
        let small = room(both - 1, both - 1);
        assert!(Demand::of_rank(&engine(false, 1), world(1)).fits(small.memory, When::BesideOthers));
        let text = refused(&engine(true, 1), world(1), small, When::BesideOthers);
        assert!(text.contains("stage0 beside it needs"), "{text}");
        // A rank that comes back while stage0 has its part in memory is not refused for what stage0 has taken.
        let beside_stage0 = room(alone, both);
        let fits = |when| Demand::of_rank(&engine(true, 1), world(1)).fits(beside_stage0.memory, when);
        assert!(fits(When::BesideOthers) && !fits(When::BeforeAll));
    }

    #[test]
    fn ranks_of_one_device_are_counted_together_and_more_of_them_do_not_help() {
        let two = Demand::of_rank(&engine(false, 2), world(2));
        assert_eq!(two.total(), 2 * Demand::of_rank(&engine(false, 1), world(2)).total());
        let text =
            refused(&engine(false, 2), world(2), room(two.total() - 1, two.total() - 1), When::BeforeAll);
        assert!(!text.contains("mesh.world_size") && text.contains("mesh.session_slots 1"), "{text}");
    }
}
