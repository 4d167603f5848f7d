//! The broker's credentials: one user per kind of service, a random password each.
//!
//! `<user>.password` is what a process of that user reads; `credentials.conf` is what `nats/nats-server.conf` includes.
//! Passwords are made once and kept; the include file is derived from them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The users of `nats/nats-server.conf`.
pub const USERS: [&str; 5] = ["gateway", "stage0", "leader", "worker", "ops"];
const PASSWORD_BYTES: usize = 32;

/// # Errors
/// If a file cannot be written or read, or holds something else than a password made here.
pub fn write(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let mut include = String::from("# Written by `cargo xtask setup`; included by nats-server.conf.\n");
    for user in USERS {
        let path = password_file(dir, user);
        if !path.exists() {
            write_private(&path, &random_password()?)?;
        }
        let password =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let password = password.trim();
        if password.is_empty() || !password.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            bail!(
                "{} holds no password: letters and digits only; delete it to have a new one made",
                path.display()
            );
        }
        include += &format!("KM_{}_PASSWORD: \"{password}\"\n", user.to_uppercase());
    }
    let path = dir.join("credentials.conf");
    if fs::read_to_string(&path).unwrap_or_default() != include {
        write_private(&path, &include)?;
    }
    Ok(())
}

/// The file that holds the password of `user`.
pub fn password_file(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}.password"))
}

/// Readable by its owner alone, and never half written.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn random_password() -> Result<String> {
    let mut bytes = [0; PASSWORD_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::{USERS, password_file, write};

    #[test]
    fn passwords_differ_and_survive_a_second_set_up() {
        let dir = tempfile::tempdir().unwrap();
        let read = || USERS.map(|user| fs::read_to_string(password_file(dir.path(), user)).unwrap());

        write(dir.path()).unwrap();
        let first = read();
        write(dir.path()).unwrap();

        assert_eq!(read(), first);
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), USERS.len());
    }

    #[test]
    fn only_the_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();

        write(dir.path()).unwrap();

        for entry in fs::read_dir(dir.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_password_that_could_break_the_config_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(password_file(dir.path(), "ops"), "a\" b").unwrap();

        let error = write(dir.path()).unwrap_err().to_string();

        assert!(error.contains("ops.password"), "{error}");
    }
}
