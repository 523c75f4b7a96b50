//! Counts from several workers through merge, reload and text.

use super::*;

fn names(routes: &[&str], limits: &[&str], upstreams: &[&str]) -> Names {
    let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    Names { routes: owned(routes), limits: owned(limits), upstreams: owned(upstreams) }
}

fn text(registry: &Registry) -> String {
    registry.exposition("1.2.3", "io_uring")
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
}

#[test]
fn the_counts_of_two_workers_are_added() {
    let registry = Registry::new(names(&["/"], &["per-user"], &["api"]), 2);
    for index in [0, 1] {
        let worker = registry.worker(index);
        worker.request(Some(0), 200, Duration::from_millis(1));
        worker.decision(0, Outcome::Deny);
        worker.decision_took(Duration::from_nanos(300));
        worker.store_error(StoreError::OutOfMemory);
        worker.store_write(3);
        worker.upstream_error(0, UpstreamError::BadResponse);
        worker.upstream_retry(0);
        worker.upstream_took(Duration::from_millis(7));
        worker.connection_opened();
        worker.connection_shed();
    }
    registry.worker(1).request(None, 404, Duration::ZERO);
    registry.worker(1).connection_opened();
    registry.worker(1).connection_closed();
    registry.set_memory_store(5, 6);
    registry.set_draining(true);
    let server = |name: &str, is_up| ServerState { server: name.into(), is_up, connections: 4, requests: 9 };
    let servers = vec![server("10.0.0.1:80", true), server("10.0.0.2:80", false)];
    registry.set_groups(vec![GroupState { upstream: "api".into(), in_panic: false, pending: 2, servers }]);
    let text = text(&registry);
    for line in [
        "rateguard_build_info{version=\"1.2.3\",io=\"io_uring\"} 1",
        "rateguard_requests_total{route=\"/\",status=\"2xx\"} 2",
        "rateguard_requests_total{route=\"none\",status=\"4xx\"} 1",
        "rateguard_request_duration_seconds_count 3",
        "rateguard_request_duration_seconds_sum 0.002",
        "rateguard_decisions_total{limit=\"per-user\",outcome=\"deny\"} 2",
        "rateguard_decision_duration_seconds_sum 6e-7",
        "rateguard_store_errors_total{kind=\"out_of_memory\"} 2",
        "rateguard_store_writes_total 2",
        "rateguard_store_commands_total 6",
        "rateguard_upstream_errors_total{upstream=\"api\",kind=\"bad_response\"} 2",
        "rateguard_upstream_retries_total{upstream=\"api\"} 2",
        "rateguard_upstream_duration_seconds_bucket{le=\"0.01\"} 2",
        "rateguard_upstream_retries_denied_total{upstream=\"api\"} 0",
        "rateguard_upstream_panic{upstream=\"api\"} 0",
        "rateguard_upstream_pending{upstream=\"api\"} 2",
        "rateguard_upstream_server_up{upstream=\"api\",server=\"10.0.0.1:80\"} 1",
        "rateguard_upstream_server_up{upstream=\"api\",server=\"10.0.0.2:80\"} 0",
        "rateguard_upstream_server_connections{upstream=\"api\",server=\"10.0.0.1:80\"} 4",
        "rateguard_upstream_server_requests_total{upstream=\"api\",server=\"10.0.0.1:80\"} 9",
        "rateguard_connections 2",
        "rateguard_connections_shed_total 2",
        "rateguard_memory_store_entries 5",
        "rateguard_memory_store_evictions_total 6",
        "rateguard_draining 1",
    ] {
        has(&text, line);
    }
}

#[test]
fn an_enum_value_is_its_place_in_the_list() {
    for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
        assert_eq!(outcome as usize, place);
    }
    for (place, error) in StoreError::ALL.into_iter().enumerate() {
        assert_eq!(error as usize, place);
    }
    for (place, error) in UpstreamError::ALL.into_iter().enumerate() {
        assert_eq!(error as usize, place);
    }
}

#[test]
fn every_status_has_a_class() {
    for (status, class) in [
        (100, "1xx"),
        (199, "1xx"),
        (200, "2xx"),
        (304, "3xx"),
        (429, "4xx"),
        (599, "5xx"),
        (0, "other"),
        (99, "other"),
        (600, "other"),
        (u16::MAX, "other"),
    ] {
        assert_eq!(STATUS_CLASSES[status_class(status)], class, "{status}");
    }
}

#[test]
fn a_duration_counts_in_the_first_bucket_that_holds_it() {
    for (index, bound_us) in BOUNDS_US.into_iter().enumerate() {
        let bound = bound_us * 1_000;
        for (ns, bucket) in [(bound - 1, index), (bound, index), (bound + 1, index + 1)] {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_nanos(ns));
            let spread = Histogram::merge([&histogram].into_iter());
            assert_eq!(spread.counts[bucket], 1, "{ns} ns");
            assert_eq!((spread.count(), spread.sum_ns), (1, ns));
        }
    }
}

#[test]
fn durations_without_end_or_length_are_counted() {
    let histogram = Histogram::default();
    histogram.observe(Duration::ZERO);
    histogram.observe(Duration::MAX);
    let spread = Histogram::merge([&histogram].into_iter());
    assert_eq!((spread.counts[0], spread.counts[17], spread.count()), (1, 1, 2));
}

#[test]
fn the_text_of_a_histogram_is_cumulative_and_names_the_bounds_in_seconds() {
    let registry = Registry::new(Names::default(), 1);
    let worker = registry.worker(0);
    for ms in [1, 15, 31_000] {
        worker.upstream_took(Duration::from_millis(ms));
    }
    let text = text(&registry);
    let buckets: Vec<(&str, u64)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("rateguard_upstream_duration_seconds_bucket{le=\""))
        .filter_map(|line| line.split_once("\"} "))
        .map(|(bound, n)| (bound, n.parse().unwrap()))
        .collect();
    let bounds = [
        "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.02", "0.05", "0.1", "0.25", "0.5", "1.0",
        "2.5", "5.0", "10.0", "30.0", "+Inf",
    ];
    let counts = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3];
    let expected: Vec<_> = bounds.into_iter().zip(counts).collect();
    assert_eq!(buckets, expected);
    has(&text, "rateguard_upstream_duration_seconds_count 3");
    has(&text, "rateguard_upstream_duration_seconds_sum 31.016");
}

#[test]
fn an_odd_name_is_escaped() {
    let registry = Registry::new(names(&["a\"b\\c\nd é"], &["\"} 1\nfake 7\n"], &["\\n"]), 1);
    let text = registry.exposition("1\"2", "io");
    has(&text, r#"rateguard_requests_total{route="a\"b\\c\nd é",status="2xx"} 0"#);
    has(&text, r#"rateguard_decisions_total{limit="\"} 1\nfake 7\n",outcome="allow"} 0"#);
    has(&text, r#"rateguard_upstream_retries_total{upstream="\\n"} 0"#);
    has(&text, r#"rateguard_build_info{version="1\"2",io="io"} 1"#);
    assert!(!text.lines().any(|line| line.starts_with("fake")));
}

#[test]
fn an_index_without_a_name_is_ignored() {
    let registry = Registry::new(names(&["/"], &["l"], &["u"]), 1);
    let before = text(&registry);
    for index in [1, 2, usize::MAX] {
        let worker = registry.worker(0);
        worker.request(Some(index), 200, Duration::from_secs(1));
        worker.decision(index, Outcome::Allow);
        worker.upstream_error(index, UpstreamError::Connect);
        worker.upstream_retry(index);
        let nobody = registry.worker(index);
        nobody.request(Some(0), 200, Duration::from_secs(1));
        nobody.connection_opened();
    }
    assert_eq!(text(&registry), before);
}

#[test]
fn known_series_are_shown_at_zero() {
    let text = text(&Registry::new(names(&["/"], &["l"], &["u"]), 1));
    for outcome in Outcome::ALL {
        let outcome = outcome.label();
        has(&text, &format!("rateguard_decisions_total{{limit=\"l\",outcome=\"{outcome}\"}} 0"));
    }
    has(&text, "rateguard_store_errors_total{kind=\"timeout\"} 0");
    has(&text, "rateguard_upstream_errors_total{upstream=\"u\",kind=\"no_server\"} 0");
    has(&text, "rateguard_requests_total{route=\"/\",status=\"5xx\"} 0");
    assert!(!text.contains("status=\"1xx\"") && !text.contains("route=\"none\""));
}

#[test]
fn the_text_has_each_family_and_each_series_once_and_ends_with_its_mark() {
    let registry = Registry::new(names(&["/", "none", "/"], &["l", "l"], &["u", "u"]), 3);
    for index in 0..3 {
        registry.worker(0).request(Some(index), 200, Duration::ZERO);
    }
    registry.worker(0).request(None, 200, Duration::ZERO);
    let text = text(&registry);
    assert!(text.ends_with("\n# EOF\n"));
    assert!(!text.contains("_total_total"));
    let mut seen = std::collections::HashSet::new();
    for line in text.lines() {
        let series = if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 };
        assert!(seen.insert(series), "twice: {series}");
    }
    has(&text, "rateguard_requests_total{route=\"/\",status=\"2xx\"} 2");
    has(&text, "rateguard_requests_total{route=\"none\",status=\"2xx\"} 2");
}

#[test]
fn without_names_or_workers_the_text_is_still_whole() {
    let text = text(&Registry::new(Names::default(), 0));
    has(&text, "# TYPE rateguard_decisions counter");
    has(&text, "rateguard_connections 0");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_reload_keeps_the_counts_of_what_keeps_its_name() {
    let old = Registry::new(names(&["/a", "/b"], &["l"], &["u"]), 1);
    let before = old.worker(0);
    before.connection_opened();
    before.request(Some(0), 200, Duration::ZERO);
    before.request(Some(1), 200, Duration::ZERO);
    before.request(None, 404, Duration::ZERO);
    old.set_draining(true);
    let new = old.renamed(names(&["/c", "/b"], &["l"], &[]));
    let after = new.worker(0);
    // A request that began before the reload ends after it.
    before.request(Some(1), 200, Duration::ZERO);
    before.connection_closed();
    after.request(Some(1), 200, Duration::ZERO);
    let text = text(&new);
    has(&text, "rateguard_requests_total{route=\"/b\",status=\"2xx\"} 3");
    has(&text, "rateguard_requests_total{route=\"/c\",status=\"2xx\"} 0");
    has(&text, "rateguard_requests_total{route=\"none\",status=\"4xx\"} 1");
    has(&text, "rateguard_request_duration_seconds_count 5");
    has(&text, "rateguard_connections 0");
    has(&text, "rateguard_draining 1");
    assert!(!text.contains("route=\"/a\""));
}

#[test]
fn a_scrape_beside_a_writer_sees_counts_that_only_grow() {
    let registry = Registry::new(names(&["/"], &[], &[]), 2);
    let total = 20_000;
    std::thread::scope(|scope| {
        for index in [0, 1] {
            let worker = registry.worker(index);
            scope.spawn(move || {
                for _ in 0..total {
                    worker.connection_opened();
                    worker.request(Some(0), 200, Duration::ZERO);
                    worker.connection_closed();
                }
            });
        }
        let mut last = 0;
        while last < 2 * total {
            let now = registry.snapshot().requests[0].1[1];
            assert!(now >= last);
            last = now;
        }
    });
    assert_eq!(registry.snapshot().connections, 0);
}

#[test]
fn no_two_workers_share_a_cache_line() {
    assert_eq!(align_of::<RouteRow>(), 128);
    assert_eq!(align_of::<LimitRow>(), 128);
    assert_eq!(align_of::<UpstreamRow>(), 128);
    assert_eq!(align_of::<Totals>(), 128);
}
