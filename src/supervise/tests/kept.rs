//! Managed certificates under commands, lost volumes, damage, and configurations received
//! at any moment.

use super::*;
use crate::certificate::SigningRequest;
use crate::deploy::{Delivery, DeployCause, Target};

/// A target during whose first deployment another process saves the record.
struct Overtaking(Arc<dyn Store>, AtomicBool);

#[async_trait]
impl Target for Overtaking {
    fn name(&self) -> String {
        "overtaking".into()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        if !self.1.swap(true, Ordering::SeqCst) {
            overtake(&self.0, &delivery.lineage).await;
        }
        Ok(())
    }
}

/// Another process saves the record.
async fn overtake(store: &Arc<dyn Store>, lineage: &Lineage) {
    let (mut record, revision) = store.load(lineage).await.unwrap().unwrap();
    record.failures.last = Some("of another process".into());
    store.save(&record, revision, None).await.unwrap();
}

/// A CA that refuses the first order, after another process has saved the record.
struct OvertakenOrder {
    store: Arc<dyn Store>,
    is_over: AtomicBool,
    then: Arc<Signer>,
}

#[async_trait]
impl acme::Issuer for OvertakenOrder {
    async fn issue(
        &self,
        order: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        if self.is_over.swap(true, Ordering::SeqCst) {
            return self.then.issue(order, journal).await;
        }
        let lineage = Lineage::parse("n0.example.com").unwrap();
        overtake(&self.store, &lineage).await;
        journal.keep_answers(Vec::new()).await;
        Err(AcmeError {
            ca: "https://ca".into(),
            phase: Phase::Authorization,
            cause: Cause::Protocol("it was paused for too long".into()),
        })
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        self.then.probe().await
    }

    async fn renewal_info(&self, id: &str) -> Result<Option<(Window, Duration)>, AcmeError> {
        self.then.renewal_info(id).await
    }
}

#[tokio::test]
async fn pass_begins_again_at_once_when_another_process_was_faster() {
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    let overtaking = Overtaking(fixture.services.store.clone(), AtomicBool::new(false));
    certificate.targets = vec![Arc::new(overtaking)];
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    // No time passes.
    fixture.until("deployed", |all| all[0].is_ready()).await;
    assert_eq!(fixture.orders(), 1);
    let lineage = Lineage::parse("n0.example.com").unwrap();
    let stored = fixture.services.store.load(&lineage).await.unwrap();
    let last = stored.unwrap().0.failures.last;
    assert_eq!(last.as_deref(), Some("of another process"));
}

#[tokio::test]
async fn failure_of_an_overtaken_order_counts_for_nothing() {
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    let overtaken = OvertakenOrder {
        store: fixture.services.store.clone(),
        is_over: AtomicBool::new(false),
        then: fixture.signer.clone(),
    };
    let shared = Arc::make_mut(&mut certificate.shared);
    shared.issuer = Arc::new(overtaken);
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    // No time passes: it backs off from nothing.
    fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(fixture.orders(), 1);
}

#[tokio::test]
async fn command_cannot_change_a_managed_certificate() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(1)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    let mut fewer = fixture.certificate("n0.example.com");
    fewer.wanted.identifiers = [Identifier::parse("www.example.com").unwrap()].into();
    let mut elsewhere = fixture.certificate("n0.example.com");
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
    assert_eq!(fixture.orders(), 1);
}

#[tokio::test]
async fn orders_of_two_certificates_for_the_same_names_follow_each_other() {
    let fixture = Fixture::new();
    let first = fixture.certificate("n0.example.com");
    let mut second = first.clone();
    second.wanted.lineage = Lineage::parse("n0.example.com_rsa").unwrap();
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![first, second]).await.unwrap();
    tokio::spawn(supervisor.run());
    fixture
        .until("issued", |all| all.iter().all(|status| status.is_ready()))
        .await;
    assert_eq!(fixture.orders(), 2);
    // A CA may answer the second order with the first while it is pending.
    assert_eq!(fixture.signer.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn damaged_record_delays_no_other_and_recovers() {
    let fixture = Fixture::new();
    let names = names(2);
    let path = fixture.directory.path().join("data/records");
    std::fs::create_dir_all(path.join(&names[0])).unwrap();
    let record = path.join(&names[0]).join("record.json");
    std::fs::write(&record, "{").unwrap();
    let _handle = fixture.start(&names).await;
    fixture
        .until("the other certificate", |all| {
            all.iter().any(|s| s.is_ready())
        })
        .await;
    std::fs::remove_file(&record).unwrap();
    fixture.clock.advance(Duration::from_secs(60));
    fixture
        .until("both", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 2
        })
        .await;
}

#[tokio::test]
async fn new_volume_gets_the_stored_pair_and_its_server_a_reload() {
    let fixture = Fixture::new();
    let target = Arc::new(CountingTarget::default());
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.targets = vec![target.clone()];
    let lineage = certificate.wanted.lineage.clone();
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate.clone()]).await.unwrap();
    assert_eq!(
        fixture.services.output.live(&lineage).unwrap(),
        Some(Generation(0))
    );
    tokio::spawn(supervisor.run());
    fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(target.reloads.load(Ordering::SeqCst), 1);
    handle.stop().await;

    std::fs::remove_dir_all(fixture.directory.path().join("out")).unwrap();
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    assert_eq!(
        fixture.services.output.live(&lineage).unwrap(),
        Some(Generation(1))
    );
    // Another program changed the files, and the server may have loaded them.
    let stored = fixture.services.store.bundle(&lineage, Generation(1)).await;
    let (key, chain) = stored.unwrap().unwrap();
    let names = [Identifier::parse("n0.example.com").unwrap()].into();
    let pair = Bundle::new(key, &chain, &names, START, Freshness::Any).unwrap();
    let output = &fixture.services.output;
    output.publish(&lineage, Generation(0), &pair).unwrap();
    tokio::spawn(supervisor.run());
    fixture
        .until("deployed", |_| target.reloads.load(Ordering::SeqCst) == 2)
        .await;
    assert_eq!(
        fixture.services.output.live(&lineage).unwrap(),
        Some(Generation(1))
    );
    assert_eq!(fixture.orders(), 1);
}

#[tokio::test]
async fn failed_verification_resets_the_served_generation() {
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    pass(&fixture.services, &certificate, Trigger::Scheduled)
        .await
        .unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_port: crate::deploy::endpoint::Endpoint =
        socket.local_addr().unwrap().to_string().parse().unwrap();
    drop(socket);
    let lineage = certificate.wanted.lineage.clone();
    let load = async || {
        fixture
            .services
            .store
            .load(&lineage)
            .await
            .unwrap()
            .unwrap()
    };
    let (mut record, revision) = load().await;
    record.served.insert(
        closed_port.to_string(),
        crate::record::Served {
            generation: Generation(1),
            ..crate::record::Served::none(START)
        },
    );
    record.deployed.insert("files".into(), Generation(1));
    record.deployed.insert("counting".into(), Generation(1));
    fixture
        .services
        .store
        .save(&record, revision, None)
        .await
        .unwrap();
    certificate.endpoints = vec![closed_port.clone()];
    let target = Arc::new(CountingTarget::default());
    certificate.targets = vec![target.clone()];
    // Another program replaced the files.
    std::fs::write(
        fixture.services.output.live_path(&lineage).join("cert.pem"),
        "",
    )
    .unwrap();
    let work = {
        let (services, certificate) = (fixture.services.clone(), certificate.clone());
        tokio::spawn(async move { pass(&services, &certificate, Trigger::Scheduled).await })
    };
    while !work.is_finished() {
        fixture.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert!(matches!(work.await.unwrap(), Err(ManageError::Verify(_))));
    assert_eq!(target.reloads.load(Ordering::SeqCst), 1);
    let (record, _) = load().await;
    assert_eq!(
        record.served[&closed_port.to_string()].generation,
        Generation(0)
    );
}

#[tokio::test]
async fn configuration_received_during_a_pass_is_applied_after_it() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(1)).await;
    fixture.until("begun", |_| fixture.orders() == 1).await;
    let mut more = fixture.certificate("n0.example.com");
    let both = ["n0.example.com", "www.example.com"].map(|name| name.parse().unwrap());
    more.wanted.identifiers = both.into();
    handle.replace(vec![more]).await;
    fixture
        .until("both names", |all| {
            all[0].is_ready() && all[0].identifiers.len() == 2
        })
        .await;
    assert_eq!(fixture.orders(), 2);
}

#[tokio::test]
async fn command_for_managed_certificate_keeps_its_targets() {
    let fixture = Fixture::new();
    let target = Arc::new(CountingTarget::default());
    let mut managed = fixture.certificate("n0.example.com");
    managed.targets = vec![target.clone()];
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![managed]).await.unwrap();
    tokio::spawn(supervisor.run());
    fixture.until("issued", |all| all[0].is_ready()).await;
    let lineage = Lineage::parse("n0.example.com").unwrap();
    assert!(handle.manages(&lineage).await);
    // A command without the target of the configuration.
    let bare = fixture.certificate("n0.example.com");
    handle.work(bare.clone(), Trigger::Forced).await.unwrap();
    assert_eq!(target.reloads.load(Ordering::SeqCst), 2);
    let mut other_key = bare.clone();
    other_key.wanted.terms.key = KeyType::Rsa4096;
    let refused = handle.work(other_key, Trigger::Forced).await.unwrap_err();
    assert!(refused.to_string().contains("ecdsa-p256"), "{refused}");
    let mut other_key = bare;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut request = rcgen::CertificateParams::new(vec!["n0.example.com".to_owned()]).unwrap();
    request.distinguished_name = rcgen::DistinguishedName::new();
    let request = SigningRequest::read(request.serialize_request(&key).unwrap().der());
    other_key.wanted.request = request.ok();
    let refused = handle.work(other_key, Trigger::Forced).await.unwrap_err();
    assert!(refused.to_string().contains("signing request"), "{refused}");
}

#[tokio::test]
async fn new_ca_ignores_the_retry_after_of_the_old_one() {
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    let wanted = &certificate.wanted;
    let (lineage, names) = (wanted.lineage.clone(), wanted.identifiers.tree());
    let mut record = Record::new(lineage, names, "https://ca".into());
    record.failures.retry_at = Some(START + DAY * 7);
    record.failures.by_retry_after = true;
    let saved = fixture
        .services
        .store
        .save(&record, Default::default(), None);
    saved.await.unwrap();
    let waits = pass(&fixture.services, &certificate, Trigger::Requested).await;
    assert!(matches!(waits, Err(ManageError::BackingOff { .. })));
    certificate.wanted.ca = "https://other".into();
    assert!(
        pass(&fixture.services, &certificate, Trigger::Scheduled)
            .await
            .unwrap()
            .issued
    );
}

#[tokio::test]
async fn overdue_certificate_raises_one_alarm_and_a_critical_one_later() {
    let fixture = Fixture::new();
    pass(
        &fixture.services,
        &fixture.certificate("n0.example.com"),
        Trigger::Scheduled,
    )
    .await
    .unwrap();
    let lineage = Lineage::parse("n0.example.com").unwrap();
    let (mut record, _) = fixture
        .services
        .store
        .load(&lineage)
        .await
        .unwrap()
        .unwrap();
    record.failures.last = Some("the CA said no".into());
    let shown = |days: u32| {
        status(
            &record,
            START + DAY * days,
            fixture.services.random.as_ref(),
        )
    };
    let levels = [1, 60, 70, 80].map(|days| alarm_level(&shown(days)));
    assert_eq!(levels, [0, 0, 1, 2]);
    let text = alarm(&shown(80), 2, shown(80).last_error);
    assert!(
        text.starts_with("critical: the certificate expires at 20"),
        "{text}"
    );
    assert!(text.contains("the CA said no; hint: "), "{text}");

    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    let managed = vec![fixture.certificate("n0.example.com")];
    supervisor.keep(managed).await.unwrap();
    fixture.clock.set(START + DAY * 80);
    let alarm_of = async |supervisor: &mut Supervisor| {
        let finished = Finished {
            lineage: lineage.clone(),
            ended: Err(ManageError::Halted("again".into())),
            record: Some(record.clone()),
            at: START + DAY * 80,
            reply: None,
        };
        supervisor.report(finished);
        supervisor.agenda.get(&lineage).unwrap().alarmed
    };
    assert_eq!(alarm_of(&mut supervisor).await, 2);
    assert!(fixture.board.all()[0].critical);
}

#[tokio::test]
async fn clock_set_back_does_not_lengthen_a_backoff() {
    let fixture = Fixture::new();
    fixture.clock.set(START + DAY * 180);
    let refusals = &fixture.signer.refusals;
    refusals.lock().unwrap().insert("n0.example.com".into(), 1);
    let handle = fixture.start(&names(1)).await;
    let failed = |all: &[crate::observe::Status]| all[0].last_error.is_some();
    fixture.until("refused", failed).await;
    // By the right clock the backoff ends in half a year.
    fixture.clock.set(START);
    assert!(handle.ping().await);
    fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(fixture.orders(), 2);
}

#[tokio::test]
async fn failed_deployment_blocks_no_renewal_and_failed_order_no_deployment() {
    let fixture = Fixture::new();
    let target = Arc::new(CountingTarget::default());
    target.is_down.store(true, Ordering::SeqCst);
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.targets = vec![target.clone()];
    let due = async || pass(&fixture.services, &certificate, Trigger::Scheduled).await;
    assert!(matches!(due().await, Err(ManageError::Deploy(_))));
    assert!(matches!(due().await, Err(ManageError::NotDeployed { .. })));
    assert_eq!(fixture.orders(), 1);
    // The pass whose deployment fails also renews.
    fixture.clock.set(START + DAY * 80);
    assert!(matches!(due().await, Err(ManageError::Deploy(_))));
    assert_eq!(fixture.orders(), 2);
    // Due again with its CA down and its server up, the certificate is deployed.
    fixture.clock.set(START + DAY * 160);
    fixture.signer.outages.store(1, Ordering::SeqCst);
    assert!(due().await.is_err());
    fixture.clock.advance(Duration::from_secs(30));
    target.is_down.store(false, Ordering::SeqCst);
    let before = target.reloads.load(Ordering::SeqCst);
    assert!(due().await.is_err());
    assert_eq!(target.reloads.load(Ordering::SeqCst), before + 1);
    let lineage = &certificate.wanted.lineage;
    assert_eq!(
        fixture.services.output.live(lineage).unwrap(),
        Some(Generation(2))
    );
}

#[tokio::test]
async fn dropped_order_is_refunded_once() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    for _ in 0..3 {
        pass(&fixture.services, &certificate, Trigger::Forced)
            .await
            .unwrap();
    }
    fixture.signer.outages.store(1, Ordering::SeqCst);
    assert!(
        pass(&fixture.services, &certificate, Trigger::Forced)
            .await
            .is_err()
    );
    let full_at = async || {
        let (state, _) = fixture.services.store.ca_state(LETS_ENCRYPT).await.unwrap();
        let duplicates = &state.spent[&crate::ca_state::Limit::DuplicateCertificates];
        let of_name = |(names, _): &(&String, _)| names.contains("n0.example.com");
        *duplicates.iter().find(of_name).unwrap().1
    };
    let spent = full_at().await;
    certificate.wanted.identifiers = ["n1.example.com".parse().unwrap()].into();
    fixture.clock.set(START + DAY);
    for _ in 0..3 {
        pass(&fixture.services, &certificate, Trigger::Scheduled)
            .await
            .unwrap();
    }
    assert_eq!(full_at().await, spent - DAY * 7 / 5);
    assert_eq!(fixture.orders(), 5);
}

#[tokio::test]
async fn released_lease_is_taken_within_seconds() {
    let fixture = Fixture::new();
    let lineage = fixture.certificate("n0.example.com").wanted.lineage;
    let lease = fixture.services.store.lease(&lineage).await.unwrap();
    let handle = fixture.start(&names(1)).await;
    // For half an hour, in which the pause must not grow.
    for _ in 0..360 {
        fixture.settle(&handle, 1).await;
        fixture.clock.advance(Duration::from_secs(5));
    }
    assert_eq!(fixture.orders(), 0);
    drop(lease);
    for _ in 0..4 {
        fixture.settle(&handle, 1).await;
        fixture.clock.advance(Duration::from_secs(5));
    }
    fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(fixture.orders(), 1);
}

#[tokio::test]
async fn order_of_before_an_outage_of_days_is_resumed_and_an_expired_one_is_not() {
    for (days, resumed) in [(4, true), (8, false)] {
        let fixture = Fixture::new();
        let certificate = fixture.certificate("n0.example.com");
        fixture.signer.outages.store(1, Ordering::SeqCst);
        let due = async || pass(&fixture.services, &certificate, Trigger::Scheduled).await;
        assert!(due().await.is_err());
        let pending = async || {
            let stored = fixture.services.store.load(&certificate.wanted.lineage);
            stored.await.unwrap().unwrap().0.order
        };
        let first = pending().await.unwrap().begun;
        fixture.clock.set(START + DAY * days);
        fixture.signer.outages.store(1, Ordering::SeqCst);
        assert!(due().await.is_err());
        assert_eq!(pending().await.unwrap().begun == first, resumed, "{days}");
    }
}

#[tokio::test]
async fn scheduled_pass_keeps_names_of_a_command_elsewhere() {
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.keeper = crate::manage::Keeper::Command;
    let mut more = certificate.clone();
    let both = ["n0.example.com", "www.example.com"].map(|name| name.parse().unwrap());
    more.wanted.identifiers = both.into();
    let ends = async |certificate, trigger| {
        pass(&fixture.services, certificate, trigger).await.unwrap();
    };
    ends(&certificate, Trigger::Scheduled).await;
    ends(&more, Trigger::Requested).await;
    // This process has the settings of before.
    ends(&certificate, Trigger::Scheduled).await;
    assert_eq!(fixture.orders(), 2);
    fixture.clock.set(START + DAY * 80);
    ends(&certificate, Trigger::Scheduled).await;
    assert_eq!(fixture.orders(), 3);
    let lineage = &certificate.wanted.lineage;
    let (record, _) = fixture.services.store.load(lineage).await.unwrap().unwrap();
    let wanted = more.wanted.identifiers.tree();
    assert_eq!(record.identifiers, wanted);
    assert_eq!(record.issued.unwrap().facts.identifiers, wanted);
}
