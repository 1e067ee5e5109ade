//! A stored outage: other requests, failed probes and a full disk do not rewind it.

use super::*;

pub(super) async fn stored_outage(fixture: &Fixture) -> Option<Outage> {
    let state = fixture.services.store.ca_state("https://ca").await;
    state.unwrap().0.outage
}

/// Notes at `seconds` after the start that the CA is unreachable.
async fn note_at(fixture: &Fixture, seconds: u64, operation: Operation<'_>, last: &str) {
    fixture.clock.set(START + Duration::from_secs(seconds));
    crate::manage::ca_state::note_outage(&fixture.services, "https://ca", operation, last).await;
}

#[tokio::test]
async fn failed_probe_rewinds_no_outage_that_was_stored_meanwhile() {
    let second = Duration::from_secs(1);
    let fixture = Fixture::new();
    note_at(&fixture, 0, Operation::Window, "no window").await;
    let begun = stored_outage(&fixture).await.unwrap();
    let now = begun.probe_at;
    let orders = Outage {
        windows_only: false,
        probes: 0,
        since: now,
        probe_at: now + second * 70,
        last: "no order".into(),
        ..begun.clone()
    };
    let later = Outage {
        windows_only: true,
        probes: 7,
        since: START - second,
        probe_at: now + second * 300,
        ..orders.clone()
    };
    let far_ahead = Outage {
        probe_at: now + DAY,
        ..later.clone()
    };
    for meanwhile in [orders, later, far_ahead] {
        let store = &fixture.services.store;
        set_outage(store.as_ref(), "https://ca", Some(begun.clone())).await;
        fixture.clock.set(now);
        fixture.services.probes.restart();
        let signer = &fixture.signer;
        signer.failed_probes.fetch_add(1, Ordering::SeqCst);
        *signer.stored_meanwhile.lock().unwrap() = Some((store.clone(), meanwhile.clone()));
        let reach = crate::manage::ca_state::reach;
        let failed = reach(
            &fixture.services,
            "https://ca",
            signer.as_ref(),
            Operation::Window,
        );
        assert!(failed.await.is_err());
        let stored = stored_outage(&fixture).await.unwrap();
        if meanwhile.probe_at < now + DAY {
            assert_eq!(stored, meanwhile);
            continue;
        }
        // No machine obeys a probe that a wrong clock has dated.
        assert_eq!((stored.since, stored.probes), (meanwhile.since, 1));
        assert!(stored.probe_at < now + second * 300);
    }
}

#[tokio::test]
async fn issued_order_does_not_restart_the_outage_of_windows() {
    let fixture = Fixture::new();
    note_at(&fixture, 0, Operation::Window, "no window").await;
    let signer = &fixture.signer;
    signer.failed_probes.store(1_000, Ordering::SeqCst);
    let issue = async |name: &str| {
        let certificate = fixture.certificate(name);
        let outcome = pass(&fixture.services, &certificate, Trigger::Scheduled).await;
        assert!(outcome.unwrap().issued);
        [&signer.probes, &signer.windows].map(|requests| requests.load(Ordering::SeqCst))
    };
    fixture.clock.set(START + Duration::from_secs(10));
    // After the first order windows are probed at once, and later orders wait for that.
    for (name, probes) in [("n0.example.com", 1), ("n1.example.com", 1)] {
        assert_eq!(issue(name).await, [probes, 0]);
        let outage = stored_outage(&fixture).await.unwrap();
        assert_eq!((outage.windows_only, outage.since), (true, START));
    }
    signer.failed_probes.store(0, Ordering::SeqCst);
    fixture.clock.set(START + Duration::from_secs(600));
    assert_eq!(issue("n2.example.com").await, [2, 1]);
    assert_eq!(stored_outage(&fixture).await, None);
}

#[tokio::test]
async fn unsaved_outage_keeps_its_start_and_its_kind() {
    let order = || Operation::Order(None);
    let break_store = |fixture: &Fixture| {
        let directory = fixture.directory.path().join("data/authorities");
        let aside = directory.with_extension("aside");
        std::fs::rename(&directory, &aside).unwrap();
        std::fs::write(&directory, "").unwrap();
        move || {
            std::fs::remove_file(&directory).unwrap();
            std::fs::rename(&aside, &directory).unwrap();
        }
    };
    // An outage of orders replaces one of windows; the first of a kind stays.
    let fixture = Fixture::new();
    let repair = break_store(&fixture);
    let noted = [Operation::Window, order(), Operation::Window, order()];
    for (seconds, operation) in (1..).zip(noted) {
        note_at(&fixture, seconds, operation, &format!("after {seconds} s")).await;
    }
    repair();
    let reach = async |fixture: &Fixture, operation| {
        let signer = fixture.signer.as_ref();
        let reach = crate::manage::ca_state::reach;
        reach(&fixture.services, "https://ca", signer, operation).await
    };
    assert!(reach(&fixture, order()).await.is_err());
    let stored = stored_outage(&fixture).await.unwrap();
    assert_eq!((stored.windows_only, &*stored.last), (false, "after 2 s"));
    assert_eq!(stored.since, START + Duration::from_secs(2));

    // A stored outage of windows ends no unsaved one of orders.
    let fixture = Fixture::new();
    let repair = break_store(&fixture);
    note_at(&fixture, 1, order(), "no order").await;
    repair();
    note_at(&fixture, 2, Operation::Window, "no window").await;
    assert!(reach(&fixture, Operation::Window).await.is_err());
    let stored = stored_outage(&fixture).await.unwrap();
    assert_eq!((stored.windows_only, &*stored.last), (false, "no order"));

    // An issued order ends no unsaved outage of windows.
    let fixture = Fixture::new();
    let repair = break_store(&fixture);
    note_at(&fixture, 1, Operation::Window, "no window").await;
    repair();
    let certificate = fixture.certificate("n0.example.com");
    let outcome = pass(&fixture.services, &certificate, Trigger::Requested).await;
    assert!(outcome.unwrap().issued);
    assert!(stored_outage(&fixture).await.unwrap().windows_only);
    assert_eq!(fixture.signer.windows.load(Ordering::SeqCst), 0);
}
