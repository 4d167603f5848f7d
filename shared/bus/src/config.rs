//! How to reach the broker.

use std::fmt;
use std::path::{Path, PathBuf};

use contract::{Error, Reason};
use serde::{Deserialize, Serialize};

/// Settings of one connection. Secrets come from a file or the environment and are never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BusConfig {
    /// `nats://host:port` or `tls://host:port`; several, separated by commas, for a cluster.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// File whose first line is the password. Excludes `password`.
    pub password_file: Option<PathBuf>,
    /// NATS credentials file (JWT and nkey seed).
    pub creds_file: Option<PathBuf>,
    /// PEM file of the authority that signed the broker's certificate; with it TLS is required.
    pub tls_ca_file: Option<PathBuf>,
    /// How long [`crate::Bus::connect`] keeps trying before it reports failure.
    pub connect_timeout_ms: u64,
}

impl fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusConfig")
            .field("url", &self.shown_url())
            .field("user", &self.user)
            .field("password", &self.password)
            .finish_non_exhaustive()
    }
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            user: None,
            password: None,
            password_file: None,
            creds_file: None,
            tls_ca_file: None,
            connect_timeout_ms: 5_000,
        }
    }
}

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(set)")
    }
}

impl BusConfig {
    /// The broker's address without whatever credentials stand in it: safe to log.
    #[must_use]
    pub fn shown_url(&self) -> String {
        let shown = self.url.split(',').map(|url| match (url.find("://"), url.rfind('@')) {
            (Some(scheme), Some(at)) => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
            _ => url.to_owned(),
        });
        shown.collect::<Vec<_>>().join(",")
    }

    /// User and password, when there are any.
    ///
    /// # Errors
    /// `bad_field` if password and file are both set, there is one without a user, or the file cannot be read.
    pub(crate) async fn login(&self) -> Result<Option<(String, Secret)>, Error> {
        let password = match (&self.password, &self.password_file) {
            (Some(_), Some(_)) => {
                return Err(bad("nats.password and nats.password_file are both set: one is allowed"));
            }
            (Some(password), None) => Some(password.clone()),
            (None, Some(file)) => Some(read_secret(file).await?),
            (None, None) => None,
        };
        match (&self.user, password) {
            (Some(user), Some(password)) => Ok(Some((user.clone(), password))),
            (Some(user), None) => Ok(Some((user.clone(), Secret(String::new())))),
            (None, Some(_)) => Err(bad("a NATS password is set but nats.user is not")),
            (None, None) => Ok(None),
        }
    }
}

async fn read_secret(file: &Path) -> Result<Secret, Error> {
    let text = tokio::fs::read_to_string(file)
        .await
        .map_err(|e| bad(&format!("nats.password_file {}: {e}", file.display())))?;
    Ok(Secret(text.lines().next().unwrap_or_default().trim().to_owned()))
}

fn bad(message: &str) -> Error {
    Error::new(Reason::BadField, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_output_nor_the_shown_url_holds_a_secret() {
        let config = BusConfig {
            url: "nats://joe:hunter2@broker:4222".to_owned(),
            password: Some(Secret("hunter2".to_owned())),
            ..BusConfig::default()
        };
        assert_eq!(config.shown_url(), "nats://broker:4222");
        assert_eq!(format!("{:?}", config.password), "Some((set))");
    }

    #[tokio::test]
    async fn a_password_without_a_user_is_refused() {
        let config = BusConfig { password: Some(Secret("x".to_owned())), ..BusConfig::default() };
        assert_eq!(config.login().await.unwrap_err().reason, Reason::BadField);
    }
}
