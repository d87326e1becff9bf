//! A look at the directory without taking possession of it.

use std::path::Path;

use hookgate_core::event::SinkId;

use crate::{config::Config, directory, error::ConnectError};

/// Whether the directory can be written to or, where it is not there yet, be made. Changes nothing, and does not mind a
/// hookgate that is running on it.
///
/// # Errors
/// What would keep [`crate::connect`] from writing there.
pub fn inspect(id: &SinkId, config: &Config) -> Result<(), ConnectError> {
    let there = config.dir.ancestors().find(|path| path.exists());
    // A relative path has an empty last ancestor, which stands for the working directory.
    let there = there.unwrap_or(Path::new("."));
    directory::probe(there).map_err(|failure| ConnectError::new(id, failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspect_at(dir: &Path) -> Result<(), ConnectError> {
        let config = serde_json::from_value(serde_json::json!({ "dir": dir })).expect("a valid config");
        inspect(&SinkId::new(0, "events"), &config)
    }

    #[test]
    fn nothing_is_made_by_looking() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        assert!(inspect_at(&dir.path().join("a/b")).is_ok());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_file_in_its_place_is_told() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(dir.path().join("a"), "").expect("writable");
        assert!(inspect_at(&dir.path().join("a")).is_err());
        assert!(inspect_at(&dir.path().join("a/b")).is_err());
    }
}
