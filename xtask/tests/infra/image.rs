//! Dockerfile, Dockerfile.worker, .dockerignore.

use crate::files::{is_command, path, text};

/// The instructions, continuation lines joined.
fn instructions(name: &str) -> Vec<(String, String)> {
    let joined = text(name).replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(word, rest)| (word.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// The last stage, which is what ships.
fn runtime() -> Vec<(String, String)> {
    let all = instructions("Dockerfile");
    let from = all.iter().rposition(|(word, _)| word == "FROM").unwrap();
    all[from..].to_vec()
}

fn only(word: &str) -> String {
    let found: Vec<_> = runtime().into_iter().filter(|(name, _)| name == word).collect();
    assert_eq!(found.len(), 1, "{word}: {found:?}");
    found[0].1.clone()
}

/// The words of an exec form.
fn exec_form(text: &str) -> Vec<String> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let inside = inside.unwrap_or_else(|| panic!("a shell form, in an image without a shell: {text}"));
    inside.split(", ").map(|word| word.trim_matches('"').to_owned()).collect()
}

#[test]
fn the_two_dockerfiles_differ_in_their_command_alone() {
    let (api, worker) = (text("Dockerfile"), text("Dockerfile.worker"));
    let expected = api.replace("\nCMD [\"api\"]\n", "\nCMD [\"worker\"]\n");
    assert_ne!(expected, api);
    assert_eq!(worker, expected);
}

#[test]
fn the_backup_image_is_built_from_the_same_stages() {
    let stages = |name: &str| {
        let text = text(name);
        let from = text.find("# ---- Tools").unwrap();
        let to = text.rfind("\n# ---- ").unwrap();
        text[from..to].to_owned()
    };
    assert_eq!(stages("deploy/backup/Dockerfile"), stages("Dockerfile"));
}

#[test]
fn the_image_runs_as_a_user_by_number_who_is_not_root() {
    let user = only("USER");
    let ids: Vec<u32> = user.split(':').map(|id| id.parse().unwrap()).collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| *id >= 1000), "{user}");
    // Nothing is given to that user: the binary is root's, and the process cannot change it.
    let copies: Vec<_> = runtime().into_iter().filter(|(word, _)| word == "COPY").collect();
    assert!(copies.iter().all(|(_, what)| !what.contains("--chown")), "{copies:?}");
}

#[test]
fn the_binary_is_started_without_a_shell_and_its_commands_exist() {
    let entrypoint = exec_form(&only("ENTRYPOINT"));
    assert_eq!(entrypoint, ["/usr/local/bin/ballast"]);
    assert!(runtime().iter().any(|(word, what)| word == "COPY" && what.ends_with(&entrypoint[0])));
    let command = exec_form(&only("CMD"));
    assert!(command == ["api"] && is_command("api") && is_command("worker"));
}

#[test]
fn the_health_check_goes_through_the_binary() {
    let check = only("HEALTHCHECK");
    for option in ["--interval=30s", "--timeout=10s", "--start-period=40s", "--retries=3"] {
        assert!(check.contains(option), "{check}");
    }
    let command = exec_form(check.split_once("CMD ").unwrap().1);
    assert_eq!(command, ["/usr/local/bin/ballast", "healthcheck"]);
    assert!(is_command("healthcheck"));
}

#[test]
fn an_image_without_settings_is_a_production_one() {
    assert_eq!(only("ENV"), "APP_ENV=production PORT=8080");
    assert_eq!(only("EXPOSE"), "8080");
}

#[test]
fn the_image_says_what_it_is() {
    let labels = only("LABEL");
    for name in ["title", "description", "source", "licenses", "version", "revision"] {
        assert!(labels.contains(&format!("org.opencontainers.image.{name}=\"")), "{name}: {labels}");
    }
}

#[test]
fn every_build_argument_has_a_default() {
    let all = instructions("Dockerfile");
    let arguments: Vec<_> = all.iter().filter(|(word, _)| word == "ARG").map(|(_, rest)| rest).collect();
    assert!(arguments.iter().any(|rest| *rest == "PROFILE=release"), "{arguments:?}");
    assert!(arguments.iter().all(|rest| rest.split_once('=').is_some_and(|(_, value)| !value.is_empty())));
    // Both profiles exist: `release` always does.
    assert!(text("Cargo.toml").contains("[profile.local]"));
}

#[test]
fn every_builder_understands_the_file() {
    let file = text("Dockerfile");
    // A frontend has to be fetched, Railway wants a service id in cache mounts, older engines know neither of the others.
    for word in ["# syntax=", "--mount=", "<<", "--link"] {
        assert!(!file.contains(word), "{word}");
    }
}

#[test]
fn the_image_can_be_built_for_any_architecture() {
    for file in ["Dockerfile", "Dockerfile.worker", "deploy/backup/Dockerfile"] {
        let code: Vec<_> =
            text(file).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        for word in ["amd64", "x86_64", "arm64", "aarch64", "--platform", "--target", "-gnu", "/lib/x86"] {
            assert!(!code.join("\n").contains(word), "{file}: {word}");
        }
    }
    assert!(text("Dockerfile").contains("--platform linux/amd64,linux/arm64"), "how is not said");
}

#[test]
fn the_program_carries_the_list_of_its_crates() {
    let all = instructions("Dockerfile");
    let installed = all.iter().find(|(_, rest)| rest.contains("cargo install")).unwrap();
    assert!(installed.1.contains("--locked") && installed.1.contains("cargo-auditable@"), "{installed:?}");
    assert!(all.iter().any(|(word, rest)| word == "RUN" && rest.contains("cargo auditable build")));
    // Stripping symbols leaves the section; `cargo xtask image` looks for it in the image.
    assert!(!text("Dockerfile").contains("objcopy"));
}

#[test]
fn dependencies_are_built_before_our_sources_are_copied() {
    let all = instructions("Dockerfile");
    let find = |what: &str| {
        all.iter().rposition(|(_, rest)| rest.contains(what)).unwrap_or_else(|| panic!("no {what}"))
    };
    let (cook, sources, build) = (find("cargo chef cook"), find(". ."), find("cargo auditable build"));
    assert!(cook < sources && sources < build);
    for step in [cook, build] {
        assert!(all[step].1.contains("--locked --profile \"$PROFILE\" --package ballast"), "{:?}", all[step]);
    }
}

#[test]
fn builder_and_runtime_have_the_same_libc_and_our_compiler() {
    let all = instructions("Dockerfile");
    let bases: Vec<_> =
        all.iter().filter(|(word, _)| word == "FROM").map(|(_, rest)| rest.as_str()).collect();
    let toolchain = text("rust-toolchain.toml");
    let version = toolchain.split('"').nth(1).unwrap();
    let minor = version.rsplit_once('.').unwrap().0;
    assert_eq!(bases.first(), Some(&format!("rust:{minor}-slim-bookworm AS chef").as_str()));
    assert_eq!(bases.last(), Some(&"gcr.io/distroless/cc-debian12:nonroot"), "bookworm is Debian 12");
}

/// Whether a path stays out of the build context. Knows as much of the format as our file uses.
fn ignored(path: &str) -> bool {
    let file = text(".dockerignore");
    let patterns = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    // The last pattern that matches the path, or a directory above it, decides.
    patterns.fold(false, |ignored, pattern| {
        let (wanted, pattern) = match pattern.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, pattern),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let hit = match pattern.strip_prefix("**/") {
            Some(name) => parts.iter().any(|part| matches(name, part)),
            None => matches(pattern, parts[0]),
        };
        if hit { wanted } else { ignored }
    })
}

/// A name with at most two `*` at its ends.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(end), _) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

#[test]
fn neither_secrets_nor_history_nor_build_output_enter_the_build() {
    for name in [
        ".git/config",
        ".env",
        ".env.production",
        "crates/api/.env.local",
        "target/release/ballast",
        ".data/stack/state",
        "xtask/target/x",
        "docs/configuration.md",
        "examples/openai.py",
        "crates/ballast/tests/it/main.rs",
        "README.md",
        "docker-compose.yml",
        "rust-toolchain.toml",
        "bench/node_modules/x",
        ".github/workflows/ci.yml",
    ] {
        assert!(ignored(name), "{name}");
    }
}

#[test]
fn everything_that_the_build_reads_enters_it() {
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        ".cargo/config.toml",
        ".sqlx/query-1.json",
        "crates/db/src/lib.rs",
        "crates/jobs/README.md",
        "crates/limits/src/admit.lua",
        "migrations/0001_identity.up.sql",
        "xtask/Cargo.toml",
        "xtask/src/main.rs",
    ] {
        assert!(!ignored(name), "{name}");
        assert!(name.starts_with(".sqlx") || path(name).is_file(), "{name} is gone");
    }
}
