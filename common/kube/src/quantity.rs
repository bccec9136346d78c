//! Resource quantities (`500m`, `64Mi`, `1e3`), as the Kubernetes API writes them.
//!
//! Source of the behaviour: k8s.io/apimachinery resource.Quantity. Values are kept exactly, in units of 10^-9 (the
//! API's smallest, nano), in an i128; anything finer is rounded up, as upstream does.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;

/// How a quantity was written, and so how it is printed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `1500`, `1500m`, `2k`
    DecimalSi,
    /// `64Mi`
    BinarySi,
    /// `1e3`
    DecimalExponent,
}

/// An exact amount with the notation it was written in. Equality and order compare the amount only.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid quantity {text:?}: {reason}")]
pub struct ParseError {
    text: String,
    reason: &'static str,
}

impl Quantity {
    /// An amount in whole units.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format }
    }

    /// An amount in thousandths (`cpu` is counted in these).
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Parses `text`.
    ///
    /// # Errors
    /// The text is empty, has an unknown suffix, or is beyond what 128 bits of nano-units hold.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse(text).map_err(|reason| ParseError { text: text.to_owned(), reason })
    }

    /// Whole units, rounded up (away from zero), clamped to i64.
    pub fn value(&self) -> i64 {
        clamp(div_away(self.nanos, NANO))
    }

    /// Thousandths, rounded up (away from zero), clamped to i64.
    pub fn milli_value(&self) -> i64 {
        clamp(div_away(self.nanos, NANO / 1000))
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// The sum, in `self`'s notation (or the other's where `self` is zero); saturates.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    /// The difference, in `self`'s notation; saturates.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), format: self.format }
    }

    /// The notation it was written in.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        Self::parse(s)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.nanos % NANO == 0 && (self.nanos / NANO).abs() >= 1024 {
            let mut n = self.nanos / NANO;
            let mut suffix = "";
            for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                if n % 1024 != 0 {
                    break;
                }
                n /= 1024;
                suffix = next;
            }
            return write!(f, "{n}{suffix}");
        }
        let mut n = self.nanos;
        let mut power = -9;
        while power < 18 && n % 1000 == 0 {
            n /= 1000;
            power += 3;
        }
        match (self.format, power) {
            (_, 0) => write!(f, "{n}"),
            (Format::DecimalExponent, p) => write!(f, "{n}e{p}"),
            (_, p) => write!(f, "{n}{}", SI.iter().find(|(_, q)| *q == p).map_or("", |(s, _)| s)),
        }
    }
}

const SI: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

fn parse(text: &str) -> Result<Quantity, &'static str> {
    const TOO_LARGE: &str = "the number is too large";
    let (negative, body) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
        None => return Err("the text is empty"),
    };
    let digits_end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (number, suffix) = body.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return Err("it must start with a number");
    }
    let (format, multiplier, power) = suffix_of(suffix)?;
    let fraction = &fraction[..fraction.len().min(30)];
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa.checked_mul(10).and_then(|m| m.checked_add(i128::from(digit - b'0'))).ok_or(TOO_LARGE)?;
    }
    let mut nanos = mantissa.checked_mul(multiplier).ok_or(TOO_LARGE)?;
    let scale = power + 9 - i32::try_from(fraction.len()).unwrap_or(0);
    if scale >= 0 {
        for _ in 0..scale {
            if nanos == 0 {
                break;
            }
            nanos = nanos.checked_mul(10).ok_or(TOO_LARGE)?;
        }
    } else {
        let divisor = u32::try_from(-scale).ok().and_then(|e| 10_i128.checked_pow(e));
        nanos = divisor.map_or(i128::from(nanos != 0), |d| div_away(nanos, d));
    }
    Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
}

fn suffix_of(suffix: &str) -> Result<(Format, i128, i32), &'static str> {
    if let Some((_, power)) = SI.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, 1, *power));
    }
    if let Some(index) = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|s| *s == suffix) {
        return Ok((Format::BinarySi, 1 << (10 * (index + 1)), 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or("unknown suffix")?;
    let exponent: i32 = exponent.parse().map_err(|_| "unknown suffix")?;
    if exponent.abs() > 30 {
        return Err("the exponent is out of range");
    }
    Ok((Format::DecimalExponent, 1, exponent))
}

fn div_away(n: i128, d: i128) -> i128 {
    let q = n / d;
    if n % d == 0 { q } else { q + n.signum() }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_those_of_upstream() {
        for (text, value, milli, canonical) in [
            ("0", 0, 0, "0"),
            ("100m", 1, 100, "100m"),
            ("0.5", 1, 500, "500m"),
            ("1.5", 2, 1500, "1500m"),
            ("1000m", 1, 1000, "1"),
            ("1500", 1500, 1_500_000, "1500"),
            ("2000", 2000, 2_000_000, "2k"),
            ("64Mi", 67_108_864, 67_108_864_000, "64Mi"),
            ("1024Ki", 1_048_576, 1_048_576_000, "1Mi"),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000, "1536Mi"),
            ("1e3", 1000, 1_000_000, "1e3"),
            ("12E", 12_000_000_000_000_000_000_i128 as i64 & i64::MAX, i64::MAX, "12E"),
            ("-1", -1, -1000, "-1"),
            ("1n", 1, 1, "1n"),
            ("0.1n", 1, 1, "1n"),
        ] {
            let q = Quantity::parse(text).unwrap();
            if text != "12E" {
                assert_eq!(q.value(), value, "{text}");
            }
            assert_eq!(q.milli_value(), milli, "{text}");
            assert_eq!(q.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_its_text() {
        for text in ["", "-", "m", "1.2.3", "1mi", "1 Mi", "1e999", "abc", "99999999999999999999999999999999999E"] {
            let error = Quantity::parse(text).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_parses_back_to_the_same_amount(n in any::<i64>(), binary in any::<bool>()) {
            let format = if binary { Format::BinarySi } else { Format::DecimalSi };
            let q = Quantity::from_value(n, format);
            prop_assert_eq!(Quantity::parse(&q.to_string()).unwrap(), q);
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = Quantity::parse(&text);
        }
    }
}
