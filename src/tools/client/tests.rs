//! What the client picks out of an answer, what it refuses to ask for, and its three ways to find a body's end. Shell.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::*;

#[test]
fn remaining_is_r_of_the_first_limit() {
    let cases = [
        (r#""per-user";r=7;t=1"#, Some(7)),
        (r#""per-user";t=1; r=0"#, Some(0)),
        (r#""a;r=5,\"b";r=3, "c";r=9"#, Some(3)),
        (r#""a", "b";r=9"#, None),
        (r#""a";r=x"#, None),
        (r#""a"#, None),
        ("r=5", None),
        ("", None),
    ];
    for (field, expected) in cases {
        assert_eq!(remaining(field), expected, "{field}");
    }
}

#[test]
fn an_answer_keeps_its_marks() {
    let mut headers = HeaderMap::new();
    headers.insert("Retry-After", HeaderValue::from_static("2"));
    headers.insert("RateLimit", HeaderValue::from_static("\"per-user\";r=0;t=2"));
    headers.insert("X-RateGuard-Replica", HeaderValue::from_static("gw-1"));
    let answer = Answer::new(429, &headers, br#"{"detail":"Try\u001b again","x":[1]}"#);
    assert_eq!(
        answer,
        Answer {
            status: 429,
            retry_after_s: Some(2),
            remaining: Some(0),
            replica: Some("gw-1".to_owned()),
            hostname: None,
            detail: Some("Try? again".to_owned()),
        }
    );
    assert_eq!(answer.outcome(), Outcome::Throttled);
}

#[test]
fn other_bodies_have_no_marks() {
    for body in ["", "ok", "[]", "{\"hostname\":5}", "{\"hostname\":\"b1\""] {
        let answer = Answer::new(200, &HeaderMap::new(), body.as_bytes());
        assert_eq!(answer.hostname, None, "{body}");
        assert_eq!(answer.outcome(), Outcome::Token);
    }
    assert_eq!(Answer::new(503, &HeaderMap::new(), b"").outcome(), Outcome::Failed);
}

#[test]
fn only_plain_http_urls_are_taken() {
    for url in ["http://127.0.0.1:8080", "http://[::1]:1/a?b=c", "http://localhost/"] {
        assert!(target(url).is_ok(), "{url}");
    }
    for url in ["", "localhost:8080", "/a", "https://x/", "ftp://x/", "http://", "http://a:b@c/", "http://a b/"] {
        assert!(matches!(target(url), Err(ToolError::Usage(_))), "{url}");
    }
}

#[test]
fn headers_that_cannot_be_sent_are_refused() {
    let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert!(checked(&pair("X-A", " b ")).is_ok());
    for headers in [pair("", "x"), pair("a b", "x"), pair("a", "x\r\ny: z")] {
        assert!(matches!(checked(&headers), Err(ToolError::Usage(_))));
    }
    assert!(checked(&vec![("a".to_owned(), "b".to_owned()); 65]).is_err());
}

/// Answers one request with `answer` and returns what the client made of it.
fn fetch_from(answer: &'static str) -> Result<Answer, String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let origin = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let headers = [("X-API-Key".to_owned(), "k".to_owned())];
    let client = Client::new(&url, &headers, Connections::Fresh, Patience::Patient).unwrap();
    let fetched = client.fetch();
    let request = origin.join().unwrap().to_ascii_lowercase();
    assert!(request.contains("x-api-key: k\r\n") && request.contains("connection: close\r\n"), "{request}");
    fetched
}

#[test]
fn every_framing_is_read_to_its_end() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{\"hostname\":\"b1\"}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n{\"hostname\":\"b1\"}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n{\"hostname\":\"b1\"}",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 17\r\n\r\n{\"hostname\":\"b1\"}",
    ] {
        let fetched = fetch_from(answer).unwrap();
        assert_eq!(fetched.hostname.as_deref(), Some("b1"), "{answer}");
    }
}

#[test]
fn broken_answers_are_failures_with_words() {
    for answer in [
        "",
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{\"hostname\":\"b1\"}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n{\"hostname\"",
    ] {
        let error = fetch_from(answer).unwrap_err();
        assert!(!error.is_empty());
    }
}
