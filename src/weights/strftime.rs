//! The `strftime_now` of chat templates, in UTC.

use minijinja::Error;
use minijinja::ErrorKind;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Bytes of a format; templates use about ten. Arbitrary.
const MAX_FORMAT: usize = 256;

struct Moment {
    year: u64,
    month: u64,
    day: u64,
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// Writes the time `seconds` after 1970 as C's `strftime` does; knows `%Y %y %m %B %b %d %e %A %a %H %I %M %S %p %%`
/// and a
/// `-` that leaves out leading zeros.
pub(super) fn format(seconds: u64, format: &str) -> Result<String, Error> {
    let refuse = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    if format.len() > MAX_FORMAT {
        return Err(refuse(format!("strftime_now: the format has more than {MAX_FORMAT} bytes")));
    }
    let moment = moment(seconds);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let (is_bare, code) = match characters.next() {
            Some('-') => (true, characters.next()),
            other => (false, other),
        };
        let code = code.ok_or_else(|| refuse("strftime_now: the format ends in %".to_owned()))?;
        let field = field(&moment, code).ok_or_else(|| refuse(format!("strftime_now: unknown field %{code}")))?;
        text.push_str(if is_bare { field.trim_start_matches(['0', ' ']) } else { &field });
    }
    Ok(text)
}

fn field(moment: &Moment, code: char) -> Option<String> {
    let month = MONTHS[moment.month as usize - 1];
    let weekday = DAYS[moment.weekday as usize];
    Some(match code {
        'Y' => moment.year.to_string(),
        'y' => format!("{:02}", moment.year % 100),
        'm' => format!("{:02}", moment.month),
        'B' => month.to_owned(),
        'b' => month[..3].to_owned(),
        'd' => format!("{:02}", moment.day),
        'e' => format!("{:2}", moment.day),
        'A' => weekday.to_owned(),
        'a' => weekday[..3].to_owned(),
        'H' => format!("{:02}", moment.hour),
        'I' => format!("{:02}", (moment.hour + 11) % 12 + 1),
        'M' => format!("{:02}", moment.minute),
        'S' => format!("{:02}", moment.second),
        'p' => if moment.hour < 12 { "AM" } else { "PM" }.to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

/// The Gregorian date; years are counted from March, so that leap days come last (the usual "civil from days").
fn moment(seconds: u64) -> Moment {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01; 146,097 make 400 years.
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    Moment {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month,
        day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
        weekday: (days + 4) % 7,
        hour: rest / 3600,
        minute: rest / 60 % 60,
        second: rest % 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %y %I %p %-d %e %%";

        assert_eq!(format(0, all).unwrap(), "1970-01-01 00:00:00 Thursday Thu January Jan 70 12 AM 1  1 %");
        assert_eq!(
            format(1_709_215_505, all).unwrap(),
            "2024-02-29 14:05:05 Thursday Thu February Feb 24 02 PM 29 29 %"
        );
    }

    #[test]
    fn any_number_of_seconds_is_some_date() {
        for seconds in [u64::MAX, u64::MAX / 2, 951_782_399, 4_107_542_400] {
            assert!(format(seconds, "%Y %B %A").is_ok());
        }
    }

    #[test]
    fn unknown_fields_and_a_lone_percent_are_refused() {
        assert!(format(0, "%Q").is_err());
        assert!(format(0, "%").is_err());
        assert!(format(0, &"x".repeat(300)).is_err());
    }
}
