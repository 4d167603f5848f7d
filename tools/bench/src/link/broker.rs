//! A small request through a real broker.

use std::time::Instant;

use anyhow::Result;
use bus::ServiceInfo;
use contract::{Budget, Deadline, SessionId, subjects};
use system_tests::Cell;

/// Bytes of a request and of its answer.
pub(super) const MESSAGE: usize = 200;

/// Milliseconds of requests of one client that another answers at once.
pub(super) async fn round_trips(count: u32) -> Result<Vec<f64>> {
    let services = ["gateway", "stage0", "leader"];
    let cell = services.into_iter().fold(Cell::builder().world_size(1), |cell, name| cell.without(name));
    let cell = cell.start().await;
    let (asks, answers) = (cell.bus("gateway").await, cell.bus("stage0").await);
    let info = ServiceInfo {
        name: "bench".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: "answers what it is asked".to_owned(),
        metadata: Default::default(),
    };
    let service = answers.service(info).await?;
    let subject = subjects::session_control(SessionId::random());
    let _echo = service.serve("echo", &subject, 1, |_, text: String| async move { Ok(text) }).await?;
    let (message, mut times) = ("x".repeat(MESSAGE), Vec::new());
    for _ in 0..count {
        let started = Instant::now();
        let deadline = Deadline::after(started, Budget::from_secs(5));
        let _: String = asks.request(&subject, &message, deadline).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}
