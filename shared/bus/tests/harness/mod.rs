//! A real nats-server on a free port with a folder of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part of it")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bus::{Bus, BusConfig, ServiceInfo};
use contract::{Budget, Deadline};
use tempfile::TempDir;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

pub struct Broker {
    pub port: u16,
    folder: TempDir,
    server: Option<Child>,
}

impl Broker {
    pub fn start() -> Self {
        Self::with_accounts("")
    }

    /// `accounts` is put into the server's configuration as it is.
    pub fn with_accounts(accounts: &str) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let folder = TempDir::new().unwrap();
        let store = folder.path().join("store");
        let config = format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?} }}\n{accounts}\n",
            store.display().to_string()
        );
        std::fs::write(folder.path().join("nats.conf"), config).unwrap();
        let mut broker = Self { port, folder, server: None };
        broker.up();
        broker
    }

    /// Starts the server and waits until it accepts connections.
    pub fn up(&mut self) {
        let server = Command::new(server_binary())
            .arg("-c")
            .arg(self.folder.path().join("nats.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        self.server = Some(server);
        let give_up = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(Instant::now() < give_up, "nats-server does not listen");
            std::thread::sleep(POLL);
        }
    }

    pub fn down(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    pub fn config(&self) -> BusConfig {
        BusConfig { url: format!("nats://127.0.0.1:{}", self.port), ..BusConfig::default() }
    }

    pub async fn bus(&self, name: &str) -> Bus {
        Bus::connect(&self.config(), name).await.unwrap()
    }

    /// A client that knows nothing of kinemesh.
    pub async fn stranger(&self) -> async_nats::Client {
        async_nats::connect(format!("nats://127.0.0.1:{}", self.port)).await.unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.down();
    }
}

fn server_binary() -> PathBuf {
    std::env::var_os("KINEMESH_NATS_SERVER").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.kinemesh/site/bin/nats-server"),
        PathBuf::from,
    )
}

pub fn within(ms: u64) -> Deadline {
    Deadline::after(Instant::now(), Budget::from_millis(ms))
}

pub fn info(name: &str) -> ServiceInfo {
    ServiceInfo {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        description: "a test".to_owned(),
        metadata: [("cell".to_owned(), "cell0".to_owned())].into(),
    }
}

/// Waits until `condition` holds; fails the test after 10 s.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < give_up, "waited 10 s for: {what}");
        tokio::time::sleep(POLL).await;
    }
}
