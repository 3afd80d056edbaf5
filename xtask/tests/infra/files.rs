//! Reading the project's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{VARIABLES, WhenUnset};
use yaml_rust2::{Yaml, YamlLoader, yaml::Hash};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

pub(crate) fn path(name: &str) -> PathBuf {
    root().join(name)
}

pub(crate) fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A YAML file with its merge keys (`<<`) resolved.
pub(crate) fn yaml(name: &str) -> Yaml {
    let documents = YamlLoader::load_from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    merged(&documents[0])
}

fn merged(node: &Yaml) -> Yaml {
    match node {
        Yaml::Array(items) => Yaml::Array(items.iter().map(merged).collect()),
        Yaml::Hash(map) => {
            let merge = Yaml::String("<<".to_owned());
            let mut all = map.get(&merge).map(merged).and_then(Yaml::into_hash).unwrap_or_default();
            for (key, value) in map.iter().filter(|(key, _)| **key != merge) {
                all.insert(key.clone(), merged(value));
            }
            Yaml::Hash(all)
        }
        other => other.clone(),
    }
}

/// The pairs of a mapping; none when it is not there.
pub(crate) fn pairs(node: &Yaml) -> Vec<(String, Yaml)> {
    let empty = Hash::new();
    let map = node.as_hash().unwrap_or(&empty);
    map.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), value.clone())).collect()
}

pub(crate) fn keys(node: &Yaml) -> Vec<String> {
    pairs(node).into_iter().map(|(key, _)| key).collect()
}

/// The strings of a list; none when it is not there.
pub(crate) fn strings(node: &Yaml) -> Vec<String> {
    let list = node.as_vec().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// Every `NAME=value` of an environment file.
pub(crate) fn assignments(name: &str) -> Vec<(String, String)> {
    let lines = text(name).lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    let pairs = lines.iter().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// `SHUTDOWN_BUDGET` outside development, the longest that ships.
pub(crate) fn shutdown_budget() -> Duration {
    let variable = VARIABLES.iter().find(|variable| variable.name == "SHUTDOWN_BUDGET").unwrap();
    let WhenUnset::PerEnvironment { deployed, .. } = variable.default else {
        panic!("one default for all environments: {variable:?}")
    };
    seconds(deployed)
}

/// Durations as compose and our settings write them: whole seconds.
pub(crate) fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap())
}

/// The program has this command: it has a file of that name.
pub(crate) fn is_command(word: &str) -> bool {
    path(&format!("crates/ballast/src/commands/{}.rs", word.replace('-', "_"))).is_file()
}
