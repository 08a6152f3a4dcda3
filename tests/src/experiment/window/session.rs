//! A load, and what the machine did in each of its phases.

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;

use super::Phase;
use crate::experiment::reading::{Reading, Spent};
use crate::generator::{ANNOUNCES, Clock, Found, Generator, Kind, Mark, Plan, Report};
use crate::tracker::Tracker;

/// A whole second, and what was read of the machine when it began.
pub(super) struct Boundary {
    second: u64,
    reading: Reading,
}

/// What lies between two boundaries.
struct Span {
    name: &'static str,
    seconds: Range<usize>,
    spent: Spent,
}

/// A load, and what the machine did in each of its phases.
pub(super) struct Session {
    generator: Generator,
    /// What is to be seen in the drawing.
    pub(super) marks: Vec<Mark>,
    spans: Vec<Span>,
}

impl Session {
    pub(super) async fn start(plan: Plan, tracker: &Tracker, grace: Duration) -> Result<Self> {
        let addresses = tracker.addresses;
        Ok(Self {
            generator: Generator::start(plan, addresses.udp, addresses.http, grace).await?,
            marks: Vec::new(),
            spans: Vec::new(),
        })
    }

    pub(super) fn clock(&self) -> Clock {
        self.generator.clock
    }

    pub(super) fn mark(&mut self, what: &str) {
        self.marks.push(Mark::new(self.clock().elapsed(), what));
    }

    /// Waits until a whole second, and reads the machine.
    pub(super) async fn boundary(&self, second: u64, tracker: &Tracker) -> Result<Boundary> {
        self.generator.until(Duration::from_secs(second)).await?;
        let reading = Reading::now(&self.clock(), tracker)?;
        Ok(Boundary { second, reading })
    }

    /// The next whole second.
    pub(super) fn next_second(&self) -> u64 {
        self.clock().elapsed().as_secs() + 1
    }

    pub(super) fn span(
        &mut self,
        name: &'static str,
        from: &Boundary,
        to: &Boundary,
    ) -> Result<()> {
        self.spans.push(Span {
            name,
            seconds: usize::try_from(from.second)?..usize::try_from(to.second)?,
            spent: to.reading.since(&from.reading),
        });
        Ok(())
    }

    /// A phase in which nothing is done, from this second on.
    pub(super) async fn phase(
        &mut self,
        name: &'static str,
        from: u64,
        seconds: u64,
        tracker: &Tracker,
    ) -> Result<()> {
        let begins = self.boundary(from, tracker).await?;
        let ends = self.boundary(from + seconds, tracker).await?;
        self.span(name, &begins, &ends)
    }

    /// Ends the load: what was found in each phase, and in all of it.
    pub(super) async fn finish(self, plan: Plan) -> Result<(Vec<Phase>, Found, Report)> {
        let found = self.generator.stop().await?;
        let report = Report::new(plan, &found, self.marks);
        let phases = self.spans.iter().map(|span| Phase {
            name: span.name.to_owned(),
            seconds: span.seconds.len(),
            all: found.tally.over(&Kind::ALL, span.seconds.clone()),
            announces: found.tally.over(&ANNOUNCES, span.seconds.clone()),
            tracker: span.spent.processors,
            others: span.spent.others,
        });
        Ok((phases.collect(), found, report))
    }
}
