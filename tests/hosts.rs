//! A fleet on hosts of their own, over real stores: one order for each due certificate, answered by any machine
//! and served by all of them, also when the issuer is killed, paused or cut off in the middle of it.

mod network;
mod store;
mod world;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use self::network::is_inside;
use self::store::Kind;
use self::world::{Machine, World};
use crate::support::{by_depth, text, until_within};

static ALONE: Mutex<()> = Mutex::new(());

/// So many machines.
fn machines() -> usize {
    by_depth(2, 5, 5)
}

/// A machine takes over a minute after the last sign of the issuer, and the CA's steps come on top.
const RECOVERED: Duration = Duration::from_secs(180);

#[test]
fn fleet_on_etcd_orders_once_and_serves_everywhere() {
    let test = "hosts::fleet_on_etcd_orders_once_and_serves_everywhere";
    race(Kind::Etcd, test, by_depth(2, 20, 1000));
}

#[test]
fn fleet_on_postgres_orders_once_and_serves_everywhere() {
    let test = "hosts::fleet_on_postgres_orders_once_and_serves_everywhere";
    race(Kind::Postgres, test, by_depth(0, 20, 1000));
}

#[test]
fn fleet_on_s3_orders_once_and_serves_everywhere() {
    let test = "hosts::fleet_on_s3_orders_once_and_serves_everywhere";
    race(Kind::S3, test, by_depth(0, 20, 1000));
}

#[test]
fn killed_issuer_leads_to_no_second_certificate() {
    strike(
        Strike::Kill,
        "hosts::killed_issuer_leads_to_no_second_certificate",
    );
}

#[test]
fn paused_issuer_leads_to_no_second_certificate() {
    strike(
        Strike::Pause,
        "hosts::paused_issuer_leads_to_no_second_certificate",
    );
}

#[test]
fn issuer_without_its_store_leads_to_no_second_certificate() {
    strike(
        Strike::Partition,
        "hosts::issuer_without_its_store_leads_to_no_second_certificate",
    );
}

#[test]
fn new_machine_serves_at_once_what_the_store_holds() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_inside("hosts::new_machine_serves_at_once_what_the_store_holds") {
        return;
    }
    let kinds = by_depth(&[Kind::Directory][..], &Kind::ALL, &Kind::ALL);
    for kind in kinds {
        let together = by_depth(5, 50, 50);
        let Some(mut world) = World::start(*kind, 1, together) else {
            continue;
        };
        let all: Vec<_> = (0..together).map(|number| format!("c{number}")).collect();
        until_proven(&world, &all, 1, Duration::from_secs(120));
        // The first order of a machine may fail while the balancer does not know that it answers.
        let made = |world: &World| (world.orders(), world.certificates());
        let before = made(&world);
        let Some(times) = world.newcomer() else {
            return;
        };
        let [first, pairs, handshake] = times.map(|time| time.as_secs_f64());
        assert_eq!(made(&world), before, "{}", logs(&world));
        let figures = json!({
            "store": kind.name(), "new": together, "first": first, "pairs": pairs, "handshake": handshake,
        });
        // benches/fleet prints them of a release build: a debug build on a busy machine takes several seconds.
        println!("FIGURES {figures}");
    }
}

/// What the races have shown.
#[derive(Default)]
struct Score {
    races: usize,
    /// The orders that users have forced: one for each command that was done.
    forced: usize,
    answers: usize,
    elsewhere: usize,
    /// From the first publication until all machines have proven it.
    served: Vec<Duration>,
}

impl Score {
    /// Of that many hundredths of the races.
    fn served_within(&mut self, hundredths: usize) -> f64 {
        self.served.sort();
        let last = self.served.len() - 1;
        self.served[(last * hundredths).div_ceil(100)].as_secs_f64()
    }
}

fn race(kind: Kind, test: &str, races: usize) {
    // Their times are measured.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if races == 0 || !is_inside(test) {
        return;
    }
    let together = if kind == Kind::S3 { 10 } else { 1 };
    let together = together.min(races);
    let Some(world) = World::start(kind, machines(), together) else {
        return;
    };
    let all: Vec<_> = (0..together).map(|number| format!("c{number}")).collect();
    until_proven(&world, &all, 1, Duration::from_secs(120));
    assert_eq!(world.certificates(), together);
    let app = ["app".to_owned()];
    let (mut score, mut round, mut generations) = (Score::default(), 0, (1, 0));
    while score.races < races {
        // In turn: a configuration that makes them due on each machine, a command on each machine, and one that
        // forces an order.
        round += 1;
        match round % 5 {
            0 => {
                let forced = || everywhere(&world, &["renew", "app", "--force"]);
                score.forced += one_race(&world, &app, &mut generations.1, &mut score, forced);
            }
            1 | 3 => {
                let configured = || {
                    world.reconfigure(round);
                    1
                };
                one_race(&world, &all, &mut generations.0, &mut score, configured);
                score.races += together;
            }
            _ => {
                let other = format!("r{round}.app.example.com");
                let issued = || {
                    everywhere(
                        &world,
                        &["issue", "--name", "app", "app.example.com", &other],
                    );
                    1
                };
                one_race(&world, &app, &mut generations.1, &mut score, issued);
                score.races += 1;
            }
        }
    }
    assert!(score.elsewhere > 0, "no machine answered for another one");
    let orders = together + score.races + score.forced;
    let made = (world.orders(), world.certificates());
    assert_eq!(made, (orders, orders), "{}", logs(&world));
    let (half, most) = (score.served_within(50), score.served_within(99));
    let bound = kind.bound().as_secs_f64();
    let figures = json!({
        "store": kind.name(), "races": score.races, "orders": orders - together - score.forced, "answers": score.answers,
        "elsewhere": score.elsewhere, "machines": world.machines.len(), "p50": half, "p99": most, "bound": bound,
    });
    println!("FIGURES {figures}");
    // The short form runs beside all other tests.
    assert!(most <= bound * by_depth(10.0, 1.0, 1.0), "{figures}");
}

/// Makes `certificates` due on all machines at once, and waits until all of them have proven the new ones.
/// `make_due` returns how many orders for each are right, as this does.
fn one_race(
    world: &World,
    certificates: &[String],
    generation: &mut u64,
    score: &mut Score,
    make_due: impl FnOnce() -> usize,
) -> usize {
    let before = (world.orders(), world.certificates(), world.answers().len());
    let ordered = make_due();
    *generation += ordered as u64;
    let served = until_proven(world, certificates, *generation, Duration::from_secs(60));
    score.served.extend(served);
    let all = ordered * certificates.len();
    assert_eq!(
        (world.orders(), world.certificates()),
        (before.0 + all, before.1 + all),
        "{}",
        logs(world)
    );
    // It says so at the end of its pass.
    let line = format!(
        "issued lineage={} generation={generation:04} ",
        certificates[0]
    );
    let said = |machine: &&Machine| machine.log().contains(&line);
    let mut ordering = None;
    until_within("the ordering machine", Duration::from_secs(30), || {
        let found = world.machines.iter().find(said);
        ordering = found.map(|machine| machine.name.clone());
        ordering.is_some()
    });
    if ordered == 1 {
        let answers = world.answers().split_off(before.2);
        let others = answers.iter().filter(|one| Some(*one) != ordering.as_ref());
        score.elsewhere += others.count();
        score.answers += answers.len();
    }
    ordered
}

/// `certs` with these arguments on each machine at once; how many have done their work.
fn everywhere(world: &World, arguments: &[&str]) -> usize {
    let begun = world.machines.iter().map(|machine| {
        let mut command = machine.certs(arguments);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().unwrap()
    });
    let begun: Vec<_> = begun.collect();
    let mut done = 0;
    for child in begun {
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => done += 1,
            // Another machine works on it.
            Some(8) => {}
            _ => panic!("{}", text(&output)),
        }
    }
    assert!(done > 0);
    done
}

/// Waits until all machines have proven that generation by their own handshakes, and returns the time from its
/// first publication for each certificate. A client on another machine sees it too.
fn until_proven(
    world: &World,
    certificates: &[String],
    generation: u64,
    within: Duration,
) -> Vec<Duration> {
    let mut missing: Vec<(usize, &String)> = Vec::new();
    for number in 0..world.machines.len() {
        missing.extend(certificates.iter().map(|name| (number, name)));
    }
    let mut took = vec![Duration::ZERO; certificates.len()];
    let end = now() + within;
    while !missing.is_empty() {
        for number in 0..world.machines.len() {
            if !missing.iter().any(|(other, _)| *other == number) {
                continue;
            }
            let Some(proven) = world.machines[number].proven() else {
                continue;
            };
            missing.retain(|(other, name)| {
                let is_it = |(one, served): &(String, u64)| one == *name && *served >= generation;
                let is_proven = *other == number && proven.iter().any(is_it);
                if is_proven && let Some(which) = certificates.iter().position(|one| one == *name) {
                    took[which] = took[which].max(world.since_published(name, generation));
                }
                !is_proven
            });
        }
        assert!(
            now() < end,
            "generation {generation} is not proven within {within:?}: {missing:?}\n{}",
            logs(world)
        );
        std::thread::sleep(Duration::from_millis(25));
    }
    for name in certificates {
        let leaves: Vec<_> = world
            .machines
            .iter()
            .map(|one| one.leaf(&format!("{name}.example.com")))
            .collect();
        let stored = world.machines[0].stored_leaf(name);
        assert!(
            leaves.iter().all(|leaf| *leaf == stored),
            "{name}: {}",
            logs(world)
        );
    }
    took
}

#[allow(clippy::disallowed_methods)] // real servers take real time
fn now() -> Instant {
    Instant::now()
}

/// What is known after a failure.
fn logs(world: &World) -> String {
    let each = world.machines.iter();
    let each = each.map(|machine| format!("{}:\n{}", machine.name, machine.log()));
    let ca = world.pebble_log();
    let from = ca.len().saturating_sub(4000);
    let last = ca.get(from..).unwrap_or_default();
    let counts = (world.orders(), world.certificates());
    format!(
        "{}orders, certificates: {counts:?}; the CA:\n{last}",
        each.collect::<String>()
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strike {
    Kill,
    Pause,
    Partition,
}

/// Strikes the issuer in the middle of an order, over each store in turn.
fn strike(how: Strike, test: &str) {
    let stores: &[Kind] = by_depth(&[], &[Kind::Etcd], &[Kind::Etcd, Kind::Postgres, Kind::S3]);
    if stores.is_empty() || !is_inside(test) {
        return;
    }
    for kind in stores {
        if let Some(mut world) = World::start(*kind, machines(), 1) {
            strike_issuer(&mut world, how);
        }
    }
}

fn strike_issuer(world: &mut World, how: Strike) {
    let certificate = ["c0".to_owned()];
    until_proven(world, &certificate, 1, Duration::from_secs(60));
    let leaders = issuers(world);
    let [leader] = leaders[..] else {
        panic!("not one issuer: {leaders:?}");
    };
    let others: Vec<usize> = (0..world.machines.len())
        .filter(|number| *number != leader)
        .collect();
    let links: Vec<PathBuf> = world
        .machines
        .iter()
        .map(|machine| machine.live("c0"))
        .collect();
    let ended = AtomicBool::new(false);
    let (took, served) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| never_goes_back(&links, &ended));
        // Whatever fails below, the other thread ends.
        let _end = End(&ended);
        let took = strike_leader(world, how, leader, &others);
        until_proven(world, &certificate, 2, RECOVERED);
        assert_eq!(world.certificates(), 2, "{}", logs(world));
        // A validation that asks a machine while it is paused fails.
        assert!(world.orders() <= 3, "{}", logs(world));
        world.reconfigure(2);
        let served = until_proven(world, &certificate, 3, RECOVERED);
        assert_eq!(world.certificates(), 3, "{}", logs(world));
        ended.store(true, Ordering::SeqCst);
        watching.join().unwrap();
        (took, served[0])
    });
    let figures = json!({
        "store": world.kind.name(), "strike": format!("{how:?}").to_lowercase(), "certificates": 1,
        "recovered": took.as_secs_f64(), "next": served.as_secs_f64(),
    });
    println!("FIGURES {figures}");
    // Another machine that is faster causes no error.
    let faster = "was changed by another process";
    let says = |one: &Machine| one.log().contains(faster);
    assert!(!world.machines.iter().any(says), "{}", logs(world));
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The time from the strike until the other machines have proven the certificate.
fn strike_leader(world: &mut World, how: Strike, leader: usize, others: &[usize]) -> Duration {
    // The CA waits for the replies that it asks for.
    world.balancer.signal(Signal::STOP);
    let asked = |world: &World| world.pebble_log().matches("Attempting to validate").count();
    let before = asked(world);
    world.reconfigure(1);
    until_within("the CA's request", Duration::from_secs(30), || {
        asked(world) > before
    });
    let began = now();
    match how {
        Strike::Kill => world.machines[leader].sidecar.as_mut().unwrap().kill(),
        Strike::Pause => world.machines[leader].signal(Signal::STOP),
        Strike::Partition => world.partition(leader, true),
    }
    world.balancer.signal(Signal::CONT);
    if how == Strike::Pause {
        // It wakes while the next one works.
        until_within("another issuer", RECOVERED, || {
            began.elapsed() > Duration::from_secs(60) && issuers(world).len() > 1
        });
        world.machines[leader].signal(Signal::CONT);
    }
    let end = began + RECOVERED;
    while !others
        .iter()
        .all(|number| world.machines[*number].has_proven("c0", 2))
    {
        assert!(now() < end, "{}", logs(world));
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = began.elapsed();
    match how {
        Strike::Kill => world.machines[leader].start(),
        Strike::Pause => {}
        Strike::Partition => world.partition(leader, false),
    }
    took
}

/// The machines that have become the issuer.
fn issuers(world: &World) -> Vec<usize> {
    let line = "this machine does the scheduled work";
    let all = 0..world.machines.len();
    all.filter(|number| world.machines[*number].log().contains(line))
        .collect()
}

/// Fails if a machine publishes an older generation after a newer one.
fn never_goes_back(links: &[PathBuf], ended: &AtomicBool) {
    let mut latest = vec![String::new(); links.len()];
    while !ended.load(Ordering::SeqCst) {
        for (link, latest) in links.iter().zip(&mut latest) {
            // Such as ../archive/c0/0002.
            let live = std::fs::read_link(link).unwrap().display().to_string();
            assert!(live >= *latest, "{live} after {latest}");
            *latest = live;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
