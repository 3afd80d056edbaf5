//! Railway: .railway/railway.ts (by what it evaluates to), railway.toml and deploy/railway/worker.toml, held to the same rules.

use std::time::Duration;

use config::{ApiConfig, MapVars, UsedBy, VARIABLES, WhenUnset, WorkerConfig};
use yaml_rust2::Yaml;

use crate::files::{is_command, keys, pairs, shutdown_budget, strings, text, yaml};

const API: &str = "railway.toml";
const WORKER: &str = "deploy/railway/worker.toml";
/// JSON is YAML, too. `cargo verify --only deployment` keeps it equal to railway.ts.
const EVALUATED: &str = ".railway/evaluated.json";
/// By this the program knows how long it has; Railway may set it itself or not.
const DRAINING: &str = "RAILWAY_DEPLOYMENT_DRAINING_SECONDS";

/// What a service is told, whichever file tells it.
#[derive(Debug)]
struct Service {
    /// `FILE NAME`.
    from: String,
    is_api: bool,
    start: String,
    before: Vec<String>,
    health: String,
    health_timeout: u64,
    replicas: u64,
    overlap: u64,
    draining: u64,
    restart: (String, u64),
    build: (String, String),
}

fn services() -> Vec<Service> {
    let mut all = vec![from_toml(API), from_toml(WORKER)];
    for environment in ["production", "staging"] {
        for name in ["api", "worker"] {
            all.push(evaluated(environment, name));
        }
    }
    all
}

/// A value of a file, if it is there. The files are flat, so that this suffices.
fn find(file: &str, name: &str) -> Option<String> {
    let text = text(file);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='))?;
    Some(value.trim().trim_matches(['[', ']', '"']).to_owned())
}

fn from_toml(file: &str) -> Service {
    let value = |name: &str| find(file, name).unwrap_or_else(|| panic!("{file}: no {name}"));
    let number =
        |name: &str| value(name).parse().unwrap_or_else(|_| panic!("{file}: Railway wants a number: {name}"));
    Service {
        from: file.to_owned(),
        is_api: file == API,
        start: value("startCommand"),
        before: find(file, "preDeployCommand").into_iter().collect(),
        health: value("healthcheckPath"),
        health_timeout: number("healthcheckTimeout"),
        replicas: number("numReplicas"),
        overlap: number("overlapSeconds"),
        draining: number("drainingSeconds"),
        restart: (value("restartPolicyType"), number("restartPolicyMaxRetries")),
        build: (value("builder"), value("dockerfilePath")),
    }
}

/// A service as railway.ts describes it.
fn node(environment: &str, name: &str) -> Yaml {
    let resources = yaml(EVALUATED)[environment]["resources"].clone();
    let found = resources.as_vec().unwrap().iter().find(|node| node["name"].as_str() == Some(name)).cloned();
    found.unwrap_or_else(|| panic!("{environment}: no {name}"))
}

fn evaluated(environment: &str, name: &str) -> Service {
    let node = node(environment, name);
    let deploy = &node["deploy"];
    let word = |value: &Yaml| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Yaml| u64::try_from(value.as_i64().unwrap()).unwrap();
    Service {
        from: format!("{EVALUATED} {environment} {name}"),
        is_api: name == "api",
        start: word(&deploy["startCommand"]),
        before: strings(&deploy["preDeployCommand"]),
        health: word(&deploy["healthcheckPath"]),
        health_timeout: number(&deploy["healthcheckTimeout"]),
        replicas: number(&deploy["numReplicas"]),
        overlap: number(&deploy["overlapSeconds"]),
        draining: number(&deploy["drainingSeconds"]),
        restart: (word(&deploy["restartPolicyType"]), number(&deploy["restartPolicyMaxRetries"])),
        build: (word(&node["build"]["builder"]), word(&node["build"]["dockerfilePath"])),
    }
}

#[test]
fn railway_gives_the_program_the_time_that_it_takes_to_end() {
    for service in services() {
        let from = &service.from;
        assert!(
            Duration::from_secs(service.draining) >= shutdown_budget() + Duration::from_secs(5),
            "{from}"
        );
        if from.starts_with(EVALUATED) {
            let environment = from.split(' ').nth(1).unwrap();
            let node = node(environment, if service.is_api { "api" } else { "worker" });
            let told = &node["variables"][DRAINING];
            assert_eq!(told["type"].as_str(), Some("literal"), "{from}");
            assert_eq!(told["value"].as_str(), Some(service.draining.to_string().as_str()), "{from}");
        } else {
            // A file like these sets no variables: it says which one is to be set.
            assert!(text(from).contains(&format!("{DRAINING}={}", service.draining)), "{from}");
        }
        // The new release gets its requests before the old one goes; the worker serves none.
        assert_eq!(service.overlap > 0, service.is_api, "{from}");
    }
}

#[test]
fn railway_starts_what_the_image_has() {
    for service in services() {
        let expected = if service.is_api { "api" } else { "worker" };
        let all = service.before.iter().map(|words| (words, "migrate up"));
        for (words, command) in all.chain([(&service.start, expected)]) {
            let (program, rest) = words.split_once(' ').unwrap();
            assert!(text("Dockerfile").contains(&format!("ENTRYPOINT [\"{program}\"]")), "{words}");
            assert_eq!(rest, command, "{}", service.from);
            assert!(is_command(rest.split(' ').next().unwrap()), "{words}");
            assert!(!words.contains('$'), "there is no shell that would expand it: {words}");
        }
        assert_eq!(service.build, ("DOCKERFILE".to_owned(), "Dockerfile".to_owned()), "{}", service.from);
    }
}

#[test]
fn railway_migrates_once_per_deploy() {
    for service in services() {
        // The API's deploy does it, in a container of its own.
        assert_eq!(service.before.len(), usize::from(service.is_api), "{}", service.from);
    }
}

#[test]
fn railway_asks_whether_a_service_is_ready_and_waits_long_enough() {
    for service in services() {
        let from = &service.from;
        assert_eq!(service.health, "/readyz", "{from}");
        assert!(
            !yaml("docs/openapi.json")["paths"][service.health.as_str()]["get"]["responses"]["200"]
                .is_badvalue()
        );
        assert!(service.health_timeout >= 300, "{from}");
        assert_eq!(service.restart, ("ON_FAILURE".to_owned(), 10), "{from}");
        let wanted = if service.is_api && !from.contains("staging") { 2 } else { 1 };
        assert_eq!(service.replicas, wanted, "{from}");
    }
}

#[test]
fn the_files_say_when_they_end_and_who_owns_the_service_then() {
    for file in [API, WORKER] {
        for said in ["2026-12-01", ".railway/railway.ts", "railway config migrate"] {
            assert!(text(file).contains(said), "{file}: {said}");
        }
    }
    assert!(text(API).contains(WORKER), "the API's file says where the worker's is");
}

#[test]
fn the_files_have_only_keys_of_railways_schema() {
    // `BuildConfig` and `DeployConfig` of the package `railway`, which are the published schema's.
    let known = [
        (
            "[build]",
            "builder buildCommand dockerfilePath nixpacksConfigPath nixpacksPlan nixpacksVersion railpackVersion watchPatterns",
        ),
        (
            "[deploy]",
            "cronSchedule drainingSeconds healthcheckPath healthcheckTimeout ipv6EgressEnabled limitOverride multiRegionConfig numReplicas \
             overlapSeconds preDeployCommand region registryCredentials requiredMountPath restartPolicyMaxRetries restartPolicyType runtime \
             sleepApplication startCommand useLegacyStacker",
        ),
    ];
    for file in [API, WORKER] {
        let mut section = "";
        for line in text(file).lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some((name, _)) = known.iter().find(|(name, _)| *name == line) {
                section = name;
                continue;
            }
            let key = line.split_once('=').unwrap_or_else(|| panic!("{file}: {line}")).0.trim();
            let keys = known.iter().find(|(name, _)| *name == section).map_or("", |(_, keys)| *keys);
            assert!(keys.split_whitespace().any(|known| known == key), "{file}: {section} {key}");
        }
    }
}

/// What a role is given: the value of a literal, and for what only Railway holds an example of the right form.
fn variables(environment: &str, name: &str) -> MapVars {
    let mut vars = MapVars::default();
    // Railway's own: with it the program also looks at the time that it is given to end.
    vars.set("RAILWAY_ENVIRONMENT_NAME", environment);
    for (key, value) in pairs(&node(environment, name)["variables"]) {
        if key == DRAINING {
            vars.set(&key, value["value"].as_str().unwrap());
            continue;
        }
        let variable = VARIABLES.iter().find(|variable| variable.name == key);
        let variable =
            variable.unwrap_or_else(|| panic!("{name}: the program knows no {key}: delete it in railway.ts"));
        let value = match value["type"].as_str() {
            Some("literal") => {
                value["value"].as_str().unwrap().replace("${{api.RAILWAY_PUBLIC_DOMAIN}}", "api.example.com")
            }
            Some("reference") => {
                let scheme = if key == "REDIS_URL" { "redis" } else { "postgres" };
                format!("{scheme}://user:word@host.railway.internal/railway")
            }
            Some("preserve") if is_required(variable.default) => variable.example.to_owned(),
            // Off until somebody sets it.
            Some("preserve") => continue,
            other => panic!("{name} {key}: {other:?}"),
        };
        vars.set(&key, &value);
    }
    vars
}

/// In staging and production.
fn is_required(default: WhenUnset) -> bool {
    matches!(default, WhenUnset::Required | WhenUnset::Sample { .. } | WhenUnset::Development(_))
}

#[test]
fn every_required_variable_is_set_on_railway_and_the_program_starts_with_them() {
    for environment in ["production", "staging"] {
        for (name, used_by) in [("api", UsedBy::Api), ("worker", UsedBy::Worker)] {
            let set = keys(&node(environment, name)["variables"]);
            // What somebody has set and the file does not list, the next `railway config apply` deletes. Where the process
            // listens is the platform's to say.
            let read = VARIABLES.iter().filter(|v| v.used_by == UsedBy::Both || v.used_by == used_by);
            for variable in read.filter(|variable| !["HOST", "PORT"].contains(&variable.name)) {
                let listed = set.contains(&variable.name.to_owned());
                assert!(listed, "{environment} {name}: {} is missing in railway.ts", variable.name);
            }
            let vars = variables(environment, name);
            let problems = if name == "api" {
                ApiConfig::from_vars(&vars).err()
            } else {
                WorkerConfig::from_vars(&vars).err()
            };
            // The placeholders of secrets are none; everything else has to be right.
            let said = problems.map(|problems| problems.to_string()).unwrap_or_default();
            for (variable, problem) in
                said.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "))
            {
                let secret = VARIABLES.iter().any(|known| known.name == variable && known.secret);
                assert!(
                    secret && !problem.contains("is required"),
                    "{environment} {name}: {variable}: {problem}"
                );
            }
        }
    }
}

#[test]
fn no_secret_is_in_a_file_for_railway() {
    for environment in ["production", "staging"] {
        for name in ["api", "worker"] {
            for (key, value) in pairs(&node(environment, name)["variables"]) {
                let secret = VARIABLES.iter().any(|variable| variable.name == key && variable.secret);
                assert!(!secret || value["type"].as_str() != Some("literal"), "{environment} {name}: {key}");
            }
            // The code comes from `railway up` alone.
            assert_eq!(
                node(environment, name)["source"]["type"].as_str(),
                Some("empty"),
                "{environment} {name}"
            );
        }
    }
}

#[test]
fn backups_are_made_every_week_and_only_in_production() {
    let backup = node("production", "backup");
    assert_eq!(backup["deploy"]["startCommand"].as_str(), Some("/usr/local/bin/backup dump"));
    assert!(text("deploy/backup/Dockerfile").contains("ENTRYPOINT [\"/usr/local/bin/backup\"]"));
    assert_eq!(backup["build"]["dockerfilePath"].as_str(), Some("deploy/backup/Dockerfile"));
    // Railway's cron: UTC, and a service that ends is not started again.
    let schedule = backup["deploy"]["cronSchedule"].as_str().unwrap();
    assert_eq!(schedule.split(' ').count(), 5);
    assert_eq!(backup["deploy"]["restartPolicyType"].as_str(), Some("NEVER"));
    // What the script asks for is what the service has.
    let set = keys(&backup["variables"]);
    for name in [
        "DATABASE_URL",
        "S3_ENDPOINT",
        "S3_BUCKET",
        "S3_REGION",
        "S3_PREFIX",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
    ] {
        assert!(set.contains(&name.to_owned()) && text("deploy/backup/backup.sh").contains(name), "{name}");
    }
    // A change of the script is a change of the image.
    assert!(strings(&backup["build"]["watchPatterns"]).contains(&"/deploy/backup/**".to_owned()));
    let resources = yaml(EVALUATED)["staging"]["resources"].clone();
    assert!(resources.as_vec().unwrap().iter().all(|node| node["name"].as_str() != Some("backup")));
}

/// The major version in an image's name: 17 of `postgres:17` and of `.../postgres-ssl:17.2`.
fn major(image: &str) -> u32 {
    let tag = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} has no version")).1;
    tag.split(['.', '-']).next().unwrap().parse().unwrap_or_else(|_| panic!("{image} has no major version"))
}

#[test]
fn the_backups_tools_are_as_new_as_every_server_that_we_describe() {
    let dockerfile = text("deploy/backup/Dockerfile");
    let from = dockerfile.lines().rev().find_map(|line| line.strip_prefix("FROM ")).unwrap();
    assert!(from.starts_with("postgres:"), "{from}");
    // pg_dump refuses a server that is newer than itself.
    for environment in ["production", "staging"] {
        let image = node(environment, "Postgres")["source"]["image"].as_str().unwrap().to_owned();
        assert!(major(&image) <= major(from), "{environment}: {image}, dumped by {from}");
    }
    for file in ["docker-compose.yml", "docker-compose.prod.yml"] {
        let image = yaml(file)["services"]["postgres"]["image"].as_str().unwrap().to_owned();
        assert!(major(&image) <= major(from), "{file}: {image}, dumped by {from}");
    }
    let path = format!("/usr/lib/postgresql/{}/bin", major(from));
    assert!(dockerfile.contains(&path), "{path}");
}
