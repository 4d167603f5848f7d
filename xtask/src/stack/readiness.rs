//! Whether the stack is ready, and what it waits for: the gateway's `/ready`, asked again and again by a thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::http::{self, Answer};

const EVERY: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// What is missing, in the gateway's words.
    Waiting(String),
}

/// Asks until it is dropped.
#[derive(Debug)]
pub struct Watch {
    latest: Arc<Mutex<Readiness>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(gateway_port: u16) -> Self {
        let latest = Arc::new(Mutex::new(Readiness::Waiting("the gateway to start".to_owned())));
        let over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (latest, over) = (Arc::clone(&latest), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let now = ask(gateway_port);
                    if let Ok(mut latest) = latest.lock() {
                        *latest = now;
                    }
                    thread::park_timeout(EVERY);
                }
            })
        };
        Self { latest, over, thread: Some(thread) }
    }

    pub fn latest(&self) -> Readiness {
        self.latest.lock().map_or_else(|poisoned| poisoned.into_inner().clone(), |latest| latest.clone())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn ask(port: u16) -> Readiness {
    match http::get(port, "/ready", PATIENCE) {
        Ok(answer) => interpret(&answer),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Readiness::Waiting("the gateway to start".to_owned())
        }
        Err(error) => Readiness::Waiting(format!("an answer of the gateway ({error})")),
    }
}

/// 200 is ready; anything else says what it waits for in `waiting_for`, a text or a list of texts.
fn interpret(answer: &Answer) -> Readiness {
    if answer.status == 200 {
        return Readiness::Ready;
    }
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let text = match &body["waiting_for"] {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    };
    Readiness::Waiting(if text.is_empty() { format!("the gateway ({})", answer.status) } else { text })
}

#[cfg(test)]
mod tests {
    use super::{Answer, Readiness, interpret};

    fn waiting(status: u16, body: &str) -> Readiness {
        interpret(&Answer { status, body: body.to_owned() })
    }

    #[test]
    fn only_200_is_ready() {
        assert_eq!(waiting(200, "{}"), Readiness::Ready);
        assert_eq!(waiting(404, ""), Readiness::Waiting("the gateway (404)".to_owned()));
    }

    #[test]
    fn what_it_waits_for_is_passed_on() {
        let one = waiting(503, r#"{"waiting_for": "mesh: warming 2/3"}"#);
        let two = waiting(503, r#"{"waiting_for": ["nats", "mesh"]}"#);

        assert_eq!(one, Readiness::Waiting("mesh: warming 2/3".to_owned()));
        assert_eq!(two, Readiness::Waiting("nats, mesh".to_owned()));
    }
}
