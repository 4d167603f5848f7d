//! A service that ends in the way its `demo.how` says; the tests of exit codes and grace run it.

use std::time::Duration;

use runtime::config::{Common, ServiceConfig};
use runtime::lifecycle::{self, About};
use runtime::{Context, ExitCode, Outcome};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(flatten)]
    common: Common,
    demo: Demo,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Demo {
    /// `wait`, `wedge`, `fail`, `orphan`, `panic` or `lie`.
    how: String,
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}

fn main() {
    let about = About { name: "wedged", version: "0.1.0", about: "ends in a chosen way" };
    lifecycle::main(about, body)
}

async fn body(context: Context<Config>) -> Outcome {
    match context.config.demo.how.as_str() {
        "wedge" => {
            // Every worker and the main thread: nothing asynchronous runs any more.
            for _ in 0..64 {
                tokio::spawn(async { std::thread::sleep(Duration::from_secs(3600)) });
            }
            println!("up");
            std::thread::sleep(Duration::from_secs(3600));
            Outcome::Stopped
        }
        "fail-wedged" => {
            tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(3600)));
            Outcome::needs_restart("poisoned")
        }
        "orphan" => Outcome::orphaned("no leader for 120 s"),
        "lie" => Outcome::fatal(ExitCode::Stopped, "a fatal error that claims code 0"),
        "panic" => {
            tokio::spawn(async { panic!("in a task") });
            context.shutdown.requested().await;
            Outcome::Stopped
        }
        _ => {
            println!("up");
            context.shutdown.requested().await;
            Outcome::Stopped
        }
    }
}
