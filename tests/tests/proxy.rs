//! The proxy that stands between a process and the broker hurts exactly what it is told to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use system_tests::proxy::Proxy;
use system_tests::{meddling, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(10);
/// Long for loopback, short for a person.
const MOMENT: Duration = Duration::from_millis(200);

/// Sends back whatever it is sent.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn connected(proxy: &Proxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(answer(&mut stream, b"hello").await, b"hello");
    stream
}

/// What comes back, which must be as long as what was sent.
async fn answer(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    wait::bounded("the echo", SOON, stream.read_exact(&mut back)).await.unwrap();
    back
}

async fn is_cut(stream: &mut TcpStream) -> bool {
    let read = wait::bounded("the end of a connection", SOON, stream.read(&mut [0])).await;
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test]
async fn bytes_cross_in_order_and_a_delay_holds_each_of_them_up() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = connected(&proxy).await;
    let long: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut from, mut to) = stream.split();
    let mut back = vec![0; long.len()];
    let (sent, received) = tokio::join!(to.write_all(&long), from.read_exact(&mut back));
    sent.unwrap();
    received.unwrap();
    assert_eq!(back, long);

    proxy.delay(MOMENT);
    let asked = Instant::now();
    answer(&mut stream, b"slow").await;
    assert!(asked.elapsed() >= 2 * MOMENT, "there and back took {:?}", asked.elapsed());
}

#[tokio::test]
async fn frozen_bytes_wait_and_arrive_once_it_goes_on() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = connected(&proxy).await;
    proxy.freeze();
    stream.write_all(b"wait").await.unwrap();
    let mut back = [0; 4];
    let early = tokio::time::timeout(MOMENT, stream.read_exact(&mut back)).await;
    assert!(early.is_err(), "something crossed a frozen proxy");
    proxy.resume();
    wait::bounded("the echo", SOON, stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"wait");
}

#[tokio::test]
async fn a_cut_ends_what_is_open_and_a_closed_proxy_takes_nothing_new() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = connected(&proxy).await;
    assert_eq!(proxy.connections(), 1);
    proxy.cut();
    assert!(is_cut(&mut stream).await);

    let mut stream = connected(&proxy).await;
    proxy.close();
    assert!(is_cut(&mut stream).await);
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(is_cut(&mut refused).await);
    proxy.reopen();
    connected(&proxy).await;
}

#[tokio::test]
async fn before_a_broker_single_messages_are_lost_repeated_or_written_down() {
    let proxy = Proxy::of_broker(echo().await, 0).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let published = b"PING\r\nPUB km.go 2\r\nhi\r\nPUB km.plan 2\r\nho\r\n";

    let (meddler, lost) = meddling::lose(1, |message| message.verb() == "go");
    proxy.meddle(meddler);
    stream.write_all(published).await.unwrap();
    expect(&mut stream, b"PING\r\nPUB km.plan 2\r\nho\r\n").await;
    assert_eq!(lost.messages().len(), 1);

    let (meddler, caught) = meddling::capture(|message| message.verb() == "plan");
    proxy.meddle(meddler);
    stream.write_all(published).await.unwrap();
    expect(&mut stream, published).await;
    assert_eq!(caught.messages()[0].body, b"ho");

    // There and back: twice each way.
    proxy.meddle(meddling::repeat(|message| message.verb() == "go").0);
    stream.write_all(b"PUB km.go 2\r\nhi\r\n").await.unwrap();
    expect(&mut stream, &b"PUB km.go 2\r\nhi\r\n".repeat(4)).await;
}

async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    wait::bounded("what crosses", SOON, stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&back), String::from_utf8_lossy(bytes));
}
