//! docker-compose.prod.yml and docker-compose.dev.yml. `cargo xtask image` runs the first under load.

use std::time::Duration;

use config::VARIABLES;
use yaml_rust2::Yaml;

use crate::files::{is_command, keys, pairs, seconds, shutdown_budget, strings, text, yaml};

const FILE: &str = "docker-compose.prod.yml";
/// Run from our image.
const OURS: [&str; 4] = ["api-blue", "api-green", "worker", "migrate"];

fn services() -> Vec<(String, Yaml)> {
    pairs(&yaml(FILE)["services"])
}

fn service(name: &str) -> Yaml {
    yaml(FILE)["services"][name].clone()
}

#[test]
fn in_production_every_service_has_limits_rotated_logs_and_no_new_privileges() {
    for (name, service) in services() {
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(limits["cpus"].as_str().is_some() && limits["memory"].as_str().is_some(), "{name}");
        // What ends by itself needs nothing set aside.
        let reserved = service["deploy"]["resources"]["reservations"]["memory"].as_str().is_some();
        assert_eq!(reserved, name != "migrate", "{name}");
        let options = &service["logging"]["options"];
        assert!(options["max-size"].as_str().is_some() && options["max-file"].as_str().is_some(), "{name}");
        assert!(strings(&service["security_opt"]).contains(&"no-new-privileges:true".to_owned()), "{name}");
        let restart = if name == "migrate" { "no" } else { "unless-stopped" };
        assert_eq!(service["restart"].as_str(), Some(restart), "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name} keeps capabilities");
        assert_eq!(service["read_only"].as_bool(), Some(true), "{name} may write");
        // The edge's master binds ports below 1024 and starts its workers as somebody else.
        let added = strings(&service["cap_add"]);
        assert_eq!(added.is_empty(), name != "edge", "{name}: {added:?}");
        // Who starts as root elsewhere, to give directories away, would need capabilities for it.
        let stores = ["postgres", "redis"].contains(&name.as_str());
        assert_eq!(service["user"].as_str(), stores.then_some("999:999"), "{name}");
    }
}

#[test]
fn in_production_our_containers_write_nothing_and_end_in_their_own_time() {
    for name in OURS {
        let service = service(name);
        assert_eq!(service["read_only"].as_bool(), Some(true), "{name}");
        assert!(is_command(strings(&service["command"])[0].as_str()), "{name}");
        assert_eq!(service["env_file"][0]["required"].as_bool(), Some(true), "{name} would run on samples");
        if name != "migrate" {
            let grace = seconds(service["stop_grace_period"].as_str().unwrap());
            assert!(grace >= shutdown_budget() + Duration::from_secs(5), "{name}: {grace:?}");
            assert!(strings(&service["healthcheck"]["test"]).contains(&"healthcheck".to_owned()), "{name}");
        }
        for (variable, _) in pairs(&service["environment"]) {
            assert!(VARIABLES.iter().any(|known| known.name == variable), "{name}: {variable}");
        }
    }
}

#[test]
fn in_production_only_the_edge_is_published_and_a_dashboard_to_this_machine() {
    for (name, service) in services() {
        let ports = strings(&service["ports"]);
        match name.as_str() {
            "edge" => assert!(ports.len() == 2 && ports[1].ends_with(":443"), "{ports:?}"),
            "grafana" => assert!(ports.iter().all(|port| port.starts_with("127.0.0.1:")), "{ports:?}"),
            _ => assert_eq!(ports, Vec::<String>::new(), "{name}"),
        }
        // The edge reaches the API and nothing behind it.
        let networks = &service["networks"];
        let networks = if networks.is_array() { strings(networks) } else { keys(networks) };
        let outside = networks.contains(&"frontend".to_owned());
        assert_eq!(
            outside,
            ["edge", "grafana"].contains(&name.as_str()) || name.starts_with("api-"),
            "{name}"
        );
        assert!(name != "edge" || networks == ["frontend"], "{networks:?}");
    }
    // The one address whose word on the client counts is the edge's.
    let edge = service("edge")["networks"]["frontend"]["ipv4_address"].as_str().unwrap().to_owned();
    assert_eq!(
        service("api-blue")["environment"]["TRUSTED_PROXY"].as_str(),
        Some(format!("{edge}/32").as_str())
    );
}

#[test]
fn in_production_what_is_optional_is_a_profile_and_every_image_has_a_version() {
    let profile = |name: &str| strings(&service(name)["profiles"]);
    for (name, expected) in [
        ("edge", "edge"),
        ("prometheus", "observability"),
        ("grafana", "observability"),
        ("ollama", "ollama"),
    ] {
        assert_eq!(profile(name), [expected], "{name}");
    }
    for name in ["postgres", "redis", "api-blue", "worker"] {
        assert!(profile(name).is_empty(), "{name} does not start by itself");
    }
    for (name, service) in services().into_iter().filter(|(name, _)| !OURS.contains(&name.as_str())) {
        let tag = service["image"].as_str().unwrap().rsplit_once(':').map(|(_, tag)| tag.to_owned());
        assert!(tag.is_some_and(|tag| tag.starts_with(|c: char| c.is_ascii_digit() || c == 'v')), "{name}");
    }
}

#[test]
fn a_password_that_is_missing_is_named_with_the_way_to_make_it() {
    let file = text(FILE);
    for name in ["POSTGRES_PASSWORD", "REDIS_PASSWORD"] {
        let uses: Vec<_> = file.split(&format!("${{{name}")).skip(1).collect();
        assert!(uses.len() >= 2, "{name}");
        for rest in uses {
            assert!(
                rest.starts_with(":?missing in .env.production; make one with `openssl rand"),
                "{name}: {rest:.40}"
            );
        }
    }
    // Grafana's is asked for where Grafana starts: compose reads all of the file, whatever the profile.
    let entrypoint = strings(&service("grafana")["entrypoint"]);
    assert!(entrypoint[2].contains("-lt 24") && entrypoint[2].contains("openssl rand"), "{entrypoint:?}");
    assert!(entrypoint[2].trim_end().ends_with("exec /run.sh"), "{entrypoint:?}");
    // The program names the rest; deploy.sh asks it before anything is touched.
    assert!(text("deploy.sh").contains("doctor") && text("deploy.sh").contains("ballast keygen"));
}

#[test]
fn in_development_the_sources_are_mounted_and_a_change_is_built_at_once() {
    let file = yaml("docker-compose.dev.yml");
    let dev = &file["services"]["dev"];
    // `cargo stack` by its long name, without --quiet.
    let command = ["cargo", "run", "--package", "xtask", "--", "stack", "--watch"];
    assert_eq!(strings(&dev["command"])[..7], command);
    assert_eq!(dev["init"].as_bool(), Some(true));
    assert!(strings(&dev["volumes"]).contains(&".:/ballast".to_owned()));
    assert_eq!(dev["working_dir"].as_str(), Some("/ballast"));
    let toolchain = text("rust-toolchain.toml");
    let version = toolchain.split('"').nth(1).unwrap();
    assert_eq!(dev["environment"]["RUSTUP_TOOLCHAIN"].as_str(), Some(version));
    let minor = version.rsplit_once('.').unwrap().0;
    assert_eq!(dev["image"].as_str(), Some(format!("rust:{minor}-slim-bookworm").as_str()));
    // The stores are those of the whole stack, with their health.
    for store in ["postgres", "redis"] {
        let extends = &file["services"][store]["extends"];
        assert_eq!(extends["file"].as_str(), Some("docker-compose.yml"));
        assert_eq!(extends["service"].as_str(), Some(store));
        assert_eq!(dev["depends_on"][store]["condition"].as_str(), Some("service_healthy"));
    }
    assert!(strings(&dev["ports"]).iter().all(|port| port.starts_with("127.0.0.1:")));
}
