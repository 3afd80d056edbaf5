//! docker-compose.prod.yml and deploy.sh, as a person uses them, under a name, ports and a network of this run: a release is replaced
//! under load without losing a request; what is broken takes itself back and says why.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::ports;
use devstack::process::output_within;

use super::compose::Compose;
use super::load::Load;
use crate::http::{self, string_field};
use crate::interrupts;
use crate::ui::Ui;

const REQUESTS_PER_SECOND: u32 = 200;
const STREAMS: usize = 50;
/// Two images of the same code under two names: what differs is that one of them is new.
const VERSIONS: [&str; 2] = ["check-1", "check-2"];
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(300);

/// The stack of this run; ended when dropped.
struct Production<'a> {
    compose: &'a Compose,
    dir: PathBuf,
    project: String,
    http: u16,
    https: u16,
}

pub(super) fn check(compose: &Compose, ui: &Ui) -> Result<()> {
    let production = Production::prepare(compose)?;
    refusals(&production, ui)?;
    production.settings(&keygen(compose)?)?;

    ui.step("deploy.sh: the first release");
    let output = production.deploy(&[], &[("VERSION", VERSIONS[0])])?;
    ensure!(output.status.success(), "deploy.sh failed:\n{}", said(&output));
    production.confined()?;
    let key = production.account()?;

    ui.step(&format!(
        "deploy.sh: the second one, under {REQUESTS_PER_SECOND} requests/s and {STREAMS} streams"
    ));
    let load = Load::start(production.http, &key, REQUESTS_PER_SECOND, STREAMS);
    std::thread::sleep(Duration::from_secs(5));
    let output = production.deploy(&[], &[("VERSION", VERSIONS[1])]);
    let served = load.end();
    let output = output?;
    ensure!(output.status.success(), "deploy.sh failed:\n{}", said(&output));
    let served = served?;
    ensure!(
        served.requests > 100 && served.streams >= STREAMS,
        "too little load to say anything: {served:?}"
    );
    ensure!(served.drained == 0, "streams of ten seconds were cut within a grace of forty: {served:?}");
    ui.step(&format!("no request of {} failed, none of {} streams was cut", served.requests, served.streams));

    failures(&production, ui)?;

    ui.step("deploy.sh --rollback");
    let output = production.deploy(&["--rollback"], &[])?;
    ensure!(output.status.success(), "the rollback failed:\n{}", said(&output));
    ensure!(
        production.state("image")? == format!("ballast:{}", VERSIONS[0]),
        "it rolled back to something else"
    );
    production.serves()
}

/// What deploy.sh says before it has anything to work with.
fn refusals(production: &Production<'_>, ui: &Ui) -> Result<()> {
    ui.step("deploy.sh: without settings, with incomplete ones, with weak ones");
    let refused = |what: &str, code: i32, wanted: &[&str]| -> Result<()> {
        let output = production.deploy(&[], &[("VERSION", VERSIONS[0])])?;
        let said = said(&output);
        ensure!(output.status.code() == Some(code), "{what}: ended with {}:\n{said}", output.status);
        for words in wanted {
            ensure!(said.contains(words), "{what}: says nothing of `{words}`:\n{said}");
        }
        Ok(())
    };
    refused("no file", 2, &["ballast keygen", "fullchain.pem"])?;
    production.edge_files()?;
    production.settings("")?;
    refused("no secrets", 1, &["JWT_SIGNING_KEY", "ballast keygen", "nothing was changed"])?;
    production.settings("JWT_SIGNING_KEY=short\nSERVER_SECRET=00\n")?;
    refused("weak secrets", 1, &["JWT_SIGNING_KEY", "SERVER_SECRET", "nothing was changed"])
}

/// A release that cannot be: the one that serves goes on serving.
fn failures(production: &Production<'_>, ui: &Ui) -> Result<()> {
    let before = production.state("image")?;
    let unchanged = |what: &str, output: &Output, wanted: &str| -> Result<()> {
        let said = said(output);
        ensure!(output.status.code() == Some(1), "{what}: ended with {}:\n{said}", output.status);
        ensure!(said.contains(wanted), "{what}: says nothing of `{wanted}`:\n{said}");
        ensure!(production.state("image")? == before, "{what}: something was replaced");
        production.serves().with_context(|| format!("after {what}"))?;
        ui.step(&format!("deploy.sh with {what}: took itself back"));
        Ok(())
    };
    // It has no program.
    production.broken_image("check-broken")?;
    let output = production.deploy(&[], &[("VERSION", "check-broken")])?;
    unchanged("a broken image", &output, "the migration failed")?;

    production.sql("update _sqlx_migrations set checksum = 'x' where version = 1")?;
    let output = production.deploy(&[], &[("VERSION", VERSIONS[0])])?;
    unchanged("a migration that fails", &output, "the migration failed")?;
    production.sql(
        "update _sqlx_migrations set checksum = (select checksum from kept_checksum) where version = 1",
    )?;

    // Nobody is healthy within a second: the first probe comes later.
    let output = production.deploy(&[], &[("VERSION", VERSIONS[0]), ("HEALTH_TIMEOUT", "1")])?;
    unchanged("a health check that fails", &output, "does not become ready; the old one serves as before")
}

impl<'a> Production<'a> {
    fn prepare(compose: &'a Compose) -> Result<Self> {
        let project = format!("{}-prod", compose.project());
        let dir = std::env::temp_dir().join(&project);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (http, https) = (ports::free_port(None)?, ports::free_port(None)?);
        let production = Self { compose, dir, project, http, https };
        // What a killed run left.
        production.down();
        for version in VERSIONS {
            compose.docker(&["tag", &compose.image(), &format!("ballast:{version}")])?;
        }
        Ok(production)
    }

    /// The sample of the edge without TLS, which has tests of its own, and behind a balancer that names the clients.
    fn edge_files(&self) -> Result<()> {
        let edge = self.dir.join("edge");
        fs::create_dir_all(edge.join("tls"))?;
        for file in ["fullchain.pem", "privkey.pem"] {
            fs::write(edge.join("tls").join(file), "")?;
        }
        let sample = fs::read_to_string(self.compose.root().join("deploy/nginx/site/http.conf"))?;
        let upstream = sample.split("# Plain HTTP").next().context("the sample has a part for plain HTTP")?;
        let balancer = "set_real_ip_from 0.0.0.0/0;\nreal_ip_header X-Forwarded-For;\n";
        fs::write(edge.join("http.conf"), format!("{upstream}{balancer}"))?;
        fs::write(edge.join("server.conf"), "listen 80 default_server;\nserver_name _;\n")?;
        Ok(())
    }

    fn settings(&self, secrets: &str) -> Result<()> {
        let fixed = "POSTGRES_PASSWORD=check-postgres\nREDIS_PASSWORD=check-redis\nPUBLIC_URL=http://localhost\n\
                     ENGINE_URL=http://engine-sim:9100/v1\nRATE_LIMIT_GLOBAL=1000000/1m\nRATE_LIMIT_AI_REQUESTS=100000/1m\n\
                     RATE_LIMIT_AI_TOKENS=100000000/1m\nRATE_LIMIT_AI_TOKENS_DAILY=1000000000/1d\nAI_CONCURRENT_STREAMS=1000\n";
        fs::write(self.dir.join("env"), format!("{fixed}{secrets}")).context("cannot write the settings")
    }

    fn deploy(&self, arguments: &[&str], more: &[(&str, &str)]) -> Result<Output> {
        interrupts::check()?;
        let mut command = Command::new("bash");
        command.arg(self.compose.root().join("deploy.sh")).args(arguments).envs(self.variables());
        command.env("BUILD", "false").envs(more.iter().copied());
        output_within(&mut command, DEPLOY_TIMEOUT)
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        vec![
            ("COMPOSE_PROJECT_NAME", self.project.clone()),
            ("ENV_FILE", path("env")),
            ("EDGE_DIR", path("edge")),
            ("EDGE_URL", format!("http://127.0.0.1:{}", self.http)),
            ("EDGE_HTTP_PORT", self.http.to_string()),
            ("EDGE_HTTPS_PORT", self.https.to_string()),
            ("EDGE_NETWORK", "10.87.211".to_owned()),
            ("API_REPLICAS", "2".to_owned()),
        ]
    }

    fn docker_compose(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("docker");
        command.current_dir(self.compose.root()).envs(self.variables());
        command
            .args(["compose", "--env-file"])
            .arg(self.dir.join("env"))
            .args(["--file", "docker-compose.prod.yml"]);
        command.args(["--profile", "edge", "--profile", "green", "--profile", "migrate"]).args(arguments);
        output_within(&mut command, Duration::from_secs(120))
    }

    fn sql(&self, statement: &str) -> Result<()> {
        let statement = format!(
            "create table if not exists kept_checksum as select checksum from _sqlx_migrations where version = 1; {statement}"
        );
        let output = self.docker_compose(&[
            "exec",
            "-T",
            "postgres",
            "psql",
            "--username=ballast",
            "--dbname=ballast",
            "--command",
            &statement,
        ])?;
        ensure!(output.status.success(), "psql: {}", said(&output));
        Ok(())
    }

    fn state(&self, name: &str) -> Result<String> {
        let text =
            fs::read_to_string(self.dir.join("edge/state")).context("deploy.sh has recorded nothing")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map(str::to_owned).with_context(|| format!("no {name} in what deploy.sh recorded"))
    }

    fn serves(&self) -> Result<()> {
        let answer = http::get(self.http, "/readyz")?;
        ensure!(answer.status == 200, "the edge answers {} to /readyz:\n{}", answer.status, answer.body);
        Ok(())
    }

    /// An engine in the same network, an account, and a key of it.
    fn account(&self) -> Result<String> {
        let network = format!("{}_backend", self.project);
        let name = format!("{}-engine", self.project);
        let image = format!("ballast:{}", VERSIONS[0]);
        self.compose.docker(&[
            "run",
            "--detach",
            "--rm",
            "--name",
            &name,
            "--network",
            &network,
            "--network-alias",
            "engine-sim",
            "--env",
            "APP_ENV=development",
            &image,
            "engine-sim",
            "--host",
            "0.0.0.0",
            "--port",
            "9100",
        ])?;
        let create = [
            "exec",
            "-T",
            "worker",
            "/usr/local/bin/ballast",
            "user",
            "create",
            "load@example.com",
            "--verified",
        ];
        let made = self.docker_compose(&create)?;
        let told = String::from_utf8_lossy(&made.stdout).into_owned();
        let password = told.lines().find_map(|line| line.strip_prefix("password: "));
        let password = password.with_context(|| format!("no account: {}", said(&made)))?;
        let credentials = format!(r#"{{"email":"load@example.com","password":"{password}"}}"#);
        let post = |path: &str, headers: &[(&str, &str)], body: &str| {
            http::request(self.http, "POST", path, headers, body)
        };
        let login = post("/v1/auth/login", &[], &credentials)?;
        let token =
            string_field(&login.body, "access_token").with_context(|| format!("no token: {}", login.body))?;
        let authorization = format!("Bearer {token}");
        let key =
            post("/v1/api-keys", &[("authorization", &authorization)], r#"{"name":"load","scopes":["ai"]}"#)?;
        string_field(&key.body, "key").with_context(|| format!("no key: {}", key.body))
    }

    /// What the engine was told of the containers, not what the file says.
    fn confined(&self) -> Result<()> {
        let listed = self.docker_compose(&["ps", "--quiet"])?;
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(ids.lines().count() >= 6, "too few containers:\n{ids}");
        for id in ids.lines() {
            let told = self.compose.inspect(id, "{{.Name}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}} {{.HostConfig.LogConfig.Config}}")?;
            ensure!(
                told.contains("no-new-privileges") && told.contains("max-size") && !told.contains(" 0 "),
                "not confined: {told}"
            );
            let published = self.compose.docker(&["port", id])?;
            ensure!(told.contains("-edge-") || published.is_empty(), "{told} is published: {published}");
        }
        Ok(())
    }

    fn broken_image(&self, version: &str) -> Result<()> {
        let context = self.dir.join("broken");
        fs::create_dir_all(&context)?;
        fs::write(
            context.join("Dockerfile"),
            format!("FROM ballast:{}\nENTRYPOINT [\"/there/is/none\"]\n", VERSIONS[0]),
        )?;
        self.compose.docker(&[
            "build",
            "--quiet",
            "--tag",
            &format!("ballast:{version}"),
            &context.display().to_string(),
        ])?;
        Ok(())
    }

    fn down(&self) {
        let _ = self.compose.docker(&["rm", "--force", &format!("{}-engine", self.project)]);
        if !self.dir.join("env").exists() {
            let _ = self.settings("");
            let _ = self.docker_compose(&["down", "--volumes", "--remove-orphans", "--timeout", "20"]);
            let _ = fs::remove_file(self.dir.join("env"));
            return;
        }
        let _ = self.docker_compose(&["down", "--volumes", "--remove-orphans", "--timeout", "20"]);
    }
}

impl Drop for Production<'_> {
    fn drop(&mut self) {
        self.down();
        for version in VERSIONS.iter().chain(&["check-broken"]) {
            let _ = self.compose.docker(&["image", "rm", &format!("ballast:{version}")]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn keygen(compose: &Compose) -> Result<String> {
    compose.docker(&["run", "--rm", &compose.image(), "keygen"])
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
