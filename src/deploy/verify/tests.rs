//! Verification by real handshakes, and by scripted looks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

mod endpoints;

use super::*;
use crate::time::fake::SetClock;
use crate::time::{SystemClock, Timestamp, VirtualClock};

fn made() -> (Arc<ServerConfig>, Fingerprint) {
    let made = rcgen::generate_simple_self_signed(["example.com".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let fingerprint = Fingerprint::of(made.cert.der());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), fingerprint)
}

async fn serve(config: watch::Receiver<Arc<ServerConfig>>) -> Endpoint {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = serve_at(socket, config);
    address.to_string().parse().unwrap()
}

fn serve_at(socket: TcpListener, config: watch::Receiver<Arc<ServerConfig>>) -> SocketAddr {
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let acceptor = TlsAcceptor::from(config.borrow().clone());
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

/// Verifies example.com within so many seconds.
async fn verify(
    verifier: &dyn Verifier,
    place: &ServedAt,
    wanted: &Fingerprint,
    clock: &dyn Clock,
    within: u64,
) -> Result<(), VerifyError> {
    let end = clock.stopwatch() + Duration::from_secs(within);
    let names = BTreeSet::from([Identifier::parse("example.com").unwrap()]);
    let looks = Verification {
        verifier,
        wanted,
        clock,
        end,
    };
    looks.verify(place, &names).await
}

#[tokio::test]
async fn verify_waits_for_the_new_leaf_and_names_the_old_one() {
    let ((old, old_print), (new, new_print)) = (made(), made());
    let (switch, config) = watch::channel(old);
    let place = ServedAt::Named(serve(config).await);
    let error = verify(&Handshake::default(), &place, &new_print, &SystemClock, 0)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(&old_print.to_string()),
        "{error}"
    );
    let handshake = Handshake::default();
    let (verified, ()) = tokio::join!(
        verify(&handshake, &place, &new_print, &SystemClock, 30),
        async {
            tokio::task::yield_now().await;
            switch.send(new).unwrap();
        }
    );
    verified.unwrap();
}

/// Old and new workers side by side: every look sees the new pair, except those of
/// `old`.
struct Draining {
    old: fn(usize) -> bool,
    looks: AtomicUsize,
}

#[async_trait]
impl Verifier for Draining {
    async fn look(
        &self,
        _: &ServedAt,
        _: &Identifier,
        _: &Fingerprint,
    ) -> Result<Unreached, Unseen> {
        let look = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
        match (self.old)(look) {
            true => Err("the old one".into()),
            false => Ok(Unreached::new()),
        }
    }
}

/// The result, the number of looks, and the milliseconds it took.
fn with(old: fn(usize) -> bool) -> (Result<(), String>, usize, u128) {
    let begun = Timestamp::from_seconds(0);
    let clock = VirtualClock::new(begun);
    let looks = AtomicUsize::new(0);
    let verifier = Draining { old, looks };
    let place = ServedAt::Found("nginx".into(), Vec::new());
    let wanted = Fingerprint::of(b"");
    let mut verification = std::pin::pin!(verify(&verifier, &place, &wanted, &clock, 30));
    let ended = loop {
        match verification.as_mut().now_or_never() {
            Some(ended) => break ended,
            None => assert!(clock.step()),
        }
    };
    let took = clock.now().since(begun).as_millis();
    let ended = ended.map_err(|error| error.to_string());
    (ended, verifier.looks.load(Ordering::SeqCst), took)
}

#[test]
fn verify_takes_no_longer_when_the_clock_is_set_back() {
    let begun = Timestamp::from_seconds(1_800_000_000);
    for readings in [0, 1, 10] {
        let clock = SetClock::new(Arc::new(VirtualClock::new(begun)));
        clock.by_after(-3652 * 86_400, readings);
        let looks = AtomicUsize::new(0);
        let verifier = Draining {
            old: |_| true,
            looks,
        };
        let place = ServedAt::Found("nginx".into(), Vec::new());
        let wanted = Fingerprint::of(b"");
        let mut verification = std::pin::pin!(verify(&verifier, &place, &wanted, &clock, 30));
        let ended = loop {
            match verification.as_mut().now_or_never() {
                Some(ended) => break ended,
                None => assert!(clock.passes.step()),
            }
            clock.now();
            let passed = clock.passes.now().since(begun);
            assert!(passed <= Duration::from_secs(30), "after {readings}");
        };
        assert!(ended.is_err());
        let took = clock.passes.now().since(begun);
        assert_eq!(took, Duration::from_secs(30), "after {readings}");
    }
}

#[test]
fn verify_needs_every_connection_of_half_a_second() {
    const EVERY: usize = 1 + REPEATED_HANDSHAKES as usize;
    assert_eq!(with(|_| false), (Ok(()), EVERY, 500));
    // A connection that sees the old pair starts the count again.
    let (ended, looks, _) = with(|look| look == 2);
    assert_eq!((ended, looks), (Ok(()), 2 + EVERY));
    let (ended, looks, _) = with(|look| look == EVERY || look == EVERY + 1);
    assert_eq!((ended, looks), (Ok(()), 2 * EVERY + 1));
    // One of several servers behind a balancer keeps the old pair.
    let (ended, _, took) = with(|look| look.is_multiple_of(4));
    let message = ended.unwrap_err();
    assert!(message.contains("only some connections"), "{message}");
    assert!(message.contains("balancer"), "{message}");
    // The message is the same at whichever look the time is up: repeated messages are
    // recognised by their text.
    let (again, ..) = with(|look| look.is_multiple_of(4) || look > 60);
    assert_eq!(again.unwrap_err(), message);
    assert!((30_000..31_000).contains(&took), "{took}");
}

/// One port in both address families; `None` without IPv6.
async fn both_families() -> Option<[TcpListener; 2]> {
    for _ in 0..100 {
        let four = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = four.local_addr().unwrap().port();
        match TcpListener::bind(("::1", port)).await {
            Ok(six) => return Some([four, six]),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => {
                eprintln!("SKIPPED: both families: {error}");
                return None;
            }
        }
    }
    panic!("no port is free in both families");
}

#[tokio::test]
async fn verify_checks_both_address_families_of_a_port() {
    let ((old, _), (new, new_print)) = (made(), made());
    let Some([four, six]) = both_families().await else {
        return;
    };
    let (_switch, newest) = watch::channel(new.clone());
    let (switch, config) = watch::channel(old.clone());
    let elsewhere = TcpListener::bind("[::1]:0").await.unwrap();
    let (_kept, older) = watch::channel(old);
    let other_port = serve_at(elsewhere, older);
    let (four, six) = (serve_at(four, newest), serve_at(six, config));
    let name = Identifier::parse("example.com").unwrap();
    let look = async |addresses: &[SocketAddr]| {
        let addresses = addresses.iter().copied().map(ListenAddress::Tcp);
        let place = ServedAt::Found("nginx".into(), addresses.collect());
        Handshake::default().look(&place, &name, &new_print).await
    };
    for order in [[four, six, other_port], [other_port, six, four]] {
        let found = look(&order).await.unwrap_err().to_string();
        assert!(found.contains(&six.to_string()), "{found}");
        assert!(!found.contains(&other_port.to_string()), "{found}");
    }
    switch.send(new).unwrap();
    look(&[four, six, other_port]).await.unwrap();
    look(&[six]).await.unwrap();
    assert!(look(&[other_port]).await.is_err());
}

#[tokio::test]
async fn verify_reports_a_refused_connection() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: Endpoint = socket.local_addr().unwrap().to_string().parse().unwrap();
    drop(socket);
    let place = ServedAt::Named(endpoint);
    let error = verify(
        &Handshake::default(),
        &place,
        &Fingerprint::of(b""),
        &SystemClock,
        0,
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}
