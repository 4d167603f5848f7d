//! A worker that lies: everything of it is the product's, but for the one lie that `LYING_WORKER_LIE` names.

mod collective;
mod lie;

use contract::{Error, Reason};
use runtime::lifecycle::{self, About, Context};
use runtime::{ExitCode, Outcome};
use tp_worker::WorkerSettings;

use crate::lie::Lie;

const LIE: &str = "LYING_WORKER_LIE";

fn main() {
    let about = About {
        name: "lying-worker",
        version: tp_worker::BUILD,
        about: "a worker for fault tests: joins a mesh and tells it one lie",
    };
    lifecycle::main(about, run)
}

async fn run(context: Context<WorkerSettings>) -> Outcome {
    match chosen() {
        Ok(lie) => tp_worker::run_with(context, |rank| lie.tell(rank)).await,
        Err(error) => Outcome::fatal(ExitCode::Config, error),
    }
}

fn chosen() -> Result<Lie, Error> {
    let text = std::env::var(LIE).map_err(|_| Error::new(Reason::BadField, format!("{LIE} is not set")))?;
    text.parse()
}
