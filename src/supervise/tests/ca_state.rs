//! What all certificates of one CA share: its limits, and its silence.

use super::*;

#[tokio::test]
async fn a_ca_that_does_not_answer_is_asked_by_one_for_all() {
    let house = House::new();
    house.signer.silences.store(ORDERING, Ordering::SeqCst);
    house.signer.silent_probes.store(3, Ordering::SeqCst);
    let handle = house.start(&names(20)).await;
    let settled = async || house.settle(&handle, 20).await;
    settled().await;
    // Those that were under way met it; the others are spared.
    assert_eq!(house.orders(), ORDERING);
    let ca = house.certificate("n0.example.com").wanted.ca;
    let outage = async || house.services.store.ca_state(&ca).await.unwrap().0.outage;
    assert_eq!(outage().await.unwrap().since, START);
    for minute in 1_u64..=30 {
        house
            .clock
            .set(START + Duration::from_secs(60) * u32::try_from(minute).unwrap());
        settled().await;
        let probes = house.signer.probes.load(Ordering::SeqCst);
        assert!(
            probes as u64 <= minute,
            "{probes} probes in {minute} minutes"
        );
        if outage().await.is_none() {
            break;
        }
        assert_eq!(house.orders(), ORDERING);
    }
    assert_eq!(outage().await, None);
    // Nobody waits for another probe: one that was answered wakes the others.
    house.clock.advance(Duration::from_secs(150));
    house
        .until("all", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(house.orders(), 20 + ORDERING);
}

#[tokio::test]
async fn one_that_fails_by_itself_keeps_no_other_from_its_ca() {
    let house = House::new();
    // Its orders end with a 500, those of the others would not.
    house
        .signer
        .poisoned
        .lock()
        .unwrap()
        .insert("n0.example.com".into());
    let _handle = house.start(&names(1)).await;
    house
        .until("failed", |all| all[0].last_error.is_some())
        .await;
    let (mut supervisor, handle) = Supervisor::new(house.services.clone(), house.board.clone());
    let all = names(8);
    let certificates = all.iter().map(|name| house.certificate(name)).collect();
    supervisor.keep(certificates).await.unwrap();
    tokio::spawn(supervisor.run());
    for _ in 0..15 {
        house.clock.advance(Duration::from_secs(60));
        house.settle(&handle, 9).await;
    }
    house
        .until("all but one", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 7
        })
        .await;
}

#[tokio::test]
async fn the_ledger_refuses_before_the_ca_does_and_says_until_when() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    let force = async || pass(&house.services, &certificate, Trigger::Forced).await;
    for _ in 0..5 {
        assert!(force().await.unwrap().issued);
    }
    let text = house
        .services
        .metrics
        .render(&house.board, house.clock.now());
    let left = "limit=\"duplicate-certificates\",subject=\"n0.example.com\"} 0";
    assert!(
        text.contains("certs_ledger_tokens{") && text.contains(left),
        "{text}"
    );
    let Err(ManageError::OutOfBudget { until, .. }) = force().await else {
        panic!("a sixth duplicate in a week");
    };
    assert_eq!(house.orders(), 5);
    // What renews by itself waits; the certificate in use is as it was.
    let outcome = pass(&house.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert_eq!(outcome.generation, Generation(5));
    house.clock.set(until);
    assert!(force().await.unwrap().issued);
    assert_eq!(house.orders(), 6);
}

#[tokio::test]
async fn a_name_that_fails_is_not_validated_once_too_often() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    house
        .signer
        .refusals
        .lock()
        .unwrap()
        .insert("n0.example.com".into(), 9);
    for _ in 0..5 {
        let failed = pass(&house.services, &certificate, Trigger::Requested).await;
        assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    }
    let refused = pass(&house.services, &certificate, Trigger::Requested)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("failed validations of n0.example.com"),
        "{refused}"
    );
    assert_eq!(house.orders(), 5);
    let (state, _) = house.services.store.ca_state(LETS_ENCRYPT).await.unwrap();
    let spent = &state.spent[&crate::ca_state::Limit::CertificatesPerDomain];
    assert!(
        spent.values().all(|full_at| *full_at <= START),
        "nothing was issued: {spent:?}"
    );
}

#[tokio::test]
async fn a_ca_that_finds_every_certificate_overdue_is_asked_ever_more_rarely() {
    let house = House::new();
    *house.signer.window.lock().unwrap() = Some(Window {
        start: START - DAY,
        end: START - Duration::from_secs(1),
    });
    let _handle = house.start(&names(1)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let mut orders = Vec::new();
    for _ in 0..7 * 24 {
        orders.push(house.orders());
        house.clock.advance(Duration::from_secs(3600));
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
    // After 1 and 2 hours, then a twentieth of 90 days, and a little while each.
    assert_eq!(orders.iter().max(), Some(&4), "{orders:?}");
}

#[tokio::test]
async fn an_account_too_many_keeps_the_order_waiting_as_it_is() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    house.signer.registers.store(true, Ordering::SeqCst);
    let three_hours = START + Duration::from_secs(3 * 3600);
    let mut used_up = crate::ca_state::CaState::default();
    let accounts = crate::ca_state::Limit::NewAccounts;
    std::sync::Arc::make_mut(&mut used_up.spent)
        .insert(accounts, [(String::new(), three_hours)].into());
    let store = house.services.store.clone();
    let none = store.ca_state(LETS_ENCRYPT).await.unwrap().1;
    store
        .save_ca_state(LETS_ENCRYPT, &used_up, none)
        .await
        .unwrap();
    let (mut supervisor, handle) = Supervisor::new(house.services.clone(), house.board.clone());
    let mut certificate = house.certificate("n0.example.com");
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
        matches!(&ended, ManageError::OutOfBudget { limit, until: at, .. } if *limit == accounts && *at == until),
        "{ended}"
    );
    assert_eq!(house.orders(), 0);
    let record = store.load(&lineage).await.unwrap().unwrap().0;
    assert!(record.order.is_some() && record.failures.count == 0);
    let left = async || {
        let known = store.ca_state(LETS_ENCRYPT).await.unwrap().0;
        known.spent[&crate::ca_state::Limit::CertificatesPerDomain]["example.com"]
    };
    let spent = left().await;
    house.settle(&handle, 1).await;
    house.clock.set(until);
    house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(house.orders(), 1);
    assert_eq!(left().await, spent, "the order was paid for twice");
}

#[tokio::test]
async fn who_is_cut_off_from_a_ca_keeps_nobody_else_from_asking() {
    let house = House::new();
    let ca = house.certificate("n0.example.com").wanted.ca;
    let reach = crate::manage::ca_state::reach;
    let cut_off = house.services.clone();
    let other = Services {
        probes: Probes::default(),
        ..house.services.clone()
    };
    crate::manage::ca_state::is_silent(&cut_off, &ca, Work::Orders, "no answer").await;
    let probe_at = async || {
        let known = house.services.store.ca_state(&ca).await.unwrap().0;
        known.outage.unwrap().probe_at
    };
    house.clock.set(probe_at().await);
    // Every probe of the one fails; those of the other would not.
    house.signer.silent_probes.store(1, Ordering::SeqCst);
    assert!(
        reach(&cut_off, &ca, house.signer.as_ref(), None)
            .await
            .is_err()
    );
    house.clock.set(probe_at().await);
    let waits = reach(&cut_off, &ca, house.signer.as_ref(), None).await;
    let Err(ManageError::Down { until, .. }) = waits else {
        panic!("it does not step back");
    };
    assert!(until > probe_at().await);
    assert_eq!(house.signer.probes.load(Ordering::SeqCst), 1);
    reach(&other, &ca, house.signer.as_ref(), None)
        .await
        .unwrap();
    // With nobody beside it, it asks itself a little later.
    house.clock.set(until.max(probe_at().await));
    reach(&cut_off, &ca, house.signer.as_ref(), None)
        .await
        .unwrap();
    assert_eq!(house.signer.probes.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_probe_that_a_wrong_clock_has_dated_is_not_waited_for_by_who_steps_back() {
    let house = House::new();
    let ca = house.certificate("n0.example.com").wanted.ca;
    let reach = crate::manage::ca_state::reach;
    let known = async || house.services.store.ca_state(&ca).await.unwrap();
    crate::manage::ca_state::is_silent(&house.services, &ca, Work::Orders, "no answer").await;
    house.signer.silent_probes.store(1, Ordering::SeqCst);
    house.clock.set(known().await.0.outage.unwrap().probe_at);
    let probes = reach(&house.services, &ca, house.signer.as_ref(), None).await;
    assert!(probes.is_err());
    // One whose clock is an hour ahead has asked in vain since.
    let (mut state, revision) = known().await;
    let outage = state.outage.as_mut().unwrap();
    let next = outage.probe_at;
    outage.probe_at = next + Duration::from_secs(3600);
    let store = &house.services.store;
    store.save_ca_state(&ca, &state, revision).await.unwrap();
    let probes = || house.signer.probes.load(Ordering::SeqCst);
    let asked = probes();
    house.clock.set(next - Duration::from_secs(40));
    let waits = reach(&house.services, &ca, house.signer.as_ref(), None).await;
    assert!(
        waits.is_err() && probes() == asked,
        "it asks before its time"
    );
    house.clock.set(next);
    let waits = reach(&house.services, &ca, house.signer.as_ref(), None).await;
    let Err(ManageError::Down { until, .. }) = waits else {
        panic!("it does not step back");
    };
    assert_eq!(until, next + Duration::from_secs(20));
}

#[tokio::test]
async fn who_has_no_token_is_not_the_one_that_asks_for_all() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    let store = &house.services.store;
    let known = async || store.ca_state(LETS_ENCRYPT).await.unwrap();
    crate::manage::ca_state::is_silent(&house.services, LETS_ENCRYPT, Work::Orders, "no answer")
        .await;
    let (mut state, revision) = known().await;
    let probe_at = state.outage.as_ref().unwrap().probe_at;
    // Nothing more below example.com for a week.
    let in_a_week = START + DAY * 7;
    let domain = crate::ca_state::Limit::CertificatesPerDomain;
    let used_up = [("example.com".to_owned(), in_a_week)];
    std::sync::Arc::make_mut(&mut state.spent).insert(domain, used_up.into());
    store
        .save_ca_state(LETS_ENCRYPT, &state, revision)
        .await
        .unwrap();
    house.clock.set(probe_at);
    let certificate = |name: &str| {
        let mut certificate = house.certificate(name);
        certificate.wanted.ca = LETS_ENCRYPT.into();
        certificate
    };
    let without = certificate("n0.example.com");
    let waits = pass(&house.services, &without, Trigger::Scheduled).await;
    let Err(ManageError::Down { until, .. }) = waits else {
        panic!("{waits:?}");
    };
    let others_first = probe_at + Duration::from_secs(300);
    assert_eq!(until, others_first);
    assert_eq!(house.signer.probes.load(Ordering::SeqCst), 0);
    assert_eq!(known().await.0.outage.unwrap().probe_at, probe_at);
    let with = certificate("n1.example.org");
    let outcome = pass(&house.services, &with, Trigger::Scheduled)
        .await
        .unwrap();
    assert!(outcome.issued);
    assert_eq!(known().await.0.outage, None);
    // Where nobody else asks it finds out itself, and is told what it lacks.
    crate::manage::ca_state::is_silent(&house.services, LETS_ENCRYPT, Work::Orders, "no").await;
    let probe_at = known().await.0.outage.unwrap().probe_at;
    house.clock.set(probe_at + Duration::from_secs(300));
    let lacks = pass(&house.services, &without, Trigger::Scheduled).await;
    assert!(
        matches!(lacks, Err(ManageError::OutOfBudget { .. })),
        "{lacks:?}"
    );
}

#[tokio::test]
async fn an_order_that_is_begun_has_its_token_and_asks_for_all() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    let store = &house.services.store;
    let mut certificate = house.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    house.signer.silences.store(1, Ordering::SeqCst);
    let met = pass(&house.services, &certificate, Trigger::Scheduled).await;
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
    // Its own pause is longer than the CA's.
    house.clock.set(probe_at + Duration::from_secs(120));
    let outcome = pass(&house.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert!(outcome.issued);
    let known = store.ca_state(LETS_ENCRYPT).await.unwrap().0;
    assert_eq!(known.outage, None);
}

#[tokio::test]
async fn windows_that_are_not_to_be_had_are_asked_for_by_one_for_all() {
    let house = House::new();
    *house.signer.window.lock().unwrap() = Some(Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    });
    let handle = house.start(&names(20)).await;
    house
        .until("issued", |all| all.iter().all(|status| status.is_ready()))
        .await;
    house.settle(&handle, 20).await;
    let requests = || {
        let probes = house.signer.probes.load(Ordering::SeqCst);
        probes + house.signer.windows.load(Ordering::SeqCst)
    };
    house.signer.windowless.store(true, Ordering::SeqCst);
    house.signer.silent_probes.store(1_000, Ordering::SeqCst);
    let second = Duration::from_secs(1);
    // Each comes at its second; whoever is first finds out.
    let before = requests();
    for seconds in 0..=10 {
        house.clock.set(START + DAY + second * seconds);
        house.settle(&handle, 20).await;
    }
    let met = requests() - before;
    assert!((1..=ORDERING).contains(&met), "{met} have asked");
    for minute in 1..=180 {
        let before = requests();
        house.clock.set(START + DAY + second * (10 + 60 * minute));
        house.settle(&handle, 20).await;
        let asked = requests() - before;
        assert!(asked <= 1, "{asked} requests in minute {minute}");
    }
    let in_vain = house.signer.windows.load(Ordering::SeqCst);
    house.signer.windowless.store(false, Ordering::SeqCst);
    house.signer.silent_probes.store(0, Ordering::SeqCst);
    let back = START + DAY + second * (10 + 60 * 180);
    for minute in 1..=95 {
        house.clock.set(back + second * (60 * minute));
        house.settle(&handle, 20).await;
    }
    // Who has asked in vain waits for six hours.
    let asked = house.signer.windows.load(Ordering::SeqCst) - in_vain;
    assert!(asked >= 20 - met, "{asked} of 20, {met} in vain");
    let ca = house.certificate("n0.example.com").wanted.ca;
    let known = house.services.store.ca_state(&ca).await.unwrap().0;
    assert_eq!(known.windowless, None);
}

#[tokio::test]
async fn while_orders_find_no_ca_no_window_is_asked_for() {
    let house = House::new();
    *house.signer.window.lock().unwrap() = Some(Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    });
    let certificate = house.certificate("n0.example.com");
    pass(&house.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    let windows = || house.signer.windows.load(Ordering::SeqCst);
    assert_eq!(windows(), 1);
    house.clock.set(START + DAY);
    let ca = &certificate.wanted.ca;
    crate::manage::ca_state::is_silent(&house.services, ca, Work::Orders, "no answer").await;
    let outcome = pass(&house.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert_eq!(windows(), 1);
    let again = outcome.next.since(START + DAY);
    let hour = Duration::from_secs(3600);
    assert!(again >= hour / 2 && again <= hour * 3 / 2, "{again:?}");
    // An hour later nobody has an order, or it would have told.
    house.clock.set(START + DAY + hour * 2);
    pass(&house.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    assert_eq!(windows(), 2);
}

#[tokio::test]
async fn a_certificate_that_is_of_no_use_is_one_order_and_then_a_back_off() {
    let minute = Duration::from_secs(60);
    let (backdated, over) = ((DAY * 80, DAY * 10), (DAY * 90, Duration::ZERO));
    let short = (Duration::ZERO, minute * 5);
    for dates in [backdated, over, short] {
        let house = House::new();
        *house.signer.dates.lock().unwrap() = dates;
        let handle = house.start(&names(1)).await;
        house
            .until("refused", |all| all[0].last_error.is_some())
            .await;
        let mut orders = Vec::new();
        for seconds in [0, 53, 67, 600, 740, 6_000] {
            house.clock.set(START + Duration::from_secs(seconds));
            house.settle(&handle, 1).await;
            orders.push(house.orders());
        }
        // 1, 10 and 100 minutes, give or take a tenth.
        assert_eq!(orders, [1, 1, 2, 2, 3, 3], "{dates:?}");
        assert!(house.board.all().iter().all(|one| !one.is_ready()));
        let lineage = house.certificate("n0.example.com").wanted.lineage;
        let placeholder = Some(Generation(0));
        assert_eq!(house.services.output.live(&lineage), placeholder);
    }
}

#[tokio::test]
async fn one_order_that_fails_again_and_again_keeps_no_window_from_the_others() {
    let house = House::new();
    *house.signer.window.lock().unwrap() = Some(Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    });
    let poisoned = &house.signer.poisoned;
    poisoned.lock().unwrap().insert("n0.example.com".into());
    let handle = house.start(&names(8)).await;
    for _ in 0..20 {
        house.clock.advance(Duration::from_secs(60));
        house.settle(&handle, 8).await;
    }
    let ready = |all: &[crate::observe::Status]| all.iter().filter(|s| s.is_ready()).count();
    assert_eq!(ready(&house.board.all()), 7);
    let windows = || house.signer.windows.load(Ordering::SeqCst);
    let before = windows();
    // The signer says: again a day later.
    for _ in 0..26 * 20 {
        house.clock.advance(Duration::from_secs(180));
        house.settle(&handle, 8).await;
    }
    let asked = windows() - before;
    assert!(asked >= 7, "{asked} windows were asked for, of 7");
    assert_eq!(ready(&house.board.all()), 7);
}
