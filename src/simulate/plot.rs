//! The timeline as an SVG: the shortest remaining lifetime of any served
//! certificate, the orders of each day, and the faults.

use std::fmt::Write;

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
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut svg, score, timeline);
    svg
}

fn write(svg: &mut String, score: &Score, timeline: &Timeline) -> std::fmt::Result {
    let (width, height) = (LEFT * 2 + WIDTH, TOP + UPPER + GAP + LOWER + 50);
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">"##
    )?;
    writeln!(svg, r##"<rect width="100%" height="100%" fill="white"/>"##)?;
    let hours = u64::from(score.days) * 24;
    let x = |hour: u64| LEFT + hour * WIDTH / hours.max(1);
    write_titles(svg, score)?;
    write_events(svg, timeline, x)?;
    write_lifetimes(svg, timeline, x)?;
    write_orders(svg, timeline, x)?;
    write_days(svg, score.days, x)?;
    writeln!(svg, "</svg>")
}

/// The plan and its score, in two lines.
fn write_titles(svg: &mut String, score: &Score) -> std::fmt::Result {
    writeln!(
        svg,
        r##"<text x="{LEFT}" y="24" font-size="16">{} certificates on {} nodes for {} days, seed {}</text>"##,
        score.certificates, score.nodes, score.days, score.seed
    )?;
    writeln!(
        svg,
        r##"<text x="{LEFT}" y="44">{} expired and {} mismatched seconds served, {} orders for {} due renewals, {} needless, {} refused, worst recovery {} s</text>"##,
        score.expired_seconds_served,
        score.mismatched_seconds_served,
        score.orders,
        score.due_renewals,
        score.duplicate_certificates,
        score.ledger_breaches,
        score.worst_recovery_seconds
    )
}

/// The faults, as bars behind both charts.
fn write_events(svg: &mut String, timeline: &Timeline, x: impl Fn(u64) -> u64) -> std::fmt::Result {
    for (index, (begins, ends, name)) in timeline.events.iter().enumerate() {
        let (from, to) = (x(*begins), x(*ends).max(x(*begins) + 1));
        let (wide, tall) = (to - from, UPPER + GAP + LOWER);
        let y = TOP - 4 - 11 * (index as u64 % 3);
        writeln!(
            svg,
            r##"<rect x="{from}" y="{TOP}" width="{wide}" height="{tall}" fill="#d62728" fill-opacity="0.2"><title>{name}</title></rect><text x="{from}" y="{y}" font-size="9" fill="#d62728">{name}</text>"##
        )?;
    }
    Ok(())
}

/// The shortest remaining lifetime, as a line.
fn write_lifetimes(
    svg: &mut String,
    timeline: &Timeline,
    x: impl Fn(u64) -> u64,
) -> std::fmt::Result {
    axis(
        svg,
        TOP,
        UPPER,
        "the least part of a life that was left",
        "100 %",
    )?;
    let samples = timeline.least_left.iter().enumerate();
    let points = samples.map(|(index, left)| {
        let y = TOP + UPPER - u64::from(*left) * UPPER / 1000;
        format!("{},{y}", x((index as u64 + 1) * 6))
    });
    let points: Vec<String> = points.collect();
    writeln!(
        svg,
        r##"<polyline points="{}" fill="none" stroke="#1f77b4"/>"##,
        points.join(" ")
    )
}

/// The orders of each day, as bars.
fn write_orders(svg: &mut String, timeline: &Timeline, x: impl Fn(u64) -> u64) -> std::fmt::Result {
    let (lower, most) = (TOP + UPPER + GAP, timeline.orders.iter().max());
    let most = most.copied().unwrap_or_default().max(1);
    axis(svg, lower, LOWER, "orders a day", &most.to_string())?;
    for (day, orders) in timeline.orders.iter().enumerate() {
        let day = day as u64;
        let (from, tall) = (x(day * 24), orders * LOWER / most);
        let (wide, y) = ((x(day * 24 + 24) - from).max(1), lower + LOWER - tall);
        writeln!(
            svg,
            r##"<rect x="{from}" y="{y}" width="{wide}" height="{tall}" fill="#2ca02c"/>"##
        )?;
    }
    Ok(())
}

/// The labels of the days.
fn write_days(svg: &mut String, days: u32, x: impl Fn(u64) -> u64) -> std::fmt::Result {
    let y = TOP + UPPER + GAP + LOWER + 18;
    for day in (0..=u64::from(days)).step_by(30) {
        let x = x(day * 24);
        writeln!(
            svg,
            r##"<text x="{x}" y="{y}" text-anchor="middle">{day}</text>"##
        )?;
    }
    let y = y + 18;
    writeln!(svg, r##"<text x="{LEFT}" y="{y}">days</text>"##)
}

fn axis(svg: &mut String, top: u64, height: u64, what: &str, most: &str) -> std::fmt::Result {
    let (bottom, right) = (top + height, LEFT + WIDTH);
    let (label, text) = (LEFT - 4, top + 14);
    writeln!(
        svg,
        r##"<path d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="black"/><text x="{label}" y="{text}" text-anchor="end">{most}</text><text x="{label}" y="{bottom}" text-anchor="end">0</text><text x="{}" y="{text}">{what}</text>"##,
        LEFT + 6
    )
}
