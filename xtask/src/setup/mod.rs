//! `cargo xtask setup`: after it, `cargo build` and the stack need nothing else from the network but crates.

pub mod clients;
pub mod credentials;
mod libtorch;
mod python;
mod tools;
mod wheels;

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result};

use crate::layout::Layout;

pub use tools::{BROWSER, BUILD, ensure};

#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Options {
    /// Fetch the CUDA libraries too (several GiB): needed to run on a GPU.
    #[arg(long)]
    pub cuda: bool,
}

/// # Errors
/// [`crate::outcome::Refused`] if tools are missing that it may not install; otherwise what failed while fetching.
pub fn run(layout: &Layout, options: Options) -> Result<()> {
    ensure(&BUILD)?;
    let _lock = lock(layout)?;
    wheels::fetch(layout, options.cuda)?;
    libtorch::link(layout)?;
    credentials::write(&layout.credentials())
}

/// One set-up at a time in a checkout; a second one waits for the first and then finds everything done.
fn lock(layout: &Layout) -> Result<File> {
    fs::create_dir_all(layout.private())?;
    let path = layout.private().join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another set-up of this checkout to end");
            file.lock().context("cannot lock the set-up")?;
        }
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the set-up"),
    }
    Ok(file)
}
