// SPDX-License-Identifier: Apache-2.0
//! What a sandbox may do: one TOML file, checked as a whole before anything starts.
//!
//! A [`Policy`] exists only when every check has passed. The broker asks it about each request ([`Policy::network`]); a child's is
//! held against its parent's ([`Policy::narrower_or_equal`]); a change while running can only narrow ([`Policy::narrow`]). Nothing
//! here opens a connection or resolves a name; only [`Policy::load`] and [`Secret::read`] read anything.

mod address;
mod check;
mod decide;
mod explain;
#[cfg(fuzzing)]
pub mod fuzz;
mod glob;
mod host;
mod lattice;
mod names;
mod narrow;
mod network;
mod path;
mod pattern;
mod policy;
mod problem;
mod profiles;
mod region;
#[cfg(test)]
mod sample;
mod schema;
mod secret;
mod section;
mod text;
mod units;
mod would;

pub use address::{AddressRefused, Range, Special};
pub use decide::{Call, Decision, Egress, Request, Verdict};
pub use explain::{Considered, Explanation};
pub use glob::{FileGlob, Wildcard};
pub use host::HostName;
pub use lattice::{Narrower, Widening};
pub use names::{Endpoint, HeaderName, Name, ToolName};
pub use network::{Credential, Rule, SECRET_MARK, Scheme};
pub use pattern::{HostPattern, Method, PathPattern};
pub use policy::{FILE_MAX_BYTES, LoadError, Policy};
pub use problem::{Problem, Problems};
pub use profiles::{PROFILES, Profile};
pub use schema::schema;
pub use secret::{SECRET_COMMAND_MAX, SECRET_MAX_BYTES, Secret, SecretError, SecretSource};
pub use section::{
    Action, Approvals, Budget, Children, Limits, Mode, Model, Peer, Price, Provider, SHELL_TOOL, Tokens, Tools,
    Workspace,
};
pub use text::Malformed;
pub use units::{BYTES_MAX, Bytes, MONEY_MAX_MICROS, Money, PERIOD_MAX_MS, Period, RATE_MAX, Rate};
pub use would::Would;
