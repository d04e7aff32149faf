//! How models were exported, and what of it trains as PyTorch does.

use crate::fixture::Fixture;

/// The dialects that the manifest lists.
pub fn dialects(fixture: &Fixture) -> impl Iterator<Item = &str> {
    fixture.manifest["files"].as_object().into_iter().flat_map(|files| files.keys().map(String::as_str))
}

/// Whether a dialect's file has all parameters, so that it trains as PyTorch does: each in one initializer, or in two that are
/// tied again.
pub fn follows(fixture: &Fixture, dialect: &str) -> bool {
    let file = &fixture.manifest["files"][dialect];
    let is_tied_again = file["why"].as_str().is_some_and(|why| why.starts_with("tied weight stored twice"));
    file["trains_like_pytorch"] == true || is_tied_again
}
