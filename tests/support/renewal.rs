//! One renewal (or first issuance) that is disturbed and then left to finish: the live pair meanwhile, and
//! the number of requests to the CA.

use super::embedded::EmbeddedCa;
use super::faults::Endpoint;
use super::oracle::{Oracle, Pair};
use super::text;

/// The state of a renewal before its first run.
pub(crate) struct Renewal<'a> {
    ca: &'a EmbeddedCa,
    oracle: Oracle,
    names: &'a [&'a str],
    case: String,
    before: Option<Pair>,
    counts: Counts,
    /// The counts at the start of the last run.
    last: Counts,
    /// Orders whose URL was lost with the CA's reply.
    lost_urls: u32,
}

/// The orders and certificates that the CA was asked for.
#[derive(Clone, Copy)]
struct Counts {
    orders: u32,
    certificates: u32,
    /// Orders that became invalid because the CA validated while the listener was dead.
    invalid_orders: u32,
}

/// The number of orders, where one is allowed, and the reasons for more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    pub(crate) placed: u32,
    pub(crate) lost_urls: u32,
    pub(crate) invalid_orders: u32,
}

impl<'a> Renewal<'a> {
    pub(crate) fn begin(ca: &'a EmbeddedCa, names: &'a [&'a str], case: String) -> Self {
        let oracle = Oracle::new(&ca.path(""), names);
        Self {
            before: oracle.live().unwrap(),
            counts: Counts::of(ca),
            last: Counts::of(ca),
            ca,
            oracle,
            names,
            case,
            lost_urls: 0,
        }
    }

    /// Asserts after an unsuccessful run that the previous pair is live, byte for byte, or the whole next
    /// one.
    pub(crate) fn is_whole(&mut self) {
        let case = &self.case;
        let live = self.oracle.live();
        let live = live.unwrap_or_else(|why| panic!("{case}: {why}"));
        if let Some(before) = &self.before {
            let live = live.unwrap_or_else(|| panic!("{case}: nothing is live"));
            let step = live.generation.0 - before.generation.0;
            assert!(step == 1 || live == *before, "{case}: {live:?}");
        }
        self.count_lost_url();
    }

    /// Counts an order whose URL is lost, since the run ended between the CA's reply and its storage.
    fn count_lost_url(&mut self) {
        let case = &self.case;
        let record = self.oracle.record();
        let record = record.unwrap_or_else(|why| panic!("{case}: {why}"));
        let order = record.and_then(|record| record.order);
        let known = order.and_then(|order| order.url);
        let now = Counts::of(self.ca);
        let newest = self.ca.script.unfollowed_order();
        if now.orders > self.last.orders && newest.is_some() && newest != known {
            self.lost_urls += 1;
        }
        self.last = now;
    }

    /// Lets it finish: exit 0, everything settled, one order and at most one certificate.
    pub(crate) fn finish(self) -> Orders {
        let mut command = self.ca.issue(self.names);
        self.finish_by(|case| {
            let output = command.output().unwrap();
            let printed = text(&output);
            assert_eq!(output.status.code(), Some(0), "after {case}: {printed}");
            printed
        })
    }

    /// The same with `finish` in place of the command; it returns the output.
    pub(crate) fn finish_by(self, finish: impl FnOnce(&str) -> String) -> Orders {
        let case = &self.case;
        let printed = finish(case);
        let after = self.oracle.settled();
        let after = after.unwrap_or_else(|why| panic!("after {case}: {why}: {printed}"));
        let (now, before) = (Counts::of(self.ca), self.counts);
        let orders = Orders {
            placed: now.orders - before.orders,
            lost_urls: self.lost_urls,
            invalid_orders: now.invalid_orders - before.invalid_orders,
        };
        let allowed = 1 + orders.lost_urls + orders.invalid_orders;
        assert!(orders.placed <= allowed, "{case}: {orders:?}: {printed}");
        let certificates = now.certificates - before.certificates;
        assert!(certificates <= 1, "{case}: {certificates} certificates");
        // The ordered certificate is live, and nothing else is new.
        let renewed = self.before.as_ref() != Some(&after);
        assert_eq!(renewed, orders.placed > 0, "{case}: {printed}");
        assert_eq!(renewed, certificates == 1, "{case}: {printed}");
        orders
    }
}

impl Counts {
    fn of(ca: &EmbeddedCa) -> Self {
        let script = &ca.script;
        Self {
            orders: script.committed(Endpoint::NewOrder),
            certificates: script.committed(Endpoint::Finalize),
            invalid_orders: script.invalid_orders(),
        }
    }
}
