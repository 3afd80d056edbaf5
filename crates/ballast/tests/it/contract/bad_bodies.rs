//! Bodies that are no JSON, not the right JSON, or not said to be JSON, on every route that takes one.

use serde_json::Value;

use super::{World, assert_error_body, request, resources::behind, send, texts, with};
use crate::support::Operation;

/// A body to send.
struct Case {
    name: String,
    content_type: Option<&'static str>,
    bytes: Vec<u8>,
    /// It must be refused. What is not known to be wrong (a field that takes anything) may pass, but must not fail.
    wrong: bool,
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, wrong: bool) -> Case {
    Case { name: name.into(), content_type: Some("application/json"), bytes: bytes.into(), wrong }
}

/// What no JSON parser may take, whatever the route.
fn not_json(example: &str) -> Vec<Case> {
    let utf16 =
        |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    // The example with something else in the place of its first text.
    let quote = example.find(":\"").expect("the example has a text") + 1;
    let end = quote + 1 + example[quote + 1..].find('"').expect("the text ends") + 1;
    let instead = |raw: &[u8]| [&example.as_bytes()[..quote], raw, &example.as_bytes()[end..]].concat();
    let mut bom = vec![0xef, 0xbb, 0xbf];
    bom.extend(example.as_bytes());
    let mut marked = vec![0xff, 0xfe];
    marked.extend(utf16(example, u16::to_le_bytes));
    let mut all = vec![
        case("nothing", "", true),
        case("blanks", "  \n", true),
        case("cut off", &example[..example.len() - 1], true),
        case("two documents", format!("{example}{example}"), true),
        case("rubbish behind it", format!("{example}x"), true),
        case("a comma too many", format!("{},}}", &example[..example.len() - 1]), true),
        case("single quotes", example.replace('"', "'"), true),
        case("a comment", format!("/* */{example}"), true),
        case("a byte order mark", bom, true),
        case("UTF-16, little end first", utf16(example, u16::to_le_bytes), true),
        case("UTF-16, big end first", utf16(example, u16::to_be_bytes), true),
        case("UTF-16 with its mark", marked, true),
        case("10 000 lists", "[".repeat(10_000), true),
        case("10 000 objects", r#"{"a":"#.repeat(10_000), true),
        case("10 000 lists that end", format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)), true),
        case(
            "depth 1 900 in a field",
            instead(format!("{}{}", "[".repeat(1_900), "]".repeat(1_900)).as_bytes()),
            true,
        ),
    ];
    for raw in [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "0x10",
        "01",
        "+1",
        "1.",
        ".5",
        "undefined",
        "True",
    ] {
        all.push(case(format!("the number {raw}"), instead(raw.as_bytes()), true));
    }
    for (name, raw) in [
        ("invalid UTF-8", b"\"a\xff\"".as_slice()),
        ("an overlong slash", b"\"a\xc0\xaf\""),
        ("half a character", b"\"a\xe2\x82\""),
        ("a surrogate in UTF-8", b"\"a\xed\xa0\x80\""),
        ("a lone surrogate", b"\"a\\ud800\""),
        ("a raw NUL", b"\"a\0\""),
        ("a raw line break", b"\"a\nb\""),
        ("an unknown escape", b"\"\\x41\""),
    ] {
        all.push(case(name, instead(raw), true));
    }
    all
}

/// Good JSON, wrong values.
fn wrong_values(operation: &Operation, example: &Value) -> Vec<Case> {
    let schema = operation.body_schema().expect("it has a body");
    // Without properties in its schema a body may be anything for all the document says.
    let typed = schema["properties"].is_object();
    // And with more fields than those in its schema it may hold what somebody else is to judge.
    let closed = schema["additionalProperties"] == false;
    let mut all = Vec::new();
    for (name, value) in
        [("null", "null"), ("a boolean", "true"), ("a number", "7"), ("a text", "\"x\""), ("a list", "[]")]
    {
        all.push(case(format!("{name} instead of an object"), value, typed));
    }
    let values: Value = example.as_object().expect("an object").values().cloned().collect();
    all.push(case("a list of the fields' values", values.to_string(), typed));
    if closed {
        let mut more = example.clone();
        more["no_such_field"] = "x".into();
        all.push(case("a field that is not known", more.to_string(), true));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let mut less = example.clone();
        less.as_object_mut().expect("an object").remove(name.as_str().expect("a name"));
        all.push(case(format!("{name} is missing"), less.to_string(), true));
    }
    for (name, value) in example.as_object().expect("the example is an object") {
        let text = example.to_string();
        let doubled = format!("{},\"{name}\":{value}}}", &text[..text.len() - 1]);
        all.push(case(format!("{name} twice"), doubled, schema["properties"][name].is_object()));
        let kind = &schema["properties"][name]["type"];
        let is =
            |wanted: &str| kind == wanted || kind.as_array().is_some_and(|k| k.iter().any(|k| k == wanted));
        for (named, other) in [
            ("null", "null"),
            ("boolean", "true"),
            ("integer", "7"),
            // Beyond 64 bits nothing is an integer of ours.
            ("number", "9223372036854775808"),
            ("number", "-9223372036854775809"),
            ("number", "18446744073709551616"),
            ("number", "1e308"),
            ("string", "\"\""),
            ("array", "[[]]"),
            ("object", "{\"a\":{}}"),
        ] {
            let wrong = !kind.is_null() && !is(named);
            let replaced = with(example, &format!("/{name}"), Value::Null).to_string();
            let replaced = replaced.replacen(&format!("\"{name}\":null"), &format!("\"{name}\":{other}"), 1);
            all.push(case(format!("{other} for {name}"), replaced, wrong));
        }
    }
    for at in texts(example) {
        let text = example.pointer(&at).and_then(Value::as_str).unwrap_or_default();
        let nul = with(example, &at, format!("{text}\0"));
        // A credential with a NUL is only a wrong credential.
        all.push(case(format!("NUL in {at}"), nul.to_string(), closed && !operation.is_public()));
        all.push(case(
            format!("250 KiB in {at}"),
            with(example, &at, "x".repeat(250 << 10)).to_string(),
            closed,
        ));
        for odd in [
            "\u{202e}\u{feff}\u{200b}",
            "\u{fdd0}\u{ffff}",
            "\r\nSet-Cookie: a=b",
            "\u{1b}[31m",
            "{{7*7}}${7*7}",
        ] {
            all.push(case(format!("{odd:?} in {at}"), with(example, &at, odd).to_string(), false));
        }
    }
    all
}

/// The right bytes under a wrong name.
fn wrong_types(example: &str) -> Vec<Case> {
    let types = [
        None,
        Some("text/plain"),
        Some("text/json"),
        Some("application/xml"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
        Some("application/octet-stream"),
        Some("application"),
        Some("application/jsonx"),
        Some(""),
    ];
    let named = types.map(|content_type| Case {
        name: format!("content type {content_type:?}"),
        content_type,
        bytes: example.as_bytes().to_vec(),
        wrong: true,
    });
    named.into_iter().collect()
}

/// Case H5.
#[tokio::test]
async fn no_body_is_too_bad_for_a_plain_answer() {
    let world = World::start().await;
    let mut sent = 0;
    for operation in Operation::all() {
        let Some(example) = operation.body() else { continue };
        let who = world.who_may(operation);
        let id = if operation.has_parameter() { behind(operation).make(&world).await } else { None };
        let path = operation.at(id.as_deref().unwrap_or("chat"));
        // What does not exist for us has no body that could be wrong: a path of the engine, a sender of webhooks.
        let judged = send(who, request(operation, who, &path)).await.status != 404;
        let text = example.to_string();
        let cases = [not_json(&text), wrong_values(operation, &example), wrong_types(&text)];
        for case in cases.into_iter().flatten() {
            let mut request = who.request(operation.method.clone(), &path).body(case.bytes);
            if let Some(content_type) = case.content_type {
                request = request.header("content-type", content_type);
            }
            let answer = send(who, request).await;
            let why = &case.name;
            assert!(answer.status < 500, "{operation}, {why}: {} {}", answer.status, answer.text);
            if case.wrong && judged {
                assert!(
                    matches!(answer.status, 400 | 413 | 415 | 422),
                    "{operation}, {why}: {} {}",
                    answer.status,
                    answer.text
                );
            }
            if answer.status >= 400 {
                assert_error_body(operation, &answer, why);
            }
            sent += 1;
        }
        let packed =
            who.request(operation.method.clone(), &path).json(&example).header("content-encoding", "gzip");
        assert_eq!(send(who, packed).await.status, 415, "{operation}, compressed");
    }
    assert!(sent > 400, "only {sent}");
    world.anonymous.get("/health").await.expect(200);
}
