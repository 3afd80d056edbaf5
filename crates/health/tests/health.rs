//! The health routes, seen from a client.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use health::{Kind, MetricsAccess, Registry};
use http_body_util::BodyExt as _;
use runtime::{Lifecycle, MetricsHandle};
use tower::ServiceExt as _;

const SHORT: Duration = Duration::from_millis(200);

struct App {
    registry: Registry,
    lifecycle: Lifecycle,
    router: Router,
}

fn app(access: MetricsAccess) -> App {
    let times = config::ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(1) };
    let lifecycle = Lifecycle::new(times);
    let registry = Registry::new(lifecycle.clone(), "1.2.3");
    let router = health::router(registry.clone(), MetricsHandle::detached(), access);
    App { registry, lifecycle, router }
}

impl App {
    fn switch(&self, name: &'static str, kind: Kind) -> Arc<AtomicBool> {
        let up = Arc::new(AtomicBool::new(true));
        let seen = up.clone();
        self.registry.register(name, kind, SHORT, move || {
            let up = seen.load(Ordering::Relaxed);
            async move { if up { Ok(()) } else { Err("connection refused".to_owned()) } }
        });
        up
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.get_with(path, None).await
    }

    async fn get_with(&self, path: &str, token: Option<&str>) -> (u16, String) {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_required_checks_and_only_reports_the_optional_ones() {
    let app = app(MetricsAccess::Open);
    let postgres = app.switch("postgres", Kind::Required);
    let redis = app.switch("redis", Kind::Optional);
    assert_eq!(app.get("/readyz").await.0, 200);

    redis.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    let (status, body) = app.get("/readyz").await;
    assert_eq!((status, body.contains(r#""status":"degraded""#)), (200, true), "{body}");
    assert_eq!(app.get("/health").await.0, 200);

    postgres.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    let (status, body) = app.get("/readyz").await;
    assert_eq!((status, body.contains(r#""waiting_for":["postgres"]"#)), (503, true), "{body}");
    assert_eq!(app.get("/health").await.0, 503);
    assert_eq!(app.get("/livez").await.0, 200, "liveness does not depend on anything");

    postgres.store(true, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(app.get("/readyz").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn draining_turns_readiness_off_and_leaves_liveness_on() {
    let app = app(MetricsAccess::Open);
    app.switch("postgres", Kind::Required);
    assert_eq!(app.get("/readyz").await.0, 200);
    app.lifecycle.begin_shutdown();
    assert_eq!(app.get("/readyz").await.0, 503);
    assert_eq!(app.get("/livez").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn startup_is_remembered() {
    let app = app(MetricsAccess::Open);
    let postgres = app.switch("postgres", Kind::Required);
    postgres.store(false, Ordering::Relaxed);
    assert_eq!(app.get("/startupz").await.0, 503);
    postgres.store(true, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(app.get("/startupz").await.0, 200);
    postgres.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(app.get("/startupz").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_is_an_error_after_its_timeout_and_does_not_hold_up_the_others() {
    let app = app(MetricsAccess::Open);
    app.registry.register("stuck", Kind::Optional, SHORT, std::future::pending::<Result<(), String>>);
    app.switch("postgres", Kind::Required);
    let started = tokio::time::Instant::now();
    let (status, body) = app.get("/health").await;
    assert_eq!(status, 200);
    assert!(body.contains("no answer within 200 ms"), "{body}");
    assert!(started.elapsed() < SHORT * 2);
}

#[tokio::test(start_paused = true)]
async fn probes_that_arrive_together_or_within_a_second_share_one_run() {
    let app = app(MetricsAccess::Open);
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    app.registry.register("counted", Kind::Required, SHORT, move || {
        counter.fetch_add(1, Ordering::Relaxed);
        async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(())
        }
    });
    tokio::join!(app.get("/health"), app.get("/readyz"), app.get("/health"));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn metrics_are_closed_to_those_without_the_token() {
    let token = "a-long-random-token";
    let app = app(MetricsAccess::Token(token.into()));
    assert_eq!(app.get("/metrics").await.0, 401);
    assert_eq!(app.get_with("/metrics", Some("wrong")).await.0, 401);
    assert_eq!(app.get_with("/metrics", Some(token)).await.0, 200);
    let closed = self::app(MetricsAccess::Closed);
    assert_eq!(closed.get_with("/metrics", Some(token)).await.0, 404);
}

#[tokio::test]
async fn every_name_that_people_try_first_answers() {
    let app = app(MetricsAccess::Open);
    app.switch("postgres", Kind::Required);
    for path in [
        "/livez",
        "/readyz",
        "/startupz",
        "/health",
        "/ready",
        "/health/live",
        "/health/ready",
        "/health/startup",
        "/metrics",
    ] {
        assert_eq!(app.get(path).await.0, 200, "{path}");
    }
}
