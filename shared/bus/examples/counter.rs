//! Serves `t.count` until killed: each request raises a count and gets it. The test of stalls stops and continues it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus::{Bus, BusConfig, ServiceInfo};

#[tokio::main]
async fn main() -> Result<(), contract::Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| BusConfig::default().url);
    let bus = Bus::connect(&BusConfig { url, ..BusConfig::default() }, "counter").await?;
    let info = ServiceInfo { name: "counter".into(), version: "0.1.0".into(), ..ServiceInfo::default() };
    let service = bus.service(info).await?;
    let count = Arc::new(AtomicU64::new(0));
    let raise = move |_, (): ()| std::future::ready(Ok(count.fetch_add(1, Ordering::SeqCst) + 1));
    let _endpoint = service.serve("count", "t.count", 4, raise).await?;
    println!("up");
    std::future::pending().await
}
