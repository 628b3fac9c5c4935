//! Exact numbers: `19.99` is 19.99, on every machine.

use std::fmt;

/// A decimal number, held as a multiple of 10⁻¹⁸ between ±1.7·10²⁰: every 64-bit integer, every
/// amount of money. What lies beyond is no `Decimal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal(i128);

const PLACES: usize = 18;
const ONE: i128 = 10_i128.pow(18);

impl Decimal {
    /// The shortest decimal that reads back as `number`: what its JSON said, if it said at most 17 digits.
    #[must_use]
    pub fn from_f64(number: f64) -> Option<Self> {
        let mut digits = Digits::default();
        fmt::Write::write_fmt(&mut digits, format_args!("{number}")).ok()?;
        digits.finish()
    }

    /// Reads `-12` or `19.99`; none if it is written otherwise or lies beyond.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = Digits::default();
        fmt::Write::write_str(&mut digits, text).ok()?;
        digits.finish()
    }
}

impl From<i64> for Decimal {
    fn from(number: i64) -> Self {
        Self(i128::from(number) * ONE)
    }
}

impl From<u64> for Decimal {
    fn from(number: u64) -> Self {
        // 2⁶⁴·10¹⁸ is a tenth of what an i128 holds.
        Self(i128::from(number) * ONE)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) =
            (self.0.unsigned_abs() / ONE.unsigned_abs(), self.0.unsigned_abs() % ONE.unsigned_abs());
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{whole}")?;
        if fraction == 0 { Ok(()) } else { write!(f, ".{}", format!("{fraction:018}").trim_end_matches('0')) }
    }
}

/// Takes in a number as it is written, piece by piece, so that an `f64` needs no buffer on the heap.
#[derive(Default)]
struct Digits {
    negative: bool,
    units: i128,
    whole: usize,
    places: Option<usize>,
}

impl Digits {
    fn push(&mut self, byte: u8) -> Option<()> {
        match byte {
            b'-' if !self.negative && self.whole == 0 && self.places.is_none() => self.negative = true,
            b'.' if self.whole > 0 && self.places.is_none() => self.places = Some(0),
            b'0'..=b'9' => {
                match &mut self.places {
                    None => self.whole += 1,
                    Some(places) if *places < PLACES => *places += 1,
                    Some(_) => return None,
                }
                self.units = self.units.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
            }
            _ => return None,
        }
        Some(())
    }

    fn finish(self) -> Option<Decimal> {
        if self.whole == 0 || self.places == Some(0) {
            return None;
        }
        let missing = u32::try_from(PLACES - self.places.unwrap_or(0)).ok()?;
        let units = self.units.checked_mul(10_i128.checked_pow(missing)?)?;
        Some(Decimal(if self.negative { -units } else { units }))
    }
}

impl fmt::Write for Digits {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().try_for_each(|byte| self.push(byte)).ok_or(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_and_print_as_they_are() {
        for (text, printed) in [
            ("0", Some("0")),
            ("-0", Some("0")),
            ("007", Some("7")),
            ("19.990", Some("19.99")),
            ("-0.000000000000000001", Some("-0.000000000000000001")),
            ("18446744073709551615", Some("18446744073709551615")),
            ("170141183460469231731", Some("170141183460469231731")),
            ("170141183460469231732", None),
            ("0.0000000000000000001", None),
            ("1.", None),
            (".5", None),
            ("", None),
            ("-", None),
            ("1e5", None),
            ("--1", None),
            ("1-1", None),
        ] {
            assert_eq!(Decimal::parse(text).map(|number| number.to_string()).as_deref(), printed, "{text}");
        }
        assert!(Decimal::parse("-2") < Decimal::parse("-1.5"));
        assert_eq!(Decimal::parse("18446744073709551615"), Some(Decimal::from(u64::MAX)));
        assert_eq!(Decimal::parse("-9223372036854775808"), Some(Decimal::from(i64::MIN)));
    }

    #[test]
    fn a_float_is_what_its_json_said() {
        for (float, printed) in [
            (0.1, Some("0.1")),
            (19.99, Some("19.99")),
            (-1.0, Some("-1")),
            (1e-18, Some("0.000000000000000001")),
            (1e20, Some("100000000000000000000")),
            (1e-19, None),
            (1e300, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(Decimal::from_f64(float).map(|number| number.to_string()).as_deref(), printed, "{float}");
        }
    }
}
