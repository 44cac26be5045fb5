// SPDX-License-Identifier: GPL-2.0

//! Checks that `Documentation/scenarios.rst` quotes the scenarios, their flags and `explain` as they are.

use crate::runner;

const PAGE: &str = include_str!("../../Documentation/scenarios.rst");

/// Precedes a block of the page. The source of the block follows.
const QUOTED: &str = ".. quoted: ";

/// The quoted blocks of the page, each with its source and without its indentation.
fn blocks() -> Vec<(&'static str, String)> {
    let quotes = PAGE.split(QUOTED).skip(1);
    let block = |quote: &'static str| {
        let mut lines = quote.lines();
        let source = lines.next().unwrap_or_default();
        // The directive and an empty line.
        let block = lines.skip(2);
        let block = block.take_while(|line| line.is_empty() || line.starts_with("    "));
        let block: Vec<&str> = block
            .map(|line| line.get(4..).unwrap_or_default())
            .collect();
        (source, block.join("\n").trim_end().to_owned())
    };
    quotes.map(block).collect()
}

/// Rust code without comments.
fn code(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Text with single spaces.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_page_has_the_code_of_the_scenarios() {
    let sources = [
        ("tests/scenarios/heartbeat.rs", include_str!("heartbeat.rs")),
        ("tests/scenarios/kvp.rs", include_str!("kvp.rs")),
        ("tests/scenarios/removal.rs", include_str!("removal.rs")),
    ];
    for (name, source) in sources {
        let source = code(source);
        let blocks = blocks();
        let mut quotes = blocks.iter().filter(|(from, _)| *from == name);
        let (_, quote) = quotes.next().expect(name);
        // Functions and lines of tables have empty lines between them.
        for part in quote.split("\n\n") {
            assert!(source.contains(part), "{name} does not have:\n{part}");
        }
    }
}

#[test]
fn the_page_has_the_output_of_explain() {
    let blocks = blocks();
    let explained = blocks
        .iter()
        .filter_map(|(source, block)| Some((source.strip_prefix("explain ")?, block)));
    let mut count = 0;
    for (name, block) in explained {
        count += 1;
        let text = runner::explain(&crate::all(), name).unwrap();
        assert_eq!(*block, text.trim_end(), "explain {name} prints:\n{text}");
    }
    assert!(count > 0);
}

#[test]
fn the_page_has_each_flag() {
    let page = words(PAGE);
    for scenario in crate::all() {
        for (flag, meaning) in scenario.flags() {
            let name = flag.split('(').next().unwrap_or_default();
            let entry = format!("``{name}`` {meaning}");
            assert!(page.contains(&entry), "the page does not have: {entry}");
        }
    }
}
