//! What a team shares: Makefile, editor settings, set-up scripts.

use std::process::Command;

use yaml_rust2::YamlLoader;

use crate::files::{keys, pairs, path, strings, text, yaml};

/// Target, what help says, and its commands.
fn targets() -> Vec<(String, String, Vec<String>)> {
    let mut found: Vec<(String, String, Vec<String>)> = Vec::new();
    for line in text("Makefile").lines() {
        if let Some(command) = line.strip_prefix('\t') {
            let target = found.last_mut().unwrap();
            target.2.push(command.trim_start_matches('@').to_owned());
        } else if let Some((name, help)) = line.split_once(": ## ") {
            found.push((name.to_owned(), help.to_owned(), Vec::new()));
        }
    }
    found
}

#[test]
fn make_has_the_targets_that_people_try_and_says_what_each_does() {
    let targets = targets();
    let names: Vec<_> = targets.iter().map(|(name, ..)| name.as_str()).collect();
    for wanted in
        ["help", "dev", "test", "build", "stop", "clean", "logs", "shell", "db-reset", "db-dump", "db-load"]
    {
        assert!(names.contains(&wanted), "{wanted}");
    }
    // Each is a name and no file, and `make` alone explains.
    let file = text("Makefile");
    let phony = file.lines().find_map(|line| line.strip_prefix(".PHONY: ")).unwrap();
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(sorted(phony.split(' ').collect()), sorted(names.clone()));
    assert_eq!(names[0], "help");
    assert!(targets.iter().all(|(_, help, _)| help.len() > 5), "{targets:?}");
}

#[test]
fn each_make_target_is_one_command_that_exists() {
    let services = [keys(&yaml("docker-compose.yml")["services"])].concat();
    for (name, _, commands) in targets().into_iter().skip(1) {
        let [command] = commands.as_slice() else { panic!("{name}: {commands:?}") };
        let words: Vec<_> = command.split(' ').collect();
        match words.as_slice() {
            ["cargo", "xtask", command, ..] => {
                assert!(path(&format!("xtask/src/{command}.rs")).is_file(), "{name}: {command}");
            }
            ["cargo", alias, ..] => {
                assert!(text(".cargo/config.toml").contains(&format!("\n{alias} = ")), "{name}: {alias}");
            }
            ["docker", "compose", what, rest @ ..] => {
                assert!(["up", "down", "build", "logs", "exec"].contains(what), "{name}: {what}");
                let service = if *what == "exec" { rest.first() } else { None };
                assert!(
                    service.is_none_or(|one| services.contains(&(*one).to_owned())),
                    "{name}: {service:?}"
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// JSON with comments, as editors take it.
fn settings(name: &str) -> yaml_rust2::Yaml {
    let lines: Vec<_> =
        text(name).lines().filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect();
    YamlLoader::load_from_str(&lines.join("\n")).unwrap_or_else(|error| panic!("{name}: {error}")).remove(0)
}

#[test]
fn the_editor_checks_what_ci_checks_and_asks_no_database() {
    let settings = settings(".vscode/settings.json");
    assert_eq!(settings["editor.formatOnSave"].as_bool(), Some(true));
    assert_eq!(settings["rust-analyzer.check.command"].as_str(), Some("clippy"));
    assert!(text(".github/workflows/ci.yml").contains("cargo clippy --workspace --all-targets"));
    assert_eq!(strings(&settings["rust-analyzer.check.extraArgs"]), ["--all-targets"]);
    assert_eq!(settings["rust-analyzer.cargo.extraEnv"]["SQLX_OFFLINE"].as_str(), Some("true"));
    // Not watched: what changes all the time and is nobody's source.
    let unwatched = keys(&settings["files.watcherExclude"]);
    for ignored in ["target", ".data"] {
        assert!(text(".gitignore").contains(ignored), "{ignored}");
        assert!(unwatched.contains(&format!("**/{ignored}/**")), "{ignored}: {unwatched:?}");
    }
}

#[test]
fn recommended_extensions_are_named_as_the_marketplace_names_them() {
    let wanted = strings(&settings(".vscode/extensions.json")["recommendations"]);
    assert!(wanted.contains(&"rust-lang.rust-analyzer".to_owned()), "{wanted:?}");
    for id in &wanted {
        let (publisher, name) = id.split_once('.').unwrap_or_else(|| panic!("{id}"));
        assert!(!publisher.is_empty() && !name.is_empty() && !name.contains(['.', ' ']), "{id}");
    }
}

#[test]
fn every_editor_is_told_the_width_and_line_ends_that_rustfmt_uses() {
    let file = text(".editorconfig");
    assert!(file.starts_with("root = true"));
    for said in ["end_of_line = lf", "insert_final_newline = true", "trim_trailing_whitespace = true"] {
        assert!(file.contains(said), "{said}");
    }
    let width = text("rustfmt.toml");
    let width = width.lines().find_map(|line| line.strip_prefix("max_width = ")).unwrap();
    assert!(file.contains(&format!("max_line_length = {width}")), "rustfmt's width is {width}");
}

#[test]
fn the_set_up_explains_itself_and_refuses_what_it_does_not_know() {
    let run = |argument: &str| {
        Command::new("bash").arg(path("scripts/dev-setup.sh")).arg(argument).output().unwrap()
    };
    let help = run("--help");
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Usage: "));
    assert_eq!(run("--nonsense").status.code(), Some(2));
    // Windows goes through WSL2 to the same script.
    assert!(text("scripts/dev-setup.ps1").contains("scripts/dev-setup.sh"));
    assert!(!pairs(&yaml("docker-compose.dev.yml")["services"]).is_empty());
}
