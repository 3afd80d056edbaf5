//! The documents against reality: what they name exists.
//!
//! Needs no server. What they *promise* is for the other tests to prove; `docs/capabilities.md` says which.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Variables that are not ours, by how they begin.
const FOREIGN: [&str; 3] = ["RAILWAY_", "RUSTDOCFLAGS", "NO_COLOR"];
/// Names in capitals that are neither variables nor constants of ours.
const NO_VARIABLES: [&str; 3] = ["EX_CONFIG", "TCP_NODELAY", "READ_COMMITTED"];

struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Code in the text, and the commands of shell blocks, joined where a backslash continues them.
    fn code(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut block = None;
        let mut so_far = String::new();
        for line in self.text.lines() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                block = if block.is_none() { Some(language) } else { None };
            } else if block == Some("sh") {
                so_far.push_str(line.trim_end_matches('\\'));
                if !line.ends_with('\\') {
                    found.push(std::mem::take(&mut so_far));
                }
            } else if block.is_none() {
                found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
            }
        }
        found
    }

    /// Targets of links, without those to other sites.
    fn links(&self) -> impl Iterator<Item = &str> {
        self.text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(target, _)| target)
            .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
    }

    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All files below `dir` with this ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() && !["target", "node_modules"].contains(&name.as_str()) && !name.starts_with('.') {
            found.extend(files(&entry, ending));
        } else if name.ends_with(ending) && !name.starts_with('.') {
            found.push(entry);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<Document> {
    let found: Vec<Document> = files(&root(), ".md")
        .into_iter()
        .map(|path| Document { text: fs::read_to_string(&path).unwrap(), path })
        .collect();
    assert!(found.iter().any(|d| d.name() == "README.md"), "the README is found");
    found
}

fn sources() -> String {
    ["crates", "xtask"]
        .iter()
        .flat_map(|dir| files(&root().join(dir), ".rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}

/// Says all that is wrong in one go.
fn none(wrong: &BTreeSet<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.iter().cloned().collect::<Vec<_>>().join("\n"));
}

/// What a heading's link is called, as GitHub does it.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"))
        .map(|name| name.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect())
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = BTreeSet::new();
    for document in documents() {
        for link in document.links() {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { document.path.clone() } else { document.path.with_file_name(path) };
            let exists = target.exists();
            let found = anchor.is_empty()
                || exists && anchors(&fs::read_to_string(&target).unwrap_or_default()).contains(anchor);
            if !exists || !found {
                wrong.insert(format!("{}: {link}", document.name()));
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_file_in_the_documents_exists() {
    const FOLDERS: [&str; 7] =
        ["crates/", "docs/", "xtask/", "examples/", "migrations/", "deploy/", ".github/"];
    let mut wrong = BTreeSet::new();
    for document in documents() {
        for code in document.code() {
            let words = code.split_whitespace().map(|word| word.trim_end_matches([',', ';', ':']));
            for path in words.filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder))) {
                let pattern = path.contains(['<', '*', '{', '$']) || path.contains("NAME");
                // What a document tells to make is not there yet.
                let made = document.text.contains(&format!("- Create `{path}`:"));
                if !pattern && !made && !root().join(path).exists() {
                    wrong.insert(format!("{}: {path}", document.name()));
                }
            }
        }
    }
    none(&wrong);
}

/// The words of a command line that follow `program`, as long as they are plain.
fn arguments<'a>(code: &'a str, program: &str) -> Vec<Vec<&'a str>> {
    let words: Vec<&str> =
        code.split_whitespace().map(|word| word.trim_matches(['(', ')', '"', '\'', ',', ';'])).collect();
    let starts = words.iter().enumerate().filter(|(_, word)| **word == program);
    starts
        .map(|(at, _)| {
            let plain =
                |word: &&&str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            words[at + 1..].iter().take_while(plain).copied().collect()
        })
        .collect()
}

#[test]
fn every_cargo_command_in_the_documents_exists() {
    const OF_CARGO: [&str; 10] =
        ["build", "check", "clippy", "deny", "doc", "fmt", "install", "nextest", "run", "test"];
    let config = read(".cargo/config.toml");
    let xtask: String = files(&root().join("xtask/src"), ".rs").iter().map(read).collect();
    let is_alias = |name: &str| config.lines().any(|line| line.starts_with(&format!("{name} = ")));
    let mut wrong = BTreeSet::new();
    let mut seen = 0;
    for document in documents() {
        for code in document.code() {
            for words in arguments(&code, "cargo") {
                let Some((&command, rest)) = words.split_first() else { continue };
                seen += 1;
                let mut fine = is_alias(command) || OF_CARGO.contains(&command);
                if command == "xtask"
                    && let Some(name) = rest.first()
                {
                    let variant = format!("    {}{}(", name[..1].to_uppercase(), &name[1..]);
                    fine &= xtask.contains(&variant);
                }
                if is_alias(command) {
                    // clap makes `--no-install` of a field `no_install`, unless the field names its option.
                    let is_option = |name: &str| {
                        name == "help"
                            || xtask.contains(&format!("    {}: ", name.replace('-', "_")))
                            || xtask.contains(&format!("long = \"{name}\""))
                    };
                    fine &= rest.iter().filter_map(|word| word.strip_prefix("--")).all(is_option);
                }
                if !fine {
                    wrong.insert(format!("{}: cargo {}", document.name(), words.join(" ")));
                }
            }
        }
    }
    assert!(seen > 20, "the documents name commands: {seen}");
    none(&wrong);
}

#[test]
fn every_command_of_the_program_in_the_documents_exists() {
    let mut named = BTreeSet::new();
    for document in documents() {
        for code in document.code() {
            let code = code.replace("-p ballast -- ", "ballast ");
            for words in arguments(&code, "ballast") {
                if words.first().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_lowercase())) {
                    named.insert(words.into_iter().map(str::to_owned).collect::<Vec<_>>());
                }
            }
        }
    }
    assert!(named.len() > 5, "{named:?}");
    let mut wrong = BTreeSet::new();
    for words in named {
        // Before its help, clap checks the words in front of it.
        let output = Command::new(env!("CARGO_BIN_EXE_ballast"))
            .args(&words)
            .arg("--help")
            .env_clear()
            .output()
            .unwrap();
        if !output.status.success() {
            wrong.insert(format!("ballast {}", words.join(" ")));
        }
    }
    none(&wrong);
}

#[test]
fn every_variable_in_the_documents_exists() {
    let known: BTreeSet<&str> = config::VARIABLES.iter().map(|v| v.name).collect();
    let mut elsewhere = sources();
    for file in ["docker-compose.yml", "docker-compose.prod.yml", "Dockerfile"] {
        elsewhere.push_str(&read(file));
    }
    let scripts =
        ["deploy.sh", "deploy/backup/backup.sh", "deploy/k6/load.js", ".github/workflows/deploy.yml"]
            .map(read)
            .concat();
    // Read by our tools, written by them, or a constant: all of these stand in quotes, after `const` or in compose.
    let is_ours = |name: &str| {
        [format!("\"{name}\""), format!("const {name}:"), format!("static {name}:"), format!("${{{name}")]
            .iter()
            .any(|text| elsewhere.contains(text))
            || scripts.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == name)
    };
    let mut wrong = BTreeSet::new();
    // docs/configuration.md is generated from the table, and names what other stacks call things.
    for document in documents().into_iter().filter(|d| d.name() != "docs/configuration.md") {
        for code in document.code() {
            let names = code.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
            for name in names.filter(|name| name.contains('_') && name.len() > 4) {
                let a_name = name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.ends_with('_');
                let foreign = FOREIGN.iter().any(|prefix| name.starts_with(prefix));
                if a_name
                    && !foreign
                    && !known.contains(name)
                    && !NO_VARIABLES.contains(&name)
                    && !is_ours(name)
                {
                    wrong.insert(format!("{}: {name}", document.name()));
                }
            }
        }
    }
    none(&wrong);
}

/// Rows of the tables of a document, without their heads, as their cells.
fn rows(document: &str) -> Vec<Vec<String>> {
    document
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter(|line| !["| #", "| case", "| ASVS"].iter().any(|head| line.starts_with(head)))
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

#[test]
fn every_test_that_proves_a_claim_exists() {
    let sources = sources();
    let mut wrong = BTreeSet::new();
    for (name, column) in [("docs/capabilities.md", 3), ("docs/reliability.md", 3), ("docs/security.md", 3)] {
        for row in rows(&read(name)) {
            let proof = row.get(column).unwrap_or_else(|| panic!("{name}: a row without proof: {row:?}"));
            let tests: Vec<&str> =
                proof.split('`').skip(1).step_by(2).filter(|code| code.matches('_').count() > 1).collect();
            for test in &tests {
                if !sources.contains(&format!("fn {test}(")) {
                    wrong.insert(format!("{name}, {}: there is no test {test}", row[0]));
                }
            }
            // Without a test a row is open, or says why it needs none.
            let says_so = ["open", "not applicable", "`cargo"].iter().any(|word| proof.contains(word));
            if tests.is_empty() && !says_so {
                wrong.insert(format!("{name}, {}: neither a test nor `open`", row[0]));
            }
        }
    }
    none(&wrong);
}

#[test]
fn all_claims_are_listed() {
    let numbers: Vec<String> = rows(&read("docs/capabilities.md")).iter().map(|row| row[0].clone()).collect();
    let expected: Vec<String> = (1..=116).map(|n| n.to_string()).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn the_readme_shows_the_curl_that_cargo_stack_prints() {
    let hints = read("xtask/src/stack/hints.rs");
    let (_, rest) = hints.split_once("r#\"").unwrap();
    let (printed, _) = rest.split_once("\"#").unwrap();
    let constant = |name: &str| {
        let source = read("crates/ballast/src/commands/seed.rs");
        let (_, rest) = source.split_once(&format!("const {name}: &str = \"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let printed = printed
        .replace("{{", "{")
        .replace("}}", "}")
        .replace("{api}", "http://127.0.0.1:8080")
        .replace("{email}", &constant("EMAIL"))
        .replace("{password}", &constant("PASSWORD"))
        .replace("{model}", "sim-small");
    assert!(read("README.md").contains(&printed), "the README should have:\n{printed}");
}
