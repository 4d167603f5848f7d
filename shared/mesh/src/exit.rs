/// How a process of the mesh ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Asked to stop.
    Asked,
    /// Anything that is none of the others.
    Failed,
    /// A configuration that no restart mends.
    Configuration,
    /// No leader within `orphan_grace`.
    Orphaned,
    /// Only a new process helps.
    NeedsRestart,
}

impl ExitCode {
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Asked => 0,
            Self::Failed => 1,
            Self::Configuration => 2,
            Self::Orphaned => 3,
            Self::NeedsRestart => 4,
        }
    }
}
