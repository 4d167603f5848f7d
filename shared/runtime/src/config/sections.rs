//! Sections that every service has, and the names of all that there are.

use std::env;
use std::path::PathBuf;

use bus::BusConfig;
use contract::CellId;
use serde::{Deserialize, Serialize};

/// Every section of every service. One environment and one file may serve them all: each takes what is its own.
pub const SECTIONS: [&str; 13] = [
    "cell",
    "device",
    "gateway",
    "http",
    "log",
    "mesh",
    "model",
    "nats",
    "placement",
    "recorder",
    "shutdown",
    "stage0",
    "webrtc",
];

/// What every service is told. Put it into a service's own configuration with `#[serde(flatten)]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    pub cell: CellSection,
    pub nats: BusConfig,
    pub http: HttpSection,
    pub log: LogSection,
    pub shutdown: ShutdownSection,
    pub recorder: RecorderSection,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CellSection {
    pub id: CellId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpSection {
    pub bind: String,
    /// 0 picks a free port.
    pub port: u16,
}

impl Default for HttpSection {
    fn default() -> Self {
        Self { bind: "127.0.0.1".to_owned(), port: 0 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSection {
    pub format: LogFormat,
    /// Directives as `tracing` knows them: `info,kinemesh_bus=debug`.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,async_nats=warn".to_owned() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShutdownSection {
    /// From the request to stop until the process is gone, whatever is wedged.
    pub grace_ms: u64,
}

impl Default for ShutdownSection {
    fn default() -> Self {
        Self { grace_ms: 5_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecorderSection {
    pub dir: PathBuf,
}

impl Default for RecorderSection {
    fn default() -> Self {
        Self { dir: state_dir().join("flight") }
    }
}

/// Where state of this user lies: what the service manager says, or the XDG base directories.
fn state_dir() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("STATE_DIRECTORY")
        .or_else(|| set("XDG_STATE_HOME").map(|dir| dir.join("kinemesh")))
        .or_else(|| set("HOME").map(|dir| dir.join(".local/state/kinemesh")))
        .unwrap_or_else(|| env::temp_dir().join("kinemesh"))
}

/// One line about each key above, for `--print-config`.
pub(crate) const DOCS: &[(&str, &str)] = &[
    ("cell.id", "name of the cell: a-z, 0-9 and '-'"),
    ("nats.url", "nats://host:port or tls://host:port, several separated by commas"),
    ("nats.password_file", "file whose first line is the password"),
    ("nats.creds_file", "NATS credentials file (JWT and nkey seed)"),
    ("nats.tls_ca_file", "PEM file of the broker's authority; with it TLS is required"),
    ("nats.connect_timeout_ms", "how long one attempt to reach the broker may last"),
    ("http.bind", "address of /live, /ready and /metrics"),
    ("http.port", "0 picks a free one"),
    ("log.format", "text or json"),
    ("log.filter", "tracing directives"),
    ("recorder.dir", "folder of the flight recorder's dumps, shared by all processes; it keeps the last 64"),
    ("shutdown.grace_ms", "from the request to stop until the process is gone"),
];
