//! The timeline as an SVG: the shortest remaining lifetime of any served
//! certificate, the orders of each day, and the faults.

use super::{Score, Timeline};

const WIDTH: u64 = 1000;
const LEFT: u64 = 50;
const TOP: u64 = 90;
const UPPER: u64 = 200;
const GAP: u64 = 40;
const LOWER: u64 = 120;

/// An SVG of `score` and `timeline`.
#[must_use]
pub(crate) fn plot(score: &Score, timeline: &Timeline) -> String {
    let (width, height) = (LEFT * 2 + WIDTH, TOP + UPPER + GAP + LOWER + 50);
    let hours = u64::from(score.plan.days) * 24;
    let x = |hour: u64| LEFT + hour * WIDTH / hours.max(1);
    [
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
"##
        ),
        titles(score),
        events(timeline, x),
        lifetimes(timeline, x),
        orders(timeline, x),
        days(score.plan.days, x),
        "</svg>\n".to_owned(),
    ]
    .concat()
}

/// The plan and its score, in two lines.
fn titles(score: &Score) -> String {
    let plan = &score.plan;
    format!(
        r##"<text x="{LEFT}" y="24" font-size="16">{} certificates on {} nodes for {} days, seed {}</text>
<text x="{LEFT}" y="44">{} expired and {} mismatched seconds served, {} orders for {} due renewals, {} needless, {} refused, worst recovery {} s</text>
"##,
        plan.certificates,
        plan.nodes,
        plan.days,
        plan.seed,
        score.expired_seconds_served,
        score.mismatched_seconds_served,
        score.orders,
        score.due_renewals,
        score.duplicate_certificates,
        score.refused_orders,
        score.worst_recovery_seconds
    )
}

/// The faults, as bars behind both charts.
fn events(timeline: &Timeline, x: impl Fn(u64) -> u64) -> String {
    let bar = |(index, (begins, ends, name)): (usize, &(u64, u64, String))| {
        let (from, to) = (x(*begins), x(*ends).max(x(*begins) + 1));
        let (wide, tall) = (to - from, UPPER + GAP + LOWER);
        let y = TOP - 4 - 11 * (index as u64 % 3);
        format!(
            r##"<rect x="{from}" y="{TOP}" width="{wide}" height="{tall}" fill="#d62728" fill-opacity="0.2"><title>{name}</title></rect><text x="{from}" y="{y}" font-size="9" fill="#d62728">{name}</text>
"##
        )
    };
    timeline.events.iter().enumerate().map(bar).collect()
}

/// The shortest remaining lifetime, as a line.
fn lifetimes(timeline: &Timeline, x: impl Fn(u64) -> u64) -> String {
    let axis = axis(
        TOP,
        UPPER,
        "the least part of a life that was left",
        "100 %",
    );
    let samples = timeline.least_left.iter().enumerate();
    let points = samples.map(|(index, left)| {
        let y = TOP + UPPER - u64::from(*left) * UPPER / 1000;
        format!("{},{y}", x((index as u64 + 1) * 6))
    });
    let points = points.collect::<Vec<_>>().join(" ");
    format!("{axis}<polyline points=\"{points}\" fill=\"none\" stroke=\"#1f77b4\"/>\n")
}

/// The orders of each day, as bars.
fn orders(timeline: &Timeline, x: impl Fn(u64) -> u64) -> String {
    let (lower, most) = (TOP + UPPER + GAP, timeline.orders.iter().max());
    let most = most.copied().unwrap_or_default().max(1);
    let bar = |(day, orders): (u64, &u64)| {
        let (from, tall) = (x(day * 24), orders * LOWER / most);
        let (wide, y) = ((x(day * 24 + 24) - from).max(1), lower + LOWER - tall);
        format!(
            r##"<rect x="{from}" y="{y}" width="{wide}" height="{tall}" fill="#2ca02c"/>
"##
        )
    };
    let bars = (0..).zip(&timeline.orders).map(bar);
    axis(lower, LOWER, "orders a day", &most.to_string()) + &bars.collect::<String>()
}

/// The labels of the days.
fn days(days: u32, x: impl Fn(u64) -> u64) -> String {
    let y = TOP + UPPER + GAP + LOWER + 18;
    let label = |day| {
        let x = x(day * 24);
        format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{day}</text>\n")
    };
    let labels: String = (0..=u64::from(days)).step_by(30).map(label).collect();
    format!("{labels}<text x=\"{LEFT}\" y=\"{}\">days</text>\n", y + 18)
}

fn axis(top: u64, height: u64, what: &str, most: &str) -> String {
    let (bottom, right) = (top + height, LEFT + WIDTH);
    let (label, text, inside) = (LEFT - 4, top + 14, LEFT + 6);
    format!(
        r##"<path d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="black"/><text x="{label}" y="{text}" text-anchor="end">{most}</text><text x="{label}" y="{bottom}" text-anchor="end">0</text><text x="{inside}" y="{text}">{what}</text>
"##
    )
}
