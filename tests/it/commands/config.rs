//! `app config docs` prints the configuration page, which is committed.

use std::{path::Path, process::Command, time::Duration};

use super::{exited::run_to_exit, settings::all_settings};

const PAGE: &str = "docs/configuration.md";

#[test]
fn configuration_page_is_what_app_config_docs_prints() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    command.args(["config", "docs"]).env_clear();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);

    let printed = run_to_exit(command, Duration::from_secs(60)).expect(0).stdout;

    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == printed, "{PAGE} is out of date; update it by running this test with UPDATE_DOCS=1");
    for variable in all_settings().into_iter().filter_map(|setting| setting.variable) {
        assert_eq!(printed.matches(&format!("\n| `{variable}`, ")).count(), 1, "rows of {variable}");
    }
}
