//! Tools of the operating system: found, installed when that is allowed, or named.

use std::process::Command;

use anyhow::Result;

use crate::command::{find, run, succeeds};
use crate::outcome::Refused;

/// A tool that has to be there, and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    package: &'static str,
    present: fn() -> bool,
}

/// What building needs.
pub const BUILD: [Tool; 6] = [
    Tool { name: "a C compiler", package: "build-essential", present: || succeeds("cc", &["--version"]) },
    Tool { name: "a C++ compiler", package: "build-essential", present: || succeeds("c++", &["--version"]) },
    Tool { name: "pkg-config", package: "pkg-config", present: || succeeds("pkg-config", &["--version"]) },
    Tool {
        name: "python3 with venv",
        package: "python3-venv",
        present: || succeeds("python3", &["-c", "import ensurepip, venv"]),
    },
    Tool {
        name: "the headers of libvpx",
        package: "libvpx-dev",
        present: || succeeds("pkg-config", &["--exists", "vpx"]),
    },
    Tool { name: "nasm", package: "nasm", present: || succeeds("nasm", &["-v"]) },
];

/// What the tests with a real browser need.
pub const BROWSER: [Tool; 1] =
    [Tool { name: "chromium", package: "chromium", present: || find("chromium").is_some() }];

/// Installs the missing ones when it may (root, or sudo without a password, on a Debian).
///
/// # Errors
/// [`Refused`] with the one line that installs them, if it may not; the installer's exit code if that failed.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !(tool.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ");
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if find("apt-get").is_none() {
        return Err(Refused(format!("missing: {names} (on Debian: {})", packages.join(" "))).into());
    }
    // SAFETY: geteuid has no preconditions and cannot fail.
    let prefix: &[&str] = if unsafe { libc::geteuid() } == 0 {
        &[]
    } else if succeeds("sudo", &["-n", "true"]) {
        &["sudo", "-n"]
    } else {
        return Err(Refused(one_line(&names, &packages)).into());
    };
    println!("missing: {names}; installing {}", packages.join(" "));
    run(&mut apt(prefix, &["update"]))?;
    run(apt(prefix, &["install", "-y", "--no-install-recommends"]).args(&packages))?;
    match missing.iter().find(|tool| !(tool.present)()) {
        None => Ok(()),
        Some(tool) => {
            Err(Refused(format!("{} is still missing after installing {}", tool.name, tool.package)).into())
        }
    }
}

/// For who may not install: what is missing, and the line that somebody who may can paste.
fn one_line(names: &str, packages: &[&str]) -> String {
    let install = "sudo apt-get update && sudo apt-get install -y --no-install-recommends";
    format!("missing: {names}. This installs them:\n  {install} {}", packages.join(" "))
}

fn apt(prefix: &[&str], args: &[&str]) -> Command {
    let words: Vec<&str> = prefix
        .iter()
        .chain(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .chain(args)
        .copied()
        .collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

#[cfg(test)]
mod tests {
    use super::{Tool, ensure, one_line};

    #[test]
    fn nothing_is_installed_when_every_tool_is_present() {
        let present = Tool { name: "a shell", package: "none", present: || true };

        assert!(ensure(&[present]).is_ok());
    }

    #[test]
    fn who_may_not_install_is_given_the_line_that_does() {
        let text = one_line("nasm, pkg-config", &["nasm", "pkg-config"]);

        assert!(text.starts_with("missing: nasm, pkg-config."), "{text}");
        let line = text.lines().last().unwrap().trim();
        assert!(line.starts_with("sudo apt-get update && sudo apt-get install"), "{line}");
        assert!(line.ends_with(" nasm pkg-config"), "{line}");
    }
}
