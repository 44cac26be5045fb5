// SPDX-License-Identifier: GPL-2.0

//! A plot as SVG, by nothing but `std`.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const LABELS: f64 = 180.0;
const LINE: f64 = 24.0;
const HEAD: f64 = 36.0;

/// What a bar is of: its name, and this module's figure and its peer's.
type Row<'a> = (&'a str, u64, u64);

/// Under each title one bar for each row, as long as this module's part of its peer's figure, beside a line at 1. What
/// the peer has none of gets no bar.
pub fn bars(parts: &[(&str, Vec<Row<'_>>)]) -> String {
    let ratio = |&(name, ours, theirs): &Row<'_>| {
        (theirs > 0).then(|| (name.to_owned(), ours as f64 / theirs as f64))
    };
    let parts: Vec<(_, Vec<_>)> = parts
        .iter()
        .map(|(title, rows)| (title, rows.iter().filter_map(ratio).collect()))
        .collect();
    let ratios = || parts.iter().flat_map(|(_, ratios)| ratios);
    let largest = ratios().fold(1.0_f64, |most, (_, ratio)| most.max(*ratio));
    let scale = (WIDTH - LABELS - 60.0) / largest;
    let height = HEAD * parts.len() as f64 + LINE * ratios().count() as f64 + 12.0;
    let one = LABELS + scale;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = 0.0;
    for (title, ratios) in &parts {
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\">{title}: this module, as a share of C's</text>",
            top + 20.0
        );
        top += HEAD;
        for (name, ratio) in ratios {
            let colour = if *ratio <= 1.0 { "#2a7f62" } else { "#b5532a" };
            let (length, base) = (ratio * scale, top + 15.0);
            let _ = writeln!(
                svg,
                "<text x=\"8\" y=\"{base}\">{name}</text>\
                 <rect x=\"{LABELS}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{base}\">{ratio:.2}</text>",
                LABELS + length + 6.0
            );
            top += LINE;
        }
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>\n</svg>",
        HEAD - 6.0,
        height - 6.0
    );
    svg
}
