// SPDX-License-Identifier: Apache-2.0
//! Strings of a script that quote what tools have answered: `{{result}}`, `{{result:N}}`, `{{capture:REGEX}}`.

use regex::Regex;
use serde_json::Value;

/// `text` with its quotations; `results` are those of the last round.
///
/// # Errors
/// A quotation of something that is not there, in words for whoever wrote the script.
pub(crate) fn fill(text: &str, results: &[String]) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once("{{") {
        let (quote, after) = tail.split_once("}}").ok_or_else(|| format!("`{{{{` without `}}}}` in {text:?}"))?;
        filled.push_str(head);
        filled.push_str(&quoted(quote.trim(), results)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// All strings of `value`, filled.
///
/// # Errors
/// As [`fill`].
pub(crate) fn fill_value(value: &Value, results: &[String]) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(fill(text, results)?),
        Value::Array(all) => Value::Array(all.iter().map(|item| fill_value(item, results)).collect::<Result<_, _>>()?),
        Value::Object(all) => {
            let fill = |(key, item): (&String, &Value)| Ok::<_, String>((key.clone(), fill_value(item, results)?));
            Value::Object(all.iter().map(fill).collect::<Result<_, _>>()?)
        }
        other => other.clone(),
    })
}

fn quoted(quote: &str, results: &[String]) -> Result<String, String> {
    let missing = || format!("`{quote}` quotes a tool result that is not there; there are {}", results.len());
    if quote == "result" {
        return results.last().cloned().ok_or_else(missing);
    }
    if let Some(number) = quote.strip_prefix("result:") {
        let index: usize = number.parse().map_err(|_| format!("`{quote}`: {number:?} is no number"))?;
        return results.get(index).cloned().ok_or_else(missing);
    }
    let pattern =
        quote.strip_prefix("capture:").ok_or_else(|| format!("`{quote}` is not result, result:N or capture:REGEX"))?;
    let regex = Regex::new(pattern).map_err(|error| format!("`{quote}`: {error}"))?;
    let found = results.iter().rev().find_map(|result| regex.captures(result));
    let found = found.ok_or_else(|| format!("`{quote}` matches none of {} tool results", results.len()))?;
    Ok(found.get(1).or(found.get(0)).map_or("", |group| group.as_str()).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn results() -> Vec<String> {
        vec!["first".into(), "file a.py, line 7".into()]
    }

    #[test]
    fn results_are_quoted() {
        let text = "{{result:0}}: {{capture:line (\\d+)}} {{ capture:[a-z]\\.py }} {{result}}";
        assert_eq!(fill(text, &results()).unwrap(), "first: 7 a.py file a.py, line 7");
        assert_eq!(fill_value(&json!({"a": ["{{result:0}}", 1]}), &results()).unwrap(), json!({"a": ["first", 1]}));
    }

    #[test]
    fn what_is_not_there_is_told() {
        for text in ["{{result:2}}", "{{capture:nothing}}", "{{capture:(}}", "{{x}}", "{{result"] {
            assert!(fill(text, &results()).is_err(), "{text}");
        }
        assert!(fill("{{result}}", &[]).is_err());
    }
}
