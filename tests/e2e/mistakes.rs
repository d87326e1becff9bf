//! The likeliest mistakes in a config, one file each in `mistakes`, and beside it what the operator is told.
//!
//! With `HOOKGATE_WRITE=1` in the environment the answers are written anew, to be read by whoever changes them.

use std::path::{Path, PathBuf};

use crate::relay::run_to_end;

/// Stands as a secret in every file.
const SECRET: &str = "hunter2";

#[test]
fn every_mistake_is_told_where_it_is_and_no_secret_with_it() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/mistakes");
    let files = std::fs::read_dir(&dir).expect("it is there").map(|entry| entry.expect("readable").path());
    let mut configs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    configs.sort();
    assert!(configs.len() >= 20, "{configs:?}");
    let write = std::env::var_os("HOOKGATE_WRITE").is_some();
    let mut otherwise = Vec::new();
    for config in configs {
        let name = config.file_name().and_then(|name| name.to_str()).expect("a name");
        let told = run_to_end(&dir, &["--config", name, "check"], &[]);
        assert_eq!(told.status.code(), Some(2), "{name}");
        let text = String::from_utf8(told.stderr).expect("UTF-8");
        assert!(!text.contains(SECRET), "{name}:\n{text}");
        let expected = config.with_extension("txt");
        if write {
            std::fs::write(&expected, &text).expect("writable");
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        if text != wanted {
            otherwise.push(format!("{name} is told as\n{text}\nand not as\n{wanted}"));
        }
    }
    assert!(otherwise.is_empty(), "{}\nIf that is meant: HOOKGATE_WRITE=1", otherwise.join("\n"));
}
