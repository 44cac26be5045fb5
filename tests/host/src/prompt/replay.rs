// SPDX-License-Identifier: GPL-2.0

//! Sends the host's side of a transcript to a guest, with its timing, and says where the guest's answers differ.
//!
//! Documentation/shell.rst describes the format, which is that of [`crate::transcript`]. Lines that are about a service and
//! have a direction `->` (host) or `<-` (guest) count.
//!
//! An answer must match in its length, in its request's id, and in its text: operation, versions, status, and the service's
//! data. Values of generated pairs and addresses differ from guest to guest, and need not match. Time samples have the time
//! of the replay.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use super::session::Session;
use super::Options;
use crate::bytes::put;
use crate::guest::ChannelHandle;
use crate::guest::Error;
use crate::guest::Result;
use crate::ic::frame;
use crate::ic::frame::Message;
use crate::ic::frame::NEGOTIATE;
use crate::ic::Moment;
use crate::service::Service;

/// How long to wait until the guest opens a channel, or answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to look for packets that answer no request.
const QUIET: Duration = Duration::from_secs(1);

/// A packet has fewer bytes than this: rings are smaller.
const LONGEST: usize = 1 << 20;

/// A packet of the transcript.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// Its line in the file.
    line: usize,
    at: Duration,
    service: Service,
    by_host: bool,
    text: String,
    bytes: Vec<u8>,
}

/// Parses a transcript. The error names the line, and says what was expected there.
fn parse(text: &str) -> std::result::Result<Vec<Said>, String> {
    let mut all = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let said = parse_line(index + 1, line);
        all.extend(said.map_err(|what| format!("line {}: expected {what}", index + 1))?);
    }
    match all.iter().any(|said| said.by_host) {
        true => Ok(all),
        false => Err("expected a line with a packet of the host's".to_owned()),
    }
}

fn parse_line(number: usize, line: &str) -> std::result::Result<Option<Said>, &'static str> {
    let mut words = line.split_whitespace();
    let columns = [words.next(), words.next(), words.next(), words.next()];
    let [Some(seconds), Some(_), Some(topic), Some(direction)] = columns else {
        return match line.trim() {
            "" => Ok(None),
            comment if comment.starts_with('#') => Ok(None),
            _ => Err("SECONDS REFERENCE SERVICE DIRECTION TEXT [BYTES]"),
        };
    };
    let (Ok(service), "->" | "<-") = (topic.parse::<Service>(), direction) else {
        return Ok(None);
    };
    let at = seconds
        .parse()
        .ok()
        .and_then(|it| Duration::try_from_secs_f64(it).ok());
    let rest = line.split_once(direction).map_or("", |(_, rest)| rest);
    let bytes = rest
        .trim_end()
        .strip_suffix(']')
        .and_then(|it| it.rsplit_once('['));
    let (text, bytes) = bytes.ok_or("bytes in hexadecimal in brackets at its end")?;
    Ok(Some(Said {
        line: number,
        at: at.ok_or("a number of seconds at its beginning")?,
        service,
        by_host: direction == "->",
        text: text.trim().to_owned(),
        bytes: parse_bytes(bytes).ok_or(
            "an even number of hexadecimal digits (and fewer than a MiB of bytes) in its brackets",
        )?,
    }))
}

/// Parses bytes in hexadecimal. Zeroes take the place of bytes that were left out.
fn parse_bytes(text: &str) -> Option<Vec<u8>> {
    let (digits, more) = match text.split_once(" and ") {
        Some((digits, more)) => (digits, more.strip_suffix(" bytes")?.parse().ok()?),
        None => (text, 0),
    };
    if more > LONGEST {
        return None;
    }
    let digits: Option<Vec<u8>> = digits
        .chars()
        .map(|digit| digit.to_digit(16).map(|it| it as u8))
        .collect();
    let pairs = digits?;
    let mut bytes: Vec<u8> = pairs
        .chunks(2)
        .map(|pair| (pair[0] << 4) | pair[pair.len() - 1])
        .collect();
    bytes.resize(bytes.len() + more, 0);
    (pairs.len() % 2 == 0).then_some(bytes)
}

/// An answer's text without the parts that differ from guest to guest.
fn normalised(text: &str) -> String {
    let end = text.find(" status 0x").unwrap_or(text.len());
    let (said, status) = text.split_at(end);
    let is_generated = ["pool 2 ", "pool 3 ", "pool 4 "]
        .iter()
        .any(|pool| said.contains(pool));
    let said = match (said.find("_IP_INFO "), said.find(" = ")) {
        (Some(at), _) => &said[..at + 8],
        (None, Some(at)) if is_generated => &said[..at],
        _ => said,
    };
    format!("{said}{status}")
}

/// The host's packet as it is sent now: a time sample has this time.
fn of_now(said: &Said, moment: &Moment) -> Vec<u8> {
    let mut bytes = said.bytes.clone();
    let message = Message::parse(&bytes);
    if let Some(message) = message.filter(|it| it.kind == Service::TimeSync.message_type()) {
        let body = bytes.len() - message.body.len();
        put(&mut bytes, body, &moment.wall.to_le_bytes());
        if message.version >= (4, 0) {
            put(&mut bytes, body + 8, &moment.reference.to_le_bytes());
        }
    }
    bytes
}

/// How an answer differs from the recorded answer, if it does.
fn difference(expected: &Said, got: &[u8]) -> Option<String> {
    let service = expected.service;
    let recorded = match expected.text.as_str() {
        "-" | "" => frame::describe(service, &expected.bytes),
        text => text.to_owned(),
    };
    let (recorded, said) = (
        normalised(&recorded),
        normalised(&frame::describe(service, got)),
    );
    if recorded != said {
        return Some(format!("expected {recorded:?}, the guest says {said:?}"));
    }
    let id = |bytes: &[u8]| Message::parse(bytes).map(|it| it.transaction_id);
    if id(got) != id(&expected.bytes) {
        return Some("the answer has another id than its request".to_owned());
    }
    let lengths = (expected.bytes.len(), got.len());
    (lengths.0 != lengths.1).then(|| {
        format!(
            "expected {} bytes, the guest sends {}",
            lengths.0, lengths.1
        )
    })
}

/// The result for a service.
#[derive(Default)]
struct Tally {
    sent: usize,
    answers: usize,
    differ: usize,
}

/// Replays a file. The exit status says whether all answers match.
pub(super) fn run(options: &Options, file: &Path) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error(format!("{}: {error}", file.display())))?;
    let said = parse(&text).map_err(|what| Error(format!("{}: {what}", file.display())))?;
    let mut services: Vec<Service> = said.iter().map(|it| it.service).collect();
    services.sort();
    services.dedup();
    let mut options = options.clone();
    options.config.services = services.clone();
    let mut session = Session::start_scripted(&options, &services)?;
    let mut tallies: Vec<Tally> = services.iter().map(|_| Tally::default()).collect();
    let replayed = replay(&session, &said, &services, &mut tallies);
    for (service, tally) in services.iter().zip(&tallies) {
        session.say(&format!(
            "{service}: {} packets sent, {} answers as recorded, {} differ",
            tally.sent,
            tally.answers - tally.differ,
            tally.differ
        ));
    }
    let breakdown = session.breakdown();
    session.end();
    if let Some(status) = breakdown {
        return Ok(status);
    }
    replayed?;
    let differs = tallies.iter().any(|tally| tally.differ > 0);
    Ok(if differs {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn replay(
    session: &Session,
    said: &[Said],
    services: &[Service],
    tallies: &mut [Tally],
) -> Result<()> {
    let guest = &session.guest;
    for &service in services {
        guest.wait_bus_within(&format!("{service}: open channel"), PATIENCE, |bus| {
            bus.channel(service)?.open().map(|_| ())
        })?;
    }
    let start = Instant::now();
    let first = said.first().map_or(Duration::ZERO, |it| it.at);
    for packet in said {
        let channel = guest.channel(packet.service);
        let index = services.iter().position(|it| *it == packet.service);
        let Some(tally) = index.map(|index| &mut tallies[index]) else {
            continue;
        };
        if packet.by_host {
            let due = packet.at.saturating_sub(first);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            channel.send_bytes(&of_now(packet, &guest.moment()))?;
            tally.sent += 1;
            continue;
        }
        tally.answers += 1;
        let got = channel.receive_packet_within(PATIENCE);
        let why = match &got {
            Ok(got) => {
                keep_versions(channel, &got.payload)?;
                difference(packet, &got.payload)
            }
            Err(error) => Some(format!(
                "no answer: {}",
                error.0.lines().next().unwrap_or("")
            )),
        };
        if let Some(why) = why {
            tally.differ += 1;
            session.say(&format!("{}, line {}: {why}", packet.service, packet.line));
        }
        if got.is_err() {
            return Ok(());
        }
    }
    if guest.exit().is_some() {
        return Ok(());
    }
    for &service in services {
        if let Err(error) = guest.channel(service).expect_silence(QUIET) {
            session.say(error.0.lines().next().unwrap_or(""));
            if let Some(index) = services.iter().position(|it| *it == service) {
                tallies[index].answers += 1;
                tallies[index].differ += 1;
            }
        }
    }
    Ok(())
}

/// Tells the device the negotiated versions, by which the replay's own transcript decodes messages.
fn keep_versions(channel: ChannelHandle<'_>, payload: &[u8]) -> Result<()> {
    let reply = Message::parse(payload).filter(|it| it.kind == NEGOTIATE);
    if let Some(Ok((framework, message))) = reply.map(|reply| frame::negotiated(&reply)) {
        let versions = crate::ic::device::Versions { framework, message };
        channel.configure(|device| device.set_versions(versions))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        let text = "# a recording\n\n  1.5 150 vmbus <- OPENCHANNEL [05]\n  2.000001 200 kvp -- a note\n\
                    3.25 325 kvp -> negotiate request framework [1.0 3.0] [0a0B]\n4 400 kvp <- - [01 and 2 bytes]\n";
        let said = parse(text).unwrap();
        assert_eq!(said.len(), 2);
        assert_eq!((said[0].line, said[0].at), (5, Duration::from_millis(3250)));
        assert_eq!(said[0].text, "negotiate request framework [1.0 3.0]");
        assert_eq!(
            (said[0].bytes.as_slice(), said[0].by_host),
            (&[10, 11][..], true)
        );
        assert_eq!(
            (said[1].bytes.as_slice(), said[1].text.as_str()),
            (&[1, 0, 0][..], "-")
        );
    }

    #[test]
    fn what_is_no_recording_is_told_where() {
        for (text, line) in [
            ("nonsense", "line 1: expected SECONDS"),
            ("1 1 kvp -> text", "line 1: expected bytes"),
            ("\n1 1 kvp -> text [0]", "line 2: expected an even"),
            ("1 1 kvp -> text [0g]", "line 1: expected an even"),
            (
                "1 1 kvp -> text [00 and 9999999999 bytes]",
                "line 1: expected an even",
            ),
            ("x 1 kvp -> text [00]", "line 1: expected a number"),
            ("1 1 kvp <- text [00]", "expected a line with a packet"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }

    #[test]
    fn what_differs_from_guest_to_guest_is_left_out() {
        for (text, expected) in [
            (
                "kvp reply ENUMERATE pool 2 1 \"A\" = \"b\"",
                "kvp reply ENUMERATE pool 2 1 \"A\"",
            ),
            (
                "kvp reply GET pool 0 \"A\" = \"b\"",
                "kvp reply GET pool 0 \"A\" = \"b\"",
            ),
            (
                "kvp reply GET_IP_INFO \"x\" family 1 status 0x1",
                "kvp reply GET_IP_INFO status 0x1",
            ),
            (
                "heartbeat reply sequence 2 state 0",
                "heartbeat reply sequence 2 state 0",
            ),
        ] {
            assert_eq!(normalised(text), expected);
        }
    }

    #[test]
    fn answers_are_compared() {
        let request = Message::request(1, (3, 0), (3, 0), 7, crate::ic::heartbeat::body(1, 4));
        let mut reply = request.reply(0);
        let said = |message: &Message| Said {
            line: 1,
            at: Duration::ZERO,
            service: Service::Heartbeat,
            by_host: false,
            text: "-".to_owned(),
            bytes: message.encode(),
        };
        let recorded = said(&reply);
        assert_eq!(difference(&recorded, &reply.encode()), None);
        reply.transaction_id = 8;
        assert!(difference(&recorded, &reply.encode())
            .unwrap()
            .contains("another id"));
        reply.transaction_id = 7;
        reply.status = 0x8000_4005;
        assert!(difference(&recorded, &reply.encode())
            .unwrap()
            .contains("status"));
    }
}
