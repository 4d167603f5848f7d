//! A real broker, a real leader and real workers as processes, and a controller that speaks to them as stage0 does.

mod controller;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bus::{Bus, BusConfig};
use contract::status::{ProcessStatus, Role};
use contract::{CellId, subjects};
use tempfile::TempDir;

pub(crate) use controller::{Call, Controller, pattern, request};

/// How long a condition may take to come true on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Broker {
    port: u16,
    folder: TempDir,
    server: Child,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let folder = TempDir::new().unwrap();
        let store = folder.path().join("store").display().to_string();
        let file = folder.path().join("nats.conf");
        std::fs::write(&file, format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store:?} }}\n"))
            .unwrap();
        let program = std::env::var_os("KINEMESH_NATS_SERVER").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.kinemesh/site/bin/nats-server"),
            PathBuf::from,
        );
        let server = Command::new(program)
            .arg("-c")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        let broker = Self { port, folder, server };
        let give_up = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < give_up, "nats-server does not listen");
            std::thread::yield_now();
        }
        broker
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn bus(&self) -> Bus {
        let config = BusConfig { url: self.url(), ..BusConfig::default() };
        Bus::connect(&config, "test").await.unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A process of the product, killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the child has not been waited for, so its id is its own.
        unsafe { libc::kill(i32::try_from(self.0.id()).unwrap(), signal) };
    }

    pub(crate) fn running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Its exit status and what it wrote to stderr.
    pub(crate) async fn ended(mut self, within: Duration) -> (ExitStatus, String) {
        let give_up = Instant::now() + within;
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while self.running() {
            assert!(Instant::now() < give_up, "the process has not ended within {within:?}");
            tick.tick().await;
        }
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        }
        (self.0.wait().unwrap(), text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Settings beside the defaults, as `--set` takes them.
pub(crate) type Settings<'a> = &'a [&'a str];

pub(crate) fn spawn(name: &str, broker: &Broker, settings: Settings, quiet: bool) -> Process {
    let leader = PathBuf::from(env!("CARGO_BIN_EXE_mesh-leader"));
    let program = leader.with_file_name(name);
    assert!(program.is_file(), "{} is missing: build it first", program.display());
    let mut command = Command::new(program);
    command.arg("--set").arg(format!("nats.url={}", broker.url()));
    command.arg("--set").arg(format!("recorder.dir={}", broker.folder.path().join("flight").display()));
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(if quiet { Stdio::piped() } else { Stdio::inherit() });
    Process(command.spawn().unwrap())
}

pub(crate) struct Mesh {
    pub(crate) broker: Broker,
    pub(crate) leader: Process,
    pub(crate) workers: Vec<Process>,
    pub(crate) bus: Bus,
}

impl Mesh {
    /// A leader and its workers, ready.
    pub(crate) async fn start(world_size: u32, settings: Settings<'_>) -> Self {
        let broker = Broker::start();
        let world = format!("mesh.world_size={world_size}");
        let leader_settings = [settings, &[world.as_str()]].concat();
        let leader = spawn("mesh-leader", &broker, &leader_settings, false);
        let workers = (1..world_size).map(|_| spawn("tp-worker", &broker, settings, false)).collect();
        let bus = broker.bus().await;
        let mesh = Self { broker, leader, workers, bus };
        mesh.status(|status| status.role == Role::MeshLeader && status.ready).await;
        mesh
    }

    /// The next status that is as wanted.
    pub(crate) async fn status(&self, wanted: impl FnMut(&ProcessStatus) -> bool) -> ProcessStatus {
        status(&self.bus, wanted).await
    }

    pub(crate) async fn leader_is_ready(&self, controller: &mut Controller) -> bool {
        controller.noop().await.is_ok_and(|state| state.phase == contract::envelope::MeshPhase::Ready)
    }

    pub(crate) async fn controller(&self) -> Controller {
        Controller::attach(&self.bus).await.unwrap()
    }
}

pub(crate) async fn status(bus: &Bus, mut wanted: impl FnMut(&ProcessStatus) -> bool) -> ProcessStatus {
    let mut statuses = bus.subscribe(&subjects::cell_status(&CellId::default()), 64).await.unwrap();
    let found = async {
        loop {
            let status: ProcessStatus = statuses.next().await.unwrap().decode().unwrap();
            if wanted(&status) {
                return status;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the status that was waited for")
}
