// SPDX-License-Identifier: GPL-2.0

//! Splits a line into words, and parses single words: times, pools, addresses. Errors say what was expected.

use std::net::IpAddr;
use std::time::Duration;

use crate::ic::kvp;
use crate::service::Service;

/// The pools, in the order of their numbers.
const POOLS: [&str; 5] = [
    "external",
    "guest",
    "auto",
    "auto-external",
    "auto-internal",
];

/// The last port of a guest. The next number stands for any port.
pub(super) const LAST_PORT: u32 = u32::MAX - 1;

/// The longest time in a command, in seconds.
const LONGEST: u64 = 366 * 86400;

/// Splits a line into words. Quotes keep blanks, and a `#` begins a comment.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for next in line.chars() {
        match quote {
            Some(mark) if next == mark => quote = None,
            Some(_) => word.get_or_insert_default().push(next),
            None if next == '"' || next == '\'' => {
                quote = Some(next);
                word.get_or_insert_default();
            }
            None if next.is_whitespace() => words.extend(word.take()),
            None if next == '#' && word.is_none() => break,
            None => word.get_or_insert_default().push(next),
        }
    }
    match quote {
        Some(mark) => Err(format!("a closing {mark}")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

/// A service by its name.
pub(super) fn service(word: &str) -> Result<Service, String> {
    let found = Service::INTEGRATION
        .into_iter()
        .find(|it| it.name() == word);
    found.ok_or_else(|| {
        let names = Service::INTEGRATION.map(Service::name).join(", ");
        format!("a service ({names}), not {word:?}")
    })
}

/// A pool by its name or number.
pub(super) fn pool(word: &str) -> Result<u8, String> {
    let number = POOLS.iter().position(|name| *name == word);
    let number = number.or_else(|| digits(word).filter(|number| *number < POOLS.len()));
    number.map(|number| number as u8).ok_or_else(|| {
        let names = POOLS.join(", ");
        format!("a pool ({names}, or 0 to 4), not {word:?}")
    })
}

/// The name of a pool.
pub(super) fn pool_name(pool: u8) -> &'static str {
    POOLS.get(usize::from(pool)).unwrap_or(&"unknown")
}

/// A number of digits alone: no sign.
fn digits<T: std::str::FromStr>(word: &str) -> Option<T> {
    let is_digits = word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|_| is_digits)
}

/// A text that fits this many bytes of UTF-16, its NUL included.
pub(super) fn text(what: &str, word: &str, bytes: usize) -> Result<String, String> {
    let most = bytes / 2 - 1;
    match word.encode_utf16().count() {
        0 => Err(format!("a {what}, not an empty text")),
        _ if word.contains('\0') => Err(format!("a {what} without NUL")),
        length if length > most => Err(format!(
            "a {what} of at most {most} UTF-16 units, not {length}"
        )),
        _ => Ok(word.to_owned()),
    }
}

/// A key of data exchange.
pub(super) fn key(word: &str) -> Result<String, String> {
    text("key", word, kvp::value::KEY_MAX)
}

/// A value of data exchange, which may be empty.
pub(super) fn value(word: &str) -> Result<String, String> {
    match word.is_empty() {
        true => Ok(String::new()),
        false => text("value", word, kvp::value::VALUE_MAX),
    }
}

/// A number in a range.
pub(super) fn number(word: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = digits(word);
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("a number from {least} to {most}, not {word:?}"))
}

/// A time, such as `90`, `90s`, `20m`, `1h`, `2d`.
pub(super) fn time(word: &str) -> Result<Duration, String> {
    let wrong = || format!("a time, such as 90s, 20m, 1h or 2d, not {word:?}");
    let (number, unit) = match word.char_indices().last() {
        Some((at, 's')) => (&word[..at], 1),
        Some((at, 'm')) => (&word[..at], 60),
        Some((at, 'h')) => (&word[..at], 3600),
        Some((at, 'd')) => (&word[..at], 86400),
        _ => (word, 1),
    };
    let count: u64 = digits(number).ok_or_else(wrong)?;
    match count
        .checked_mul(unit)
        .filter(|seconds| *seconds <= LONGEST)
    {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err(format!("a time of at most a year, not {word:?}")),
    }
}

/// A step of the clock in seconds, such as `+1h` or `-90s`.
pub(super) fn step(word: &str) -> Result<i64, String> {
    let wrong = || format!("a step of the clock, such as +1h or -90s, not {word:?}");
    let (sign, rest) = match word.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(wrong()),
    };
    let size = time(rest).map_err(|_| wrong())?;
    Ok(sign * size.as_secs() as i64)
}

/// A MAC address, in the form of a host's messages.
pub(super) fn mac(word: &str) -> Result<String, String> {
    let parts: Vec<&str> = word.split([':', '-']).collect();
    let is_byte =
        |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    match parts.len() == 6 && parts.iter().all(is_byte) {
        true => Ok(parts.join(":").to_uppercase()),
        false => Err(format!(
            "a MAC address, such as 00:15:5D:01:02:03, not {word:?}"
        )),
    }
}

/// An adapter's id, in the form of a host's messages.
pub(super) fn adapter(word: &str) -> Result<String, String> {
    let inner = word
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let lengths = |text: &str| text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let is_hex = |text: &str| text.chars().all(|it| it == '-' || it.is_ascii_hexdigit());
    match inner {
        Some(text) if lengths(text) && is_hex(text) => Ok(word.to_owned()),
        _ => Err(format!(
            "an adapter's id, such as {{f8615163-df3e-46c5-913f-f2d2f965ed0e}}, not {word:?}"
        )),
    }
}

/// An address.
pub(super) fn address(word: &str) -> Result<IpAddr, String> {
    word.parse()
        .map_err(|_| format!("an IP address, not {word:?}"))
}

/// An address with the length of its prefix.
pub(super) fn subnet(word: &str) -> Result<(IpAddr, u8), String> {
    let wrong =
        || format!("dhcp, or an address with its prefix length, such as 10.0.0.2/24, not {word:?}");
    let (first, length) = word.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = first.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = digits(length).filter(|length| *length <= most);
    Ok((address, length.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_words() {
        let words = |line| split(line).unwrap();
        assert_eq!(words("  a  b "), ["a", "b"]);
        assert_eq!(
            words("kvp set 'a b' \"\" c#d # e"),
            ["kvp", "set", "a b", "", "c#d"]
        );
        assert_eq!(words("# nothing"), [""; 0]);
        assert_eq!(split("a 'b"), Err("a closing '".to_owned()));
    }

    #[test]
    fn times_have_units() {
        let seconds = |word| time(word).map(|time| time.as_secs());
        for (word, expected) in [("0", 0), ("90", 90), ("2s", 2), ("20m", 1200), ("1h", 3600)] {
            assert_eq!(seconds(word), Ok(expected));
        }
        for word in [
            "",
            "h",
            "-1",
            "1w",
            "+1",
            "1.5",
            "99999999999999999999",
            "ä",
            "367d",
        ] {
            assert!(seconds(word).is_err(), "{word}");
        }
        assert_eq!((step("+1h"), step("-90")), (Ok(3600), Ok(-90)));
        for word in ["1h", "", "+", "+-1", "ä1"] {
            assert!(step(word).unwrap_err().starts_with("a step"), "{word}");
        }
    }

    #[test]
    fn pools_have_names_and_numbers() {
        assert_eq!(
            (pool("external"), pool("auto-internal"), pool("1")),
            (Ok(0), Ok(4), Ok(1))
        );
        for word in ["5", "-1", "+1", "Auto", ""] {
            assert!(pool(word).is_err(), "{word}");
        }
        assert_eq!(pool_name(3), "auto-external");
    }

    #[test]
    fn texts_fit_their_fields() {
        assert!(key(&"k".repeat(255)).is_ok());
        assert!(key(&"k".repeat(256)).is_err());
        assert!(key("").is_err());
        assert!(key("a\0b").is_err());
        assert!(value(&"😀".repeat(511)).is_ok());
        assert!(value(&"😀".repeat(512)).is_err());
        assert_eq!(value(""), Ok(String::new()));
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(mac("00-15-5d-01-02-0a").as_deref(), Ok("00:15:5D:01:02:0A"));
        assert!(mac("00:15:5d:01:02").is_err());
        assert!(mac("00:15:5d:01:02:+3").is_err());
        assert!(adapter("{f8615163-df3e-46c5-913f-f2d2f965ed0e}").is_ok());
        assert!(adapter("f8615163-df3e-46c5-913f-f2d2f965ed0e").is_err());
        assert_eq!(subnet("10.0.0.2/24"), Ok(("10.0.0.2".parse().unwrap(), 24)));
        for word in [
            "10.0.0.2",
            "10.0.0.2/33",
            "10.0.0.2/+8",
            "fd00::1/129",
            "x/1",
        ] {
            assert!(subnet(word).is_err(), "{word}");
        }
        assert!(address("10.0.0").is_err());
    }
}
