//! deploy/prometheus and deploy/grafana: they ask for what the program measures, and lead to pages that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use yaml_rust2::Yaml;

use crate::files::{path, text, yaml};

/// Names that others measure: Prometheus itself.
const OTHERS: [&str; 1] = ["up"];

fn dashboards() -> Vec<(String, Yaml)> {
    let files = fs::read_dir(path("deploy/grafana/dashboards")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // JSON is YAML, too.
    names.into_iter().map(|name| (name.clone(), yaml(&format!("deploy/grafana/dashboards/{name}")))).collect()
}

fn list(node: &Yaml) -> Vec<Yaml> {
    node.as_vec().cloned().unwrap_or_default()
}

fn rules() -> Vec<Yaml> {
    list(&yaml("deploy/prometheus/alerts.yml")["groups"][0]["rules"])
}

/// The metrics in an expression: words that are no function, no label and no keyword. Metrics have an underscore or are `up`.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut depth = 0_u32;
    let mut word = String::new();
    let mut in_list = false;
    for c in expression.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || c == '_' || c == ':' {
            word.push(c);
            continue;
        }
        let is_function = c == '(';
        let name = std::mem::take(&mut word);
        let is_metric =
            depth == 0 && !in_list && !is_function && (name.contains('_') || OTHERS.contains(&name.as_str()));
        if is_metric {
            found.insert(name.clone());
        }
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            ')' => in_list = false,
            _ if name == "by" => in_list = true,
            _ => {}
        }
    }
    found
}

#[test]
fn the_metrics_of_an_expression_are_found() {
    let expression = r#"histogram_quantile(0.95, sum by (le, queue_name) (rate(a_seconds_bucket{some_label="x_y"}[5m]))) / up > b_total"#;
    assert_eq!(
        metrics_of(expression),
        BTreeSet::from(["a_seconds_bucket", "b_total", "up"].map(str::to_owned))
    );
}

/// All source text of the program.
fn sources() -> String {
    fn collect(directory: &Path, into: &mut String) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut all = String::new();
    for member in fs::read_dir(path("crates")).unwrap().flatten() {
        collect(&member.path().join("src"), &mut all);
    }
    all
}

#[test]
fn alerts_and_dashboards_ask_for_what_the_program_measures() {
    let sources = sources();
    let mut expressions: Vec<String> =
        rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
    for (_, dashboard) in dashboards() {
        for panel in list(&dashboard["panels"]) {
            expressions.extend(
                list(&panel["targets"]).iter().map(|target| target["expr"].as_str().unwrap().to_owned()),
            );
        }
    }
    assert!(expressions.len() > 40, "{}", expressions.len());
    for name in expressions.iter().flat_map(|expression| metrics_of(expression)) {
        let base = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(&name);
        assert!(
            OTHERS.contains(&base) || sources.contains(&format!("\"{base}\"")),
            "nothing measures {name}"
        );
    }
}

#[test]
fn every_alert_has_a_test_and_a_page_that_says_what_to_do() {
    let tests = text("deploy/prometheus/alerts.test.yml");
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(tests.matches(&format!("alertname: {name}")).count() >= 2, "{name}: silent and there");
        assert!(["page", "warn"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        let pages = if runbook.contains("{{") {
            vec!["docs/runbooks/redis-outage.md".to_owned(), "docs/runbooks/engine-outage.md".to_owned()]
        } else {
            vec![runbook.split('#').next().unwrap().to_owned()]
        };
        for page in pages {
            assert!(path(&page).is_file(), "{name}: {page} is not there");
        }
    }
}

/// The bounds of our histograms, out of the source.
fn bounds() -> Vec<f64> {
    let source = text("crates/runtime/src/telemetry.rs");
    let list = source.split_once("const SECONDS: [f64;").unwrap().1.split_once('[').unwrap().1;
    let list = list.split_once(']').unwrap().0;
    list.split(',').map(str::trim).filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_alerts_are_tested_with_the_buckets_that_the_program_has_and_their_bound_is_one_of_them() {
    let bounds = bounds();
    assert!(bounds.len() > 10 && bounds.is_sorted(), "{bounds:?}");
    let tests = text("deploy/prometheus/alerts.test.yml");
    let used: BTreeSet<_> =
        tests.split("le=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    assert!(used.len() > 3, "{used:?}");
    for bound in used.into_iter().filter(|bound| *bound != "+Inf") {
        assert!(bounds.contains(&bound.parse().unwrap()), "no histogram of ours has le=\"{bound}\"");
    }
    let quantiles: Vec<_> = rules()
        .iter()
        .map(|rule| rule["expr"].as_str().unwrap().trim().to_owned())
        .filter(|expression| expression.starts_with("histogram_quantile"))
        .collect();
    assert!(!quantiles.is_empty());
    for expression in quantiles {
        // Between two bounds a quantile is a guess.
        let bound: f64 = expression.rsplit_once("> ").unwrap().1.parse().unwrap();
        assert!(bounds.contains(&bound), "{bound}: {expression}");
    }
}

#[test]
fn dashboards_can_be_told_apart_and_use_the_source_that_is_provisioned() {
    let source =
        yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]["uid"].clone();
    let mut uids = BTreeSet::new();
    let mut names = Vec::new();
    for (file, dashboard) in dashboards() {
        assert!(uids.insert(dashboard["uid"].as_str().unwrap().to_owned()), "{file}");
        let panels = list(&dashboard["panels"]);
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{file}");
        for panel in &panels {
            assert_eq!(panel["datasource"]["uid"], source, "{file}");
            assert!(!list(&panel["targets"]).is_empty(), "{file}: {panel:?}");
        }
        names.push(file);
    }
    assert_eq!(names, ["api.json", "database.json", "jobs.json", "limits.json", "streams.json"]);
}
