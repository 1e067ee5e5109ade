//! One renewal (or first issuance) that is disturbed, and then left alone: what
//! is live meanwhile, and how often the CA was asked for what.

use super::embedded::EmbeddedCa;
use super::faults::Endpoint;
use super::oracle::{Oracle, Pair};
use super::text;

/// A renewal from before its first run.
pub(crate) struct Renewal<'a> {
    ca: &'a EmbeddedCa,
    oracle: Oracle,
    names: &'a [&'a str],
    case: String,
    before: Option<Pair>,
    asked: [u32; 3],
    /// Orders more than the one, and why.
    excused: Excused,
}

/// Orders that the CA had taken and that nobody could go on with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Excused {
    /// Their URL died with the CA's reply.
    pub(crate) lost_urls: u32,
    /// The CA may have looked for an answer when the listener was dead, and has
    /// given the order up then.
    pub(crate) lost_answers: u32,
}

impl<'a> Renewal<'a> {
    pub(crate) fn begin(ca: &'a EmbeddedCa, names: &'a [&'a str], case: String) -> Self {
        let oracle = Oracle::new(&ca.path(""), names);
        Self {
            before: oracle.live().unwrap(),
            asked: asked(ca),
            ca,
            oracle,
            names,
            case,
            excused: Excused::default(),
        }
    }

    /// After a run that did not end well: the pair of before is live, every
    /// byte of it, or the whole next one.
    pub(crate) fn is_whole(&mut self) {
        let case = &self.case;
        let live = self.oracle.live();
        let live = live.unwrap_or_else(|why| panic!("{case}: {why}"));
        if let Some(before) = &self.before {
            let live = live.unwrap_or_else(|| panic!("{case}: nothing is live"));
            let step = live.generation.0 - before.generation.0;
            assert!(step == 1 || live == *before, "{case}: {live:?}");
        }
        self.excuse();
    }

    fn excuse(&mut self) {
        let case = &self.case;
        let record = self.oracle.record();
        let record = record.unwrap_or_else(|why| panic!("{case}: {why}"));
        let order = record.and_then(|record| record.order);
        let [orders, certificates, challenges] = self.asked();
        let ordered = orders > self.excused.lost_urls + self.excused.lost_answers;
        if ordered && order.as_ref().is_none_or(|order| order.url.is_none()) && certificates == 0 {
            self.excused.lost_urls += 1;
        } else if challenges > 0 && certificates == 0 && order.is_some() {
            self.excused.lost_answers += 1;
        }
    }

    /// Orders, certificates and challenges since it began.
    fn asked(&self) -> [u32; 3] {
        let (now, before) = (asked(self.ca), self.asked);
        [0, 1, 2].map(|index| now[index] - before[index])
    }

    /// Leaves it alone: exit 0, everything settled, one order and never two
    /// certificates. Returns the orders and what excuses more than one.
    pub(crate) fn ends_well(self) -> (u32, Excused) {
        let case = &self.case;
        let output = self.ca.issue(self.names).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(0), "after {case}: {told}");
        let after = self.oracle.settled();
        let after = after.unwrap_or_else(|why| panic!("after {case}: {why}: {told}"));
        let ([orders, certificates, _], excused) = (self.asked(), self.excused);
        let allowed = 1 + excused.lost_urls + excused.lost_answers;
        assert!(
            orders <= allowed,
            "{case}: {orders} orders, {excused:?}: {told}"
        );
        assert!(certificates <= 1, "{case}: {certificates} certificates");
        // What was ordered is used, and nothing else is new.
        let renewed = self.before.as_ref() != Some(&after);
        assert_eq!(renewed, orders > 0, "{case}: {told}");
        assert_eq!(renewed, certificates == 1, "{case}: {told}");
        (orders, excused)
    }
}

fn asked(ca: &EmbeddedCa) -> [u32; 3] {
    let script = &ca.script;
    [
        script.committed(Endpoint::NewOrder),
        script.committed(Endpoint::Finalize),
        script.count(Endpoint::Challenge),
    ]
}
