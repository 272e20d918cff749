//! `--help` is complete and shows no secret.

use std::{collections::BTreeSet, process::Command, time::Duration};

use super::{
    exited::run_to_exit,
    settings::{SECRET, all_settings},
};

#[test]
fn help_shows_variables_and_defaults_but_no_secret_values() {
    let all = all_settings();
    let secrets: BTreeSet<&str> =
        all.iter().filter(|setting| setting.is_secret).filter_map(|setting| setting.variable.as_deref()).collect();
    let ours = ["APP_CACHE_SECRETS", "APP_KEY_PEPPERS", "APP_KEY_TAG_SECRETS"];
    let urls = ["DATABASE_READ_URL", "DATABASE_URL", "REDIS_URL"];
    assert_eq!(secrets, ours.into_iter().chain(urls).collect());

    let commands: BTreeSet<&[String]> = all.iter().map(|setting| setting.role.as_slice()).collect();
    assert_eq!(commands.len(), 11, "{commands:?}");

    for role in commands {
        for help in ["--help", "-h"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
            command.args(role).arg(help).env_clear();
            command.envs(secrets.iter().map(|secret| (secret, format!("postgresql://u:{SECRET}@h/{SECRET}"))));
            let shown = run_to_exit(command, Duration::from_secs(60)).expect(0);
            assert_eq!(shown.stderr, "");
            assert!(!shown.stdout.contains(SECRET), "{}", shown.stdout);
            // Long lines are wrapped at any space.
            let words = shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            for all_settings in all.iter().filter(|setting| setting.role == role) {
                let variable = all_settings.variable.as_deref().unwrap();
                let secret = if all_settings.is_secret { "]" } else { "=" };
                assert!(
                    words.contains(&format!("[env: {variable}{secret}")),
                    "{variable} is not in:\n{}",
                    shown.stdout
                );
                if let Some(default) = all_settings.default.as_deref().filter(|default| !default.is_empty()) {
                    assert!(
                        words.contains(&format!("[default: {default}]")),
                        "{default} of {variable}:\n{}",
                        shown.stdout
                    );
                }
            }
        }
    }
}

/// The texts are reviewed as a whole: what changes here, changes for operators.
#[test]
fn help_of_every_subcommand_is_its_snapshot() {
    let commands: BTreeSet<Vec<String>> = all_settings()
        .into_iter()
        .map(|setting| setting.role)
        .chain([vec![], vec!["keys".into()], vec!["tenants".into()]])
        .collect();

    for role in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
        // The width that lines are wrapped at must not be that of a terminal.
        command.args(&role).arg("--help").env_clear().env("COLUMNS", "100");
        let help = run_to_exit(command, Duration::from_secs(60)).expect(0).stdout;

        // Clap fills empty lines with spaces.
        let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        let name = ["help".to_owned()].into_iter().chain(role).collect::<Vec<_>>().join("-");
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, help);
        });
    }
}
