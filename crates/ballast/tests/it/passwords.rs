//! Passwords as people, and others, type them.

use reqwest::Method;

use crate::support::{Answer, TestApp};

/// What a password must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It can be set, and logs in.
    Works,
    /// It cannot be set; at a login this is simply wrong, or refused in the same words.
    Invalid,
    /// It is no text at all: refused with this status, wherever it stands.
    Refused(u16),
}
use Wanted::{Invalid, Refused, Works};

/// Passwords as they stand in JSON, quotes included.
fn table() -> Vec<(&'static str, String, Wanted)> {
    let quoted = |text: &str| format!("\"{text}\"");
    vec![
        ("seven characters", quoted("1234567"), Invalid),
        ("eight characters", quoted("8c h\u{e4}rs!"), Works),
        ("eight characters that everybody chooses", quoted("12345678"), Invalid),
        ("eight characters, spaces", quoted("        "), Works),
        ("empty", quoted(""), Invalid),
        ("128 characters", quoted(&"x".repeat(128)), Works),
        ("129 characters", quoted(&"x".repeat(129)), Invalid),
        ("128 characters of four bytes", quoted(&"\u{1f511}".repeat(128)), Works),
        ("129 characters of four bytes", quoted(&"\u{1f511}".repeat(129)), Invalid),
        // 256 code points that compose to 128.
        ("128 characters, decomposed", quoted(&"e\u{301}".repeat(128)), Works),
        ("4 KiB", quoted(&"x".repeat(4_096)), Refused(413)),
        ("1 MiB", quoted(&"x".repeat(1 << 20)), Refused(413)),
        ("NUL", quoted("nul \\u0000 inside"), Invalid),
        ("NUL at the end", quoted("nul at the end\\u0000"), Invalid),
        ("other control characters", quoted("tab\\tbell\\u0007newline\\n"), Works),
        ("spaces around", quoted("  spaces around  "), Works),
        ("emoji of several code points", quoted(&"\u{1f469}\u{200d}\u{1f680}".repeat(8)), Works),
        ("direction marks and a BOM", quoted("\u{202e}hidden\u{feff}\u{2066}"), Works),
        ("quotes, SQL, a format string", quoted("'; drop table users; -- %s {0} \\\"\\\\"), Works),
        ("a lone high surrogate", quoted("\\ud83d lone surrogate"), Refused(400)),
        ("a lone low surrogate", quoted("\\udd11 lone surrogate"), Refused(400)),
        ("surrogates the wrong way round", quoted("\\udd11\\ud83d wrong order"), Refused(400)),
        ("a pair of surrogates", quoted("\\ud83d\\udd11 a proper pair"), Works),
        ("a number", "12345678".to_owned(), Refused(422)),
        ("null", "null".to_owned(), Refused(422)),
        ("an array", "[\"12345678\"]".to_owned(), Refused(422)),
        ("an object", "{\"$ne\":null}".to_owned(), Refused(422)),
        ("true", "true".to_owned(), Refused(422)),
        ("invalid UTF-8", "\"\u{0}invalid\"".to_owned(), Refused(400)),
    ]
}

/// The body, and invalid UTF-8 where the table stands in for it.
fn bytes(body: String) -> Vec<u8> {
    body.into_bytes().into_iter().map(|b| if b == 0 { 0xff } else { b }).collect()
}

async fn send(app: &TestApp, path: &str, body: String) -> Answer {
    let caller = app.anonymous();
    let request = caller.request(Method::POST, path).header("content-type", "application/json");
    caller.send(request.body(bytes(body))).await
}

async fn log_in(app: &TestApp, email: &str, password: &str) -> Answer {
    send(app, "/v1/auth/login", format!(r#"{{"email":"{email}","password":{password}}}"#)).await
}

async fn register(app: &TestApp, email: &str, password: &str) -> Answer {
    let token = app.sign_up_token(email).await;
    let body = format!(r#"{{"email":"{email}","password":{password},"invitation_token":"{token}"}}"#);
    send(app, "/v1/auth/register", body).await
}

const ROOM: [(&str, &str); 3] =
    [("RATE_LIMIT_LOGIN", "1000/1m"), ("RATE_LIMIT_SIGNUP", "1000/1m"), ("RATE_LIMIT_REFRESH", "1000/1m")];

/// Case A11.
#[tokio::test(flavor = "multi_thread")]
async fn every_password_works_or_is_refused_with_a_reason_and_none_is_a_5xx() {
    let app = TestApp::with(&ROOM).await;
    let somebody = app.user().await;
    for (n, (what, password, wanted)) in table().into_iter().enumerate() {
        let email = format!("p{n}@example.com");
        let registered = register(&app, &email, &password).await;
        let logged_in = log_in(&app, &email, &password).await;
        let elsewhere = log_in(&app, &somebody.email, &password).await;
        let expected = match wanted {
            Works => (201, 200, 401),
            // Too long is told at a login, too: nobody can have such a password.
            Invalid => (422, logged_in.status, logged_in.status),
            Refused(status) => (status, status, status),
        };
        let found = (registered.status, logged_in.status, elsewhere.status);
        assert_eq!(found, expected, "{what}: {}{}", registered.text, logged_in.text);
        assert!(wanted != Invalid || [401, 422].contains(&logged_in.status), "{what}: {}", logged_in.text);
        for answer in [registered, logged_in, elsewhere].iter().filter(|a| a.status >= 400) {
            assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
            assert!(
                !answer.text.contains("spaces around") && !answer.text.contains("$ne"),
                "{}",
                answer.text
            );
        }
    }
}

/// Case A11.
#[tokio::test(flavor = "multi_thread")]
async fn only_spellings_of_the_same_characters_are_the_same_password() {
    let app = TestApp::with(&ROOM).await;
    let cases = [
        // Composed and decomposed, in both directions, and as escapes.
        ("caf\u{e9} au lait", "cafe\u{301} au lait", 200),
        ("cafe\u{301} au lait", "caf\u{e9} au lait", 200),
        ("\u{c5}ngstr\u{f6}m", "\u{212b}ngstro\u{308}m", 200),
        ("\u{1f511}12345678", "\\ud83d\\udd1112345678", 200),
        // Look alike, are not the same.
        ("\u{fb01}ne print", "fine print", 401),
        ("p\u{430}ssword", "password", 401),
        ("Passwort mit P", "passwort mit P", 401),
        ("  padded  ", "padded  ", 401),
        ("  padded  ", "  padded", 401),
        ("4096 + 1", "4096 + 12", 401),
        ("4096 + 1\u{200b}", "4096 + 1", 401),
    ];
    for (n, (set, typed, status)) in cases.into_iter().enumerate() {
        let email = format!("s{n}@example.com");
        register(&app, &email, &format!("\"{set}\"")).await.expect(201);
        let answer = log_in(&app, &email, &format!("\"{typed}\"")).await;
        assert_eq!(answer.status, status, "{set:?} typed as {typed:?}: {}", answer.text);
    }
}
