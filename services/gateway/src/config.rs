//! What an operator may set. Sections and keys are those of the TOML file and of `KINEMESH_<SECTION>__<KEY>`.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use contract::{Error, Reason};
use runtime::config::Provenance;
use runtime::{Common, ConfigError, ServiceConfig};
use serde::{Deserialize, Serialize};

use crate::origins::AllowedOrigins;

/// The WebRTC stack warns once or more for every connection that is well, and calls it an error that a viewer leaves.
const WEBRTC_NOISE: &str = ",rtc=warn,webrtc=warn,rtc_ice::agent=error,rtc_dtls::config=error,rtc_sctp::endpoint=error,\
    rtc_sctp::association=off";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    #[serde(flatten)]
    pub common: Common,
    pub gateway: GatewayConfig,
    pub webrtc: WebRtcConfig,
}

impl Default for Config {
    fn default() -> Self {
        let mut common = Common::default();
        // Where existing clients look for the server.
        common.http.port = 8000;
        common.log.filter.push_str(WEBRTC_NOISE);
        Self { common, gateway: GatewayConfig::default(), webrtc: WebRtcConfig::default() }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayConfig {
    pub max_sessions: usize,
    pub recovery_s: u64,
    pub token_file: Option<PathBuf>,
    pub allowed_origins: Vec<String>,
    pub max_body_bytes: usize,
    pub max_sdp_bytes: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        let loopback = ["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"];
        Self {
            max_sessions: 16,
            recovery_s: 120,
            token_file: None,
            allowed_origins: loopback.map(str::to_owned).to_vec(),
            max_body_bytes: 65_536,
            max_sdp_bytes: 32_768,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct WebRtcConfig {
    pub bind: IpAddr,
    pub udp_ports: Option<String>,
    pub public_ip: Option<IpAddr>,
    pub stun_urls: Vec<String>,
    pub turn_urls: Vec<String>,
    pub turn_username: Option<String>,
    pub turn_credential: Option<String>,
    pub start_kbps: u32,
    pub min_kbps: u32,
    pub max_kbps: u32,
}

impl Default for WebRtcConfig {
    fn default() -> Self {
        Self {
            bind: IpAddr::from([127, 0, 0, 1]),
            udp_ports: None,
            public_ip: None,
            stun_urls: Vec::new(),
            turn_urls: Vec::new(),
            turn_username: None,
            turn_credential: None,
            start_kbps: 1500,
            min_kbps: 150,
            max_kbps: 6000,
        }
    }
}

impl WebRtcConfig {
    /// # Errors
    /// `bad_field` if `udp_ports` is not `LOW-HIGH` with `1 <= LOW <= HIGH`.
    pub fn port_range(&self) -> Result<Option<RangeInclusive<u16>>, Error> {
        let Some(text) = &self.udp_ports else { return Ok(None) };
        let range = text.split_once('-').and_then(|(low, high)| {
            let (low, high) = (low.trim().parse::<u16>().ok()?, high.trim().parse::<u16>().ok()?);
            (low > 0 && low <= high).then_some(low..=high)
        });
        range.map(Some).ok_or_else(|| {
            Error::new(
                Reason::BadField,
                format!("webrtc.udp_ports {text:?}: LOW-HIGH is expected, such as 50000-50100"),
            )
        })
    }
}

impl ServiceConfig for Config {
    const DOCS: &'static [(&'static str, &'static str)] = &[
        ("gateway.max_sessions", "sessions at a time; more are refused with 429"),
        (
            "gateway.recovery_s",
            "how long a stream waits, standing still, for a broker or a stage0 that is gone; then it ends with an error",
        ),
        ("gateway.token_file", "file whose first line every /api request must bring as a bearer token"),
        (
            "gateway.allowed_origins",
            "origins of web pages, beside the server's own, that may use it: SCHEME://HOST[:PORT], PORT may be *; \"*\" \
                is any, without credentials. Their hosts are also names that a server on loopback answers to",
        ),
        ("gateway.max_body_bytes", "largest request body"),
        ("gateway.max_sdp_bytes", "largest SDP of an offer"),
        ("webrtc.bind", "address of media sockets; a wildcard means every interface but loopback"),
        ("webrtc.udp_ports", "LOW-HIGH: one port of it per session"),
        ("webrtc.public_ip", "address told to clients instead of the bound one (one-to-one NAT)"),
        ("webrtc.stun_urls", "STUN servers, for clients and for the gateway's own candidates"),
        ("webrtc.turn_urls", "TURN servers, for clients"),
        (
            "webrtc.start_kbps",
            "bitrate a session starts with; it then follows the receiver within min_kbps and max_kbps",
        ),
    ];

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, _provenance: &Provenance) -> Result<(), ConfigError> {
        if let Err(error) = self.webrtc.port_range() {
            return Err(ConfigError::new("webrtc.udp_ports", error.message));
        }
        if let Err(error) = AllowedOrigins::parse(&self.gateway.allowed_origins) {
            return Err(ConfigError::new("gateway.allowed_origins", error.message));
        }
        if self.gateway.max_sessions == 0 {
            return Err(ConfigError::new("gateway.max_sessions", "is 0: at least 1 is needed"));
        }
        let WebRtcConfig { start_kbps, min_kbps, max_kbps, .. } = self.webrtc;
        if min_kbps == 0 || min_kbps > start_kbps || start_kbps > max_kbps {
            let bounds = format!(
                "is {start_kbps}: 0 < min_kbps ({min_kbps}) <= start_kbps <= max_kbps ({max_kbps}) is needed"
            );
            return Err(ConfigError::new("webrtc.start_kbps", bounds));
        }
        let GatewayConfig { max_sdp_bytes, max_body_bytes, .. } = self.gateway;
        if max_sdp_bytes == 0 || max_sdp_bytes > max_body_bytes {
            let bounds =
                format!("is {max_sdp_bytes}: 1 to gateway.max_body_bytes ({max_body_bytes}) is allowed");
            return Err(ConfigError::new("gateway.max_sdp_bytes", bounds));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        runtime::config::load_with::<Config>(&Default::default(), env).map(|loaded| loaded.value)
    }

    #[test]
    fn the_defaults_are_valid_and_open_nothing_but_loopback() {
        let config = loaded(&[]).unwrap();
        assert_eq!((config.common.http.bind.as_str(), config.common.http.port), ("127.0.0.1", 8000));
        assert!(config.webrtc.bind.is_loopback());
    }

    #[test]
    fn a_value_that_cannot_be_used_is_refused_by_key() {
        for (key, value, name) in [
            ("KINEMESH_WEBRTC__UDP_PORTS", "9-8", "webrtc.udp_ports"),
            ("KINEMESH_WEBRTC__UDP_PORTS", "0-5", "webrtc.udp_ports"),
            ("KINEMESH_WEBRTC__START_KBPS", "9000000", "webrtc.start_kbps"),
            ("KINEMESH_GATEWAY__MAX_SESSIONS", "0", "gateway.max_sessions"),
            ("KINEMESH_GATEWAY__ALLOWED_ORIGINS", "studio.example", "gateway.allowed_origins"),
            ("KINEMESH_GATEWAY__MAX_SDP_BYTES", "9000000", "gateway.max_sdp_bytes"),
        ] {
            assert!(loaded(&[(key, value)]).unwrap_err().to_string().contains(name), "{key}");
        }
        let config = loaded(&[("KINEMESH_WEBRTC__UDP_PORTS", "50000-50010")]).unwrap();
        assert_eq!(config.webrtc.port_range().unwrap(), Some(50_000..=50_010));
    }

    #[test]
    fn what_the_webrtc_stack_warns_of_in_healthy_connections_is_not_logged() {
        let filter = loaded(&[]).unwrap().common.log.filter;
        assert!(filter.starts_with(&Common::default().log.filter));
        let quiet = [
            "rtc_ice::agent=error",
            "rtc_dtls::config=error",
            "rtc_sctp::endpoint=error",
            "rtc_sctp::association=off",
        ];
        for wanted in quiet {
            assert!(filter.split(',').any(|directive| directive == wanted), "{filter}");
        }
    }
}
