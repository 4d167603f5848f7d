//! What the stack consists of, and the one table of configuration keys that it sets.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::process::{Phase, Spec};
use crate::layout::Layout;
use crate::setup::credentials;

/// `KINEMESH_<SECTION>__<KEY>` of the services.
mod key {
    pub(super) const NATS_URL: &str = "KINEMESH_NATS__URL";
    pub(super) const NATS_USER: &str = "KINEMESH_NATS__USER";
    pub(super) const NATS_PASSWORD_FILE: &str = "KINEMESH_NATS__PASSWORD_FILE";
    pub(super) const CELL_ID: &str = "KINEMESH_CELL__ID";
    pub(super) const HTTP_PORT: &str = "KINEMESH_HTTP__PORT";
    pub(super) const LOG_FORMAT: &str = "KINEMESH_LOG__FORMAT";
    pub(super) const RECORDER_DIR: &str = "KINEMESH_RECORDER__DIR";
    pub(super) const MODEL_NAME: &str = "KINEMESH_MODEL__NAME";
    pub(super) const MODEL_WEIGHTS: &str = "KINEMESH_MODEL__WEIGHTS";
    pub(super) const WORLD_SIZE: &str = "KINEMESH_MESH__WORLD_SIZE";
    pub(super) const DEVICE_KIND: &str = "KINEMESH_DEVICE__KIND";
    pub(super) const DEVICE_THREADS: &str = "KINEMESH_DEVICE__THREADS";
    pub(super) const STAGE0_BESIDE: &str = "KINEMESH_PLACEMENT__STAGE0";
    pub(super) const RANKS_BESIDE: &str = "KINEMESH_PLACEMENT__RANKS";
}

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Stack {
    pub gateway_port: u16,
    pub nats_port: u16,
    /// HTTP ports of stage0, the leader and the workers, in this order.
    pub inner_ports: Vec<u16>,
    pub world_size: u16,
    pub model: String,
    /// Cores of this machine.
    pub cores: usize,
    /// Where the broker keeps its streams, and the services what they dump.
    pub run_dir: PathBuf,
}

impl Stack {
    /// How many ports it needs besides the gateway's and the broker's.
    pub fn inner_port_count(world_size: u16) -> usize {
        1 + usize::from(world_size).max(1)
    }

    /// Dumps of the flight recorders.
    pub fn flight_dir(&self) -> PathBuf {
        self.run_dir.join("flight")
    }

    /// Once it has stopped, and nobody will come back to its ports: the broker's streams go, dumps stay.
    pub fn forget(&self) {
        let _ = fs::remove_dir_all(self.run_dir.join("jetstream"));
        // Neither folder goes while something is in it.
        let _ = fs::remove_dir(self.flight_dir());
        let _ = fs::remove_dir(&self.run_dir);
    }

    /// Variables of the environment that no service will see as they are: the stack sets others in their place.
    pub fn overridden(
        &self,
        layout: &Layout,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> BTreeSet<String> {
        let set = self.services(layout).into_iter().flat_map(|spec| spec.env);
        let differs = |(key, value): &(String, OsString)| {
            key.starts_with("KINEMESH_") && environment(key).is_some_and(|own| own != *value)
        };
        set.filter(differs).map(|(key, _)| key).collect()
    }

    /// What this stack's own broker calls itself.
    pub fn broker_name(&self) -> String {
        format!("kinemesh-{}-{}", std::process::id(), self.nats_port)
    }

    /// The broker, which the services need before they start.
    pub fn broker(&self, layout: &Layout) -> Spec {
        let args: Vec<OsString> = vec![
            "-c".into(),
            layout.nats_config().into(),
            "-p".into(),
            self.nats_port.to_string().into(),
            "--name".into(),
            self.broker_name().into(),
            "-sd".into(),
            self.run_dir.clone().into(),
        ];
        Spec {
            name: "nats".to_owned(),
            phase: Phase::Broker,
            program: layout.nats_server(),
            args,
            env: Vec::new(),
        }
    }

    /// What says how much memory all services need together: the leader, who knows of them all.
    pub fn reckoner(&self, layout: &Layout) -> Option<Spec> {
        let leader = self.services(layout).into_iter().find(|spec| spec.name == "leader")?;
        Some(Spec { args: vec!["--print-memory".into()], ..leader })
    }

    /// The four services; one worker for each rank but the leader's.
    pub fn services(&self, layout: &Layout) -> Vec<Spec> {
        let threads = Threads::share(self.cores, self.world_size);
        let mut ports = self.inner_ports.iter().copied();
        let mut service =
            |name: &str, program: &str, phase, user: &str, port: Option<u16>, threads: usize| {
                let mut env = vec![
                    (key::NATS_URL, OsString::from(format!("nats://127.0.0.1:{}", self.nats_port))),
                    (key::NATS_USER, user.into()),
                    (key::NATS_PASSWORD_FILE, credentials::password_file(&layout.credentials(), user).into()),
                    (key::CELL_ID, "cell0".into()),
                    (key::HTTP_PORT, port.or_else(|| ports.next()).unwrap_or_default().to_string().into()),
                    (key::LOG_FORMAT, "text".into()),
                    (key::RECORDER_DIR, self.flight_dir().into()),
                ];
                if phase != Phase::Gateway {
                    env.push((key::MODEL_NAME, self.model.clone().into()));
                    // The user's own come first.
                    let weights = std::env::var_os(key::MODEL_WEIGHTS);
                    if let Some(weights) =
                        weights.or_else(|| layout.shipped_weights(&self.model).map(Into::into))
                    {
                        env.push((key::MODEL_WEIGHTS, weights));
                    }
                    // A GPU is taken by those who ask for it: whole machines are shared.
                    let device = std::env::var_os(key::DEVICE_KIND).unwrap_or_else(|| "cpu".into());
                    env.push((key::DEVICE_KIND, device));
                    env.push((key::DEVICE_THREADS, threads.to_string().into()));
                    // libtorch's own pools, which it sizes before any configuration is read.
                    env.push(("OMP_NUM_THREADS", threads.to_string().into()));
                    env.push(("MKL_NUM_THREADS", threads.to_string().into()));
                }
                if phase == Phase::Mesh {
                    // All are given the same device, so it holds all of them.
                    env.push((key::STAGE0_BESIDE, "true".into()));
                    env.push((key::RANKS_BESIDE, self.world_size.to_string().into()));
                }
                if name == "leader" {
                    env.push((key::WORLD_SIZE, self.world_size.to_string().into()));
                }
                Spec {
                    name: name.to_owned(),
                    phase,
                    program: layout.binaries().join(program),
                    args: Vec::new(),
                    env: env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                }
            };
        let mut specs = vec![
            service("gateway", "gateway", Phase::Gateway, "gateway", Some(self.gateway_port), 1),
            service("stage0", "stage0", Phase::Stage0, "stage0", None, threads.stage0),
            service("leader", "mesh-leader", Phase::Mesh, "leader", None, threads.rank),
        ];
        for rank in 1..self.world_size {
            let name = format!("worker{rank}");
            specs.push(service(&name, "tp-worker", Phase::Mesh, "worker", None, threads.rank));
        }
        specs
    }
}

/// Threads of a process: all of them work at the same time, so together they should not be more than the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Threads {
    stage0: usize,
    rank: usize,
}

impl Threads {
    fn share(cores: usize, world_size: u16) -> Self {
        let stage0 = (cores / 3).clamp(1, 4);
        let ranks = usize::from(world_size).max(1);
        Self { stage0, rank: (cores.saturating_sub(stage0) / ranks).clamp(1, 8) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::{Stack, Threads, key};
    use crate::layout::Layout;

    fn stack(world_size: u16) -> Stack {
        Stack {
            gateway_port: 8000,
            nats_port: 4000,
            inner_ports: (5000..).take(Stack::inner_port_count(world_size)).collect(),
            world_size,
            model: "tiny".to_owned(),
            cores: 2,
            run_dir: PathBuf::from("/store"),
        }
    }

    #[test]
    fn what_the_stack_sets_otherwise_is_told_and_what_it_passes_on_is_not() {
        let layout = Layout::new(Some(PathBuf::from("/checkout")));
        let overridden = |own: &[(&str, &str)]| {
            let value = |key: &str| own.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into());
            Vec::from_iter(stack(2).overridden(&layout, value))
        };
        assert!(overridden(&[]).is_empty());
        assert!(overridden(&[(key::MODEL_NAME, "tiny"), ("KINEMESH_STAGE0__SESSIONS", "2")]).is_empty());
        let own = [
            (key::NATS_URL, "nats://elsewhere:4222"),
            (key::MODEL_NAME, "demo"),
            (key::DEVICE_THREADS, "64"),
        ];
        assert_eq!(overridden(&own), [key::DEVICE_THREADS, key::MODEL_NAME, key::NATS_URL]);
    }

    #[test]
    fn one_process_for_each_rank_and_two_more() {
        let layout = Layout::new(Some(PathBuf::from("/checkout")));

        for (world_size, processes) in [(1, 3), (2, 4), (4, 6)] {
            assert_eq!(stack(world_size).services(&layout).len(), processes);
        }
    }

    #[test]
    fn every_service_has_its_own_port_and_its_own_password() {
        let layout = Layout::new(Some(PathBuf::from("/checkout")));

        for spec in stack(4).services(&layout) {
            let value = |wanted: &str| {
                spec.env
                    .iter()
                    .find(|(key, _)| key == wanted)
                    .map(|(_, value)| value.to_string_lossy().into_owned())
            };
            assert_ne!(value(key::HTTP_PORT).unwrap(), "0", "{}", spec.name);
            let user = value(key::NATS_USER).unwrap();
            assert!(value(key::NATS_PASSWORD_FILE).unwrap().ends_with(&format!("{user}.password")));
        }
    }

    #[test]
    fn of_a_stack_that_nobody_comes_back_to_only_dumps_stay() {
        for (dump, stays) in [(None, false), (Some("leader.json"), true)] {
            let dir = tempfile::tempdir().unwrap();
            let stack = Stack { run_dir: dir.path().join("40171"), ..stack(2) };
            fs::create_dir_all(stack.run_dir.join("jetstream/$G/streams")).unwrap();
            fs::create_dir(stack.flight_dir()).unwrap();
            let dump = dump.map(|name| stack.flight_dir().join(name));
            dump.iter().for_each(|dump| fs::write(dump, "{}").unwrap());
            stack.forget();
            assert!(!stack.run_dir.join("jetstream").exists());
            assert_eq!(stack.run_dir.exists(), stays);
            assert!(dump.is_none_or(|dump| dump.exists()));
        }
    }

    #[test]
    fn threads_fit_the_cores_and_everybody_has_one() {
        assert_eq!(Threads::share(2, 2), Threads { stage0: 1, rank: 1 });
        assert_eq!(Threads::share(2, 4), Threads { stage0: 1, rank: 1 });
        assert_eq!(Threads::share(16, 2), Threads { stage0: 4, rank: 6 });
    }
}
