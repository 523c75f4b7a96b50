//! Load tools, each with a bounded run: no errors, and as many requests at the backend as it says.

use super::{Setup, run, text};

/// The first number behind `label`.
fn number(said: &str, label: &str) -> usize {
    let (_, rest) = said.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {said}"));
    let rest = rest.trim_start_matches([' ', '\t', ':']);
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("no number behind {label:?} in {said}"))
}

#[test]
fn hey_gets_all_its_answers() {
    for more in [&[][..], &["-m", "POST", "-d", "a body"], &["-disable-keepalive"]] {
        let setup = Setup::new();
        let output = run("hey", &[&["-n", "1000", "-c", "20"], more, &[&setup.url("/echo")]].concat(), b"");
        let said = text(&output.stdout);
        // Not any "[200]": its histogram of times has such counts too.
        assert_eq!(number(&said, "Status code distribution:\n  [200]"), 1000, "{said}");
        assert!(!said.contains("Error distribution"), "{said}");
        assert_eq!(setup.origin.requests(), 1000);
    }
}

#[test]
fn wrk_gets_all_its_answers() {
    const CONNECTIONS: usize = 20;
    let setup = Setup::new();
    let output = run("wrk", &["-t2", &format!("-c{CONNECTIONS}"), "-d1s", &setup.url("/bytes/100")], b"");
    let said = text(&output.stdout);
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let (before, _) = said.split_once(" requests in ").unwrap_or_else(|| panic!("{said}"));
    let answered: usize = before.rsplit(char::is_whitespace).next().unwrap().parse().unwrap();
    // It leaves in the middle of what is under way.
    let requests = setup.origin.requests();
    assert!(answered > 0 && (answered..=answered + CONNECTIONS).contains(&requests), "{requests} requests: {said}");
}

#[test]
fn apache_s_tool_gets_all_its_answers() {
    // It speaks HTTP/1.0; with -k it asks for kept connections.
    for (more, kept) in [(&[][..], 0), (&["-k"], 1000)] {
        let setup = Setup::new();
        let output = run("ab", &[&["-n", "1000", "-c", "20"], more, &[&setup.url("/bytes/100")]].concat(), b"");
        let said = text(&output.stdout);
        assert_eq!(number(&said, "Complete requests:"), 1000, "{said}");
        assert_eq!(number(&said, "Failed requests:"), 0, "{said}");
        assert!(!said.contains("Non-2xx"), "{said}");
        let kept_says_it = if kept > 0 { number(&said, "Keep-Alive requests:") } else { 0 };
        assert_eq!(kept_says_it, kept, "{said}");
        assert_eq!(setup.origin.requests(), 1000);
    }
}

#[test]
fn h2load_gets_all_its_answers_in_http_1_1() {
    let setup = Setup::new();
    // Eight requests under way on each connection: it pipelines.
    let output = run("h2load", &["--h1", "-n1000", "-c10", "-m8", &setup.url("/bytes/100")], b"");
    let said = text(&output.stdout);
    assert!(said.contains("1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains("status codes: 1000 2xx"), "{said}");
    assert_eq!(setup.origin.requests(), 1000);
}
