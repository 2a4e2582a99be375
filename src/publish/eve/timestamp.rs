//! Timestamps of Suricata and compatible tools.
//!
//! Suricata writes `2015-03-29T11:01:38.221126-0600`. Also accepted: an offset with a
//! colon, `Z`, a fraction of up to nine digits or none, and no offset, which means
//! UTC. A leap second (`:60`) is read as the second before it.

use jiff::{Timestamp, civil::DateTime, fmt::temporal::DateTimeParser, tz::TimeZone};

/// Reason why a text cannot be the time of an event.
#[derive(Debug, thiserror::Error)]
pub enum TimestampError {
    /// Not a date with a time of day, or a date that does not exist.
    #[error(
        "is not a time such as 2015-03-29T11:01:38.221126-0600, or out of the calendar's range"
    )]
    Unreadable,
    /// Outside the years 1 to 9999, which are the range of `google.protobuf.Timestamp`.
    #[error("is outside the years 1 to 9999")]
    OutOfRange,
}

const PARSER: DateTimeParser = DateTimeParser::new();

pub(super) fn parse(text: &str) -> Result<siem_client::Timestamp, TimestampError> {
    let time_of_day = text
        .find(['T', 't', ' '])
        .map(|at| &text[at + 1..])
        .ok_or(TimestampError::Unreadable)?;
    let time = if time_of_day.contains(['Z', 'z', '+', '-']) {
        PARSER.parse_timestamp(text)
    } else {
        PARSER.parse_datetime(text).and_then(as_utc)
    };
    let time = time.map_err(|_| TimestampError::Unreadable)?;
    let year = TimeZone::UTC.to_datetime(time).year();
    if year < 1 {
        return Err(TimestampError::OutOfRange);
    }
    let nanos = time.as_nanosecond();
    Ok(siem_client::Timestamp {
        // Neither overflows: the year is bounded, and a remainder is less than its divisor.
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    })
}

fn as_utc(time: DateTime) -> Result<Timestamp, jiff::Error> {
    TimeZone::UTC.to_timestamp(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, seconds: i64, nanos: i32) {
        let time = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((time.seconds, time.nanos), (seconds, nanos), "{text}");
    }

    #[test]
    fn formats_of_suricata_and_other_tools_are_read() {
        check(
            "2015-03-29T11:01:38.221126-0600",
            1_427_648_498,
            221_126_000,
        );
        check(
            "2015-03-29T11:01:38.221126-06:00",
            1_427_648_498,
            221_126_000,
        );
        check(
            "2015-03-29T17:01:38.221126+0000",
            1_427_648_498,
            221_126_000,
        );
        check(
            "2015-03-29T17:01:38.221126+00:00",
            1_427_648_498,
            221_126_000,
        );
        check("2015-03-29T17:01:38.221126Z", 1_427_648_498, 221_126_000);
        check("2015-03-29T17:01:38Z", 1_427_648_498, 0);
        check("2015-03-29T17:01:38.221126", 1_427_648_498, 221_126_000);
        check("2015-03-29 17:01:38", 1_427_648_498, 0);
        check("2015-03-29T17:01:38.123456789Z", 1_427_648_498, 123_456_789);
        check("2015-03-29T22:46:38+0545", 1_427_648_498, 0);
    }

    #[test]
    fn a_time_before_1970_has_positive_nanoseconds() {
        check("1969-12-31T23:59:59.250000Z", -1, 250_000_000);
    }

    #[test]
    fn a_leap_second_counts_as_the_second_before() {
        check("2016-12-31T23:59:60Z", 1_483_228_799, 0);
        check("2016-12-31T23:59:60.5+0000", 1_483_228_799, 500_000_000);
    }

    #[test]
    fn a_text_that_is_not_a_time_is_refused() {
        for text in [
            "",
            "T",
            "now",
            "2015-03-29",
            "2015-02-30T00:00:00Z",
            "2015-03-29T25:00:00Z",
            "2015-03-29T11:01:38.221126-9900",
            "2015-03-29T11:01:38+",
            "1427648498",
            "99999-01-01T00:00:00Z",
            "9999-12-31T23:59:59-2300",
        ] {
            assert!(
                matches!(parse(text), Err(TimestampError::Unreadable)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_year_that_the_api_cannot_hold_is_refused() {
        assert!(matches!(
            parse("0000-12-31T23:59:59Z"),
            Err(TimestampError::OutOfRange)
        ));
        check("0001-01-01T00:00:00Z", -62_135_596_800, 0);
    }
}
