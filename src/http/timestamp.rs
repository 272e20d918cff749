//! Reads the times that clients send: RFC 3339 with any offset, in the years 1 to 9999 of UTC.
//!
//! An offset can move a well-formed time out of these years (`9999-12-31T23:59:59-01:00`). RFC 3339 cannot express the
//! result, and both `time` and the driver of Postgres panic when they convert it. So every time in a request is read as a
//! `Timestamp`, and the code behind it gets UTC only.

use std::{borrow::Cow, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error};
use thiserror::Error;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use utoipa::ToSchema;

/// A time in RFC 3339, with any offset; in UTC it lies in the years 1 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2030-01-01T00:00:00Z")]
pub struct Timestamp(OffsetDateTime);

/// The error of a text that is no `Timestamp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be an RFC 3339 time such as 2030-01-01T00:00:00Z, in the years 1 to 9999 of UTC")]
pub struct NotATimestamp;

impl Timestamp {
    /// Returns the time in UTC.
    pub const fn utc(self) -> OffsetDateTime {
        self.0
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| NotATimestamp)?;
        let utc = time.checked_to_offset(UtcOffset::UTC).ok_or(NotATimestamp)?;
        if (1..=9999).contains(&utc.year()) { Ok(Self(utc)) } else { Err(NotATimestamp) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_time_of_the_years_1_to_9999_or_refused(
            text in any::<String>(),
            like in "[0-9]{4}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,12})?(Z|[+-][0-2][0-9]:[0-5][0-9])",
        ) {
            for text in [text, like] {
                if let Ok(timestamp) = text.parse::<Timestamp>() {
                    prop_assert!((1..=9999).contains(&timestamp.utc().year()), "{}", text);
                    prop_assert!(timestamp.utc().format(&Rfc3339).is_ok(), "{}", text);
                }
            }
        }

        #[test]
        fn time_that_was_written_is_read_again_at_any_offset(
            seconds in datetime!(0001-01-02 00:00 UTC).unix_timestamp()..=datetime!(9999-12-30 00:00 UTC).unix_timestamp(),
            nanoseconds in 0..1_000_000_000_u32,
            minutes in -1439..=1439_i32,
        ) {
            let time = OffsetDateTime::from_unix_timestamp(seconds).expect("a year of the range");
            let time = time.replace_nanosecond(nanoseconds).expect("below a second");
            let offset = UtcOffset::from_whole_seconds(minutes * 60).expect("below a day");

            let text = time.to_offset(offset).format(&Rfc3339).expect("a year of the range");

            prop_assert_eq!(text.parse::<Timestamp>().map(Timestamp::utc), Ok(time), "{}", text);
        }
    }

    #[test]
    fn offsets_are_converted_to_utc() {
        for (text, expected) in [
            ("2030-01-01T00:00:00Z", datetime!(2030-01-01 00:00:00 UTC)),
            ("2030-01-01T01:30:00+01:30", datetime!(2030-01-01 00:00:00 UTC)),
            ("0001-01-01T00:00:00Z", datetime!(0001-01-01 00:00:00 UTC)),
            ("0000-12-31T23:59:00-00:01", datetime!(0001-01-01 00:00:00 UTC)),
            ("9999-12-31T23:59:59Z", datetime!(9999-12-31 23:59:59 UTC)),
            ("9999-12-31T23:59:59.999999999Z", datetime!(9999-12-31 23:59:59.999_999_999 UTC)),
            ("9999-12-31T23:59:59+23:59", datetime!(9999-12-31 00:00:59 UTC)),
        ] {
            let timestamp: Timestamp = text.parse().expect(text);
            assert_eq!(timestamp.utc(), expected, "{text}");
            assert_eq!(timestamp.utc().offset(), UtcOffset::UTC, "{text}");
        }
    }

    #[test]
    fn times_outside_the_years_1_to_9999_of_utc_are_refused() {
        for text in [
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:59-23:59",
            "9999-12-31T23:59:59.999999999-00:01",
            "10000-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "0000-12-31T23:59:59Z",
            "0001-01-01T00:00:00+00:01",
            "0000-01-01T00:00:00+23:59",
            "-0001-01-01T00:00:00Z",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-02-30T00:00:00Z",
            "tomorrow",
            "1900000000",
            "",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATimestamp), "{text}");
        }
    }
}
