//! A cell of real processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use bus::{Bus, BusConfig};
use contract::CellId;
use tempfile::TempDir;
use xtask::layout::Layout;
use xtask::setup::credentials;
use xtask::stack::{Spec, Stack, free_ports};

use crate::http::Http;
use crate::process::{Process, Signal};
use crate::wait;

/// How long a cell may take from nothing to ready: weights are made, warm-up runs, on a shared machine.
const START: Duration = Duration::from_secs(60);
pub const BROKER: &str = "nats";

#[must_use]
pub fn layout() -> Layout {
    Layout::new(None)
}

#[derive(Debug)]
pub struct CellBuilder {
    world_size: u16,
    model: String,
    env: Vec<(String, String, String)>,
    without: Vec<String>,
}

impl Default for CellBuilder {
    fn default() -> Self {
        Self { world_size: 2, model: "tiny".to_owned(), env: Vec::new(), without: Vec::new() }
    }
}

impl CellBuilder {
    #[must_use]
    pub fn world_size(mut self, world_size: u16) -> Self {
        self.world_size = world_size;
        self
    }

    #[must_use]
    pub fn model(mut self, model: &str) -> Self {
        model.clone_into(&mut self.model);
        self
    }

    /// Sets a configuration key of one process (`gateway`, `stage0`, `leader`, `worker1`...).
    #[must_use]
    pub fn env(mut self, process: &str, key: &str, value: &str) -> Self {
        self.env.push((process.to_owned(), key.to_owned(), value.to_owned()));
        self
    }

    /// Does not start this process; [`Cell::start_process`] may later.
    #[must_use]
    pub fn without(mut self, process: &str) -> Self {
        self.without.push(process.to_owned());
        self
    }

    /// Starts every process and waits until the gateway's `/ready` is 200.
    ///
    /// # Panics
    /// If it does not get ready; shows what each process printed last.
    pub async fn ready(self) -> Cell {
        let cell = self.start().await;
        cell.wait_ready(START).await;
        cell
    }

    /// Starts broker and processes, waits for the broker alone.
    ///
    /// # Panics
    /// If a process cannot be started.
    pub async fn start(self) -> Cell {
        let dir = TempDir::new().expect("a folder");
        let layout = layout();
        let mut ports = free_ports(2 + Stack::inner_port_count(self.world_size)).expect("free ports");
        let stack = Stack {
            gateway_port: ports.pop().expect("a port"),
            nats_port: ports.pop().expect("a port"),
            inner_ports: ports,
            world_size: self.world_size,
            model: self.model,
            cores: std::thread::available_parallelism().map_or(2, usize::from),
            run_dir: dir.path().to_owned(),
        };
        let mut specs: BTreeMap<String, Spec> =
            stack.services(&layout).into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        for (process, key, value) in self.env {
            let spec = specs.get_mut(&process).unwrap_or_else(|| panic!("no process {process}"));
            spec.env.retain(|(present, _)| *present != key);
            spec.env.push((key, OsString::from(value)));
        }
        let broker = stack.broker(&layout);
        let mut cell = Cell {
            gateway_port: stack.gateway_port,
            nats_url: format!("nats://127.0.0.1:{}", stack.nats_port),
            specs,
            processes: BTreeMap::new(),
            dir,
        };
        cell.specs.insert(BROKER.to_owned(), broker);
        cell.start_process(BROKER);
        cell.wait_broker().await;
        let names: Vec<_> = cell.specs.keys().filter(|name| *name != BROKER).cloned().collect();
        for name in names.iter().filter(|name| !self.without.contains(*name)) {
            cell.start_process(name);
        }
        cell
    }
}

#[derive(Debug)]
pub struct Cell {
    gateway_port: u16,
    nats_url: String,
    specs: BTreeMap<String, Spec>,
    processes: BTreeMap<String, Process>,
    // Last: the processes end before their folder goes.
    dir: TempDir,
}

impl Cell {
    #[must_use]
    pub fn builder() -> CellBuilder {
        CellBuilder::default()
    }

    #[must_use]
    pub fn id(&self) -> CellId {
        CellId::default()
    }

    #[must_use]
    pub fn http(&self) -> Http {
        Http::new(self.gateway_port)
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.gateway_port)
    }

    #[must_use]
    pub fn nats_url(&self) -> &str {
        &self.nats_url
    }

    /// Where the processes dump their flight recorders.
    #[must_use]
    pub fn flight_dir(&self) -> PathBuf {
        self.dir.path().join("flight")
    }

    /// File with the password of a NATS user.
    #[must_use]
    pub fn password_file(&self, user: &str) -> PathBuf {
        credentials::password_file(&layout().credentials(), user)
    }

    #[must_use]
    pub fn bus_config(&self, user: &str) -> BusConfig {
        BusConfig {
            url: self.nats_url.clone(),
            user: Some(user.to_owned()),
            password_file: Some(self.password_file(user)),
            ..BusConfig::default()
        }
    }

    /// A connection with the rights of `user`.
    ///
    /// # Panics
    /// If the broker refuses it.
    pub async fn bus(&self, user: &str) -> Bus {
        Bus::connect(&self.bus_config(user), "system-tests").await.expect("the broker")
    }

    /// # Panics
    /// If there is no such process, or it cannot be started.
    pub fn start_process(&mut self, name: &str) {
        let spec = self.specs.get(name).unwrap_or_else(|| panic!("no process {name}"));
        let process = Process::start(spec, self.dir.path()).expect("a process");
        self.processes.insert(name.to_owned(), process);
    }

    /// Adds a process that is a variation of another one.
    ///
    /// # Panics
    /// If `like` is not a process of this cell.
    pub fn start_variation(&mut self, name: &str, like: &str, env: &[(&str, &str)]) {
        let mut spec = self.specs.get(like).unwrap_or_else(|| panic!("no process {like}")).clone();
        spec.name = name.to_owned();
        for (key, value) in env {
            spec.env.retain(|(present, _)| present != key);
            spec.env.push(((*key).to_owned(), OsString::from(value)));
        }
        self.specs.insert(name.to_owned(), spec);
        self.start_process(name);
    }

    /// # Panics
    /// If it is not running.
    pub fn process(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).unwrap_or_else(|| panic!("{name} is not running"))
    }

    pub fn signal(&mut self, name: &str, signal: Signal) {
        self.process(name).signal(signal);
    }

    /// Waits for the end of a process.
    pub async fn exit(&mut self, name: &str, within: Duration) -> ExitStatus {
        self.process(name).exit(within).await
    }

    /// # Panics
    /// If `/ready` is not 200 within the time.
    pub async fn wait_ready(&self, within: Duration) {
        let http = self.http();
        let end = std::time::Instant::now() + within;
        loop {
            let answer = http.try_get("/ready").await.ok();
            if answer.as_ref().is_some_and(|answer| answer.status == 200) {
                return;
            }
            if std::time::Instant::now() > end {
                let waiting = answer.map_or("no answer".to_owned(), |answer| answer.text);
                panic!("not ready within {within:?}: {waiting}\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn wait_broker(&mut self) {
        let address = self.nats_url.trim_start_matches("nats://").to_owned();
        wait::until("the broker", Duration::from_secs(10), || async {
            tokio::net::TcpStream::connect(&address).await.ok()
        })
        .await;
    }

    /// What each process printed last, for the message of a failing test.
    #[must_use]
    pub fn logs(&self) -> String {
        let one = |(name, process): (&String, &Process)| format!("--- {name}\n{}\n", process.log_tail());
        self.processes.iter().map(one).collect()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
