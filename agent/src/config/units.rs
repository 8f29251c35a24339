//! Durations and sizes as people write them: a number and a unit that must be there. It knows nothing of settings.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// A duration setting: `"1s"`, `"250ms"`, `"1.5m"`, `"2h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size setting: `"512MiB"`, `"1GiB"`, `"10GB"`, `"4096B"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let millis = scaled(text, &DURATION_UNITS).ok_or_else(|| {
            format!(
                "`{text}` is not a duration; write a number and one of the units ms, s, m, h, as in \"30s\""
            )
        })?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = scaled(text, &SIZE_UNITS).ok_or_else(|| {
            format!(
                "`{text}` is not a size; write a number and one of the units B, KiB, MiB, GiB, TiB, KB, MB, GB, \
                 TB, as in \"512MiB\""
            )
        })?;
        Ok(Self(bytes))
    }
}

/// `<digits>[.<digits>]<unit>` in the smallest unit, rounded down; `None` where it is not that or does not fit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at_checked(split)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, fraction) = match number.split_once('.') {
        None => (number, ""),
        Some((_, "")) => return None,
        Some(parts) => parts,
    };
    let whole: u64 = whole.parse().ok()?;
    let mut result = u128::from(whole).checked_mul(u128::from(*factor))?;
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().ok()?;
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        result += digits.checked_mul(u128::from(*factor))? / scale;
    }
    u64::try_from(result).ok()
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Shows a number of bytes in the largest binary unit that leaves at least 1: `1.5 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match unit.into_iter().find(|(_, shift)| self.0 >> shift > 0) {
            Some((name, shift)) => write!(f, "{:.1} {name}", self.0 as f64 / (1u64 << shift) as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Shows a duration to about two digits: `850ms`, `12.0s`, `3m 20s`, `2h 05m`.
#[derive(Clone, Copy, Debug)]
pub struct Age(pub Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, millis) = (self.0.as_secs(), self.0.subsec_millis());
        match secs {
            0 => write!(f, "{millis}ms"),
            1..60 => write!(f, "{secs}.{}s", millis / 100),
            60..3600 => write!(f, "{}m {:02}s", secs / 60, secs % 60),
            _ => write!(f, "{}h {:02}m", secs / 3600, secs % 3600 / 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("1s".parse(), Ok(Span(Duration::from_secs(1))));
        assert_eq!("0s".parse(), Ok(Span(Duration::ZERO)));
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("1.5m".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("2 h".parse(), Ok(Span(Duration::from_secs(7200))));
        for bad in ["", "1", "s", "-1s", "1.s", ".5s", "1.2.3s", "1 fortnight", "1S", "99999999999999999999s"]
        {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!("1GiB".parse(), Ok(Size(1 << 30)));
        assert_eq!("1.5KiB".parse(), Ok(Size(1536)));
        assert_eq!("10GB".parse(), Ok(Size(10_000_000_000)));
        assert_eq!("7B".parse(), Ok(Size(7)));
        for bad in ["", "1", "1G", "GiB", "1gib", "-1B", "17000000TiB", "1,5KiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_in_the_largest_unit() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(3 << 40).to_string(), "3.0 TiB");
        assert_eq!(Age(Duration::from_millis(850)).to_string(), "850ms");
        assert_eq!(Age(Duration::from_millis(12_345)).to_string(), "12.3s");
        assert_eq!(Age(Duration::from_secs(200)).to_string(), "3m 20s");
        assert_eq!(Age(Duration::from_secs(7500)).to_string(), "2h 05m");
    }
}
