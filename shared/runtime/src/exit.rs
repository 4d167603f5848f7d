//! How a process ends, as its supervisor reads it.

use std::fmt;

use crate::config::ConfigError;

/// Exit status. A supervisor restarts whatever ends while it is not itself stopping, except [`Self::Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ExitCode {
    /// Asked to stop, by a signal or an operator.
    Stopped = 0,
    /// Anything without a code of its own, a panic included.
    Failed = 1,
    /// The configuration cannot be used; a restart would not help.
    Config = 2,
    /// A worker without a leader for its whole grace.
    Orphaned = 3,
    /// State is lost or fenced off: a fresh process is needed.
    NeedsRestart = 4,
}

impl ExitCode {
    #[must_use]
    pub fn code(self) -> i32 {
        self as i32
    }

    /// The one of this exit status; [`Self::Failed`] for a status that has no meaning of its own.
    #[must_use]
    pub fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Stopped,
            2 => Self::Config,
            3 => Self::Orphaned,
            4 => Self::NeedsRestart,
            _ => Self::Failed,
        }
    }
}

/// What the body of a service ends with.
#[derive(Debug)]
pub enum Outcome {
    /// It was asked to stop and did.
    Stopped,
    /// It cannot go on. Never exits 0: `code` [`ExitCode::Stopped`] counts as [`ExitCode::Failed`].
    Fatal { code: ExitCode, error: String },
}

impl Outcome {
    pub fn fatal(code: ExitCode, error: impl fmt::Display) -> Self {
        Self::Fatal { code, error: error.to_string() }
    }

    pub fn failed(error: impl fmt::Display) -> Self {
        Self::fatal(ExitCode::Failed, error)
    }

    pub fn orphaned(error: impl fmt::Display) -> Self {
        Self::fatal(ExitCode::Orphaned, error)
    }

    pub fn needs_restart(error: impl fmt::Display) -> Self {
        Self::fatal(ExitCode::NeedsRestart, error)
    }

    #[must_use]
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Stopped => ExitCode::Stopped,
            Self::Fatal { code: ExitCode::Stopped, .. } => ExitCode::Failed,
            Self::Fatal { code, .. } => *code,
        }
    }
}

impl From<ConfigError> for Outcome {
    fn from(error: ConfigError) -> Self {
        Self::fatal(ExitCode::Config, error)
    }
}

impl From<contract::Error> for Outcome {
    fn from(error: contract::Error) -> Self {
        match &error.detail {
            Some(detail) => Self::failed(format!("{error} ({detail})")),
            None => Self::failed(error),
        }
    }
}

impl From<anyhow::Error> for Outcome {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl<E: Into<Self>> From<Result<(), E>> for Outcome {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Stopped,
            Err(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_never_exits_0() {
        assert_eq!(Outcome::fatal(ExitCode::Stopped, "x").code(), ExitCode::Failed);
        assert_eq!(Outcome::orphaned("no leader").code().code(), 3);
    }
}
