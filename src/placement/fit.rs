//! What fits: the estimate of what holding units costs, against what a peer offers.

use crate::amounts::Bytes;
use crate::placement::CannotServe;
use crate::placement::Needs;
use crate::placement::Offer;
use crate::units::UnitRange;

/// Whether a peer can hold anything of a model, or the range that was pinned.
///
/// # Errors
/// [`CannotServe`] if not.
pub fn check(needs: Needs, offer: Offer) -> Result<(), CannotServe> {
    Fit::new(needs, offer).map(|_| ())
}

/// A model's needs against a peer's offer.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    needs: Needs,
    units: u16,
    budget: Bytes,
    max_units: u16,
}

impl Fit {
    pub(super) fn new(needs: Needs, offer: Offer) -> Result<Self, CannotServe> {
        let units = u16::try_from(needs.unit_bytes.len()).unwrap_or(u16::MAX);
        let max_units = offer.max_units.unwrap_or(units).min(units);
        let fit = Self { needs, units, budget: offer.budget, max_units };
        match offer.pinned {
            Some(range) => fit.check_pinned(range)?,
            None => fit.check_any()?,
        }
        Ok(fit)
    }

    pub(super) fn needs(&self) -> &Needs {
        &self.needs
    }

    pub(super) fn units(&self) -> u16 {
        self.units
    }

    /// Bytes of the unit that comes at `unit`.
    pub(super) fn unit_bytes(&self, unit: u16) -> Bytes {
        self.needs.unit_bytes.get(usize::from(unit)).copied().unwrap_or(Bytes::ZERO)
    }

    /// Bytes that holding `ranges` takes; units in two of them count twice, since they are loaded twice.
    pub(super) fn bytes(&self, ranges: &[UnitRange]) -> Bytes {
        let each = |range: &UnitRange| {
            let units: Bytes = range.iter().map(|unit| self.unit_bytes(unit)).sum();
            let both_ends = range.start() == 0 && range.end() == self.units && self.units > 1;
            if both_ends { units.minus(self.needs.shared_ends) } else { units }
        };
        self.needs.reserve.plus(ranges.iter().map(each).sum())
    }

    /// Whether memory allows `ranges`, if only for a while.
    pub(super) fn memory_allows(&self, ranges: &[UnitRange]) -> bool {
        self.bytes(ranges) <= self.budget
    }

    /// Whether memory and the cap on units allow `ranges` for good.
    pub(super) fn allows(&self, ranges: &[UnitRange]) -> bool {
        let units: u64 = ranges.iter().map(|range| u64::from(range.count())).sum();
        units <= u64::from(self.max_units) && self.memory_allows(ranges)
    }

    /// The whole model, if it fits.
    pub(super) fn whole(&self) -> Option<UnitRange> {
        UnitRange::whole(self.units).ok().filter(|whole| self.allows(&[*whole]))
    }

    /// The longest range from `start` up to `end` that is allowed beside `own`.
    pub(super) fn longest(&self, own: &[UnitRange], start: u16, end: u16) -> Option<UnitRange> {
        let upward = (start..end).filter_map(|last| UnitRange::new(start, last + 1).ok());
        upward.take_while(|range| self.allows(&[own, &[*range]].concat())).last()
    }

    /// The longest allowed range from each unit.
    pub(super) fn windows(&self) -> Vec<UnitRange> {
        (0..self.units).filter_map(|start| self.longest(&[], start, self.units)).collect()
    }

    fn check_pinned(&self, range: UnitRange) -> Result<(), CannotServe> {
        let (units, at_most) = (self.units, self.max_units);
        if range.end() > units || range.count() > at_most {
            return Err(CannotServe::PinnedOutside { range, units, at_most });
        }
        let expected = self.bytes(&[range]);
        if expected > self.budget {
            return Err(CannotServe::PinnedTooLarge { range, expected, got: self.budget });
        }
        Ok(())
    }

    fn check_any(&self) -> Result<(), CannotServe> {
        if self.windows().is_empty() {
            let smallest = self.needs.unit_bytes.iter().copied().min().unwrap_or(Bytes::ZERO);
            return Err(CannotServe::NothingFits { expected: self.needs.reserve.plus(smallest), got: self.budget });
        }
        Ok(())
    }
}
