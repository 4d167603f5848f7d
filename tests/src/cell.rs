//! A cell of real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use bus::{Bus, BusConfig};
use contract::status::ProcessStatus;
use contract::{CellId, subjects};
use tempfile::TempDir;
use xtask::layout::Layout;
use xtask::setup::credentials;
use xtask::stack::{Phase, Spec, Stack, free_ports};

use crate::http::Http;
use crate::process::Signal;
use crate::proxy::Proxy;
use crate::supervisor::{End, Supervisor};
use crate::{leftovers, wait};

/// How long a cell may take from nothing to ready: weights are made, warm-up runs, on a shared machine.
const START: Duration = Duration::from_secs(60);
pub const BROKER: &str = "nats";
const NATS_URL: &str = "KINEMESH_NATS__URL";
const HTTP_PORT: &str = "KINEMESH_HTTP__PORT";

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
    behind_proxies: Vec<String>,
    supervised: bool,
}

impl Default for CellBuilder {
    fn default() -> Self {
        Self {
            world_size: 2,
            model: "tiny".to_owned(),
            env: Vec::new(),
            without: Vec::new(),
            behind_proxies: Vec::new(),
            supervised: false,
        }
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

    /// Puts a proxy between this process and the broker.
    #[must_use]
    pub fn behind_proxy(mut self, process: &str) -> Self {
        self.behind_proxies.push(process.to_owned());
        self
    }

    /// What ends is started again, as `cargo xtask up` does.
    #[must_use]
    pub fn supervised(mut self) -> Self {
        self.supervised = true;
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
        let count = 2 + self.behind_proxies.len() + Stack::inner_port_count(self.world_size);
        let mut ports = free_ports(count).expect("free ports");
        let proxy_ports = ports.split_off(count - self.behind_proxies.len());
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
            set(spec, &key, &value);
        }
        let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, stack.nats_port));
        let mut proxies = BTreeMap::new();
        for (process, port) in self.behind_proxies.into_iter().zip(proxy_ports) {
            let proxy = Proxy::of_broker(broker, port).await.expect("a port");
            let spec = specs.get_mut(&process).unwrap_or_else(|| panic!("no process {process}"));
            set(spec, NATS_URL, &format!("nats://{}", proxy.address()));
            proxies.insert(process, proxy);
        }
        specs.insert(BROKER.to_owned(), stack.broker(&layout));
        let processes = Supervisor::new(dir.path().to_owned(), self.supervised);
        let nats_url = format!("nats://{broker}");
        let gateway_port = stack.gateway_port;
        let mut cell = Cell { gateway_port, nats_url, specs, proxies, processes, dir };
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
    proxies: BTreeMap<String, Proxy>,
    processes: Supervisor,
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

    /// The health and metrics server of a process.
    ///
    /// # Panics
    /// If there is no such process, or it has none.
    #[must_use]
    pub fn http_of(&self, process: &str) -> Http {
        let spec = self.specs.get(process).unwrap_or_else(|| panic!("no process {process}"));
        let port = spec.env.iter().find(|(key, _)| key == HTTP_PORT).and_then(|(_, port)| port.to_str());
        Http::new(port.and_then(|port| port.parse().ok()).expect("a port"))
    }

    /// All that every life of a process printed.
    ///
    /// # Panics
    /// If it never ran.
    #[must_use]
    pub fn printed(&self, process: &str) -> String {
        crate::process::printed(self.dir.path(), process)
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

    /// The next status of a process that is as wanted.
    ///
    /// # Panics
    /// If none comes.
    pub async fn status(&self, mut wanted: impl FnMut(&ProcessStatus) -> bool) -> ProcessStatus {
        let bus = self.bus("gateway").await;
        let mut statuses = bus.subscribe(&subjects::cell_status(&self.id()), 256).await.expect("statuses");
        wait::bounded("the status that was waited for", START, async {
            loop {
                let status = statuses.next().await.expect("a subscription that lives");
                let status: ProcessStatus = status.decode().expect("a status");
                if wanted(&status) {
                    return status;
                }
            }
        })
        .await
    }

    /// # Panics
    /// If there is no such process, it runs, or it cannot be started.
    pub fn start_process(&mut self, name: &str) {
        let spec = self.specs.get(name).unwrap_or_else(|| panic!("no process {name}"));
        self.processes.start(spec.clone());
    }

    /// Puts another program, or the same with other settings, in the place of a process that is not running.
    ///
    /// # Panics
    /// If there is no such process, or it runs.
    pub fn start_as(&mut self, name: &str, program: Option<&str>, env: &[(&str, &str)]) {
        let mut spec = self.specs.get(name).unwrap_or_else(|| panic!("no process {name}")).clone();
        if let Some(program) = program {
            spec.program = layout().binaries().join(program);
        }
        env.iter().for_each(|(key, value)| set(&mut spec, key, value));
        self.processes.start(spec);
    }

    /// Adds a process that is a variation of another one.
    ///
    /// # Panics
    /// If `like` is not a process of this cell.
    pub fn start_beside(&mut self, name: &str, like: &str, env: &[(&str, &str)]) {
        let mut spec = self.specs.get(like).unwrap_or_else(|| panic!("no process {like}")).clone();
        name.clone_into(&mut spec.name);
        env.iter().for_each(|(key, value)| set(&mut spec, key, value));
        self.specs.insert(name.to_owned(), spec);
        self.start_process(name);
    }

    /// Kills a process, and nobody starts it again but the test.
    pub fn remove(&self, name: &str) {
        self.processes.abandon(name);
    }

    /// # Panics
    /// If it is not running.
    pub fn signal(&self, name: &str, signal: Signal) {
        assert!(self.processes.signal(name, signal), "{name} is not running");
    }

    /// Does nothing to a process that is not running.
    pub fn signal_if_running(&self, name: &str, signal: Signal) {
        self.processes.signal(name, signal);
    }

    /// Waits for the end of what runs under this name now; if nothing does, it is the last end there was.
    ///
    /// # Panics
    /// If nothing ran under this name, or it does not end in time.
    pub async fn exit(&self, name: &str, within: Duration) -> ExitStatus {
        if let Some(pid) = self.pid(name) {
            return self.end(pid, within).await.status;
        }
        let last = self.ends().into_iter().rfind(|end| end.name == name);
        last.unwrap_or_else(|| panic!("{name} never ran")).status
    }

    /// The end of a process by its id, which may have come already.
    pub async fn end(&self, pid: u32, within: Duration) -> End {
        wait::until(&format!("the end of process {pid}"), within, || async {
            self.processes.ends().into_iter().find(|end| end.pid == pid)
        })
        .await
    }

    /// Id of the process that runs under this name now.
    #[must_use]
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.processes.pid(name)
    }

    /// Ids of everything that runs, the broker included.
    #[must_use]
    pub fn pids(&self) -> BTreeMap<String, u32> {
        self.processes.pids()
    }

    /// Every end of a process so far, in order.
    #[must_use]
    pub fn ends(&self) -> Vec<End> {
        self.processes.ends()
    }

    /// What stands between a process and the broker.
    ///
    /// # Panics
    /// If nothing does.
    #[must_use]
    pub fn proxy(&self, process: &str) -> &Proxy {
        self.proxies.get(process).unwrap_or_else(|| panic!("{process} is not behind a proxy"))
    }

    /// Processes that belong to this cell and that it does not know: started by one of its own, or left behind.
    #[must_use]
    pub fn orphans(&self) -> BTreeSet<u32> {
        let known: BTreeSet<u32> = self.pids().into_values().collect();
        leftovers::processes_of(self.dir.path()).difference(&known).copied().collect()
    }

    /// Stops the cell as `cargo xtask up` does, and asserts what that owes: every service ends with 0 within its 5 s, and
    /// leaves neither process nor shared memory.
    ///
    /// # Panics
    /// If it does not.
    pub async fn stop(self) {
        let running = self.pids();
        for phase in [Phase::Gateway, Phase::Stage0, Phase::Mesh] {
            let asked = Instant::now();
            self.processes.ask_to_stop(phase);
            for (name, spec) in self.specs.iter().filter(|(_, spec)| spec.phase == phase) {
                let Some(pid) = running.get(name) else { continue };
                let end = self.end(*pid, Duration::from_secs(30)).await;
                wait::assert_within(&format!("the end of {name}"), asked.elapsed(), Duration::from_secs(5));
                assert_eq!(end.status.code(), Some(0), "{} ({}): {}", name, spec.name, end.status);
            }
        }
        self.remove(BROKER);
        assert_eq!(self.orphans(), BTreeSet::new(), "processes were left behind");
        assert_eq!(leftovers::unmapped_memory(), BTreeSet::new(), "shared memory was left behind");
    }

    /// # Panics
    /// If `/ready` is not 200 within the time.
    pub async fn wait_ready(&self, within: Duration) {
        let http = self.http();
        let end = Instant::now() + within;
        loop {
            let answer = http.try_get("/ready").await.ok();
            if answer.as_ref().is_some_and(|answer| answer.status == 200) {
                return;
            }
            if Instant::now() > end {
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
        self.processes.logs()
    }
}

fn set(spec: &mut Spec, key: &str, value: &str) {
    spec.env.retain(|(present, _)| present != key);
    spec.env.push((key.to_owned(), OsString::from(value)));
}

impl Drop for Cell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
