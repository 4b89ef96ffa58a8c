// SPDX-License-Identifier: Apache-2.0
//! From a wish to a connection: the policy's rules, whoever is asked, the rule's limits, the name's addresses, the transcript. In
//! this order, and nothing is connected to before all of them agree. A name is resolved once; what was checked is connected to.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use midge_policy::{Policy, Request, Verdict as Rules};
use midge_protocol::broker::Verdict;
use midge_record::{Decision, Entry};
use serde_json::json;

use super::EgressDoor;
use super::limits::Place;
use super::refuse::Refused;
use crate::names::dial_first;
use crate::shared::Shared;
use crate::stream::AnyStream;

/// Longest path in a question or in the transcript, in characters.
const PATH_MAX_CHARS: usize = 2000;

/// A request or a tunnel that was let out; counts it, and records its end when dropped.
pub(super) struct Pass {
    shared: Arc<Shared>,
    number: u64,
    /// The rule that let it out.
    pub(super) rule: Option<String>,
    place: Option<Place>,
    started: Instant,
    /// Status of the answer.
    pub(super) status: Option<u16>,
    /// Bytes from the guest.
    pub(super) sent: u64,
    /// Bytes to the guest.
    pub(super) received: u64,
    /// Why it ended before its time.
    pub(super) broken: Option<String>,
    /// Addresses that may be connected to.
    pub(super) addresses: Vec<IpAddr>,
    let_out: bool,
}

impl Pass {
    /// Counts bytes against the budget and the rule's limit.
    pub(super) fn charge(&self, bytes: u64) -> io::Result<()> {
        if let Some(place) = &self.place {
            place.take(bytes).map_err(io::Error::other)?;
        }
        self.shared.ledger.egress(bytes).map_err(|exhausted| {
            self.shared.used_up(&exhausted);
            io::Error::other(exhausted)
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.let_out {
            return;
        }
        // A failure latches, and ends the run.
        let _ = self.shared.note(&Entry::EgressEnded {
            connection: self.number,
            status: self.status,
            sent_bytes: self.sent,
            received_bytes: self.received,
            elapsed_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            broken: self.broken.take(),
        });
    }
}

impl EgressDoor {
    /// Holds `request` against everything, `pinned` being addresses that the guest's connection is bound to already. What is
    /// refused is recorded here.
    ///
    /// # Errors
    /// It may not be sent, or its host has no address.
    pub(super) async fn admit(&self, request: &Request, pinned: &[IpAddr]) -> Result<Pass, Refused> {
        let number = self.shared.number();
        let mut pass = Pass {
            shared: Arc::clone(&self.shared),
            number,
            rule: None,
            place: None,
            started: Instant::now(),
            status: None,
            sent: 0,
            received: 0,
            broken: None,
            addresses: Vec::new(),
            let_out: false,
        };
        let admitted = self.check(request, pinned, &mut pass).await;
        let (decision, why) = match &admitted {
            Ok(why) => (Decision::Allow, why.clone()),
            Err(refused) => (Decision::Deny, refused.why.clone()),
        };
        let decided = decided(number, request, pass.rule.clone(), decision, why, pass.addresses.first().copied());
        self.shared.note(&decided).map_err(|error| Refused::limit(503, None, error.to_string()))?;
        admitted?;
        pass.let_out = true;
        Ok(pass)
    }

    async fn check(&self, request: &Request, pinned: &[IpAddr], pass: &mut Pass) -> Result<String, Refused> {
        let policy = self.shared.policy();
        let decision = policy.network().decide(request);
        pass.rule.clone_from(&decision.rule);
        let rule = || decision.rule.clone();
        let why = match decision.verdict {
            Rules::Allow => decision.why.clone(),
            Rules::Deny | Rules::IfInspected => return Err(Refused::policy(rule(), decision.why)),
            Rules::Ask => match self.shared.ask.approve(question(request), decision.why.clone()).await {
                Verdict::Allow | Verdict::AllowForRun => format!("{}, and it was allowed", decision.why),
                Verdict::Deny { why } => {
                    return Err(Refused::policy(rule(), format!("it was asked about and denied: {why}")));
                }
                Verdict::Edited { .. } | Verdict::Text { .. } => {
                    return Err(Refused::policy(rule(), "it was asked about, and the answer was neither yes nor no"));
                }
            },
        };
        // The policy may have been narrowed while somebody was asked.
        let policy = self.shared.policy();
        if !is_allowed(&policy, request) {
            return Err(Refused::policy(rule(), "the policy was narrowed meanwhile"));
        }
        if let Some(rule) = decision.rule.as_deref().and_then(|name| policy.network().rule(name)) {
            let over = self.limits.enter(rule).map_err(|over| {
                let status = if matches!(over, super::limits::Over::Bytes(_)) { 403 } else { 429 };
                Refused::limit(
                    status,
                    Some(rule.name.as_str()),
                    format!("the limit of rule `{}` is reached: {over}", rule.name),
                )
            });
            pass.place = Some(over?);
        }
        pass.charge(0).map_err(|error| Refused::limit(403, None, error.to_string()))?;
        if self.shared.ledger.left().egress_bytes == Some(0) {
            let why =
                "the budget `egress` of this sandbox is used up; raise it in [budget] of the policy, and run again";
            return Err(Refused::limit(403, None, why));
        }
        pass.addresses = self.addresses(request, pinned, &policy, decision.rule.as_deref()).await?;
        Ok(why)
    }

    /// Addresses of the request's host that the policy lets it have; never empty.
    async fn addresses(
        &self,
        request: &Request,
        pinned: &[IpAddr],
        policy: &Policy,
        rule: Option<&str>,
    ) -> Result<Vec<IpAddr>, Refused> {
        let host = &request.host;
        let found = match host.address() {
            Some(address) => vec![address],
            None if !pinned.is_empty() => pinned.to_vec(),
            None => {
                let resolved = self.resolve.resolve(host.as_str()).await;
                resolved.map_err(|error| Refused::server(&error, &format!("resolving {host}")))?
            }
        };
        let mut refused = None;
        let allowed = found.iter().filter(|address| match policy.network().address(**address, rule) {
            Ok(()) => true,
            Err(why) => {
                refused = refused.take().or(Some(why.to_string()));
                false
            }
        });
        let allowed: Vec<IpAddr> = allowed.copied().collect();
        match (allowed.is_empty(), refused) {
            (false, _) => Ok(allowed),
            (true, Some(why)) => Err(Refused::policy(rule.map(str::to_owned), format!("{host} is refused: {why}"))),
            (true, None) => Err(Refused::limit(502, None, format!("{host} has no address"))),
        }
    }

    /// Connects to one of the addresses of a pass, and binds it to that one.
    ///
    /// # Errors
    /// 502, or 504 when it took too long.
    pub(super) async fn dial(&self, pass: &mut Pass, request: &Request) -> Result<AnyStream, Refused> {
        match dial_first(&*self.dial, &pass.addresses, request.port).await {
            Ok((address, stream)) => {
                pass.addresses = vec![address];
                Ok(stream)
            }
            Err(error) => {
                let refused = Refused::server(&error, &format!("connecting to {} port {}", request.host, request.port));
                pass.broken = Some(refused.why.clone());
                pass.status = Some(refused.status);
                Err(refused)
            }
        }
    }

    /// Records that a guest's request was refused before any rule was asked.
    pub(super) fn malformed(&self, why: &str, excerpt: &[u8]) {
        let excerpt = String::from_utf8_lossy(&excerpt[..excerpt.len().min(200)]).into_owned();
        // A failure latches, and ends the run.
        let _ = self.shared.note(&Entry::Malformed { door: "egress".to_owned(), why: why.to_owned(), excerpt });
    }

    /// Records a refusal that is no rule's.
    pub(super) fn denied(&self, request: &Request, why: &str) {
        let number = self.shared.number();
        let _ = self.shared.note(&decided(number, request, None, Decision::Deny, why.to_owned(), None));
    }
}

/// Whether the policy lets a request out, perhaps after a question.
pub(super) fn is_allowed(policy: &Policy, request: &Request) -> bool {
    policy.network().decide(request).verdict != Rules::Deny
}

fn decided(
    connection: u64,
    request: &Request,
    rule: Option<String>,
    decision: Decision,
    why: String,
    address: Option<IpAddr>,
) -> Entry {
    let call = request.call.as_ref();
    Entry::EgressDecided {
        connection,
        method: call.map_or_else(|| "CONNECT".to_owned(), |call| call.method.clone()),
        scheme: request.scheme.name().to_owned(),
        host: request.host.to_string(),
        port: request.port,
        path: call.map(|call| call.path.chars().take(PATH_MAX_CHARS).collect()),
        rule,
        decision,
        why,
        address: address.filter(|_| decision == Decision::Allow),
    }
}

/// What is asked: which bytes go where.
fn question(request: &Request) -> serde_json::Value {
    let call = request.call.as_ref();
    json!({
        "kind": "egress",
        "method": call.map_or("CONNECT", |call| call.method.as_str()),
        "scheme": request.scheme.name(),
        "host": request.host.as_str(),
        "port": request.port,
        "path": call.map(|call| call.path.chars().take(PATH_MAX_CHARS).collect::<String>()),
    })
}
