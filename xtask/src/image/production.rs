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
use super::{backup, failures, observability};
use crate::http::{self, string_field};
use crate::ui::Ui;
use crate::{interrupts, machine};

const REQUESTS_PER_SECOND: u32 = 200;
const STREAMS: usize = 50;
/// Two images of the same code under two names: what differs is that one of them is new.
pub(super) const VERSIONS: [&str; 2] = ["check-1", "check-2"];
/// What a drill logs in with, too.
pub(super) const EMAIL: &str = "load@example.com";
pub(super) const PASSWORD: &str = "a password for the load";
pub(super) const POSTGRES_PASSWORD: &str = "check-postgres-0123456789";
pub(super) const DEPLOY_TIMEOUT: Duration = Duration::from_secs(300);

/// The stack of this run; ended when dropped.
pub(super) struct Production<'a> {
    pub(super) compose: &'a Compose,
    pub(super) dir: PathBuf,
    pub(super) project: String,
    pub(super) http: u16,
    https: u16,
}

/// `built` here, so that the backup's image, which has the same stages, can be built from what is cached.
pub(super) fn check(compose: &Compose, built: bool, ui: &Ui) -> Result<()> {
    let production = Production::prepare(compose)?;
    refusals(&production, ui)?;
    production.settings(&keygen(compose)?)?;

    ui.step("deploy.sh: the first release");
    let output = production.deploy(&[], &[("VERSION", VERSIONS[0])])?;
    ensure!(output.status.success(), "deploy.sh failed:\n{}", said(&output));
    observability::start(&production)?;
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
    let enough = served.rate >= 0.8 * f64::from(REQUESTS_PER_SECOND) && served.streams >= STREAMS;
    ensure!(enough || machine::is_busy(), "too little load to say anything: {served:?}");
    ensure!(served.drained == 0, "streams of ten seconds were cut within a grace of forty: {served:?}");
    ui.step(&format!(
        "no request of {} failed at {:.0} a second, none of {} streams was cut{}",
        served.requests,
        served.rate,
        served.streams,
        if enough { "" } else { " (less than it should be: other programs have the cores)" }
    ));

    observability::check(&production, ui)?;
    failures::check(&production, &key, ui)?;
    if built {
        backup::check(&production, ui)?;
    } else {
        ui.step(
            "the backup's image is not tried: it is built from the same stages, and nothing was built here",
        );
    }

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
    let refused_with = |what: &str, more: (&str, &str), code: i32, wanted: &[&str]| -> Result<()> {
        let output = production.deploy(&[], &[("VERSION", VERSIONS[0]), more])?;
        let said = said(&output);
        ensure!(output.status.code() == Some(code), "{what}: ended with {}:\n{said}", output.status);
        for words in wanted {
            ensure!(said.contains(words), "{what}: says nothing of `{words}`:\n{said}");
        }
        Ok(())
    };
    let refused =
        |what: &str, code: i32, wanted: &[&str]| refused_with(what, ("BUILD", "false"), code, wanted);
    refused("no file", 2, &["ballast keygen", "fullchain.pem"])?;
    production.edge_files()?;
    production.settings("")?;
    refused("no secrets", 1, &["JWT_SIGNING_KEY", "ballast keygen", "nothing was changed"])?;
    production.settings("JWT_SIGNING_KEY=short\nSERVER_SECRET=00\n")?;
    refused("weak secrets", 1, &["JWT_SIGNING_KEY", "SERVER_SECRET", "nothing was changed"])?;
    let how = "openssl rand -hex 24";
    // The last line counts.
    production.settings("POSTGRES_PASSWORD=\nREDIS_PASSWORD=redis\n")?;
    let weak = ["POSTGRES_PASSWORD is missing", "REDIS_PASSWORD is too weak", how, "nothing was changed"];
    refused("weak passwords", 1, &weak)?;
    production.settings("")?;
    let profile = ("COMPOSE_PROFILES", "observability");
    refused_with("Grafana's own password", profile, 1, &["GRAFANA_PASSWORD is missing", how])
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

    /// The sample of the edge, with a certificate of this run; and behind a balancer that names the clients, as plain HTTP, which is
    /// how the load comes.
    fn edge_files(&self) -> Result<()> {
        let edge = self.dir.join("edge");
        fs::create_dir_all(edge.join("tls"))?;
        let pair = self.certificate()?;
        let end_of_key = pair.find("-----BEGIN CERTIFICATE").context("openssl made no certificate")?;
        let (key, certificate) = pair.split_at(end_of_key);
        fs::write(edge.join("tls/privkey.pem"), key)?;
        fs::write(edge.join("tls/fullchain.pem"), certificate)?;
        let sample =
            |file: &str| fs::read_to_string(self.compose.root().join("deploy/nginx/site").join(file));
        let http = sample("http.conf")?;
        let (upstream, rest) = http.split_once("# Plain HTTP").context("the sample redirects plain HTTP")?;
        let (_, refusal) = rest.split_once("# Who asks").context("the sample refuses other names")?;
        let balancer = "set_real_ip_from 0.0.0.0/0;\nreal_ip_header X-Forwarded-For;\n";
        fs::write(edge.join("http.conf"), format!("{upstream}{balancer}# Who asks{refusal}"))?;
        fs::write(
            edge.join("server.conf"),
            format!("listen 80 default_server;\n{}", sample("server.conf")?),
        )?;
        Ok(())
    }

    /// A key and a certificate for the sample's name, made by the openssl that is in nginx's image.
    fn certificate(&self) -> Result<String> {
        let image = self.nginx_image()?;
        let mut command = Command::new("docker");
        command.args([
            "run",
            "--rm",
            "--entrypoint",
            "openssl",
            &image,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
        ]);
        command.args(["-nodes", "-days", "2", "-subj", "/CN=api.example.com"]);
        command.args(["-keyout", "/dev/stdout", "-out", "/dev/stdout"]);
        // It may have to be fetched.
        let output = output_within(&mut command, DEPLOY_TIMEOUT)?;
        ensure!(output.status.success(), "openssl: {}", said(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The edge's: Debian, with a shell, and on this machine anyway.
    pub(super) fn nginx_image(&self) -> Result<String> {
        let file = fs::read_to_string(self.compose.root().join("docker-compose.prod.yml"))?;
        let mut images = file.lines().filter_map(|line| line.trim().strip_prefix("image: "));
        let image = images.find(|image| image.starts_with("nginx:"));
        image.map(str::to_owned).context("the edge is nginx")
    }

    fn settings(&self, secrets: &str) -> Result<()> {
        let fixed = "REDIS_PASSWORD=check-redis-0123456789abc\nPUBLIC_URL=http://localhost\n\
                     ENGINE_URL=http://engine-sim:9100/v1\nRATE_LIMIT_GLOBAL=1000000/1m\nRATE_LIMIT_AI_REQUESTS=100000/1m\n\
                     RATE_LIMIT_AI_TOKENS=100000000/1m\nRATE_LIMIT_AI_TOKENS_DAILY=1000000000/1d\nAI_CONCURRENT_STREAMS=1000\n";
        let fixed = format!("POSTGRES_PASSWORD={POSTGRES_PASSWORD}\n{fixed}{secrets}");
        fs::write(self.dir.join("env"), fixed).context("cannot write the settings")
    }

    /// As the README has it: without EDGE_URL, so that the smoke test goes by the sample's own name, over TLS.
    pub(super) fn deploy(&self, arguments: &[&str], more: &[(&str, &str)]) -> Result<Output> {
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
            ("EDGE_HTTP_PORT", self.http.to_string()),
            ("EDGE_HTTPS_PORT", self.https.to_string()),
            ("EDGE_NETWORK", "10.87.211".to_owned()),
            ("API_REPLICAS", "2".to_owned()),
        ]
    }

    pub(super) fn docker_compose(&self, arguments: &[&str]) -> Result<Output> {
        output_within(&mut self.docker_compose_command(arguments), Duration::from_secs(120))
    }

    pub(super) fn docker_compose_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.current_dir(self.compose.root()).envs(self.variables());
        command
            .args(["compose", "--env-file"])
            .arg(self.dir.join("env"))
            .args(["--file", "docker-compose.prod.yml"]);
        command
            .args([
                "--profile",
                "edge",
                "--profile",
                "green",
                "--profile",
                "migrate",
                "--profile",
                "observability",
            ])
            .args(arguments);
        command
    }

    pub(super) fn sql(&self, statement: &str) -> Result<()> {
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

    pub(super) fn state(&self, name: &str) -> Result<String> {
        let text =
            fs::read_to_string(self.dir.join("edge/state")).context("deploy.sh has recorded nothing")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map(str::to_owned).with_context(|| format!("no {name} in what deploy.sh recorded"))
    }

    pub(super) fn serves(&self) -> Result<()> {
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
        let credentials = format!(r#"{{"email":"{EMAIL}","password":"{PASSWORD}"}}"#);
        let post = |path: &str, headers: &[(&str, &str)], body: &str| {
            http::request(self.http, "POST", path, headers, body)
        };
        self.make_account()?;
        let login = post("/v1/auth/login", &[], &credentials)?;
        let token =
            string_field(&login.body, "access_token").with_context(|| format!("no token: {}", login.body))?;
        let authorization = format!("Bearer {token}");
        let key =
            post("/v1/api-keys", &[("authorization", &authorization)], r#"{"name":"load","scopes":["ai"]}"#)?;
        string_field(&key.body, "key").with_context(|| format!("no key: {}", key.body))
    }

    /// With the address confirmed: nobody reads mails here.
    fn make_account(&self) -> Result<()> {
        let program = "/usr/local/bin/ballast";
        let create =
            ["exec", "-T", "worker", program, "user", "create", EMAIL, "--verified", "--password-stdin"];
        let file = self.dir.join("password");
        fs::write(&file, PASSWORD).context("cannot write the password")?;
        let mut command = self.docker_compose_command(&create);
        let made = command.stdin(fs::File::open(&file)?).output()?;
        ensure!(made.status.success(), "no account was made: {}", said(&made));
        Ok(())
    }

    /// What the engine was told of the containers, not what the file says.
    fn confined(&self) -> Result<()> {
        let listed = self.docker_compose(&["ps", "--quiet"])?;
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(ids.lines().count() >= 7, "too few containers:\n{ids}");
        for id in ids.lines() {
            let told = self.compose.inspect(id, "{{.Name}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}} {{.HostConfig.LogConfig.Config}}")?;
            ensure!(
                told.contains("no-new-privileges") && told.contains("max-size") && !told.contains(" 0 "),
                "not confined: {told}"
            );
            let root = self.compose.inspect(id, "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}")?;
            ensure!(
                root.starts_with("true ") && root.contains("ALL"),
                "{told} may write, or keeps capabilities: {root}"
            );
            let published = self.compose.docker(&["port", id])?;
            ensure!(told.contains("-edge-") || published.is_empty(), "{told} is published: {published}");
        }
        Ok(())
    }

    fn down(&self) {
        for helper in ["engine", "bucket"] {
            let _ = self.compose.docker(&["rm", "--force", &format!("{}-{helper}", self.project)]);
        }
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
        for version in VERSIONS.iter().chain(&failures::IMAGES) {
            let _ = self.compose.docker(&["image", "rm", &format!("ballast:{version}")]);
        }
        let _ = self.compose.docker(&["image", "rm", &backup::image(self)]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn keygen(compose: &Compose) -> Result<String> {
    compose.docker(&["run", "--rm", &compose.image(), "keygen"])
}

pub(super) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
