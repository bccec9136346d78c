//! The thresholds of the configuration (pure).

use std::collections::BTreeMap;
use std::time::Duration;

use gantry_kube::quantity::Quantity;

use super::signal::Signal;
use crate::config::KubeletConfiguration;

/// A number, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// Bytes, inodes or ids.
    Fixed(i64),
    /// Between 0 and 1.
    Share(f64),
}

impl Amount {
    /// What it is of `capacity`.
    pub(crate) fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Fixed(n) => n,
            Self::Share(share) => (capacity as f64 * share) as i64,
        }
    }

    /// `100Mi` or `10%`; nothing for what turns a threshold off (0% and 100%) or is no amount.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse::<f64>().ok().filter(|p| *p > 0.0 && *p < 100.0)?;
                Some(Self::Share(percent / 100.0))
            }
            None => Quantity::parse(text).ok().map(|q| Self::Fixed(q.value())),
        }
    }
}

/// One line that must not be crossed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Threshold {
    /// What is measured.
    pub(crate) signal: Signal,
    /// How much of it must be available.
    pub(crate) amount: Amount,
    /// A soft threshold: how long it may be crossed. `None` for a hard one.
    pub(crate) grace: Option<Duration>,
    /// How much more than `amount` is freed once it was crossed.
    pub(crate) reclaim: Option<Amount>,
}

impl Threshold {
    /// Whether pods end at once.
    pub(crate) fn hard(&self) -> bool {
        self.grace.is_none()
    }
}

/// All thresholds of a configuration.
pub(crate) fn thresholds(config: &KubeletConfiguration) -> Vec<Threshold> {
    let reclaim = |signal: Signal| config.eviction_minimum_reclaim.get(signal.name()).and_then(|t| Amount::parse(t));
    let read = |map: &BTreeMap<String, String>, soft: bool| -> Vec<Threshold> {
        let known = map.iter().filter_map(|(name, text)| Some((Signal::parse(name)?, Amount::parse(text)?)));
        known
            .map(|(signal, amount)| Threshold {
                signal,
                amount,
                grace: soft.then(|| {
                    let text = config.eviction_soft_grace_period.get(signal.name());
                    text.and_then(|t| crate::config::Span::parse(t)).map_or(Duration::ZERO, |s| s.0)
                }),
                reclaim: reclaim(signal),
            })
            .collect()
    };
    let mut all = read(&config.eviction_hard, false);
    all.extend(read(&config.eviction_soft, true));
    // What holds for the node's memory holds for the part that pods may take, if that is enforced.
    let enforced = config.cgroups_per_qos && config.enforce_node_allocatable.iter().any(|e| e == "pods");
    let own = all.iter().any(|t| t.signal == Signal::AllocatableMemory);
    if enforced && !own {
        let memory = all.iter().find(|t| t.signal == Signal::Memory && t.hard()).copied();
        all.extend(memory.map(|t| Threshold { signal: Signal::AllocatableMemory, ..t }));
    }
    all
}

/// Thresholds with those of the file system of containers, which are not configured: it is that of images, or that of
/// volumes where only images have one of their own.
pub(crate) fn with_containers(all: &[Threshold], split: bool) -> Vec<Threshold> {
    let mut out: Vec<Threshold> =
        all.iter().filter(|t| !matches!(t.signal, Signal::ContainerFs | Signal::ContainerFsInodes)).copied().collect();
    let like = if split {
        [(Signal::NodeFs, Signal::ContainerFs), (Signal::NodeFsInodes, Signal::ContainerFsInodes)]
    } else {
        [(Signal::ImageFs, Signal::ContainerFs), (Signal::ImageFsInodes, Signal::ContainerFsInodes)]
    };
    for (from, to) in like {
        let copies: Vec<Threshold> =
            out.iter().filter(|t| t.signal == from).map(|t| Threshold { signal: to, ..*t }).collect();
        out.extend(copies);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn the_defaults_are_upstreams() {
        let all = thresholds(&KubeletConfiguration::default());
        let of = |signal| all.iter().find(|t| t.signal == signal).map(|t| (t.amount, t.hard()));
        assert_eq!(of(Signal::Memory), Some((Amount::Fixed(100 << 20), true)));
        assert_eq!(of(Signal::AllocatableMemory), Some((Amount::Fixed(100 << 20), true)));
        assert_eq!(of(Signal::NodeFs), Some((Amount::Share(0.1), true)));
        assert_eq!(of(Signal::NodeFsInodes), Some((Amount::Share(0.05), true)));
        assert_eq!(of(Signal::ImageFs), Some((Amount::Share(0.15), true)));
        assert_eq!(of(Signal::Pid), None);
    }

    #[test]
    fn soft_ones_have_their_grace_and_zero_percent_is_off() {
        let config = KubeletConfiguration {
            eviction_hard: map(&[("nodefs.available", "0%"), ("pid.available", "100")]),
            eviction_soft: map(&[("memory.available", "10%")]),
            eviction_soft_grace_period: map(&[("memory.available", "1m30s")]),
            eviction_minimum_reclaim: map(&[("memory.available", "5Mi")]),
            ..Default::default()
        };
        let want = [
            Threshold { signal: Signal::Pid, amount: Amount::Fixed(100), grace: None, reclaim: None },
            Threshold {
                signal: Signal::Memory,
                amount: Amount::Share(0.1),
                grace: Some(Duration::from_secs(90)),
                reclaim: Some(Amount::Fixed(5 << 20)),
            },
        ];
        assert_eq!(thresholds(&config), want);
    }

    #[test]
    fn containers_share_the_thresholds_of_their_file_system() {
        let all = thresholds(&KubeletConfiguration::default());
        let of = |split| {
            let all = with_containers(&all, split);
            all.iter().find(|t| t.signal == Signal::ContainerFs).map(|t| t.amount)
        };
        assert_eq!((of(false), of(true)), (Some(Amount::Share(0.15)), Some(Amount::Share(0.1))));
    }
}
