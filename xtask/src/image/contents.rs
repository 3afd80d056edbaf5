//! What is in the image and what is not: no secret, no source, and the list of the crates that it was built from.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::compose::Compose;
use crate::ui::Ui;

/// The section that `cargo auditable` writes; scanners read the crates and their versions from it.
const CRATES: &[u8] = b".dep-v0";
/// Variables of the image. Everything else comes when it runs.
const VARIABLES: [&str; 4] = ["PATH", "SSL_CERT_FILE", "APP_ENV", "PORT"];
/// How tokens begin that have a form of their own, and how many letters and digits follow.
const TOKENS: [(&str, usize); 8] = [
    ("AKIA", 16),
    ("ghp_", 36),
    ("github_pat_", 22),
    ("glpat-", 20),
    ("sk_live_", 24),
    ("rk_live_", 24),
    ("xoxb-", 11),
    ("sk-proj-", 20),
];

pub(super) fn check(compose: &Compose, ui: &Ui) -> Result<()> {
    let variables = compose.docker(&[
        "image",
        "inspect",
        "--format",
        "{{range .Config.Env}}{{println .}}{{end}}",
        &compose.image(),
    ])?;
    for variable in variables.lines().filter(|line| !line.is_empty()) {
        let name = variable.split('=').next().unwrap_or_default();
        ensure!(VARIABLES.contains(&name), "the image sets {name}, and nobody expects that");
    }
    let history =
        compose.docker(&["history", "--no-trunc", "--format", "{{.CreatedBy}}", &compose.image()])?;
    for word in ["SECRET", "TOKEN", "PASSWORD", "API_KEY", "DATABASE_URL"] {
        ensure!(!history.contains(word), "the image's history speaks of {word}:\n{history}");
    }
    let id = compose.docker(&["create", &compose.image()])?;
    let file = std::env::temp_dir().join(format!("{}.tar", compose.project()));
    let outcome = compose
        .docker(&["export", "--output", &file.display().to_string(), &id])
        .and_then(|_| fs::read(&file).context("cannot read the image's files"));
    let _ = fs::remove_file(&file);
    let _ = compose.docker(&["rm", &id]);
    let bytes = outcome?;
    let names = names(&bytes)?;
    ensure!(names.iter().any(|name| name == "usr/local/bin/ballast"), "there is no program in {names:?}");
    let odd: Vec<_> = names.iter().filter(|name| does_not_belong(name)).collect();
    ensure!(odd.is_empty(), "these files do not belong into the image: {odd:?}");
    if let Some(found) = secret(&bytes) {
        bail!("the image holds what looks like a secret: {found}...");
    }
    ensure!(contains(&bytes, CRATES), "the program does not say which crates it was built from");
    ui.step(&format!("contents: {} files, no secret, no source; the program lists its crates", names.len()));
    Ok(())
}

/// The names in a tar archive.
fn names(tar: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(head) = tar.get(at..at + 512).filter(|head| head[0] != 0) {
        let text = |from: usize, to: usize| {
            let field = head[from..to].split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(field).trim().to_owned()
        };
        let size = usize::from_str_radix(&text(124, 136), 8).context("the archive is broken")?;
        found.push(text(0, 100).trim_start_matches("./").to_owned());
        at += 512 + size.div_ceil(512) * 512;
    }
    Ok(found)
}

fn does_not_belong(name: &str) -> bool {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let extension = last.rsplit_once('.').map_or("", |(_, extension)| extension);
    last == ".git"
        || last.starts_with(".env")
        || last.starts_with("id_rsa")
        || last.starts_with("id_ed25519")
        || ["rs", "sql", "lua", "sh", "toml"].contains(&extension)
        || ["/bin/sh", "/bin/bash", "/bin/apt"].iter().any(|shell| name.ends_with(shell))
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// The beginning of something that is a secret by its form.
fn secret(bytes: &[u8]) -> Option<String> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=_-".contains(byte);
    let runs =
        |from: usize, count: usize| bytes.get(from..from + count).is_some_and(|run| run.iter().all(plain));
    for at in 0..bytes.len() {
        // Most bytes begin nothing, and there are fifty million.
        if !matches!(bytes[at], b'P' | b'A' | b'g' | b's' | b'r' | b'x') {
            continue;
        }
        let rest = &bytes[at..];
        // A key, not the words of a program that reads keys.
        let key = b"PRIVATE KEY-----";
        if rest.starts_with(key) {
            let line = at + key.len() + rest[key.len()..].iter().take(2).filter(|byte| **byte < b' ').count();
            if line > at + key.len() && runs(line, 40) {
                return Some("a private key".to_owned());
            }
        }
        for (start, count) in TOKENS {
            let (from, before) = (at + start.len(), at.checked_sub(1).map(|before| bytes[before]));
            let alone = before.is_none_or(|byte| !byte.is_ascii_alphanumeric());
            if alone
                && rest.starts_with(start.as_bytes())
                && runs(from, count)
                && mixed(&bytes[from..from + count])
            {
                return Some(start.to_owned());
            }
        }
    }
    None
}

/// Words have no digits, numbers no letters.
fn mixed(run: &[u8]) -> bool {
    run.iter().any(u8::is_ascii_digit) && run.iter().any(u8::is_ascii_alphabetic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_form() {
        let token = |start: &str| format!("x={start}a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0 ");
        for (start, _) in TOKENS {
            assert_eq!(secret(token(start).as_bytes()).as_deref(), Some(start));
        }
        let line = "MC4CAQAwBQYDK2VwBCIEIFakeFakeFakeFakeFakeFakeFakeFake";
        assert!(secret(format!("-----BEGIN {}-----\n{line}\n", "PRIVATE KEY").as_bytes()).is_some());
    }

    #[test]
    fn what_a_program_says_of_secrets_is_none() {
        for harmless in [
            "sk-proj-...",
            "ghp_",
            "-----BEGIN PRIVATE KEY-----",
            "PRIVATE KEY-----\0RSA PRIVATE KEY-----",
            "AKIAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(secret(harmless.as_bytes()), None, "{harmless}");
        }
    }

    #[test]
    fn sources_settings_and_shells_do_not_belong_into_an_image() {
        for name in [
            "app/.env.production",
            "build/crates/api/src/lib.rs",
            "root/.ssh/id_ed25519",
            "usr/bin/bash",
            "x/.git/",
        ] {
            assert!(does_not_belong(name), "{name}");
        }
        for name in ["usr/local/bin/ballast", "etc/ssl/certs/ca-certificates.crt", "etc/passwd"] {
            assert!(!does_not_belong(name), "{name}");
        }
    }

    #[test]
    fn the_names_in_an_archive_are_read() {
        let mut tar = vec![0_u8; 512 * 4];
        tar[..5].copy_from_slice(b"./one");
        tar[124..135].copy_from_slice(b"00000000003");
        tar[1024..1027].copy_from_slice(b"two");
        tar[1024 + 124..1024 + 135].copy_from_slice(b"00000000000");
        assert_eq!(names(&tar).unwrap(), ["one", "two"]);
    }
}
