//! The order of the agenda, compared with that of a full scan.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, i64, bool),
    Change(usize, i64, bool, u32),
    Wait(usize, bool),
    Ask(usize),
    TimeReply(usize),
    Remove(usize),
    Shift(i64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (which, when) = (0..6_usize, 0..50_i64);
    prop_oneof![
        (which.clone(), when.clone(), any::<bool>())
            .prop_map(|(which, due, managed)| Step::Insert(which, due, managed)),
        (which.clone(), when.clone(), any::<bool>(), 0..3_u32)
            .prop_map(|(which, due, busy, outages)| Step::Change(which, due, busy, outages)),
        (which.clone(), any::<bool>()).prop_map(|(which, waits)| Step::Wait(which, waits)),
        which.clone().prop_map(Step::Ask),
        which.clone().prop_map(Step::TimeReply),
        which.clone().prop_map(Step::Remove),
        (when, which).prop_map(|(by, out)| Step::Shift(by, out)),
    ]
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_800_000_000 + seconds)
}

fn apply(agenda: &mut Agenda, certificates: &[Arc<Certificate>], step: Step) {
    let lineage = |which: usize| certificates[which].wanted.lineage.clone();
    match step {
        Step::Insert(which, due, managed) => {
            agenda.insert(Entry::new(certificates[which].clone(), at(due), managed));
        }
        Step::Change(which, due, busy, outages) => {
            agenda.change(&lineage(which), |entry| {
                (entry.due, entry.busy, entry.outages) = (at(due), busy, outages);
            });
        }
        Step::Wait(which, waits) => {
            agenda.change(&lineage(which), |entry| entry.waits_for_ca = waits);
        }
        Step::Ask(which) => {
            let asked = (
                certificates[which].clone(),
                Trigger::Requested,
                tokio::sync::oneshot::channel().0,
            );
            agenda.change(&lineage(which), |entry| entry.waiting.push_back(asked));
        }
        Step::TimeReply(which) => {
            agenda.change(&lineage(which), |entry| entry.waiting.pop_front());
        }
        Step::Remove(which) => agenda.remove(&lineage(which)),
        Step::Shift(by, out) => agenda.retain(|name, entry| {
            entry.due = entry.due + Duration::from_secs(by.unsigned_abs());
            *name != lineage(out)
        }),
    }
}

/// The next certificate at `now`, the first due instant, and the certificates that wait
/// for a CA, by a full scan.
fn looked_through(
    agenda: &Agenda,
    lineages: &[Lineage],
    now: Timestamp,
) -> (Option<Lineage>, Option<Timestamp>, BTreeSet<Lineage>) {
    let entry = lineages
        .iter()
        .filter_map(|name| Some((name, agenda.get(name)?)));
    let entry: Vec<_> = entry.collect();
    let order = |(name, entry): &&(&Lineage, &Entry)| (entry.due, entry.outages, (*name).clone());
    let idle = entry.iter().filter(|(_, entry)| !entry.busy);
    let asked = idle.clone().filter(|(_, entry)| !entry.waiting.is_empty());
    let managed = idle.filter(|(_, entry)| entry.managed);
    let due = managed.clone().filter(|(_, entry)| entry.due <= now);
    let ready = asked.min_by_key(order).or_else(|| due.min_by_key(order));
    let waiting_for_ca = entry.iter().filter(|(_, entry)| entry.waits_for_ca);
    (
        ready.map(|(name, _)| (*name).clone()),
        managed.map(|(_, entry)| entry.due).min(),
        waiting_for_ca.map(|(name, _)| (*name).clone()).collect(),
    )
}

#[test]
fn agenda_order_equals_that_of_a_full_scan() {
    let fixture = Fixture::new();
    let certificates: Vec<_> = names(6)
        .iter()
        .map(|name| Arc::new(fixture.certificate(name)))
        .collect();
    let lineages: Vec<_> = certificates
        .iter()
        .map(|one| one.wanted.lineage.clone())
        .collect();
    proptest!(|(steps in prop::collection::vec(step(), 1..60))| {
        let mut agenda = Agenda::default();
        for step in steps {
            apply(&mut agenda, &certificates, step);
            for now in [at(0), at(25), at(200)] {
                let (ready, first_due, waiting_for_ca) = looked_through(&agenda, &lineages, now);
                prop_assert_eq!(agenda.ready(now), ready);
                prop_assert_eq!(agenda.first_due(), first_due);
                prop_assert_eq!(agenda.waiting_for("https://ca"), waiting_for_ca);
            }
        }
    });
}

/// The certificates whose phases are shown, and the most of them at once.
#[derive(Default)]
struct Shown(std::sync::Mutex<(BTreeSet<Lineage>, usize)>);

impl crate::manage::Progress for Shown {
    fn phase(&self, lineage: &Lineage, _: &str) {
        let mut shown = self.0.lock().unwrap();
        shown.0.insert(lineage.clone());
        shown.1 = shown.1.max(shown.0.len());
    }

    fn ended(&self, lineage: &Lineage) {
        self.0.lock().unwrap().0.remove(lineage);
    }
}

#[tokio::test]
async fn phases_of_a_pass_that_has_ended_are_shown_no_more() {
    let shown = Arc::new(Shown::default());
    let mut fixture = Fixture::new();
    fixture.services.progress = Some(shown.clone());
    let handle = fixture.start(&["a.example.com".to_owned()]).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    fixture.settle(&handle, 1).await;
    let shown = shown.0.lock().unwrap();
    assert_eq!((shown.0.len(), shown.1), (0, 1));
}
