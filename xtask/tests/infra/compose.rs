//! docker-compose.yml.

use config::{ApiConfig, Environment, MapVars, VARIABLES, WorkerConfig};
use yaml_rust2::Yaml;

use crate::files::{assignments, is_command, keys, pairs, seconds, shutdown_budget, strings, text, yaml};

const FILE: &str = "docker-compose.yml";
/// Run from our image.
const OURS: [&str; 4] = ["migrate", "engine-sim", "api", "worker"];
/// Reachable from this machine.
const PUBLISHED: [&str; 3] = ["postgres", "redis", "api"];

fn services() -> Vec<(String, Yaml)> {
    pairs(&yaml(FILE)["services"])
}

fn service(name: &str) -> Yaml {
    yaml(FILE)["services"][name].clone()
}

/// `${NAME:-default}` as it is without NAME.
fn unset(value: &str) -> String {
    let Some((before, rest)) = value.split_once("${") else { return value.to_owned() };
    let (inside, after) = rest.split_once('}').unwrap();
    let default = inside.split_once(":-").map_or("", |(_, default)| default);
    format!("{before}{default}{}", unset(after))
}

fn environment(name: &str) -> Vec<(String, String)> {
    let all = pairs(&service(name)["environment"]);
    all.into_iter().map(|(key, value)| (key, unset(value.as_str().unwrap()))).collect()
}

/// The settings of a service, with an environment file beneath.
fn settings(name: &str, env_file: Option<&str>) -> MapVars {
    let mut vars = MapVars::default();
    for (key, value) in env_file.map(assignments).unwrap_or_default().into_iter().chain(environment(name)) {
        vars.set(&key, &value);
    }
    vars
}

#[test]
fn the_stack_is_complete() {
    let mut names = keys(&yaml(FILE)["services"]);
    names.sort();
    assert_eq!(names, ["api", "engine-sim", "migrate", "postgres", "redis", "worker"]);
}

#[test]
fn the_settings_are_right_with_and_without_a_copied_env_file() {
    for env_file in [None, Some(".env.example")] {
        let api = ApiConfig::from_vars(&settings("api", env_file));
        let api = api.unwrap_or_else(|problems| panic!("{env_file:?}: {problems}"));
        assert_eq!(api.ai.engines[0].url.as_str(), "http://engine-sim:9100/v1");
        assert_eq!(api.runtime.http.port, 8080);
        assert_eq!(api.runtime.environment, Environment::Development);
        let worker = WorkerConfig::from_vars(&settings("worker", env_file));
        worker.unwrap_or_else(|problems| panic!("{env_file:?}: {problems}"));
    }
}

#[test]
fn the_addresses_inside_win_over_an_env_file() {
    for name in ["api", "worker", "migrate"] {
        let set = environment(name);
        for variable in
            ["APP_ENV", "HOST", "PORT", "DATABASE_URL", "DATABASE_DIRECT_URL", "REDIS_URL", "ENGINE_URL"]
        {
            assert!(set.iter().any(|(key, _)| key == variable), "{name}: {variable}");
        }
        let known = |key: &str| VARIABLES.iter().any(|variable| variable.name == key);
        assert!(set.iter().all(|(key, _)| known(key)), "{name}: {set:?}");
    }
    for name in OURS {
        let file = &service(name)["env_file"][0];
        assert_eq!(file["required"].as_bool(), Some(false), "{name} needs a .env");
        assert_eq!(unset(file["path"].as_str().unwrap()), ".env", "{name}");
    }
}

#[test]
fn the_env_example_names_only_what_the_program_knows() {
    let commented = text(".env.example");
    let commented = commented.lines().filter_map(|line| line.strip_prefix("# ")?.split_once('='));
    let is_name =
        |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let commented = commented.map(|(name, _)| name.to_owned()).filter(|name| is_name(name));
    let mut count = 0;
    for name in assignments(".env.example").into_iter().map(|(name, _)| name).chain(commented) {
        assert!(VARIABLES.iter().any(|variable| variable.name == name), "{name}");
        count += 1;
    }
    assert_eq!(count, VARIABLES.len(), "a variable is missing in .env.example");
    assert!(text(".gitignore").lines().any(|line| line == ".env"), "a copy of it must not be committed");
}

#[test]
fn every_service_has_a_health_check() {
    for (name, service) in services() {
        let check = &service["healthcheck"];
        if name == "migrate" {
            // It ends: its exit code is its health, and the image's own check would ask a role that is not there.
            assert_eq!(check["disable"].as_bool(), Some(true));
            assert_eq!(service["restart"].as_str(), Some("no"));
            continue;
        }
        let test = strings(&check["test"]);
        let program = match name.as_str() {
            "postgres" => "pg_isready",
            "redis" => "redis-cli",
            _ => "/usr/local/bin/ballast",
        };
        assert_eq!(test[..2], ["CMD", program], "{name}");
        assert!(check["interval"].as_str().is_some() && check["timeout"].as_str().is_some(), "{name}");
    }
}

#[test]
fn everything_starts_in_the_right_order() {
    let conditions = |name: &str| {
        let mut found: Vec<_> = pairs(&service(name)["depends_on"])
            .into_iter()
            .map(|(on, how)| format!("{on}: {}", how["condition"].as_str().unwrap()))
            .collect();
        found.sort();
        found
    };
    let stores =
        ["migrate: service_completed_successfully", "postgres: service_healthy", "redis: service_healthy"];
    assert_eq!(conditions("migrate"), ["postgres: service_healthy"]);
    assert_eq!(conditions("worker"), stores);
    assert_eq!(conditions("api"), [&["engine-sim: service_healthy"][..], &stores[..]].concat());
    assert_eq!(strings(&service("migrate")["command"]), ["migrate", "up", "--seed"]);
}

#[test]
fn our_services_run_commands_that_exist() {
    for name in OURS {
        let command = strings(&service(name)["command"]);
        assert!(is_command(&command[0]), "{name}: {command:?}");
    }
}

#[test]
fn every_service_has_limits_a_restart_policy_and_bounded_logs() {
    for (name, service) in services() {
        let limits = &service["deploy"]["resources"]["limits"];
        let cpus: f64 = limits["cpus"].as_str().unwrap().parse().unwrap();
        // More than the machine has is refused by the engine.
        assert!(cpus > 0.0 && cpus <= 1.0, "{name}: {cpus}");
        assert!(limits["memory"].as_str().unwrap().ends_with('M'), "{name}");
        assert!(["unless-stopped", "no"].contains(&service["restart"].as_str().unwrap()), "{name}");
        let logs = &service["logging"]["options"];
        assert!(logs["max-size"].as_str().is_some() && logs["max-file"].as_str().is_some(), "{name}");
    }
    assert_eq!(service("worker")["deploy"]["replicas"].as_i64(), Some(1));
}

#[test]
fn redis_gives_up_keys_before_its_container_is_killed() {
    let redis = service("redis");
    let command = strings(&redis["command"]);
    let after = |option: &str| {
        let at = command.iter().position(|word| word == option).unwrap_or_else(|| panic!("no {option}"));
        command[at + 1].clone()
    };
    let number =
        |text: &str| text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<u32>().unwrap();
    let limit = number(redis["deploy"]["resources"]["limits"]["memory"].as_str().unwrap());
    assert!(number(&after("--maxmemory")) * 4 <= limit * 3);
    assert_eq!(after("--maxmemory-policy"), "allkeys-lru");
    assert_eq!(after("--appendonly"), "yes");
}

#[test]
fn only_the_api_is_on_both_networks() {
    let mut networks = keys(&yaml(FILE)["networks"]);
    networks.sort();
    assert_eq!(networks, ["backend", "frontend"]);
    for (name, service) in services() {
        let expected: &[&str] = if name == "api" { &["frontend", "backend"] } else { &["backend"] };
        assert_eq!(strings(&service["networks"]), expected, "{name}");
    }
}

#[test]
fn ports_are_published_to_this_machine_alone_and_can_be_changed() {
    for (name, service) in services() {
        let ports = strings(&service["ports"]);
        if !PUBLISHED.contains(&name.as_str()) {
            assert!(ports.is_empty(), "{name} is published: {ports:?}");
            continue;
        }
        assert_eq!(ports.len(), 1, "{name}");
        let variable = format!("127.0.0.1:${{{}_PORT:-", name.to_uppercase());
        assert!(ports[0].starts_with(&variable), "{name}: {ports:?}");
    }
}

#[test]
fn compose_waits_longer_for_an_end_than_the_program_takes() {
    for name in ["api", "worker"] {
        let grace = seconds(service(name)["stop_grace_period"].as_str().unwrap());
        assert!(grace >= shutdown_budget() + seconds("5s"), "{name}: {grace:?}");
    }
    assert!(services().iter().all(|(_, service)| service["stop_grace_period"].as_str().is_some()));
}

#[test]
fn our_containers_can_write_nothing_and_gain_nothing() {
    for name in OURS {
        let service = service(name);
        assert_eq!(service["read_only"].as_bool(), Some(true), "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert!(strings(&service["tmpfs"])[0].starts_with("/tmp:"), "{name}");
        assert!(service["privileged"].is_badvalue() && service["user"].is_badvalue(), "{name}");
    }
    for (name, service) in services() {
        assert_eq!(strings(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
    }
}

#[test]
fn the_image_is_built_once_for_all() {
    let built: Vec<_> = services().into_iter().filter(|(_, s)| !s["build"].is_badvalue()).collect();
    // By the one that everything of ours waits for: two builds of one tag at a time fail on some engines.
    assert_eq!(built.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["migrate"]);
    assert_eq!(unset(built[0].1["build"]["args"]["PROFILE"].as_str().unwrap()), "local");
    for name in OURS {
        assert_eq!(service(name)["image"].as_str(), built[0].1["image"].as_str(), "{name}");
        assert_eq!(service(name)["pull_policy"].as_str(), Some("never"), "{name}");
    }
}

#[test]
fn what_must_outlive_a_container_is_on_a_named_volume() {
    let volumes = keys(&yaml(FILE)["volumes"]);
    for (name, at) in [("postgres", "/var/lib/postgresql/data"), ("redis", "/data")] {
        let mounts = strings(&service(name)["volumes"]);
        let (volume, target) = mounts[0].split_once(':').unwrap();
        assert!(volumes.contains(&volume.to_owned()) && target == at, "{name}: {mounts:?}");
    }
}
