//! Forged, foreign and damaged access tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::{Deployment, TestApp, eventually, free_port, ready};

/// The development key, as an attacker who read the repository has it.
const SEED: &str = "YmFsbGFzdC1kZXZlbG9wbWVudC1zYW1wbGUta2V5ISE";

fn sign(header: &Value, claims: &Value) -> String {
    sign_text(&header.to_string(), &claims.to_string())
}

fn sign_text(header: &str, claims: &str) -> String {
    let seed = B64.decode(SEED).unwrap();
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let text = format!("{}.{}", B64.encode(header), B64.encode(claims));
    format!("{text}.{}", B64.encode(pair.sign(text.as_bytes())))
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "dev" })
}

fn with(mut value: Value, key: &str, replacement: Value) -> Value {
    value[key] = replacement;
    value
}

fn without(mut value: Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key);
    value
}

/// Cases A1, A2 and A3.
#[tokio::test]
async fn every_forged_token_is_refused_and_the_genuine_one_is_not() {
    // Where a token says that its key is to be had.
    let lure = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lure_url = format!("http://{}", lure.local_addr().unwrap());
    let app = TestApp::start().await;
    let user = app.user().await;
    let genuine = user.token().to_owned();
    let parts: Vec<&str> = genuine.split('.').collect();
    let claims: Value = serde_json::from_slice(&B64.decode(parts[1]).unwrap()).unwrap();
    let now = app.clock.now().timestamp();
    let unsigned = |alg: &str| {
        let header = B64.encode(json!({ "alg": alg, "typ": "at+jwt", "kid": "dev" }).to_string());
        format!("{header}.{}.", parts[1])
    };
    let public = app.state.keyring.jwks()["keys"][0]["x"].as_str().unwrap().to_owned();
    // What a library that takes the algorithm from the header might take for the secret: the public key as we publish it.
    let der = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".as_slice(), &B64.decode(&public).unwrap()]
        .concat();
    let pem = base64::engine::general_purpose::STANDARD.encode(&der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n");
    let jwk = app.state.keyring.jwks()["keys"][0].to_string();
    let hs256 = |secret: &[u8]| {
        let text = format!(
            "{}.{}",
            B64.encode(json!({"alg":"HS256","typ":"at+jwt","kid":"dev"}).to_string()),
            parts[1]
        );
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        format!("{text}.{}", B64.encode(aws_lc_rs::hmac::sign(&key, text.as_bytes())))
    };
    let h = |key: &str, value: Value| sign(&with(header(), key, value), &claims);
    let c = |key: &str, value: Value| sign(&header(), &with(claims.clone(), key, value));
    let no = |key: &str| sign(&header(), &without(claims.clone(), key));
    let mut forged = vec![
        String::from("x"),
        "..".into(),
        "a.b.c".into(),
        format!("{genuine}."),
        format!("{genuine}.x"),
        parts[..2].join("."),
        format!("{}.{}.", parts[0], parts[1]),
        genuine[..genuine.len() - 4].to_owned(),
        format!("{}.{}.{}", parts[0], parts[1], "A".repeat(86)),
        format!(
            "{}.{}.{}",
            parts[0],
            B64.encode(with(claims.clone(), "sub", json!(uuid::Uuid::nil())).to_string()),
            parts[2]
        ),
        unsigned("none"),
        unsigned("NoNe"),
        unsigned("EdDSA"),
        hs256(&B64.decode(&public).unwrap()),
        hs256(public.as_bytes()),
        hs256(pem.as_bytes()),
        hs256(pem.trim_end().as_bytes()),
        hs256(&der),
        hs256(jwk.as_bytes()),
        hs256(b""),
        // Twice the same name: two readers could read two things.
        sign_text(r#"{"alg":"none","alg":"EdDSA","typ":"at+jwt","kid":"dev"}"#, &claims.to_string()),
        sign_text(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"other","kid":"dev"}"#, &claims.to_string()),
        sign_text(&header().to_string(), &claims.to_string().replacen('{', r#"{"scope":"admin","#, 1)),
        sign_text(&header().to_string(), &claims.to_string().replacen('{', r#"{"exp":99999999999,"#, 1)),
        sign_text(&header().to_string(), &format!("{claims} {claims}")),
        h("b64", json!(false)),
        h("zip", json!("DEF")),
        h("alg", json!("RS256")),
        h("alg", json!("ES256")),
        h("alg", json!("none")),
        h("alg", json!(null)),
        h("typ", json!("JWT")),
        h("typ", json!("refresh")),
        h("typ", json!("AT+JWT")),
        h("kid", json!("../../dev/null")),
        h("kid", json!("' or 1=1 --")),
        h("kid", json!("k".repeat(3_000))),
        h("kid", json!("k".repeat(10 * 1_024))),
        h("kid", json!(format!("{lure_url}/jwks"))),
        h("kid", json!("dev\0")),
        h("kid", json!("other")),
        h("kid", json!(1)),
        h("jku", json!(format!("{lure_url}/jwks"))),
        h("x5u", json!(format!("{lure_url}/x5u"))),
        h("x5c", json!([format!("{lure_url}/x5c")])),
        h("jwk", json!({"kty": "OKP", "crv": "Ed25519", "x": public, "jku": format!("{lure_url}/jwk")})),
        h("crit", json!(["exp"])),
        h("cty", json!("JWT")),
        sign(&without(header(), "typ"), &claims),
        sign(&without(header(), "kid"), &claims),
        c("exp", json!(now - 60)),
        c("exp", json!("9999999999")),
        c("exp", json!(-1)),
        c("exp", json!(1e30)),
        c("exp", json!(now + 86_400 * 365)),
        c("exp", json!(1.5)),
        c("nbf", json!(now + 3_600)),
        c("iat", json!(now + 3_600)),
        c("aud", json!("another")),
        c("aud", json!(5)),
        c("aud", json!([])),
        c("aud", json!([claims["aud"]])),
        c("iss", json!([claims["iss"]])),
        c("iss", json!("http://evil.example")),
        c("iss", json!({})),
        c("sub", json!("nobody")),
        c("sub", json!(7)),
        c("sid", json!(null)),
        c("scope", json!(["admin"])),
        c("admin", json!(true)),
        format!("{genuine}{}", "A".repeat(5_000)),
    ];
    forged.extend(["exp", "aud", "iss", "sub", "sid", "nbf", "iat", "scope"].map(no));
    assert!(forged.len() >= 75);
    for token in &forged {
        let Ok(value) = reqwest::header::HeaderValue::from_str(&format!("Bearer {token}")) else { continue };
        let request = app.anonymous().request(reqwest::Method::GET, "/v1/me").header("authorization", value);
        let answer = app.anonymous().send(request).await;
        let shown = &token[..token.len().min(200)];
        assert_eq!(answer.status, 401, "{shown}: {}", answer.text);
        let challenge = answer.header("www-authenticate");
        assert!(
            challenge.starts_with("Bearer") && challenge.contains("error=\"invalid_token\""),
            "{shown}: {challenge}"
        );
        assert_eq!(answer.header("content-type"), "application/problem+json", "{shown}");
    }
    user.get("/v1/me").await.expect(200);
    let visit = tokio::time::timeout(std::time::Duration::from_millis(300), lure.accept()).await;
    assert!(visit.is_err(), "nobody went to ask for a key");
    // The helper that forges makes a good token when nothing is changed, so the refusals above are not its fault.
    app.anonymous().with_token(&sign(&header(), &claims)).get("/v1/me").await.expect(200);
}

/// Case A3: accepted 905 s after it was made (15 minutes and the leeway), refused at 906.
#[tokio::test]
async fn a_token_ends_five_seconds_after_its_time() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let claims: Value =
        serde_json::from_slice(&B64.decode(user.token().split('.').nth(1).unwrap()).unwrap()).unwrap();
    let (iat, exp) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert_eq!(exp - iat, 900);
    let go_to = |second: i64| {
        app.advance_clock(TimeDelta::milliseconds(second * 1_000 - app.clock.now().timestamp_millis()));
    };
    // The clock goes on: what counts is an answer within the very second.
    loop {
        go_to(iat + 905);
        let answer = user.get("/v1/me").await;
        if app.clock.now().timestamp() == iat + 905 {
            answer.expect(200);
            break;
        }
    }
    go_to(iat + 906);
    user.get("/v1/me").await.problem(401, "invalid_token");
}

/// Case A2: what a token calls its key is in no line of the log, whatever it is. The real binary, which logs all it can.
#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_key_is_never_logged() {
    const MARK: &str = "kidcanary";
    let deployment = Deployment::new().await;
    let port = free_port();
    let api = deployment.start("api", port, &[("LOG_LEVEL", "trace")]);
    ready(port).await;
    let claims = json!({ "sub": uuid::Uuid::now_v7(), "scope": "user" });
    let url = format!("http://127.0.0.1:{port}/v1/me");
    let client = reqwest::Client::new();
    let kids = [
        format!("' or {MARK} = 1; drop table users; --"),
        format!("../../{MARK}/dev/null"),
        format!("{MARK}\r\n{{\"level\":\"error\",\"message\":\"forged\"}}"),
        format!("{MARK}\0\u{1b}[31m"),
        MARK.repeat(10 * 1_024 / MARK.len()),
        MARK.to_owned(),
    ];
    for kid in &kids {
        let token = sign(&with(header(), "kid", json!(kid)), &claims);
        let answer = client.get(&url).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{kid:.60}");
        let text = answer.text().await.unwrap();
        assert!(!text.contains(MARK), "{text}");
        let head = token.split('.').next().unwrap();
        assert!(!api.output().contains(&head[..head.len().min(80)]), "{kid:.60}: as it was sent");
    }
    let requests = || api.output().lines().filter(|line| line.contains("\"message\":\"request\"")).count();
    eventually("each is logged", std::time::Duration::from_secs(10), async || requests() >= kids.len()).await;
    for line in api.output().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["message"] != "forged" && !line.to_string().contains(MARK), "{line}");
    }
}

#[tokio::test]
async fn one_credential_is_one_too_few_and_two_are_one_too_many() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let bearer = format!("Bearer {}", user.token());
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], "missing_credentials"),
        (&[("authorization", "Basic dXNlcjpwYXNz")], "missing_credentials"),
        (&[("authorization", "Bearer ")], "missing_credentials"),
        (&[("authorization", &bearer), ("authorization", &bearer)], "invalid_token"),
        (&[("authorization", &bearer), ("x-api-key", "blst_x")], "invalid_token"),
        (&[("x-api-key", &bearer)], "invalid_token"),
        (&[("x-api-key", "blst_0000000000000000_00")], "invalid_token"),
    ];
    for (headers, code) in cases {
        let mut request = app.anonymous().request(reqwest::Method::GET, "/v1/me");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.anonymous().send(request).await.problem(401, code);
    }
    let lower = app
        .anonymous()
        .request(reqwest::Method::GET, "/v1/me")
        .header("authorization", format!("bearer {}", user.token()));
    app.anonymous().send(lower).await.expect(200);
}

#[tokio::test]
async fn the_published_keys_verify_our_tokens() {
    let app = TestApp::start().await;
    let jwks = app.anonymous().get("/.well-known/jwks.json").await.expect(200).json();
    let key = &jwks["keys"][0];
    assert_eq!(
        (key["kty"].as_str(), key["crv"].as_str(), key["alg"].as_str()),
        (Some("OKP"), Some("Ed25519"), Some("EdDSA"))
    );
    let user = app.user().await;
    let (text, signature) = user.token().rsplit_once('.').unwrap();
    let public = B64.decode(key["x"].as_str().unwrap()).unwrap();
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, public);
    public.verify(text.as_bytes(), &B64.decode(signature).unwrap()).unwrap();
}
