//! The report for people.

use std::fmt;

use super::report::{IntegrationReport, Listed, Range, Report, Verdict};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Complete => "complete",
            Self::Incomplete => "INCOMPLETE",
            Self::NothingRead => "nothing of siem-relay's was read",
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{} to {}", self.first, self.last),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for integration in &self.integrations {
            writeln!(f, "{integration}")?;
        }
        writeln!(f, "records       {}", self.records)?;
        if self.unasked > 0 {
            writeln!(f, "not asked for {} of other integrations", self.unasked)?;
        }
        if self.foreign.count > 0 {
            writeln!(f, "foreign       {}", self.foreign.count)?;
            list(f, &self.foreign, |record| {
                format!("{}: {}: {}", record.place, record.why, record.excerpt)
            })?;
        }
        writeln!(f, "verdict       {}", self.verdict)
    }
}

impl fmt::Display for IntegrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "integration   {}", self.integration_id)?;
        match (self.first_sequence, self.last_sequence) {
            (Some(first), Some(last)) => writeln!(f, "sequences     {}", Range { first, last })?,
            _ => writeln!(f, "sequences     none")?,
        }
        if let Some(judged) = self.judged
            && (Some(judged.first), Some(judged.last)) != (self.first_sequence, self.last_sequence)
        {
            writeln!(f, "judged        {judged}")?;
        }
        writeln!(f, "events        {}", self.events)?;
        write!(f, "duplicates    {}", self.duplicates)?;
        match self.duplicates_not_compared {
            0 => writeln!(f)?,
            count => writeln!(f, " ({count} came too late to compare ids)")?,
        }
        writeln!(f, "tests         {}", self.tests)?;
        self.fmt_missing(f)?;
        self.fmt_order(f)?;
        if self.id_conflicts.count > 0 {
            let count = self.id_conflicts.count;
            writeln!(f, "CONFLICTS     {count} sequences had more than one event")?;
            list(f, &self.id_conflicts, u64::to_string)?;
        }
        if self.malformed.count > 0 {
            writeln!(f, "MALFORMED     {}", self.malformed.count)?;
            list(f, &self.malformed, |one| {
                format!("{}: {}", one.place, one.why)
            })?;
        }
        writeln!(f, "verdict       {}", self.verdict)
    }
}

impl IntegrationReport {
    fn fmt_missing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gaps = &self.gaps;
        match gaps.events {
            0 => writeln!(f, "gaps          none")?,
            events => {
                writeln!(
                    f,
                    "gaps          {events}, for {} events that are not there",
                    gaps.sequences
                )?;
                let ranges = Listed {
                    count: events,
                    first: gaps.first.clone(),
                };
                list(f, &ranges, |gap| {
                    let (first, last) = (gap.first, gap.last);
                    let range = Range { first, last };
                    format!(
                        "{range}: {} events, {}",
                        gap.count,
                        gap.reason.escape_debug()
                    )
                })?;
            }
        }
        if gaps.arrived > 0 {
            writeln!(
                f,
                "              {} events within their ranges are there",
                gaps.arrived
            )?;
        }
        if gaps.overlapping > 0 {
            writeln!(
                f,
                "              {} of them overlap: what they share may be counted twice",
                gaps.overlapping
            )?;
        }
        if gaps.understated.count > 0 {
            writeln!(f, "UNDERSTATED   {} ranges", gaps.understated.count)?;
            list(f, &gaps.understated, |one| {
                let (first, last) = (one.first, one.last);
                let range = Range { first, last };
                format!(
                    "{range}: {} are missing, {} were announced",
                    one.missing, one.announced
                )
            })?;
        }
        let holes = &self.holes;
        match holes.count {
            0 => writeln!(f, "holes         none"),
            count => {
                writeln!(f, "HOLES         {count}, of {} events", holes.sequences)?;
                let ranges = Listed {
                    count,
                    first: holes.first.clone(),
                };
                list(f, &ranges, Range::to_string)
            }
        }
    }

    fn fmt_order(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = &self.out_of_order;
        if order.not_watched > 0 {
            let count = order.not_watched;
            writeln!(
                f,
                "              {count} events of too many devices, order not watched"
            )?;
        }
        match order.count {
            0 => writeln!(f, "out of order  none"),
            count => {
                writeln!(f, "out of order  {count}, of {} devices", order.devices)?;
                let late = Listed {
                    count,
                    first: order.first.clone(),
                };
                list(f, &late, |late| {
                    let (device, sequence, after) = (late.device, late.sequence, late.after);
                    format!("{sequence} came after {after} of device {device}")
                })
            }
        }
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    listed: &Listed<T>,
    tell: impl Fn(&T) -> String,
) -> fmt::Result {
    for one in &listed.first {
        writeln!(f, "              {}", tell(one))?;
    }
    match listed.count - listed.first.len() as u64 {
        0 => Ok(()),
        more => writeln!(f, "              and {more} more"),
    }
}
