//! Where things lie in a checkout. Everything that is fetched or generated lives in the git-ignored `.kinemesh`.

use std::env;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// `root` is the checkout; without one, the checkout that this program was built from.
    pub fn new(root: Option<PathBuf>) -> Self {
        let root = root.unwrap_or_else(|| {
            let xtask = env::var_os("CARGO_MANIFEST_DIR")
                .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
            xtask.parent().map_or(xtask.clone(), Path::to_path_buf)
        });
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the weights of a model that ships with them.
    pub fn shipped_weights(&self, model: &str) -> Option<PathBuf> {
        let folder = self.root.join("models").join(model);
        folder.join("dit.safetensors").is_file().then_some(folder)
    }

    /// The git-ignored folder.
    pub fn private(&self) -> PathBuf {
        self.root.join(".kinemesh")
    }

    /// Unpacked wheels: libtorch, CUDA libraries, nats-server.
    pub fn site(&self) -> PathBuf {
        self.private().join("site")
    }

    /// The folder that `LIBTORCH` names.
    pub fn libtorch(&self) -> PathBuf {
        self.private().join("libtorch")
    }

    /// Python environment: fetches the wheels and runs the test clients.
    pub fn venv(&self) -> PathBuf {
        self.private().join("venv")
    }

    /// The broker's credentials.
    pub fn credentials(&self) -> PathBuf {
        self.private().join("nats")
    }

    /// State of one running stack, told apart by the gateway's port, which no two of them can share.
    pub fn run_dir(&self, gateway_port: u16) -> PathBuf {
        self.private().join("run").join(gateway_port.to_string())
    }

    pub fn nats_server(&self) -> PathBuf {
        self.site().join("bin/nats-server")
    }

    pub fn nats_config(&self) -> PathBuf {
        self.root.join("nats/nats-server.conf")
    }

    pub fn requirements(&self, file: &str) -> PathBuf {
        self.root.join("xtask/requirements").join(file)
    }

    pub fn client_requirements(&self) -> PathBuf {
        self.root.join("tests/clients/requirements.txt")
    }

    /// Folder of the binaries that `cargo build --release` makes.
    pub fn binaries(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
            .join("release")
    }
}
