//! Copies of live files that another program removes.

use super::*;
use crate::deploy::target::DeployTarget;

#[tokio::test]
async fn removed_copy_is_written_again_without_a_reload() {
    let fixture = Fixture::new();
    let path = |name: &str| fixture.directory.path().join(name);
    let copies = [
        format!("file:{}", path("copy.pem").display()),
        format!("directory:{}", path("tree").display()),
    ];
    let copies = copies.map(|copy| copy.parse::<DeployTarget>().unwrap().target());
    let target = Arc::new(CountingTarget::default());
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.targets = copies.into_iter().collect();
    certificate.targets.push(target.clone());
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    fixture.until("issued", |all| all[0].is_ready()).await;
    let (copy, live) = (path("copy.pem"), path("tree/live/n0.example.com"));
    let published = path("out/live/n0.example.com");
    for gone in [&copy, &live, &published] {
        assert!(gone.exists());
        std::fs::remove_file(gone).unwrap();
        let mut concurrency = 0;
        while !gone.exists() {
            concurrency += 1;
            assert!(
                concurrency < 1000,
                "{} is not written again",
                gone.display()
            );
            // The check and the write run on other threads.
            fixture.clock.advance(CLOCK_READING);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(
        (target.reloads.load(Ordering::SeqCst), fixture.orders()),
        (1, 1)
    );
}
