//! The state that all certificates of one CA share: its rate limits and its outage.

use super::outage::stored_outage;
use super::*;

/// An order that is pending at the CA.
fn pending() -> Operation<'static> {
    Operation::Order(None)
}

#[tokio::test]
async fn outage_is_probed_by_one_certificate_for_all() {
    let fixture = Fixture::new();
    fixture.signer.outages.store(ORDERING, Ordering::SeqCst);
    fixture.signer.failed_probes.store(3, Ordering::SeqCst);
    let handle = fixture.start(&names(20)).await;
    let settled = async || fixture.settle(&handle, 20).await;
    settled().await;
    // Only the orders in progress met the outage.
    assert_eq!(fixture.orders(), ORDERING);
    let ca = fixture.certificate("n0.example.com").wanted.ca.clone();
    let outage = async || fixture.services.store.ca_state(&ca).await.unwrap().0.outage;
    assert_eq!(outage().await.unwrap().since, START);
    for minute in 1_u64..=30 {
        fixture
            .clock
            .set(START + Duration::from_secs(60) * u32::try_from(minute).unwrap());
        settled().await;
        let probes = fixture.signer.probes.load(Ordering::SeqCst);
        assert!(
            probes as u64 <= minute,
            "{probes} probes in {minute} minutes"
        );
        if outage().await.is_none() {
            break;
        }
        assert_eq!(fixture.orders(), ORDERING);
    }
    assert_eq!(outage().await, None);
    // The end of the outage wakes the others without a probe of their own.
    fixture.clock.advance(Duration::from_secs(150));
    fixture
        .until("all", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(fixture.orders(), 20 + ORDERING);
}

#[tokio::test]
async fn failing_certificate_blocks_no_other_from_its_ca() {
    let fixture = Fixture::new();
    // Only the orders of this certificate end with status 500.
    fixture
        .signer
        .failing
        .lock()
        .unwrap()
        .insert("n0.example.com".into());
    let _handle = fixture.start(&names(1)).await;
    fixture
        .until("failed", |all| all[0].last_error.is_some())
        .await;
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    let all = names(8);
    let certificates = all.iter().map(|name| fixture.certificate(name)).collect();
    supervisor.keep(certificates).await.unwrap();
    tokio::spawn(supervisor.run());
    for _ in 0..15 {
        fixture.clock.advance(Duration::from_secs(60));
        fixture.settle(&handle, 9).await;
    }
    fixture
        .until("all but one", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 7
        })
        .await;
}

#[tokio::test]
async fn limiter_refuses_before_the_ca_and_reports_until_when() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    let force = async || pass(&fixture.services, &certificate, Trigger::Forced).await;
    for _ in 0..5 {
        assert!(force().await.unwrap().issued);
    }
    let text = fixture
        .services
        .metrics
        .render(&fixture.board, fixture.clock.now());
    let left = "limit=\"duplicate-certificates\",subject=\"n0.example.com\"} 0";
    assert!(
        text.contains("certs_ledger_tokens{") && text.contains(left),
        "{text}"
    );
    let Err(ManageError::LimitExhausted { until, .. }) = force().await else {
        panic!("a sixth duplicate in a week");
    };
    assert_eq!(fixture.orders(), 5);
    // The scheduled renewal waits; the certificate in use stays.
    let outcome = pass(&fixture.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert_eq!(outcome.generation, Generation(5));
    fixture.clock.set(until);
    assert!(force().await.unwrap().issued);
    assert_eq!(fixture.orders(), 6);
}

#[tokio::test]
async fn limiter_refuses_another_validation_of_failing_name() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    fixture
        .signer
        .refusals
        .lock()
        .unwrap()
        .insert("n0.example.com".into(), 9);
    for _ in 0..5 {
        let failed = pass(&fixture.services, &certificate, Trigger::Requested).await;
        assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    }
    let refused = pass(&fixture.services, &certificate, Trigger::Requested)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("failed validations of n0.example.com"),
        "{refused}"
    );
    assert_eq!(fixture.orders(), 5);
    let (state, _) = fixture.services.store.ca_state(LETS_ENCRYPT).await.unwrap();
    let spent = &state.spent[&crate::ca_state::Limit::CertificatesPerDomain];
    assert!(
        spent.values().all(|full_at| *full_at <= START),
        "nothing was issued: {spent:?}"
    );
}

#[tokio::test]
async fn window_that_is_always_past_slows_orders_down() {
    let fixture = Fixture::new();
    *fixture.signer.window.lock().unwrap() = Some(Window {
        start: START - DAY,
        end: START - Duration::from_secs(1),
    });
    let _handle = fixture.start(&names(1)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    let mut orders = Vec::new();
    for _ in 0..7 * 24 {
        orders.push(fixture.orders());
        fixture.clock.advance(Duration::from_secs(3600));
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
    // After 1 and 2 hours, then a twentieth of 90 days, each plus a short delay.
    assert_eq!(orders.iter().max(), Some(&4), "{orders:?}");
}

#[tokio::test]
async fn exhausted_account_limit_keeps_the_order_waiting() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    fixture.signer.registers.store(true, Ordering::SeqCst);
    let three_hours = START + Duration::from_secs(3 * 3600);
    let mut used_up = crate::ca_state::CaState::default();
    let accounts = crate::ca_state::Limit::NewAccounts;
    std::sync::Arc::make_mut(&mut used_up.spent)
        .insert(accounts, [(String::new(), three_hours)].into());
    let store = fixture.services.store.clone();
    let none = store.ca_state(LETS_ENCRYPT).await.unwrap().1;
    store
        .save_ca_state(LETS_ENCRYPT, &used_up, none)
        .await
        .unwrap();
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    let lineage = certificate.wanted.lineage.clone();
    supervisor.keep(vec![certificate.clone()]).await.unwrap();
    tokio::spawn(supervisor.run());
    let ended = handle
        .work(certificate, Trigger::Requested)
        .await
        .unwrap_err();
    // Ten in three hours.
    let until = START + Duration::from_secs(1080);
    assert!(
        matches!(&ended, ManageError::LimitExhausted { limit, until: at, .. } if *limit == accounts && *at == until),
        "{ended}"
    );
    assert_eq!(fixture.orders(), 0);
    let record = store.load(&lineage).await.unwrap().unwrap().0;
    assert!(record.order.is_some() && record.failures.count == 0);
    let left = async || {
        let known = store.ca_state(LETS_ENCRYPT).await.unwrap().0;
        known.spent[&crate::ca_state::Limit::CertificatesPerDomain]["example.com"]
    };
    let spent = left().await;
    fixture.settle(&handle, 1).await;
    fixture.clock.set(until);
    fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(fixture.orders(), 1);
    assert_eq!(left().await, spent, "the order was paid for twice");
}

#[tokio::test]
async fn machine_cut_off_from_ca_blocks_no_probe_of_others() {
    let fixture = Fixture::new();
    let ca = fixture.certificate("n0.example.com").wanted.ca.clone();
    let reach = crate::manage::ca_state::reach;
    let cut_off = fixture.services.clone();
    let other = Services {
        probes: Probes::default(),
        same_names: SameNames::default(),
        ..fixture.services.clone()
    };
    crate::manage::ca_state::note_outage(&cut_off, &ca, Operation::Order(None), "no answer").await;
    let probe_at = async || {
        let known = fixture.services.store.ca_state(&ca).await.unwrap().0;
        known.outage.unwrap().probe_at
    };
    fixture.clock.set(probe_at().await);
    // Only the probe of the first machine fails.
    fixture.signer.failed_probes.store(1, Ordering::SeqCst);
    assert!(
        reach(&cut_off, &ca, fixture.signer.as_ref(), pending())
            .await
            .is_err()
    );
    fixture.clock.set(probe_at().await);
    let waits = reach(&cut_off, &ca, fixture.signer.as_ref(), pending()).await;
    let Err(ManageError::Unreachable { until, .. }) = waits else {
        panic!("it does not step back");
    };
    assert!(until > probe_at().await);
    assert_eq!(fixture.signer.probes.load(Ordering::SeqCst), 1);
    reach(&other, &ca, fixture.signer.as_ref(), pending())
        .await
        .unwrap();
    // Without another machine it probes itself a little later.
    fixture.clock.set(until.max(probe_at().await));
    reach(&cut_off, &ca, fixture.signer.as_ref(), pending())
        .await
        .unwrap();
    assert_eq!(fixture.signer.probes.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn step_back_ignores_probe_dated_by_wrong_clock() {
    let fixture = Fixture::new();
    let ca = fixture.certificate("n0.example.com").wanted.ca.clone();
    let reach = crate::manage::ca_state::reach;
    let known = async || fixture.services.store.ca_state(&ca).await.unwrap();
    crate::manage::ca_state::note_outage(
        &fixture.services,
        &ca,
        Operation::Order(None),
        "no answer",
    )
    .await;
    fixture.signer.failed_probes.store(1, Ordering::SeqCst);
    fixture.clock.set(known().await.0.outage.unwrap().probe_at);
    let probes = reach(&fixture.services, &ca, fixture.signer.as_ref(), pending()).await;
    assert!(probes.is_err());
    // A machine whose clock is an hour ahead has had a failed probe since.
    let (mut state, revision) = known().await;
    let outage = state.outage.as_mut().unwrap();
    let next = outage.probe_at;
    outage.probe_at = next + Duration::from_secs(3600);
    let store = &fixture.services.store;
    store.save_ca_state(&ca, &state, revision).await.unwrap();
    let probes = || fixture.signer.probes.load(Ordering::SeqCst);
    let asked = probes();
    fixture.clock.set(next - Duration::from_secs(40));
    let waits = reach(&fixture.services, &ca, fixture.signer.as_ref(), pending()).await;
    assert!(waits.is_err() && probes() == asked, "it probes too early");
    fixture.clock.set(next);
    let waits = reach(&fixture.services, &ca, fixture.signer.as_ref(), pending()).await;
    let Err(ManageError::Unreachable { until, .. }) = waits else {
        panic!("it does not step back");
    };
    assert_eq!(until, next + Duration::from_secs(20));
}

#[tokio::test]
async fn certificate_without_token_does_not_probe_first() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    let store = &fixture.services.store;
    let known = async || store.ca_state(LETS_ENCRYPT).await.unwrap();
    crate::manage::ca_state::note_outage(
        &fixture.services,
        LETS_ENCRYPT,
        Operation::Order(None),
        "no answer",
    )
    .await;
    let (mut state, revision) = known().await;
    let probe_at = state.outage.as_ref().unwrap().probe_at;
    // No token for example.com for a week.
    let in_a_week = START + DAY * 7;
    let domain = crate::ca_state::Limit::CertificatesPerDomain;
    let used_up = [("example.com".to_owned(), in_a_week)];
    std::sync::Arc::make_mut(&mut state.spent).insert(domain, used_up.into());
    store
        .save_ca_state(LETS_ENCRYPT, &state, revision)
        .await
        .unwrap();
    fixture.clock.set(probe_at);
    let certificate = |name: &str| {
        let mut certificate = fixture.certificate(name);
        certificate.wanted.ca = LETS_ENCRYPT.into();
        certificate
    };
    let without = certificate("n0.example.com");
    let waits = pass(&fixture.services, &without, Trigger::Scheduled).await;
    let Err(ManageError::Unreachable { until, .. }) = waits else {
        panic!("{waits:?}");
    };
    let others_first = probe_at + Duration::from_secs(300);
    assert_eq!(until, others_first);
    assert_eq!(fixture.signer.probes.load(Ordering::SeqCst), 0);
    assert_eq!(known().await.0.outage.unwrap().probe_at, probe_at);
    let with = certificate("n1.example.org");
    let outcome = pass(&fixture.services, &with, Trigger::Scheduled)
        .await
        .unwrap();
    assert!(outcome.issued);
    assert_eq!(known().await.0.outage, None);
    // After the others' time it probes itself, and then meets the rate limit.
    crate::manage::ca_state::note_outage(
        &fixture.services,
        LETS_ENCRYPT,
        Operation::Order(None),
        "no",
    )
    .await;
    let probe_at = known().await.0.outage.unwrap().probe_at;
    fixture.clock.set(probe_at + Duration::from_secs(300));
    let lacks = pass(&fixture.services, &without, Trigger::Scheduled).await;
    assert!(
        matches!(lacks, Err(ManageError::LimitExhausted { .. })),
        "{lacks:?}"
    );
}

#[tokio::test]
async fn certificate_with_pending_order_may_probe() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    let store = &fixture.services.store;
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    fixture.signer.outages.store(1, Ordering::SeqCst);
    let met = pass(&fixture.services, &certificate, Trigger::Scheduled).await;
    assert!(matches!(met, Err(ManageError::Acme(_))), "{met:?}");
    let (mut state, revision) = store.ca_state(LETS_ENCRYPT).await.unwrap();
    let domain = crate::ca_state::Limit::CertificatesPerDomain;
    let used_up = [("example.com".to_owned(), START + DAY * 7)];
    std::sync::Arc::make_mut(&mut state.spent).insert(domain, used_up.into());
    let probe_at = state.outage.as_ref().unwrap().probe_at;
    store
        .save_ca_state(LETS_ENCRYPT, &state, revision)
        .await
        .unwrap();
    // The order's own backoff is longer than that of the outage.
    fixture.clock.set(probe_at + Duration::from_secs(120));
    let outcome = pass(&fixture.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert!(outcome.issued);
    let known = store.ca_state(LETS_ENCRYPT).await.unwrap().0;
    assert_eq!(known.outage, None);
}

#[tokio::test]
async fn unavailable_windows_are_requested_by_one_certificate_for_all() {
    let fixture = Fixture::new();
    *fixture.signer.window.lock().unwrap() = Some(Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    });
    let handle = fixture.start(&names(20)).await;
    fixture
        .until("issued", |all| all.iter().all(|status| status.is_ready()))
        .await;
    fixture.settle(&handle, 20).await;
    let requests = || {
        let probes = fixture.signer.probes.load(Ordering::SeqCst);
        probes + fixture.signer.windows.load(Ordering::SeqCst)
    };
    fixture.signer.windows_down.store(true, Ordering::SeqCst);
    fixture.signer.failed_probes.store(1_000, Ordering::SeqCst);
    let second = Duration::from_secs(1);
    // Each request has its own second; the first one meets the outage.
    let before = requests();
    for seconds in 0..=10 {
        fixture.clock.set(START + DAY + second * seconds);
        fixture.settle(&handle, 20).await;
    }
    let met = requests() - before;
    assert!((1..=ORDERING).contains(&met), "{met} requests");
    for minute in 1..=180 {
        let before = requests();
        fixture.clock.set(START + DAY + second * (10 + 60 * minute));
        fixture.settle(&handle, 20).await;
        let asked = requests() - before;
        assert!(asked <= 1, "{asked} requests in minute {minute}");
    }
    let failed = fixture.signer.windows.load(Ordering::SeqCst);
    fixture.signer.windows_down.store(false, Ordering::SeqCst);
    fixture.signer.failed_probes.store(0, Ordering::SeqCst);
    let back = START + DAY + second * (10 + 60 * 180);
    for minute in 1..=95 {
        fixture.clock.set(back + second * (60 * minute));
        fixture.settle(&handle, 20).await;
    }
    // A certificate whose request failed waits for six hours.
    let asked = fixture.signer.windows.load(Ordering::SeqCst) - failed;
    assert!(asked >= 20 - met, "{asked} of 20, {met} failed");
    let ca = fixture.certificate("n0.example.com").wanted.ca.clone();
    let known = fixture.services.store.ca_state(&ca).await.unwrap().0;
    assert_eq!(known.outage, None);
}

#[tokio::test]
async fn no_window_is_requested_during_an_outage_of_orders() {
    let fixture = Fixture::new();
    *fixture.signer.window.lock().unwrap() = Some(Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    });
    let certificate = fixture.certificate("n0.example.com");
    pass(&fixture.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    let windows = || fixture.signer.windows.load(Ordering::SeqCst);
    assert_eq!(windows(), 1);
    fixture.clock.set(START + DAY);
    let ca = &certificate.wanted.ca;
    crate::manage::ca_state::note_outage(
        &fixture.services,
        ca,
        Operation::Order(None),
        "no answer",
    )
    .await;
    let outcome = pass(&fixture.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert_eq!(windows(), 1);
    let again = outcome.next.since(START + DAY);
    let hour = Duration::from_secs(3600);
    assert!(again >= hour / 2 && again <= hour * 3 / 2, "{again:?}");
    // For an hour the probe is left to an order.
    let Some(outage) = stored_outage(&fixture).await else {
        panic!("the outage has ended");
    };
    fixture
        .clock
        .set(outage.probe_at + hour - Duration::from_secs(1));
    let signer = fixture.signer.as_ref();
    let waits = crate::manage::ca_state::reach(&fixture.services, ca, signer, Operation::Window);
    let Err(ManageError::Unreachable { until, .. }) = waits.await else {
        panic!("a window request probes before an order");
    };
    assert_eq!(until, outage.probe_at + hour);
    assert_eq!(stored_outage(&fixture).await, Some(outage));
    fixture.clock.set(START + DAY + hour * 2);
    pass(&fixture.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert_eq!(windows(), 2);
}

#[tokio::test]
async fn invalid_certificate_is_one_order_and_then_a_backoff() {
    let minute = Duration::from_secs(60);
    let (backdated, over) = ((DAY * 80, DAY * 10), (DAY * 90, Duration::ZERO));
    let short = (Duration::ZERO, minute * 5);
    for dates in [backdated, over, short] {
        let fixture = Fixture::new();
        *fixture.signer.dates.lock().unwrap() = dates;
        let handle = fixture.start(&names(1)).await;
        fixture
            .until("refused", |all| all[0].last_error.is_some())
            .await;
        let mut orders = Vec::new();
        for seconds in [0, 53, 67, 600, 740, 6_000] {
            fixture.clock.set(START + Duration::from_secs(seconds));
            fixture.settle(&handle, 1).await;
            orders.push(fixture.orders());
        }
        // 1, 10 and 100 minutes, give or take a tenth.
        assert_eq!(orders, [1, 1, 2, 2, 3, 3], "{dates:?}");
        assert!(fixture.board.all().iter().all(|one| !one.is_ready()));
        let lineage = fixture.certificate("n0.example.com").wanted.lineage;
        let placeholder = Some(Generation(0));
        assert_eq!(fixture.services.output.live(&lineage).unwrap(), placeholder);
    }
}

#[tokio::test]
async fn repeatedly_failing_order_blocks_no_window_of_others() {
    let fixture = Fixture::new();
    *fixture.signer.window.lock().unwrap() = Some(Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    });
    let failing = &fixture.signer.failing;
    failing.lock().unwrap().insert("n0.example.com".into());
    let handle = fixture.start(&names(8)).await;
    for _ in 0..20 {
        fixture.clock.advance(Duration::from_secs(60));
        fixture.settle(&handle, 8).await;
    }
    let ready = |all: &[crate::observe::Status]| all.iter().filter(|s| s.is_ready()).count();
    assert_eq!(ready(&fixture.board.all()), 7);
    let windows = || fixture.signer.windows.load(Ordering::SeqCst);
    let before = windows();
    // The signer asks for the next request a day later.
    for _ in 0..26 * 20 {
        fixture.clock.advance(Duration::from_secs(180));
        fixture.settle(&handle, 8).await;
    }
    let asked = windows() - before;
    assert!(asked >= 7, "{asked} window requests, for 7 certificates");
    assert_eq!(ready(&fixture.board.all()), 7);
}
