//! Medians and quartiles, and ratios of rounds that were measured next to each other.

use serde::{Deserialize, Serialize};

/// A median with its quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Half of the values are not above it.
    pub median: f64,
    /// A quarter is below.
    pub low: f64,
    /// A quarter is above.
    pub high: f64,
    /// How many values there are.
    pub count: usize,
}

/// Summary of some values; `None` where there are none.
pub fn summary(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| {
        let position = (values.len().checked_sub(1)? as f64) * part;
        let (below, above) = (values[position as usize], values[position.ceil() as usize]);
        Some(below + (above - below) * position.fract())
    };
    Some(Summary {
        median: at(0.5)?,
        low: at(0.25)?,
        high: at(0.75)?,
        count: values.len(),
    })
}

/// Summary of the ratios of values measured in the same round.
pub fn ratio(
    of: impl IntoIterator<Item = f64>,
    to: impl IntoIterator<Item = f64>,
) -> Option<Summary> {
    summary(
        of.into_iter()
            .zip(to)
            .filter(|(_, to)| *to > 0.0)
            .map(|(of, to)| of / to),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles_of_five_values_are_three_of_them() {
        let summary = summary([5.0, 1.0, 4.0, 2.0, 3.0]).expect("values");
        assert_eq!((summary.low, summary.median, summary.high), (2.0, 3.0, 4.0));
    }

    #[test]
    fn quartiles_between_two_values_are_interpolated() {
        let summary = summary([1.0, 2.0]).expect("values");
        assert_eq!(
            (summary.low, summary.median, summary.high),
            (1.25, 1.5, 1.75)
        );
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let ratio = ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]).expect("pairs");
        assert_eq!((ratio.median, ratio.count), (3.0, 3));
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(summary([]), None);
        assert_eq!(ratio([1.0], [0.0]), None);
    }
}
