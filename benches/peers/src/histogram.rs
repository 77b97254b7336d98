//! Times in buckets that grow with them: every figure is right to 1.6 %.

/// Buckets of each power of two.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = ((64 - STEP_BITS + 1) as usize) * STEPS as usize;

pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS].into(), count: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.buckets[bucket(value)] += 1;
        self.count += 1;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The least value that this share of all did not exceed, up to the width of its bucket; `None` without values.
    pub fn at(&self, share: f64) -> Option<u64> {
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reaches = |count: &u64| {
            seen += count;
            seen >= wanted
        };
        self.buckets.iter().position(reaches).map(middle)
    }
}

fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - STEP_BITS;
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    let least = (bucket - shift * STEPS) << shift;
    least + (1_u64 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_near_the_middle_of_its_bucket() {
        let mut value = 1_u64;
        while value < u64::MAX / 3 {
            for near in [value - 1, value, value + 1, value + value / 3] {
                let found = middle(bucket(near));
                assert!(found.abs_diff(near) as f64 <= near as f64 / STEPS as f64, "{near} is taken for {found}");
            }
            value = value * 3 / 2 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn buckets_follow_one_another_without_a_hole() {
        for value in 0..100_000 {
            let step = bucket(value + 1) - bucket(value);
            assert!(step <= 1, "{value} and its successor are {step} buckets apart");
        }
    }

    #[test]
    fn shares_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.at(0.5), None);
        (1..=1000_u64).rev().for_each(|value| histogram.record(value * 1000));
        for (share, right) in [(0.0, 1_000), (0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let found = histogram.at(share).unwrap();
            assert!(found.abs_diff(right) as f64 <= right as f64 / 64.0, "{share}: {found} for {right}");
        }
        assert_eq!(histogram.count(), 1000);
    }
}
