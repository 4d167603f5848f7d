//! `cargo xtask up`: the whole stack on this machine, until Ctrl-C.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::Value;

use crate::command;
use crate::console::Console;
use crate::layout::Layout;
use crate::outcome::Refused;
use crate::setup;
use crate::stack::{
    CONFIGURATION, Readiness, Refusal, Spec, Stack, Supervisor, Watch, free_ports, is_free, signals,
};

const TICK: Duration = Duration::from_millis(50);
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a listener may take to say who it is.
const GREETING_PATIENCE: Duration = Duration::from_secs(2);
/// Ports that may be taken by others in the moment between their choice and the broker's start.
const ATTEMPTS: u32 = 3;
const MAX_GREETING: u64 = 4096;
/// Models that the services know by name.
pub const MODELS: [&str; 4] = ["tiny", "demo", "wan-1.3b", "wan-14b"];
/// Where NATS clients look by default.
const NATS_PORT: u16 = 4222;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Ranks of the tensor-parallel mesh: the leader and the workers beside it. 8 only for models whose heads it divides.
    #[arg(long, default_value = "2", value_parser = PossibleValuesParser::new(["1", "2", "4", "8"]).try_map(|n| n.parse::<u16>()))]
    world_size: u16,
    /// Port of the page and the API; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The model that the cell serves.
    #[arg(long, default_value = "demo", value_parser = PossibleValuesParser::new(MODELS))]
    model: String,
}

/// # Errors
/// [`Refused`] if the user has to change something (a busy port, a setting that a service refuses); otherwise what
/// failed while building or starting.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    // Before the long part: a busy port is known now.
    let first = plan(layout, options)?;
    for key in first.overridden(layout, |key| std::env::var_os(key)) {
        println!("note: {key} has no effect here: the stack sets it itself; --help says what can be chosen");
    }
    setup::run(layout, setup::Options::default())?;
    build(layout, &first)?;

    if let Some(reckoner) = plan(layout, options)?.reckoner(layout) {
        println!("memory: {}", needed_memory(&reckoner)?);
    }
    signals::listen();
    let console = Arc::new(Console::new());
    let Some((stack, mut supervisor)) = start_broker(layout, options, &console)? else { return Ok(()) };
    let outcome = stack
        .services(layout)
        .into_iter()
        .try_for_each(|spec| supervisor.start(spec))
        .and_then(|()| supervise(&mut supervisor, &stack, layout, &console));
    console.clear_status();
    console.line("stopping");
    supervisor.stop();
    if options.port == 0 {
        stack.forget();
    }
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

/// What the services will need and what there is, in one line, asked of a program that starts nothing.
///
/// # Errors
/// [`Refused`] if that is not free, or a setting cannot be used.
pub fn needed_memory(reckoner: &Spec) -> Result<String> {
    let mut command = Command::new(&reckoner.program);
    command.args(&reckoner.args).envs(reckoner.env.iter().map(|(key, value)| (key, value)));
    let output = command.stdin(Stdio::null()).output().context("cannot ask for the memory that is needed")?;
    let (said, refusal) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(said.trim().to_owned()),
        Some(CONFIGURATION) => Err(Refused(refusal.trim().to_owned()).into()),
        _ => bail!("cannot learn the memory that is needed: {}: {}", output.status, refusal.trim()),
    }
}

fn build(layout: &Layout, stack: &Stack) -> Result<()> {
    let built = stack.services(layout).iter().all(|spec| spec.program.exists());
    println!(
        "building{}",
        if built { " what has changed" } else { ": the first time it takes 15 to 20 minutes on two cores" }
    );
    // The workspace, not the four packages: the tests build it so, and another selection of packages selects other features
    // of what they share, and so compiles most dependencies once more.
    command::run(command::cargo().current_dir(layout.root()).args(["build", "--release", "--workspace"]))
}

/// Chooses ports and starts the broker. While this one built, another program may have taken a port that was free then:
/// other ports are chosen in that case. `None` when the user asked to stop meanwhile.
fn start_broker(
    layout: &Layout,
    options: &Options,
    console: &Arc<Console>,
) -> Result<Option<(Stack, Supervisor)>> {
    for _ in 0..ATTEMPTS {
        let stack = plan(layout, options)?;
        fs::create_dir_all(&stack.run_dir)?;
        let width = stack.services(layout).iter().map(|spec| spec.name.len()).max().unwrap_or_default();
        let mut supervisor = Supervisor::new(Arc::clone(console), width);
        let greeted =
            supervisor.start(stack.broker(layout)).and_then(|()| await_broker(&mut supervisor, &stack));
        if matches!(greeted, Ok(Greeting::Ours)) {
            return Ok(Some((stack, supervisor)));
        }
        supervisor.stop();
        if options.port == 0 {
            stack.forget();
        }
        if greeted? == Greeting::None {
            return Ok(None);
        }
        console.line("another program took the broker's port: trying another one");
    }
    bail!("other programs took the broker's port {ATTEMPTS} times in a row")
}

/// Who listens on the broker's port.
#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    Ours,
    Stranger,
    None,
}

/// Waits until somebody greets on the broker's port, or the user asks to stop.
fn await_broker(supervisor: &mut Supervisor, stack: &Stack) -> Result<Greeting> {
    let end = Instant::now() + BROKER_PATIENCE;
    while signals::requests() == 0 {
        match greeting(stack) {
            Greeting::None => {}
            known => return Ok(known),
        }
        if let Some(Refusal { process, message }) = supervisor.tick(Instant::now())? {
            bail!("{process} did not start: {message}");
        }
        if Instant::now() >= end {
            bail!("nats-server did not answer on port {} within {BROKER_PATIENCE:?}", stack.nats_port);
        }
        thread::sleep(TICK);
    }
    Ok(Greeting::None)
}

/// A broker's first line is `INFO` and a JSON object that says its name.
fn greeting(stack: &Stack) -> Greeting {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, stack.nats_port));
    let Ok(stream) = TcpStream::connect_timeout(&address, GREETING_PATIENCE) else { return Greeting::None };
    let mut line = String::new();
    let read = stream
        .set_read_timeout(Some(GREETING_PATIENCE))
        .and_then(|()| BufReader::new(stream).take(MAX_GREETING).read_line(&mut line));
    match read {
        Ok(read) if read > 0 => {
            let info = line.strip_prefix("INFO ").and_then(|json| serde_json::from_str::<Value>(json).ok());
            let ours = info.is_some_and(|info| info["server_name"] == stack.broker_name().as_str());
            if ours { Greeting::Ours } else { Greeting::Stranger }
        }
        _ => Greeting::None,
    }
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::path::PathBuf;

    use super::*;

    /// What is made of a listener that says `line` to this stack.
    fn greeted(line: impl FnOnce(&Stack) -> String) -> Greeting {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stack = Stack {
            gateway_port: 1,
            nats_port: listener.local_addr().unwrap().port(),
            inner_ports: Vec::new(),
            world_size: 1,
            model: "tiny".to_owned(),
            cores: 1,
            run_dir: PathBuf::new(),
        };
        let line = line(&stack);
        let server = thread::spawn(move || listener.accept().unwrap().0.write_all(line.as_bytes()));
        let greeting = greeting(&stack);
        server.join().unwrap().unwrap();
        greeting
    }

    #[test]
    fn only_the_broker_of_this_very_stack_is_taken_for_its_own() {
        let named = |name: &str| format!("INFO {{\"server_name\":\"{name}\",\"proto\":1}} \r\n");
        assert_eq!(greeted(|stack| named(&stack.broker_name())), Greeting::Ours);
        assert_eq!(greeted(|_| named("kinemesh-1-1")), Greeting::Stranger);
        assert_eq!(greeted(|_| "220 mail at your service\r\n".to_owned()), Greeting::Stranger);
    }
}
