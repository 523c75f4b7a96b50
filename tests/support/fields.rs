//! The rate limit fields of a response, read by a parser of structured fields (RFC 9651) that is not ours.

use super::client::Response;
use sfv::{BareItem, List, ListEntry, Parser};

/// A member of `RateLimit-Policy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    pub name: String,
    pub quota: i64,
    pub window_s: i64,
}

/// A member of `RateLimit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub name: String,
    pub remaining: i64,
    pub reset_s: i64,
}

/// The members of `RateLimit-Policy`; none where there is no such field.
pub fn policy(response: &Response) -> Vec<Quota> {
    let members = members(response, "RateLimit-Policy", ["q", "w"]);
    members.into_iter().map(|(name, [quota, window_s])| Quota { name, quota, window_s }).collect()
}

/// The members of `RateLimit`; none where there is no such field.
pub fn rate_limit(response: &Response) -> Vec<Left> {
    let members = members(response, "RateLimit", ["r", "t"]);
    members.into_iter().map(|(name, [remaining, reset_s])| Left { name, remaining, reset_s }).collect()
}

/// What is left of one limit.
pub fn remaining(response: &Response, limit: &str) -> i64 {
    let left = rate_limit(response).into_iter().find(|left| left.name == limit);
    left.unwrap_or_else(|| panic!("no {limit} in RateLimit: {response:?}")).remaining
}

/// Strings with exactly these two integer parameters.
fn members(response: &Response, field: &str, names: [&str; 2]) -> Vec<(String, [i64; 2])> {
    let values = response.fields(field);
    assert!(values.len() <= 1, "{field} stands there twice: {response:?}");
    let Some(value) = values.first() else { return Vec::new() };
    let list: List = Parser::new(value).parse().unwrap_or_else(|error| panic!("{field}: {value}: {error}"));
    let member = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else { panic!("{field}: {value}: an inner list") };
        let BareItem::String(name) = &item.bare_item else { panic!("{field}: {value}: no string") };
        assert_eq!(item.params.len(), names.len(), "{field}: {value}");
        let parameter = |key: &str| match item.params.get(key) {
            Some(BareItem::Integer(number)) => i64::from(*number),
            other => panic!("{field}: {value}: {key} is {other:?}"),
        };
        (name.as_str().to_owned(), names.map(parameter))
    };
    list.iter().map(member).collect()
}
