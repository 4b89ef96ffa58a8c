// SPDX-License-Identifier: Apache-2.0
//! Which paths the door `model` knows. The rest is not passed on: what is behind it could cost or store what nobody counts.

use hyper::Method;
use midge_protocol::broker::Wire;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// A call of a model: counted, recorded, held against the budgets.
    Call(Wire),
    /// A question about a request that is not sent (`count_tokens`): the model is checked, nothing is charged.
    Count(Wire),
    /// The list of models, or one of it.
    Models,
    /// Whether somebody is here; answered here.
    Ping,
    /// Anything else.
    Unknown,
}

/// Reads method and path; a query does not matter.
pub(super) fn route(method: &Method, path: &str) -> Route {
    match (method, path) {
        (&Method::POST, "/v1/messages/count_tokens") => Route::Count(Wire::Anthropic),
        (&Method::POST, "/v1/responses/input_tokens") => Route::Count(Wire::Responses),
        (&Method::GET, "/v1/models") => Route::Models,
        (&Method::GET, path) if path.strip_prefix("/v1/models/").is_some_and(is_model_name) => Route::Models,
        (&Method::HEAD | &Method::GET, "/") => Route::Ping,
        (&Method::POST, path) => Wire::of_path(path).map_or(Route::Unknown, Route::Call),
        _ => Route::Unknown,
    }
}

/// Whether it can stand at the end of a path and stay there. Names with slashes come percent-encoded.
fn is_model_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\']) && !lower.contains("%2e") && !lower.contains("%5c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_are_known_and_no_others() {
        for (method, path, want) in [
            (Method::POST, "/v1/messages", Route::Call(Wire::Anthropic)),
            (Method::POST, "/v1/responses", Route::Call(Wire::Responses)),
            (Method::POST, "/v1/chat/completions", Route::Call(Wire::Chat)),
            (Method::POST, "/v1/messages/count_tokens", Route::Count(Wire::Anthropic)),
            (Method::GET, "/v1/models", Route::Models),
            (Method::GET, "/v1/models/claude-x", Route::Models),
            (Method::GET, "/v1/models/org%2Fname", Route::Models),
            (Method::HEAD, "/", Route::Ping),
            (Method::GET, "/v1/messages", Route::Unknown),
            (Method::POST, "/v1/messages/", Route::Unknown),
            (Method::POST, "//v1/messages", Route::Unknown),
            (Method::POST, "/v1/messages/batches", Route::Unknown),
            (Method::POST, "/v1/files", Route::Unknown),
            (Method::GET, "/v1/models/../organizations", Route::Unknown),
            (Method::GET, "/v1/models/%2e%2e/organizations", Route::Unknown),
            (Method::GET, "/v1/models/%2e%2e", Route::Unknown),
            (Method::DELETE, "/v1/models/x", Route::Unknown),
            (Method::CONNECT, "/", Route::Unknown),
        ] {
            assert_eq!(route(&method, path), want, "{method} {path}");
        }
    }
}
