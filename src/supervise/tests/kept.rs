//! What is kept against commands, lost volumes, damage, and configurations that
//! come at any moment.

use super::*;

#[tokio::test]
async fn one_that_is_kept_is_not_made_into_another() {
    let house = House::new();
    let handle = house.start(&names(1)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let mut fewer = house.certificate("n0.example.com");
    fewer.wanted.identifiers = [Identifier::parse("www.example.com").unwrap()].into();
    let mut elsewhere = house.certificate("n0.example.com");
    elsewhere.wanted.ca = "https://other".into();
    for other in [fewer, elsewhere] {
        let refused = handle.work(other, Trigger::Forced).await.unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("n0.example.com from https://ca"),
            "{refused}"
        );
    }
    assert_eq!(house.orders(), 1);
}

#[tokio::test]
async fn a_damaged_record_holds_up_no_other_and_heals() {
    let house = House::new();
    let names = names(2);
    let path = house.directory.path().join("data/records");
    std::fs::create_dir_all(path.join(&names[0])).unwrap();
    let record = path.join(&names[0]).join("record.json");
    std::fs::write(&record, "{").unwrap();
    let _handle = house.start(&names).await;
    house
        .until("the other one", |all| all.iter().any(|s| s.is_ready()))
        .await;
    std::fs::remove_file(&record).unwrap();
    house.clock.advance(Duration::from_secs(60));
    house
        .until("both", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 2
        })
        .await;
}

#[tokio::test]
async fn a_new_volume_gets_the_stored_pair_and_its_server_is_told_again() {
    let house = House::new();
    let told = Arc::new(Told::default());
    let mut certificate = house.certificate("n0.example.com");
    certificate.targets = vec![told.clone()];
    let lineage = certificate.wanted.lineage.clone();
    let (mut supervisor, handle) = Supervisor::new(house.services.clone(), house.board.clone());
    supervisor.keep(vec![certificate.clone()]).await.unwrap();
    assert_eq!(house.services.output.live(&lineage), Some(Generation(0)));
    tokio::spawn(supervisor.run());
    house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    handle.stop().await;

    std::fs::remove_dir_all(house.directory.path().join("out")).unwrap();
    let (mut supervisor, _handle) = Supervisor::new(house.services.clone(), house.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    assert_eq!(house.services.output.live(&lineage), Some(Generation(1)));
    // Somebody else's hand: the server may have read what is there now.
    let stored = house.services.store.bundle(&lineage, Generation(1)).await;
    let (key, chain) = stored.unwrap().unwrap();
    let names = [Identifier::parse("n0.example.com").unwrap()].into();
    let pair = Bundle::new(key, &chain, &names, START, Freshness::Any).unwrap();
    let output = &house.services.output;
    output.publish(&lineage, Generation(0), &pair).unwrap();
    tokio::spawn(supervisor.run());
    house
        .until("handed over", |_| told.0.load(Ordering::SeqCst) == 2)
        .await;
    assert_eq!(house.services.output.live(&lineage), Some(Generation(1)));
    assert_eq!(house.orders(), 1);
}

#[tokio::test]
async fn what_a_proof_no_longer_sees_counts_as_not_served() {
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    pass(&house.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody: crate::deploy::endpoint::Endpoint =
        socket.local_addr().unwrap().to_string().parse().unwrap();
    drop(socket);
    let lineage = certificate.wanted.lineage.clone();
    let load = async || house.services.store.load(&lineage).await.unwrap().unwrap();
    let (mut record, revision) = load().await;
    record.served.insert(
        nobody.to_string(),
        crate::record::Served {
            generation: Generation(1),
            at: START,
            not_after: None,
        },
    );
    record.deployed.insert("files".into(), Generation(1));
    record.deployed.insert("told".into(), Generation(1));
    house
        .services
        .store
        .save(&record, revision, None)
        .await
        .unwrap();
    certificate.endpoints = vec![nobody.clone()];
    let told = Arc::new(Told::default());
    certificate.targets = vec![told.clone()];
    // The files were replaced meanwhile.
    std::fs::write(
        house.services.output.live_path(&lineage).join("cert.pem"),
        "",
    )
    .unwrap();
    let work = {
        let (services, certificate) = (house.services.clone(), certificate.clone());
        tokio::spawn(async move { pass(&services, &certificate, Trigger::Scheduled).await })
    };
    while !work.is_finished() {
        house.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert!(matches!(work.await.unwrap(), Err(ManageError::Verify(_))));
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    let (record, _) = load().await;
    assert_eq!(record.served[&nobody.to_string()].generation, Generation(0));
}

#[tokio::test]
async fn a_configuration_that_comes_during_a_pass_is_not_forgotten() {
    let house = House::new();
    let handle = house.start(&names(1)).await;
    house.until("begun", |_| house.orders() == 1).await;
    let mut more = house.certificate("n0.example.com");
    let www = Identifier::parse("www.example.com").unwrap();
    more.wanted.identifiers.insert(www);
    handle.replace(vec![more]).await;
    house
        .until("both names", |all| {
            all[0].is_ready() && all[0].identifiers.len() == 2
        })
        .await;
    assert_eq!(house.orders(), 2);
}

#[tokio::test]
async fn a_command_for_one_that_is_kept_takes_nothing_from_it() {
    let house = House::new();
    let told = Arc::new(Told::default());
    let mut kept = house.certificate("n0.example.com");
    kept.targets = vec![told.clone()];
    let (mut supervisor, handle) = Supervisor::new(house.services.clone(), house.board.clone());
    supervisor.keep(vec![kept]).await.unwrap();
    tokio::spawn(supervisor.run());
    house.until("issued", |all| all[0].is_ready()).await;
    let lineage = Lineage::parse("n0.example.com").unwrap();
    assert!(handle.keeps(&lineage).await);
    // From a shell that knows nothing of the server to be told.
    let bare = house.certificate("n0.example.com");
    handle.work(bare.clone(), Trigger::Forced).await.unwrap();
    assert_eq!(told.0.load(Ordering::SeqCst), 2);
    let mut other_key = bare;
    other_key.wanted.key = KeyType::Rsa4096;
    let refused = handle.work(other_key, Trigger::Forced).await.unwrap_err();
    assert!(refused.to_string().contains("ecdsa-p256"), "{refused}");
}

#[tokio::test]
async fn what_another_ca_asked_to_wait_for_is_not_waited_for() {
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    let wanted = &certificate.wanted;
    let (lineage, names) = (wanted.lineage.clone(), wanted.identifiers.clone());
    let mut record = Record::new(lineage, names, "https://ca".into());
    record.failures.retry_at = Some(START + DAY * 7);
    record.failures.asked_to_wait = true;
    let saved = house.services.store.save(&record, Default::default(), None);
    saved.await.unwrap();
    let waits = pass(&house.services, &certificate, Trigger::Requested).await;
    assert!(matches!(waits, Err(ManageError::BackingOff { .. })));
    certificate.wanted.ca = "https://other".into();
    assert!(
        pass(&house.services, &certificate, Trigger::Scheduled)
            .await
            .unwrap()
            .issued
    );
}

#[tokio::test]
async fn what_is_not_renewed_is_an_alarm_once_and_a_worse_one_later() {
    let house = House::new();
    pass(
        &house.services,
        &house.certificate("n0.example.com"),
        Trigger::Scheduled,
    )
    .await
    .unwrap();
    let lineage = Lineage::parse("n0.example.com").unwrap();
    let (mut record, _) = house.services.store.load(&lineage).await.unwrap().unwrap();
    record.failures.last = Some("the CA said no".into());
    let shown = |days: u32| status(&record, START + DAY * days, house.services.random.as_ref());
    let levels = [1, 60, 70, 80].map(|days| alarm_level(&shown(days)));
    assert_eq!(levels, [0, 0, 1, 2]);
    let told = alarm(&shown(80), 2, shown(80).last_error);
    assert!(told.starts_with("critical: it ends at 20"), "{told}");
    assert!(told.contains("the CA said no; hint: "), "{told}");

    let (mut supervisor, _handle) = Supervisor::new(house.services.clone(), house.board.clone());
    let kept = vec![house.certificate("n0.example.com")];
    supervisor.keep(kept).await.unwrap();
    house.clock.set(START + DAY * 80);
    let told = async |supervisor: &mut Supervisor| {
        let finished = Finished {
            lineage: lineage.clone(),
            ended: Err(ManageError::Halted("again".into())),
            record: Some(record.clone()),
            at: START + DAY * 80,
            reply: None,
        };
        let board = &supervisor.board;
        report(
            &supervisor.services,
            board,
            &mut supervisor.agenda,
            finished,
        );
        supervisor.agenda.get(&lineage).unwrap().told
    };
    assert_eq!(told(&mut supervisor).await, 2);
    assert!(house.board.all()[0].critical);
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_nobody_wait() {
    let house = House::new();
    house.clock.set(START + DAY * 180);
    let refusals = &house.signer.refusals;
    refusals.lock().unwrap().insert("n0.example.com".into(), 1);
    let handle = house.start(&names(1)).await;
    let failed = |all: &[crate::observe::Status]| all[0].last_error.is_some();
    house.until("refused", failed).await;
    // The pause ends in half a year by the clock that is right.
    house.clock.set(START);
    assert!(handle.ping().await);
    house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(house.orders(), 2);
}

#[tokio::test]
async fn a_server_that_is_down_keeps_nothing_from_being_renewed_nor_a_ca_from_being_handed_over() {
    let house = House::new();
    let told = Arc::new(Told::default());
    told.1.store(true, Ordering::SeqCst);
    let mut certificate = house.certificate("n0.example.com");
    certificate.targets = vec![told.clone()];
    let due = async || pass(&house.services, &certificate, Trigger::Scheduled).await;
    assert!(matches!(due().await, Err(ManageError::Deploy(_))));
    assert!(matches!(
        due().await,
        Err(ManageError::NotHandedOver { .. })
    ));
    assert_eq!(house.orders(), 1);
    // Renewed when it is due, in the very pass that fails to hand over.
    house.clock.set(START + DAY * 80);
    assert!(matches!(due().await, Err(ManageError::Deploy(_))));
    assert_eq!(house.orders(), 2);
    // Due again, its CA is down and its server is back: it is handed over.
    house.clock.set(START + DAY * 160);
    house.signer.silences.store(1, Ordering::SeqCst);
    assert!(due().await.is_err());
    house.clock.advance(Duration::from_secs(30));
    told.1.store(false, Ordering::SeqCst);
    let before = told.0.load(Ordering::SeqCst);
    assert!(due().await.is_err());
    assert_eq!(told.0.load(Ordering::SeqCst), before + 1);
    let lineage = &certificate.wanted.lineage;
    assert_eq!(house.services.output.live(lineage), Some(Generation(2)));
}

#[tokio::test]
async fn an_order_that_is_dropped_is_given_back_once() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    for _ in 0..3 {
        pass(&house.services, &certificate, Trigger::Forced)
            .await
            .unwrap();
    }
    house.signer.silences.store(1, Ordering::SeqCst);
    assert!(
        pass(&house.services, &certificate, Trigger::Forced)
            .await
            .is_err()
    );
    let full_at = async || {
        let (state, _) = house.services.store.ca_state(LETS_ENCRYPT).await.unwrap();
        let duplicates = &state.spent[&crate::ca_state::Limit::DuplicateCertificates];
        *duplicates.values().next().unwrap()
    };
    let spent = full_at().await;
    house.clock.set(START + DAY * 4);
    for _ in 0..3 {
        pass(&house.services, &certificate, Trigger::Scheduled)
            .await
            .unwrap();
    }
    assert_eq!(full_at().await, spent - DAY * 7 / 5);
    assert_eq!(house.orders(), 4);
}

#[tokio::test]
async fn what_another_process_worked_on_is_taken_up_soon_after_it_has_ended() {
    let house = House::new();
    let lineage = house.certificate("n0.example.com").wanted.lineage;
    let lease = house.services.store.lease(&lineage).await.unwrap();
    let handle = house.start(&names(1)).await;
    // Half an hour: no pause grows with it.
    for _ in 0..360 {
        house.settle(&handle, 1).await;
        house.clock.advance(Duration::from_secs(5));
    }
    assert_eq!(house.orders(), 0);
    drop(lease);
    for _ in 0..4 {
        house.settle(&handle, 1).await;
        house.clock.advance(Duration::from_secs(5));
    }
    house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(house.orders(), 1);
}
