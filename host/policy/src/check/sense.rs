// SPDX-License-Identifier: Apache-2.0
//! What contradicts itself, or says nothing: in every section but the network's.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use super::sense_network;
use super::shape::Walk;
use crate::address::Special;
use crate::network::Credential;
use crate::policy::Doc;
use crate::secret::SecretSource;
use crate::section::{Model, Provider};

/// Checks what is right by itself, and what has to do with each other in sections that are not in `hurt`: what is left of those
/// would only tell of its own holes.
pub(super) fn check(doc: &Doc, hurt: &BTreeSet<String>, walk: &mut Walk<'_>) {
    let well = |names: &[&str]| names.iter().all(|name| !hurt.contains(*name));
    for (index, rule) in entries(walk, "network.rules") {
        sense_network::rule(&rule, &format!("network.rules[{index}]"), walk);
    }
    for (index, credential) in entries::<Credential>(walk, "credentials") {
        sense_network::credential(&credential, &format!("credentials[{index}]"), walk);
        secret(&credential.secret, &format!("credentials[{index}].secret"), walk);
    }
    if well(&["network"]) {
        sense_network::rules(&doc.network.rules, walk);
    }
    if well(&["credentials"]) {
        sense_network::credentials(&doc.credentials, walk);
    }
    if well(&["network", "credentials"]) {
        sense_network::reach(doc, walk);
    }
    if let Some(model) = doc.model.as_ref().filter(|_| well(&["model"])) {
        self::model(model, walk);
        if doc.budget.money_usd.is_some() && well(&["budget"]) {
            money(model, walk);
        }
    }
    if well(&["tools"]) {
        twice(&doc.tools.ask_commands, "tools.ask_commands", walk);
    }
    if well(&["workspace"]) {
        twice(&doc.workspace.read_only, "workspace.read_only", walk);
    }
    if well(&["children"]) {
        twice(&doc.children.templates, "children.templates", walk);
    }
    if well(&["peers"]) {
        peers(doc, walk);
    }
}

/// The entries of a list that are right by themselves, with their places in it.
fn entries<T: serde::de::DeserializeOwned>(walk: &mut Walk<'_>, list: &str) -> Vec<(usize, T)> {
    let found = walk.entries.remove(list).unwrap_or_default();
    found.into_iter().filter_map(|(index, value)| Some((index, serde_json::from_value(value).ok()?))).collect()
}

/// Tells entries of a list that stand there twice.
pub(super) fn twice<T: PartialEq + Display>(items: &[T], field: &str, walk: &mut Walk<'_>) {
    for (index, item) in items.iter().enumerate() {
        if items[..index].contains(item) {
            walk.tell(&format!("{field}[{index}]"), "stands there twice", "each entry once", "take one out");
        }
    }
}

/// Tells names that two of a kind have.
pub(super) fn same_name<'a>(names: impl Iterator<Item = &'a str>, field: &str, walk: &mut Walk<'_>) {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            walk.tell(
                &format!("{field}[{index}].name"),
                "is the name of another one",
                "a name of its own",
                "rename one",
            );
        }
    }
}

fn model(model: &Model, walk: &mut Walk<'_>) {
    twice(&model.models, "model.models", walk);
    if let Some(key) = &model.key {
        secret(key, "model.key", walk);
    }
    let Some(endpoint) = model.endpoint() else {
        return walk.tell(
            "model.endpoint",
            "is missing",
            "the URL of a server",
            &format!("provider {:?} has no place of its own: name it", Provider::Compatible.name()),
        );
    };
    let near = endpoint.host().as_str() == "localhost"
        || endpoint.host().address().is_some_and(|address| Special::of(address).is_some());
    if model.key.is_some() && !endpoint.is_https() && !near {
        walk.tell(
            "model.endpoint",
            "would be sent the key in clear text",
            "https://, or http:// to a private address",
            "use https",
        );
    }
}

/// A budget of money counts only what has a price.
fn money(model: &Model, walk: &mut Walk<'_>) {
    for (index, name) in model.models.iter().enumerate() {
        if !model.prices.keys().any(|pattern| pattern.covers(name)) {
            walk.tell(
                &format!("model.models[{index}]"),
                "has no price, and budget.money_usd is set",
                "models that a key of model.prices covers",
                &format!("add [model.prices.\"{name}\"] with input and output, or limit budget.tokens instead"),
            );
        }
    }
}

fn peers(doc: &Doc, walk: &mut Walk<'_>) {
    same_name(doc.peers.iter().map(|peer| peer.name.as_str()), "peers", walk);
    for (index, peer) in doc.peers.iter().enumerate() {
        twice(&peer.ports, &format!("peers[{index}].ports"), walk);
        if peer.ports.is_empty() && !peer.messages {
            let next = "set messages = true or name ports, or take the peer out";
            walk.tell(&format!("peers[{index}]"), "allows nothing", "messages, ports or both", next);
        }
    }
}

fn secret(source: &SecretSource, field: &str, walk: &mut Walk<'_>) {
    let bad = |text: &str| text.is_empty() || text.contains('\0');
    match source {
        SecretSource::Env(name) if bad(name) || name.contains('=') => {
            walk.tell(&format!("{field}.env"), "is no name of a variable", "no =, no NUL", "name the variable only");
        }
        SecretSource::File(path) if !path.is_absolute() || bad(&path.to_string_lossy()) => {
            walk.tell(
                &format!("{field}.file"),
                "is not an absolute path",
                "a path that begins with /",
                "write all of it; ~ is not expanded",
            );
        }
        SecretSource::Command(argv)
            if argv.iter().any(|word| word.contains('\0')) || argv.first().is_some_and(|program| bad(program)) =>
        {
            walk.tell(
                &format!("{field}.command"),
                "cannot be started",
                "words without NUL, the program first",
                "name the program first",
            );
        }
        SecretSource::Command(argv) => {
            let program = argv.first().map_or("", String::as_str);
            if program.contains('/') && !Path::new(program).is_absolute() {
                let next = "write all of the path, or the bare name of a program in PATH";
                walk.tell(
                    &format!("{field}.command[0]"),
                    "is a relative path",
                    "an absolute path or a bare name",
                    next,
                );
            }
        }
        SecretSource::Env(_) | SecretSource::File(_) => {}
    }
}
