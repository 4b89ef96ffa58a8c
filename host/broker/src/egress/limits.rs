// SPDX-License-Identifier: Apache-2.0
//! What one rule lets through in a run: requests in a time, connections at once, bytes in all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use midge_policy::Rule;
use tokio::time::Instant;

/// The uses of all rules.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<String, Arc<Use>>>);

/// The use of one.
#[derive(Debug)]
struct Use {
    bucket: Mutex<Bucket>,
    open: AtomicU32,
    bytes: AtomicU64,
}

/// A token bucket: full at first, filled again evenly.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// What is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Over {
    #[error("rule `rate` allows {0} in {1:?}")]
    Rate(u32, Duration),
    #[error("rule `connections` allows {0} at once")]
    Connections(u32),
    #[error("rule `bytes` allows {0} bytes in the run")]
    Bytes(u64),
}

/// A place among a rule's connections; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    used: Arc<Use>,
    max_bytes: Option<u64>,
}

impl Limits {
    /// Takes a place for one request or connection that `rule` let out.
    pub(super) fn enter(&self, rule: &Rule) -> Result<Place, Over> {
        let used = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Use {
                bucket: Mutex::new(Bucket {
                    tokens: f64::from(rule.rate.map_or(0, |rate| rate.count())),
                    at: Instant::now(),
                }),
                open: AtomicU32::new(0),
                bytes: AtomicU64::new(0),
            };
            Arc::clone(all.entry(rule.name.to_string()).or_insert_with(|| Arc::new(new())))
        };
        let max_bytes = rule.bytes.map(|bytes| bytes.get());
        if let Some(max) = max_bytes.filter(|max| used.bytes.load(Ordering::Relaxed) >= *max) {
            return Err(Over::Bytes(max));
        }
        let open = used.open.fetch_add(1, Ordering::AcqRel);
        // From here on a refusal gives the place back by dropping it.
        let place = Place { used, max_bytes };
        if let Some(max) = rule.connections.filter(|max| open >= *max) {
            return Err(Over::Connections(max));
        }
        match rule.rate {
            Some(rate) if !place.used.draw(rate.count(), rate.per()) => Err(Over::Rate(rate.count(), rate.per())),
            _ => Ok(place),
        }
    }
}

impl Use {
    fn draw(&self, count: u32, per: Duration) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let filled = (now - bucket.at).as_secs_f64() / per.as_secs_f64() * f64::from(count);
        bucket.tokens = (bucket.tokens + filled).min(f64::from(count));
        bucket.at = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

impl Place {
    /// Counts bytes.
    pub(super) fn take(&self, bytes: u64) -> Result<(), Over> {
        let before = self.used.bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.max_bytes {
            Some(max) if before.saturating_add(bytes) > max => Err(Over::Bytes(max)),
            _ => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.used.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge_policy::Policy;

    fn policy(limit: &str) -> Policy {
        let text = format!("version = 1\n[[network.rules]]\nname = \"a\"\nhosts = [\"a.test\"]\n{limit}\n");
        Policy::parse(text, "test").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_and_comes_back() {
        let policy = policy("rate = \"2/s\"");
        let (rule, limits) = (&policy.network().rules()[0], Limits::default());
        assert!(limits.enter(rule).is_ok() && limits.enter(rule).is_ok());
        assert!(matches!(limits.enter(rule), Err(Over::Rate(2, _))));
        tokio::time::advance(Duration::from_millis(501)).await;
        assert!(limits.enter(rule).is_ok());
        assert!(limits.enter(rule).is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..9).filter(|_| limits.enter(rule).is_ok()).count(), 2);
    }

    #[test]
    fn connections_are_counted_while_they_last() {
        let policy = policy("connections = 2");
        let (rule, limits) = (&policy.network().rules()[0], Limits::default());
        let (first, _second) = (limits.enter(rule).unwrap(), limits.enter(rule).unwrap());
        assert_eq!(limits.enter(rule).unwrap_err(), Over::Connections(2));
        drop(first);
        assert!(limits.enter(rule).is_ok());
    }

    #[test]
    fn bytes_are_counted_over_all_connections() {
        let policy = policy("bytes = \"10B\"");
        let (rule, limits) = (&policy.network().rules()[0], Limits::default());
        limits.enter(rule).unwrap().take(6).unwrap();
        let place = limits.enter(rule).unwrap();
        place.take(4).unwrap();
        assert_eq!(place.take(1), Err(Over::Bytes(10)));
        assert_eq!(limits.enter(rule).unwrap_err(), Over::Bytes(10));
    }
}
