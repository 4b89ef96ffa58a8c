// SPDX-License-Identifier: Apache-2.0
//! What a run may do, of a policy and of flags; and how its model is asked.

use midge::error::{Error, Fault};
use midge_broker::Secrets;
use midge_policy::{Bytes, Endpoint, Model, Money, Name, Period, Policy, Problems, SecretSource, Wildcard};
use midge_protocol::broker::Wire;
use midge_record::Replay;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::args::{AgentArgs, Provider};

/// What a run without a policy may do, but for its model: nothing.
const DEFAULT_POLICY: &str = "offline";
/// The models that are asked when nobody names one.
const ANTHROPIC_MODEL: &str = "claude-sonnet-4-5";
const OPENAI_MODEL: &str = "gpt-5.1";

/// See the head of this file.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) policy: Policy,
    /// The model, if it is not the policy file's.
    given: Option<Model>,
    pub(super) wire: Wire,
    pub(super) model: String,
}

impl Authority {
    /// By the policy that is named, and what flags say beside it. `replay` stands in for the model.
    pub(super) fn new(args: &AgentArgs, replay: Option<&Replay>) -> Result<Self, Error> {
        let policy = load(args.policy.as_deref().unwrap_or(DEFAULT_POLICY))?;
        let (model, wire, name) = match replay {
            Some(replay) => recorded(replay)?,
            None => asked(args, policy.model())?,
        };
        check_name(args.name.as_ref(), &policy)?;
        let given = (policy.model() != Some(&model)).then(|| model.clone());
        Ok(Self { policy: with_flags(policy, Some(model), args)?, given, wire, model: name })
    }

    /// The policy as its file is now, with what flags say: for a run that goes on.
    pub(super) fn again(&self, args: &AgentArgs) -> Result<Policy, Error> {
        let policy = load(args.policy.as_deref().unwrap_or(DEFAULT_POLICY))?;
        let model = self.given.as_ref().or(policy.model()).cloned();
        with_flags(policy, model, args)
    }
}

/// The policy of a profile or a file.
pub(in crate::cli) fn load(name: &str) -> Result<Policy, Error> {
    Policy::load(name).map_err(|error| Error::prepare("policy (--policy)", Fault::User, error))
}

fn with_flags(policy: Policy, model: Option<Model>, args: &AgentArgs) -> Result<Policy, Error> {
    let budget = budget(args, &policy)?;
    let policy = policy.with_model(model).and_then(|policy| policy.with_budget(budget));
    policy.map_err(|error: Problems| Error::prepare("policy with what flags add", Fault::User, error))
}

/// A model of which nothing is asked: it has answered before.
fn recorded(replay: &Replay) -> Result<(Model, Wire, String), Error> {
    let first = replay.exchanges().first();
    let path = first.map_or("", |exchange| exchange.path.as_str());
    let wire = Wire::of_path(path)
        .ok_or_else(|| setting("the transcript's first call (--replay)", path, "a path of a known API"))?;
    let name = first.map_or_else(String::new, |exchange| exchange.model.clone());
    let provider = match wire {
        Wire::Anthropic => midge_policy::Provider::Anthropic,
        Wire::Responses | Wire::Chat => midge_policy::Provider::Openai,
    };
    Ok((model(provider, None, &name, None)?, wire, name))
}

/// The model of the flags; of the policy where they are silent.
fn asked(args: &AgentArgs, in_policy: Option<&Model>) -> Result<(Model, Wire, String), Error> {
    let says_where = args.provider.is_some() || args.base_url.is_some();
    if let Some(found) = in_policy.filter(|_| !says_where) {
        let name = match (&args.model, found.models.iter().map(ToString::to_string).find(|name| !name.contains('*'))) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name,
            (None, None) => default_model(found.provider)?.to_owned(),
        };
        return Ok((found.clone(), wire_of(found.provider), name));
    }
    let provider = args.provider.map_or_else(|| by_key(is_set("ANTHROPIC_API_KEY"), is_set("OPENAI_API_KEY")), Ok)?;
    let (of_policy, wire, key) = match provider {
        Provider::Anthropic => (midge_policy::Provider::Anthropic, Wire::Anthropic, Some("ANTHROPIC_API_KEY")),
        Provider::Openai => (midge_policy::Provider::Openai, Wire::Responses, Some("OPENAI_API_KEY")),
        Provider::OpenaiChat => (midge_policy::Provider::Openai, Wire::Chat, Some("OPENAI_API_KEY")),
        Provider::Compatible => (midge_policy::Provider::Compatible, Wire::Chat, None),
    };
    if of_policy == midge_policy::Provider::Compatible && args.base_url.is_none() {
        return Err(setting(
            "--base-url",
            "absent",
            "with --provider compatible: where the server is, such as http://127.0.0.1:8080",
        ));
    }
    let name = match &args.model {
        Some(name) => name.clone(),
        None => default_model(of_policy)?.to_owned(),
    };
    // A server of one's own may want no key.
    let key = key.filter(|name| args.base_url.is_none() || is_set(name));
    Ok((model(of_policy, args.base_url.as_deref(), &name, key)?, wire, name))
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// The provider whose key there is.
fn by_key(anthropic: bool, openai: bool) -> Result<Provider, Error> {
    match (anthropic, openai) {
        (true, _) => Ok(Provider::Anthropic),
        (false, true) => Ok(Provider::Openai),
        (false, false) => Err(setting(
            "the model",
            "not named",
            "ANTHROPIC_API_KEY or OPENAI_API_KEY in the environment; --provider compatible with --base-url and --model; a \
             [model] section in --policy; or --replay with a transcript",
        )),
    }
}

fn model(provider: midge_policy::Provider, url: Option<&str>, name: &str, key: Option<&str>) -> Result<Model, Error> {
    let endpoint =
        url.map(|url| url.parse::<Endpoint>().map_err(|error| setting("--base-url", url, &error.to_string())));
    let pattern = name.parse::<Wildcard>().map_err(|error| setting("--model", name, &error.to_string()))?;
    Ok(Model {
        provider,
        endpoint: endpoint.transpose()?,
        models: vec![pattern],
        key: key.map(|name| SecretSource::Env(name.to_owned())),
        prices: std::collections::BTreeMap::new(),
    })
}

fn wire_of(provider: midge_policy::Provider) -> Wire {
    match provider {
        midge_policy::Provider::Anthropic => Wire::Anthropic,
        midge_policy::Provider::Openai => Wire::Responses,
        midge_policy::Provider::Compatible => Wire::Chat,
    }
}

fn default_model(provider: midge_policy::Provider) -> Result<&'static str, Error> {
    match provider {
        midge_policy::Provider::Anthropic => Ok(ANTHROPIC_MODEL),
        midge_policy::Provider::Openai => Ok(OPENAI_MODEL),
        midge_policy::Provider::Compatible => Err(setting("--model", "absent", "the name of a model of that server")),
    }
}

/// The policy's budget with what flags say in its place.
fn budget(args: &AgentArgs, policy: &Policy) -> Result<midge_policy::Budget, Error> {
    let mut budget = policy.budget().clone();
    for part in &args.budget {
        let (name, amount) = part.split_once('=').unwrap_or((part, ""));
        let whole = || amount.parse::<u64>().map_err(|_| setting("--budget", part, "a whole number after ="));
        match name {
            "turns" => budget.turns = Some(whole()?),
            "tool_calls" => budget.tool_calls = Some(whole()?),
            "tokens" => budget.tokens = Some(whole()?),
            "money" | "money_usd" => budget.money_usd = Some(amount_of::<Money>(part, amount)?),
            "wall" => budget.wall = Some(amount_of::<Period>(part, amount)?),
            "egress" => budget.egress = Some(amount_of::<Bytes>(part, amount)?),
            _ => {
                return Err(setting(
                    "--budget",
                    part,
                    "turns, tool_calls, tokens, money, wall or egress, then = and an amount",
                ));
            }
        }
    }
    if let Some(turns) = args.max_turns {
        budget.turns = Some(turns);
    }
    Ok(budget)
}

/// An amount in the words of a policy file.
fn amount_of<T: DeserializeOwned>(part: &str, amount: &str) -> Result<T, Error> {
    let words: StrDeserializer<'_, ValueError> = StrDeserializer::new(amount);
    T::deserialize(words).map_err(|error| setting("--budget", part, &error.to_string()))
}

/// Refuses a policy that names peers for a sandbox that they could not name.
pub(in crate::cli) fn check_name(name: Option<&Name>, policy: &Policy) -> Result<(), Error> {
    let peers: Vec<&str> = policy.peers().iter().map(|peer| peer.name.as_str()).collect();
    if name.is_some() || peers.is_empty() {
        return Ok(());
    }
    let accepted = format!("the name that the policies of its peers ({}) have for this sandbox", peers.join(", "));
    Err(setting("--name", "absent", &accepted))
}

/// Commands that print a secret may take their time.
pub(in crate::cli) async fn read_secrets(policy: &Policy, model: bool) -> Result<Secrets, Error> {
    let policy = policy.clone();
    let read = tokio::task::spawn_blocking(move || Secrets::read(&policy, model)).await;
    let read = read.map_err(|error| Error::prepare("secrets", Fault::Midge, error))?;
    read.map_err(|error| Error::prepare("secret of the policy", Fault::User, error))
}

fn setting(what: &'static str, value: &str, accepted: &str) -> Error {
    Error::Setting { what, value: value.to_owned(), accepted: accepted.to_owned() }
}

#[cfg(test)]
mod tests;
