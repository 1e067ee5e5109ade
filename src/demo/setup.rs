//! The parts of the demonstration: the embedded CA, the challenge listener, the
//! store and the output, and a server that terminates TLS. Each listener has a
//! loopback port chosen by the system.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::front::Front;
use super::load::IdlePolicy;
use super::nginx::Nginx;
use super::tally::LoadTally;
use super::{LOOPBACK, Site};
use crate::acme::{AccountSettings, Client, ClientSettings, Https, Issuer};
use crate::ca::{Ports, RenewalWindows, Resolve, Server, Settings, Validation};
use crate::certificate::BundleCache;
use crate::challenge::ChallengeKind;
use crate::challenge::listen::Listener;
use crate::challenge::protocol::{Listen, Protocol};
use crate::challenge::responses::Responses;
use crate::deploy::coalesce::Gate;
use crate::deploy::endpoint::Endpoint;
use crate::deploy::output::Output;
use crate::deploy::target::DeployTarget;
use crate::deploy::verify::Handshake;
use crate::deploy::{Delivery, DeployCause, Outlet, Target};
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::manage::{
    Certificate, FreshKeys, Keeper, OrderSettings, Probes, SameNames, Services, SharedServices,
    VERIFY_WITHIN, Wanted,
};
use crate::net::sockets::ListenAddress;
use crate::observe::Metrics;
use crate::random::SystemRandom;
use crate::record::Terms;
use crate::store::fs::FileStore;
use crate::time::SystemClock;
use crate::tls::credentials::Publisher;
use crate::tls::dialer::Dialer;

const CERTIFICATES: [&[&str]; 2] = [
    &["app.example.com", "www.example.com"],
    &["turn.example.com"],
];
/// The time from issuance to the CA's suggested renewal window.
pub(super) const WINDOW_OPENS_AFTER: Duration = Duration::from_secs(3);
const WINDOW_IS_OPEN_FOR: Duration = Duration::from_millis(500);
/// Much shorter than in production, because the windows are seconds away.
const SPACING: Duration = Duration::from_millis(10);

/// The parts, ready to run.
pub(super) struct Setup {
    pub(super) services: Services,
    pub(super) certificates: Vec<Certificate>,
    pub(super) sites: Vec<Site>,
    pub(super) dialer: Dialer,
    pub(super) idle_policy: IdlePolicy,
    pub(super) tally: Arc<LoadTally>,
    pub(super) address: SocketAddr,
    _serving: JoinSet<()>,
    _nginx: Option<Nginx>,
}

impl Setup {
    /// Starts everything below `directory`, with nginx if its program is given and
    /// with our own listener otherwise.
    pub(super) async fn new(directory: &Path, program: Option<&Path>) -> Result<Self, Failure> {
        let mut serving = JoinSet::new();
        let (issuer, ca, root) = issuer(&mut serving).await?;
        let (services, tally) = (services(directory)?, Arc::new(LoadTally::default()));
        let wanted = CERTIFICATES.iter().map(|names| want(names, &ca));
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        let sites = sites(&wanted, services.output.as_ref());
        let (address, targets, nginx) = match program {
            Some(program) => {
                let nginx = start_nginx(program, directory, &services, &wanted, &sites).await?;
                let target = format!("nginx:{}", nginx.pid_file.display());
                let target: DeployTarget = target.parse().map_err(Failure::unexpected)?;
                (
                    nginx.address,
                    vec![target.target(); wanted.len()],
                    Some(nginx),
                )
            }
            None => {
                let (address, targets) = start_front(&mut serving, &services, &wanted).await?;
                (address, targets, None)
            }
        };
        let endpoint: Endpoint = address.to_string().parse().map_err(Failure::unexpected)?;
        let certificate = |(wanted, target)| Certificate {
            targets: vec![Arc::new(Timed(target, tally.clone()))],
            wanted,
            keeper: Keeper::default(),
            shared: Arc::new(SharedServices {
                issuer: issuer.clone(),
                fallback: None,
                endpoints: vec![endpoint.clone()],
                cannot_order: None,
                program: None,
            }),
        };
        let certificates = wanted.into_iter().zip(targets).map(certificate);
        Ok(Self {
            certificates: certificates.collect(),
            dialer: Dialer::new(root.as_bytes()).map_err(Failure::unexpected)?,
            idle_policy: match program {
                Some(_) => IdlePolicy::ClosesIdle,
                None => IdlePolicy::NeverCloses,
            },
            services,
            sites,
            tally,
            address,
            _serving: serving,
            _nginx: nginx,
        })
    }
}

/// Starts the CA and the listener that it validates against. Returns a client, the
/// directory's URL and the root.
async fn issuer(serving: &mut JoinSet<()>) -> Result<(Arc<dyn Issuer>, String, String), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::unexpected(format!("the embedded CA: {error}"));
    let responses = Responses::default();
    let listener = Listener::bind(
        &Listen {
            protocol: Protocol::Http,
            address: LOOPBACK,
        },
        &responses,
    );
    let listener = listener.map_err(|error| Failure::usage(error.to_string(), error.hint()))?;
    let validated = listener.addresses().first().map_or(0, SocketAddr::port);
    serving.spawn(listener.serve());
    let socket = TcpListener::bind(LOOPBACK).await;
    let socket = socket.map_err(|error| failed(&error))?;
    let own = socket.local_addr().map_err(|error| failed(&error))?;
    let mut settings = Settings::new(format!("https://{own}"));
    settings.windows = RenewalWindows::After {
        delay: WINDOW_OPENS_AFTER,
        width: WINDOW_IS_OPEN_FOR,
    };
    settings.validation = Validation::Connect {
        ports: Ports::both(validated),
        resolve: Resolve::Fixed(LOOPBACK.ip()),
    };
    let server = Server::new(settings, Arc::new(SystemClock)).map_err(|error| failed(&error))?;
    let (directory, root) = (server.directory_url(), server.root_pem().to_owned());
    serving.spawn(async {
        if let Err(error) = server.serve(socket).await {
            tracing::error!("the embedded CA: {error}");
        }
    });
    let client = client(&directory, &root, responses).map_err(|error| failed(&error))?;
    Ok((Arc::new(client), directory, root))
}

fn client(directory: &str, root: &str, responses: Responses) -> Result<Client, String> {
    Client::new(ClientSettings {
        directory: directory.to_owned(),
        account: AccountSettings::default(),
        exchange: Arc::new(Https::new(Some(root.as_bytes()))?),
        solvers: vec![responses.solver(ChallengeKind::Http01)],
        limiters: Arc::default(),
        clock: Arc::new(SystemClock),
        observer: Arc::new(()),
        preferred_chain: None,
        notice: None,
    })
}

fn services(directory: &Path) -> Result<Services, Failure> {
    let store = FileStore::open(directory.join("data")).map_err(Failure::on("store"))?;
    Ok(Services {
        store: Arc::new(store),
        output: Arc::new(Output::new(directory.join("certs"))),
        gate: Gate::default(),
        verifier: Arc::new(Handshake::default()),
        resolver: Default::default(),
        keys: Arc::new(FreshKeys),
        bundles: BundleCache::default(),
        probes: Probes::default(),
        same_names: SameNames::default(),
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        metrics: Metrics::default(),
        looks: None,
        board: None,
        progress: None,
        spacing: SPACING,
        spread: Duration::ZERO,
        verify_within: VERIFY_WITHIN,
        maintenance: None,
    })
}

fn want(names: &[&str], ca: &str) -> Result<Wanted, Failure> {
    let parsed = names.iter().map(|name| Identifier::parse(name));
    let identifiers = parsed.collect::<Result<Vec<_>, _>>();
    let identifiers = identifiers.map_err(|error| Failure::unexpected(error.to_string()))?;
    Ok(Wanted {
        lineage: Lineage::of(&identifiers[0]),
        identifiers: identifiers.into_iter().collect(),
        order: Arc::new(OrderSettings {
            ca: ca.to_owned(),
            terms: Terms::default(),
            request: None,
            partial: false,
        }),
    })
}

fn sites(wanted: &[Wanted], output: &dyn Outlet) -> Vec<Site> {
    let of = |wanted: &Wanted| {
        let (lineage, live) = (wanted.lineage.clone(), output.live_path(&wanted.lineage));
        let names = wanted.identifiers.tree().into_iter();
        names.map(move |name| Site {
            lineage: lineage.clone(),
            name,
            live: live.clone(),
        })
    };
    wanted.iter().flat_map(of).collect()
}

/// nginx starts on placeholders, as it does with `certs run`.
async fn start_nginx(
    program: &Path,
    directory: &Path,
    services: &Services,
    wanted: &[Wanted],
    sites: &[Site],
) -> Result<Nginx, Failure> {
    for wanted in wanted {
        let (lineage, names) = (&wanted.lineage, &wanted.identifiers.tree());
        let now = services.clock.now();
        let placed = services.output.placeholder(lineage, names, now);
        placed.map_err(Failure::on(lineage.as_str()))?;
    }
    Nginx::start(program, &directory.join("nginx"), sites).await
}

async fn start_front(
    serving: &mut JoinSet<()>,
    services: &Services,
    wanted: &[Wanted],
) -> Result<(SocketAddr, Vec<Arc<dyn Target>>), Failure> {
    let names = |wanted: &Wanted| (wanted.lineage.clone(), wanted.identifiers.tree());
    let served = wanted.iter().map(names).collect();
    let (publisher, credentials) = Publisher::new(served, services.clock.clone());
    let failed = |error: io::Error| Failure::unexpected(format!("the TLS listener: {error}"));
    let listener = TcpListener::bind(LOOPBACK).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let page = axum::Router::new().fallback(async || "served by certs\n");
    let front = credentials.serve(listener, page);
    serving.spawn(front.map_err(|error| failed(io::Error::other(error)))?);
    let publisher = Arc::new(publisher);
    let target = |wanted: &Wanted| -> Arc<dyn Target> {
        let ((lineage, names), output) = (names(wanted), services.output.as_ref());
        let (publisher, clock) = (publisher.clone(), services.clock.clone());
        Arc::new(Front::new(lineage, names, output, publisher, clock))
    };
    Ok((address, wanted.iter().map(target).collect()))
}

/// A target that records the instant of each deployment.
struct Timed(Arc<dyn Target>, Arc<LoadTally>);

#[async_trait]
impl Target for Timed {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        self.0.check(delivery).await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        self.1.deploying(delivery);
        self.0.apply(delivery).await
    }

    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
        self.0.listens_on().await
    }
}
