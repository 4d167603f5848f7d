//! `cargo xtask up`: the whole stack on this machine, until Ctrl-C.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::console::Console;
use crate::layout::Layout;
use crate::outcome::Refused;
use crate::setup;
use crate::stack::{Readiness, Refusal, Stack, Supervisor, Watch, free_ports, is_free, signals};

const TICK: Duration = Duration::from_millis(50);
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// Where NATS clients look by default.
const NATS_PORT: u16 = 4222;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Ranks of the tensor-parallel mesh: the leader and the workers beside it. The leader refuses what does not divide
    /// the model's heads.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(..=64))]
    world_size: u16,
    /// Port of the page and the API; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The model that the cell serves.
    #[arg(long, default_value = "tiny")]
    model: String,
}

/// # Errors
/// [`Refused`] if the user has to change something (a busy port, a setting that a service refuses); otherwise what
/// failed while building or starting.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    // Before the long part: a busy port is known now.
    let stack = plan(layout, options)?;
    setup::run(layout, setup::Options::default())?;
    build(layout)?;
    fs::create_dir_all(&stack.run_dir)?;

    signals::listen();
    let console = Arc::new(Console::new());
    let services = stack.services(layout);
    let width = services.iter().map(|spec| spec.name.len()).max().unwrap_or_default();
    let mut supervisor = Supervisor::new(Arc::clone(&console), width);
    let outcome = supervisor
        .start(stack.broker(layout))
        .and_then(|()| await_broker(&mut supervisor, stack.nats_port))
        .and_then(|()| services.into_iter().try_for_each(|spec| supervisor.start(spec)))
        .and_then(|()| supervise(&mut supervisor, &stack, layout, &console));
    console.clear_status();
    console.line("stopping");
    supervisor.stop();
    match outcome? {
        None => Ok(()),
        Some(Refusal { process, message }) => {
            Err(Refused(format!("{process} refused its configuration: {message}")).into())
        }
    }
}

fn plan(layout: &Layout, options: &Options) -> Result<Stack> {
    let mut ports = free_ports(Stack::inner_port_count(options.world_size) + 2).context("no free port")?;
    let (mut gateway_port, mut nats_port) = (ports.remove(0), ports.remove(0));
    if options.port != 0 {
        if !is_free(options.port) {
            return Err(Refused(format!(
                "port {} is in use on 127.0.0.1: choose another with --port",
                options.port
            ))
            .into());
        }
        gateway_port = options.port;
    }
    if is_free(NATS_PORT) {
        nats_port = NATS_PORT;
    }
    Ok(Stack {
        gateway_port,
        nats_port,
        inner_ports: ports,
        world_size: options.world_size,
        model: options.model.clone(),
        cores: thread::available_parallelism().map_or(1, Into::into),
        run_dir: layout.run_dir(gateway_port),
    })
}

fn build(layout: &Layout) -> Result<()> {
    println!("building the services");
    // The workspace, not the four packages: the tests build it so, and another selection of packages selects other features
    // of what they share, and so compiles most dependencies once more.
    command::run(command::cargo().current_dir(layout.root()).args(["build", "--release", "--workspace"]))
}

/// Waits until the broker greets.
fn await_broker(supervisor: &mut Supervisor, port: u16) -> Result<()> {
    let end = Instant::now() + BROKER_PATIENCE;
    while signals::requests() == 0 {
        if greets(port) {
            return Ok(());
        }
        if let Some(Refusal { process, message }) = supervisor.tick(Instant::now())? {
            bail!("{process} did not start: {message}");
        }
        if Instant::now() >= end {
            bail!("nats-server did not answer on port {port} within {BROKER_PATIENCE:?}");
        }
        thread::sleep(TICK);
    }
    Ok(())
}

fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, TICK) else { return false };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(TICK)).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"INFO"
}

/// Until the user asks to stop, or a service refuses its configuration.
fn supervise(
    supervisor: &mut Supervisor,
    stack: &Stack,
    layout: &Layout,
    console: &Console,
) -> Result<Option<Refusal>> {
    let watch = Watch::start(stack.gateway_port);
    let (mut ready, mut announced) = (false, false);
    while signals::requests() == 0 {
        if let Some(refusal) = supervisor.tick(Instant::now())? {
            return Ok(Some(refusal));
        }
        match watch.latest() {
            Readiness::Ready if !ready => {
                ready = true;
                console.clear_status();
                if announced {
                    console.line("ready again");
                } else {
                    announce(stack, layout, console);
                }
                announced = true;
            }
            Readiness::Ready => {}
            Readiness::Waiting(what) => {
                ready = false;
                console.status(&format!("waiting for {what}"));
            }
        }
        thread::sleep(TICK);
    }
    Ok(None)
}

fn announce(stack: &Stack, layout: &Layout, console: &Console) {
    let password = setup::credentials::password_file(&layout.credentials(), "ops");
    let password = password.strip_prefix(layout.root()).unwrap_or(&password).display();
    console.line(&format!(
        "\nready: http://127.0.0.1:{}/\n       NATS on 127.0.0.1:{}, user ops, password in {password}\n       Ctrl-C stops everything\n",
        stack.gateway_port, stack.nats_port
    ));
}
