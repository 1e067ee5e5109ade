//! Clients with latency while others flood the listener, on loopback.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpSocket};

use super::*;

const FLOODS: [u8; 2] = [2, 3];
/// A second, from each flooding address.
const RATE: u64 = 1000;
const ROUND_TRIP: Duration = Duration::from_millis(200);

/// A connection from 127.0.0.`source`.
async fn connect(address: SocketAddr, source: u8) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, source), 0).into())?;
    socket.connect(address).await
}

/// Opens silent connections without an end, and holds no more than 300.
async fn flood(address: SocketAddr, source: u8) {
    let mut held = VecDeque::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        for _ in 0..RATE / 100 {
            if let Ok(stream) = connect(address, source).await {
                held.push_back(stream);
            }
            if held.len() > 300 {
                held.pop_front();
            }
        }
    }
}

/// A relay that connects at once, and forwards after a round trip.
async fn relay(address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut distant) = connect(address, 9).await else {
                    return;
                };
                tokio::time::sleep(ROUND_TRIP).await;
                let _ = tokio::io::copy_bidirectional(&mut near, &mut distant).await;
            });
        }
    });
    relay
}

#[tokio::test]
async fn flood_of_silent_connections_locks_out_no_client_with_latency() {
    let (address, _responses) = serving().await;
    let relay = relay(address).await;
    let mut floods = tokio::task::JoinSet::new();
    for source in FLOODS {
        floods.spawn(flood(address, source));
    }
    tokio::time::sleep(ROUND_TRIP * 2).await;
    let path = format!("{PATH}{TOKEN}");
    let fetches = (0..25_u32).map(|number| {
        let path = &path;
        async move {
            tokio::time::sleep(ROUND_TRIP * number / 4).await;
            fetch(relay, "GET", path, "example.com", "").await
        }
    });
    let replies = futures_util::future::join_all(fetches).await;
    let answered = replies
        .iter()
        .filter(|reply| reply.starts_with("HTTP/1.1 200"));
    assert_eq!(answered.count(), 25);
}
