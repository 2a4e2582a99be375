//! Points in time and their RFC 3339 text.

use std::{fmt, time::SystemTime};

const SECONDS_A_DAY: i64 = 86_400;
/// Fractional digits of the seconds in a record.
pub(super) const DIGITS: usize = 6;

/// A point in time from a request, not validated yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds after `seconds`.
    pub nanos: i32,
}

/// A point in time in the years 0001 to 9999, to the nanosecond.
///
/// These are the bounds of `google.protobuf.Timestamp` and of RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

impl Time {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Self = Self {
        seconds: -62_135_596_800,
        nanos: 0,
    };
    /// 9999-12-31T23:59:59.999999999Z.
    pub const MAX: Self = Self {
        seconds: 253_402_300_799,
        nanos: 999_999_999,
    };

    /// Returns `None` outside [`Time::MIN`] to [`Time::MAX`] or if `nanos` is not 0 to
    /// 999,999,999.
    pub fn new(seconds: i64, nanos: i32) -> Option<Self> {
        let nanos = u32::try_from(nanos).ok()?;
        let known = (Self::MIN.seconds..=Self::MAX.seconds).contains(&seconds);
        (known && nanos <= Self::MAX.nanos).then_some(Self { seconds, nanos })
    }

    /// Converts microseconds since 1970-01-01T00:00:00Z, clamped to [`Time::MIN`] to
    /// [`Time::MAX`].
    pub fn from_micros(micros: i64) -> Self {
        let nanos = (micros.rem_euclid(1_000_000) * 1_000) as i32;
        let bound = if micros < 0 { Self::MIN } else { Self::MAX };
        Self::new(micros.div_euclid(1_000_000), nanos).unwrap_or(bound)
    }

    /// Whole microseconds since 1970-01-01T00:00:00Z.
    pub fn micros(self) -> i64 {
        self.seconds * 1_000_000 + i64::from(self.nanos / 1_000)
    }

    /// Seconds since 1970-01-01T00:00:00Z, negative before.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`Time::seconds`], 0 to 999,999,999.
    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// Appends the time in UTC with `Z` and six fractional digits. Nanoseconds are truncated,
    /// so that the text is never later than the time.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        self.write_digits(DIGITS, out);
    }

    /// Appends the time with 0 to 9 fractional digits.
    pub(super) fn write_digits(self, digits: usize, out: &mut Vec<u8>) {
        let (text, length) = self.rfc3339(digits);
        out.extend_from_slice(&text[..length]);
    }

    /// Number of digits of the shortest exact fraction: 0, 3, 6 or 9.
    pub(super) fn exact_digits(self) -> usize {
        if self.nanos == 0 {
            0
        } else if self.nanos.is_multiple_of(1_000_000) {
            3
        } else if self.nanos.is_multiple_of(1_000) {
            6
        } else {
            9
        }
    }

    fn rfc3339(self, fraction: usize) -> ([u8; 30], usize) {
        let (year, month, day) = civil(self.seconds.div_euclid(SECONDS_A_DAY));
        let second = self.seconds.rem_euclid(SECONDS_A_DAY) as u32;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second / 3600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..29], self.nanos);
        let end = rfc3339_length(fraction) - 1;
        text[end] = b'Z';
        (text, end + 1)
    }
}

/// Length of the text of a time with 0 to 9 fractional digits.
pub(super) fn rfc3339_length(digits: usize) -> usize {
    match digits {
        0 => "0000-00-00T00:00:00Z".len(),
        _ => "0000-00-00T00:00:00.Z".len() + digits,
    }
}

/// Clamps times outside the years 0001 to 9999.
impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let (seconds, nanos) = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => (i128::from(after.as_secs()), after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                let whole = -i128::from(before.as_secs());
                match before.subsec_nanos() {
                    0 => (whole, 0),
                    nanos => (whole - 1, 1_000_000_000 - nanos),
                }
            }
        };
        match i64::try_from(seconds) {
            Ok(seconds) if seconds < Self::MIN.seconds => Self::MIN,
            Ok(seconds) if seconds <= Self::MAX.seconds => Self { seconds, nanos },
            _ if seconds < 0 => Self::MIN,
            _ => Self::MAX,
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, length) = self.rfc3339(DIGITS);
        text[..length]
            .iter()
            .try_for_each(|&byte| fmt::Write::write_char(f, char::from(byte)))
    }
}

/// Converts days since 1970-01-01 to year, month and day of the proleptic Gregorian calendar:
/// `civil_from_days` of Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
/// Correct for all days of [`Time`].
fn civil(days: i64) -> (u32, u32, u32) {
    // Days since 0000-03-01, positive from the year 1 on.
    let shifted = (days + 719_468) as u64;
    let era = shifted / 146_097;
    let day_of_era = (shifted % 146_097) as u32;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era as u32 * 400 + year_of_era + u32::from(month <= 2);
    (year, month, day)
}

fn digits(out: &mut [u8], mut value: u32) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_equals_that_of_jiff(
            seconds in Time::MIN.seconds..=253_402_207_200,
            nanos in prop_oneof![
                Just(0),
                (0..1_000).prop_map(|n| n * 1_000_000),
                (0..1_000_000).prop_map(|n| n * 1_000),
                0..1_000_000_000,
            ],
        ) {
            let time = Time::new(seconds, nanos).unwrap();
            let jiff = jiff::Timestamp::from_second(seconds).unwrap()
                + jiff::SignedDuration::from_nanos(i64::from(nanos));
            prop_assert_eq!(time.to_string(), format!("{jiff:.6}"));
            let precision = time.exact_digits();
            let mut exact = Vec::new();
            time.write_digits(precision, &mut exact);
            prop_assert_eq!(String::from_utf8(exact).unwrap(), format!("{jiff:.precision$}"));
            prop_assert_eq!(rfc3339_length(precision), format!("{jiff:.precision$}").len());
        }
    }

    proptest! {
        #[test]
        fn microseconds_round_trip(micros in -62_135_596_800_000_000i64..253_402_300_800_000_000) {
            prop_assert_eq!(Time::from_micros(micros).micros(), micros);
        }
    }

    #[test]
    fn bounds_are_enforced() {
        assert_eq!(Time::from_micros(i64::MIN), Time::MIN);
        assert_eq!(Time::from_micros(i64::MAX), Time::MAX);
        assert_eq!(Time::MIN.to_string(), "0001-01-01T00:00:00.000000Z");
        assert_eq!(Time::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Time::new(Time::MIN.seconds - 1, 999_999_999), None);
        assert_eq!(Time::new(Time::MAX.seconds + 1, 0), None);
        assert_eq!(Time::new(0, -1), None);
        assert_eq!(Time::new(0, 1_000_000_000), None);
        assert_eq!(Time::new(i64::MIN, 0), None);
        assert_eq!(Time::new(i64::MAX, i32::MAX), None);
    }

    #[test]
    fn the_system_clock_is_converted() {
        let epoch = SystemTime::UNIX_EPOCH;
        let show = |time| Time::from(time).to_string();
        assert_eq!(
            show(epoch + Duration::from_millis(1_500)),
            "1970-01-01T00:00:01.500000Z"
        );
        assert_eq!(
            show(epoch - Duration::from_millis(500)),
            "1969-12-31T23:59:59.500000Z"
        );
        assert_eq!(
            show(epoch - Duration::from_secs(1)),
            "1969-12-31T23:59:59.000000Z"
        );
    }
}
