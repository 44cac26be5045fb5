// SPDX-License-Identifier: GPL-2.0

//! A plot as SVG, by nothing but `std`.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const LABELS: f64 = 180.0;
const LINE: f64 = 24.0;
const HEAD: f64 = 36.0;

/// One bar for each name, as long as its ratio, beside a line at 1.
pub fn bars(ratios: &[(&str, f64)]) -> String {
    let largest = ratios
        .iter()
        .fold(1.0_f64, |most, (_, ratio)| most.max(*ratio));
    let scale = (WIDTH - LABELS - 60.0) / largest;
    let height = HEAD + LINE * ratios.len() as f64 + 12.0;
    let one = LABELS + scale;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\">instructions of the guest: this module, as a share of C's</text>\n"
    );
    for (index, (name, ratio)) in ratios.iter().enumerate() {
        let top = HEAD + LINE * index as f64;
        let colour = if *ratio <= 1.0 { "#2a7f62" } else { "#b5532a" };
        let (length, base) = (ratio * scale, top + 15.0);
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{base}\">{name}</text>\
             <rect x=\"{LABELS}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{base}\">{ratio:.2}</text>",
            LABELS + length + 6.0
        );
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>\n</svg>",
        HEAD - 6.0,
        height - 6.0
    );
    svg
}
