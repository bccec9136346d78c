//! CPU shares of version 1 and weights of version 2.

/// The weight (1-10000) for CPU shares (2-262144), by the quadratic formula that runc has since 1.3.2 and Kubernetes
/// expects: `ceil(10^((L^2 + 125 L) / 612 - 7/34))` with `L = log2(shares)`; 1024 shares are weight 100. 0 stays 0 (unset).
pub fn shares_to_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1 | 2 => 1,
        shares if shares >= 262_144 => 10_000,
        shares => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// The CPU shares whose weight comes closest to `weight`: what status calls report on version 2.
pub fn weight_to_shares(weight: u64) -> u64 {
    let (mut low, mut high) = (2_u64, 262_144_u64);
    while low < high {
        let middle = low + (high - low) / 2;
        if shares_to_weight(middle) < weight { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn weights_are_those_of_kubernetes() {
        for (shares, weight) in
            [(0, 0), (2, 1), (102, 17), (1024, 100), (2048, 174), (262_144, 10_000), (300_000, 10_000)]
        {
            assert_eq!(shares_to_weight(shares), weight, "{shares} shares");
        }
    }

    proptest! {
        #[test]
        fn more_shares_never_weigh_less(a in 2_u64..262_144, b in 2_u64..262_144) {
            prop_assert!(shares_to_weight(a.min(b)) <= shares_to_weight(a.max(b)));
        }

        #[test]
        fn shares_come_back_to_the_same_weight(weight in 1_u64..=10_000) {
            prop_assert!(shares_to_weight(weight_to_shares(weight)) >= weight);
        }
    }
}
