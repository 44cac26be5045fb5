// SPDX-License-Identifier: GPL-2.0

//! A plot as SVG, with `std` alone.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const LABELS: f64 = 180.0;
const LINE: f64 = 24.0;
const HEAD: f64 = 36.0;

/// Distance of a label from its bar, and from the line at 1.
const GAP: f64 = 6.0;
/// Maximum width of a label: four characters of this font.
const LABEL: f64 = 34.0;

/// The data of a bar: its name, this module's figure, and the peer's figure.
type Row<'a> = (&'a str, f64, f64);

/// The scale of the plot: the length of a ratio of 1.
struct Scale(f64);

impl Scale {
    /// With this scale the longest bar and its label fill the width. A label that moves beyond the line at 1 has room.
    fn new(largest: f64) -> Self {
        Self((WIDTH - LABELS - LABEL - 3.0 * GAP) / largest.max(1.0))
    }

    /// The place of the line at 1.
    fn one(&self) -> f64 {
        LABELS + self.0
    }

    fn length(&self, ratio: f64) -> f64 {
        ratio * self.0
    }

    /// The start of a bar's label: behind the bar. If the label would touch the line at 1, behind the line.
    fn label(&self, ratio: f64) -> f64 {
        let (at, one) = (LABELS + self.length(ratio) + GAP, self.one());
        match at < one + GAP && at + LABEL + GAP > one {
            true => one + GAP,
            false => at,
        }
    }
}

/// Draws a title for each part, a bar for each row, and a line at 1. A bar's length is the ratio of this module's
/// figure to its peer's. A row in which the peer's figure is zero has no bar.
pub fn bars(parts: &[(&str, Vec<Row<'_>>)]) -> String {
    let ratio =
        |&(name, ours, theirs): &Row<'_>| (theirs > 0.0).then(|| (name.to_owned(), ours / theirs));
    let parts: Vec<(_, Vec<_>)> = parts
        .iter()
        .map(|(title, rows)| (title, rows.iter().filter_map(ratio).collect()))
        .collect();
    let ratios = || parts.iter().flat_map(|(_, ratios)| ratios);
    let scale = Scale::new(ratios().fold(1.0, |most, (_, ratio)| most.max(*ratio)));
    let height = HEAD * parts.len() as f64 + LINE * ratios().count() as f64 + 12.0;
    let one = scale.one();
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
        // The line does not cross the titles.
        let (first, last) = (top - 4.0, top + LINE * ratios.len() as f64 - 2.0);
        for (name, ratio) in ratios {
            let colour = if *ratio <= 1.0 { "#2a7f62" } else { "#b5532a" };
            let (length, base) = (scale.length(*ratio), top + 15.0);
            let _ = writeln!(
                svg,
                "<text x=\"8\" y=\"{base}\">{name}</text>\
                 <rect x=\"{LABELS}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{base}\">{ratio:.2}</text>",
                scale.label(*ratio)
            );
            top += LINE;
        }
        let _ = writeln!(
            svg,
            "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{first}\" y2=\"{last}\" stroke=\"black\" \
             stroke-dasharray=\"4 3\"/>"
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_clear_of_the_line() {
        for largest in [1.0, 1.6, 2.9, 10.0] {
            let scale = Scale::new(largest);
            let one = scale.one();
            for ratio in (0..=1000).map(|step| largest * f64::from(step) / 1000.0) {
                let (label, bar) = (scale.label(ratio), LABELS + scale.length(ratio));
                assert!(
                    label > bar,
                    "{ratio} of {largest}: the bar covers its label"
                );
                assert!(label + LABEL < WIDTH, "{ratio} of {largest}: cut off");
                assert!(
                    label + LABEL < one || label > one,
                    "{ratio} of {largest}: the line crosses {label}"
                );
            }
        }
    }

    #[test]
    fn a_bar_for_each_row_that_has_a_ratio() {
        let svg = bars(&[
            ("a", vec![("half", 1.0, 2.0), ("none", 0.0, 0.0)]),
            ("b", vec![("more", 3.0, 2.0)]),
        ]);
        assert!(svg.contains(">half<") && svg.contains(">0.50<"), "{svg}");
        assert!(svg.contains(">more<") && svg.contains(">1.50<"), "{svg}");
        assert!(!svg.contains("none"), "{svg}");
        assert_eq!(svg.matches("<line").count(), 2);
    }
}
