//! How a task ends: exit code 2 is reserved for what the user has to change, 1 for anything else that failed.

use std::fmt;
use std::process::ExitCode;

/// Something the user has to change before the task can work: a missing tool, a busy port, a refused setting.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// A command of another program failed and has already said why; its exit code is passed on.
#[derive(Debug)]
pub struct Failed {
    pub what: String,
    pub code: u8,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended with exit code {}", self.what, self.code)
    }
}

impl std::error::Error for Failed {}

/// Prints the error, if any, and maps it to the exit code.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    if error.is::<Refused>() {
        ExitCode::from(2)
    } else if let Some(failed) = error.downcast_ref::<Failed>() {
        ExitCode::from(failed.code)
    } else {
        ExitCode::FAILURE
    }
}
