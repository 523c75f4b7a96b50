//! The text of a scrape: a snapshot of the counts in the OpenMetrics format, written by prometheus-client.
//!
//! A series whose labels the config knows is shown from the start, at zero where nothing happened, so that a dashboard or an
//! alert sees its first increase. The one exception is the status of a request: `2xx`, `4xx` and `5xx` of each named route are always
//! shown, other classes and requests without a route once there was one.
//! Pure.

use super::{
    BOUNDS_US, Distribution, GroupState, NO_ROUTE, Outcome, Registry, STATUS_CLASSES, Snapshot, StoreError,
    UpstreamError,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelValue, LabelValueEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use std::fmt::{self, Write};

/// The media type of what [`Registry::exposition`] returns.
pub const fn content_type() -> &'static str {
    "application/openmetrics-text; version=1.0.0; charset=utf-8"
}

impl Registry {
    /// The counts of this moment in OpenMetrics text, for an answer of type [`content_type`].
    ///
    /// `version` and `io` are the labels of `rateguard_build_info`: the program's version and the driver it runs on.
    pub fn exposition(&self, version: &str, io: &str) -> String {
        let mut scrape = prometheus_client::registry::Registry::default();
        scrape.register_collector(Box::new(Scrape {
            version: version.to_owned(),
            io: io.to_owned(),
            counts: self.snapshot(),
        }));
        let mut text = String::new();
        // Writing to a string does not fail; were it to, the text would lack its end mark and the scraper refuse it.
        let _ = text::encode(&mut text, &scrape);
        text
    }
}

#[derive(Debug)]
struct Scrape {
    version: String,
    io: String,
    counts: Snapshot,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let labels = [("version", Value(&self.version)), ("io", Value(&self.io))];
        encoder
            .encode_descriptor(
                "rateguard_build",
                "The running program: its version and its IO driver.",
                None,
                MetricType::Info,
            )?
            .encode_info(&labels)?;
        requests(&mut encoder, &self.counts)?;
        decisions(&mut encoder, &self.counts)?;
        upstreams(&mut encoder, &self.counts)?;
        groups(&mut encoder, &self.counts.groups)?;
        process(&mut encoder, &self.counts)
    }
}

fn requests(out: &mut DescriptorEncoder, counts: &Snapshot) -> fmt::Result {
    let rows = counts.requests.iter().flat_map(|(route, by_class)| {
        let rows = STATUS_CLASSES.iter().zip(by_class);
        rows.filter(move |&(&class, &n)| n > 0 || (route != NO_ROUTE && matches!(class, "2xx" | "4xx" | "5xx")))
            .map(move |(class, &n)| ([("route", Value(route)), ("status", Value(class))], n))
    });
    counters(out, "rateguard_requests", "Requests answered, by route and status class.", rows)?;
    histogram(
        out,
        "rateguard_request_duration_seconds",
        "Time from the end of a request's head to the end of its answer.",
        &counts.request_duration,
    )
}

fn decisions(out: &mut DescriptorEncoder, counts: &Snapshot) -> fmt::Result {
    let rows = counts.decisions.iter().flat_map(|(limit, by_outcome)| {
        let rows = Outcome::ALL.iter().zip(by_outcome);
        rows.map(move |(outcome, &n)| ([("limit", Value(limit)), ("outcome", Value(outcome.label()))], n))
    });
    counters(out, "rateguard_decisions", "Decisions, by limit and outcome.", rows)?;
    histogram(
        out,
        "rateguard_decision_duration_seconds",
        "Time that a request waited for its decision.",
        &counts.decision_duration,
    )?;
    let rows = StoreError::ALL.iter().zip(&counts.store_errors);
    counters(
        out,
        "rateguard_store_errors",
        "Decisions that the store did not give, by reason.",
        rows.map(|(error, &n)| ([("kind", Value(error.label()))], n)),
    )?;
    counter(out, "rateguard_store_writes", "Writes to the store, each of one or more commands.", counts.store_writes)?;
    counter(
        out,
        "rateguard_store_commands",
        "Commands in the writes to the store: one for each decision asked of it, probes and scripts sent again included.",
        counts.store_commands,
    )?;
    counter(
        out,
        "rateguard_denied_from_cache",
        "Requests denied without asking the store, which would have denied them too.",
        counts.denied_from_cache,
    )?;
    counter(
        out,
        "rateguard_leased",
        "Requests decided without asking the store, by tokens taken from it ahead.",
        counts.leased,
    )?;
    gauge(
        out,
        "rateguard_store_connections",
        "Connections to the store: one for each worker, in a cluster one to each primary.",
        counts.store_connections,
    )?;
    gauge(
        out,
        "rateguard_store_breakers_open",
        "Connections whose server is not waited for because it keeps failing.",
        counts.store_breakers_open,
    )
}

fn upstreams(out: &mut DescriptorEncoder, counts: &Snapshot) -> fmt::Result {
    let rows = counts.upstreams.iter().flat_map(|(upstream, counts)| {
        let rows = UpstreamError::ALL.iter().zip(&counts.errors);
        rows.map(move |(error, &n)| ([("upstream", Value(upstream)), ("kind", Value(error.label()))], n))
    });
    counters(out, "rateguard_upstream_errors", "Failed attempts at an upstream, by reason.", rows)?;
    let rows = counts.upstreams.iter();
    counters(
        out,
        "rateguard_upstream_retries",
        "Requests sent to an upstream again.",
        rows.map(|(upstream, counts)| ([("upstream", Value(upstream))], counts.retries)),
    )?;
    let rows = counts.upstreams.iter();
    counters(
        out,
        "rateguard_upstream_retries_denied",
        "Failed attempts not followed by another because there have been too many retries for the requests.",
        rows.map(|(upstream, counts)| ([("upstream", Value(upstream))], counts.retries_denied)),
    )?;
    histogram(
        out,
        "rateguard_upstream_duration_seconds",
        "Time from the sending of a request to the head of its response.",
        &counts.upstream_duration,
    )
}

fn groups(out: &mut DescriptorEncoder, groups: &[GroupState]) -> fmt::Result {
    let each = || groups.iter().map(|group| ([("upstream", Value(&group.upstream))], group));
    gauges(
        out,
        "rateguard_upstream_panic",
        "1 while all servers of the upstream are sick and are asked anyway.",
        each().map(|(labels, group)| (labels, u64::from(group.in_panic))),
    )?;
    gauges(
        out,
        "rateguard_upstream_pending",
        "Requests that wait for a connection to one of the upstream's servers.",
        each().map(|(labels, group)| (labels, group.pending)),
    )?;
    let servers = || {
        groups.iter().flat_map(|group| {
            let labels = |server| [("upstream", Value(&group.upstream)), ("server", Value(server))];
            group.servers.iter().map(move |server| (labels(&server.server), server))
        })
    };
    gauges(
        out,
        "rateguard_upstream_server_up",
        "1 while the server is well and gets its share of the requests.",
        servers().map(|(labels, server)| (labels, u64::from(server.is_up))),
    )?;
    gauges(
        out,
        "rateguard_upstream_server_connections",
        "Connections to the server, idle ones included.",
        servers().map(|(labels, server)| (labels, server.connections)),
    )?;
    counters(
        out,
        "rateguard_upstream_server_requests",
        "Requests sent to the server, as last told by the workers.",
        servers().map(|(labels, server)| (labels, server.requests)),
    )
}

fn process(out: &mut DescriptorEncoder, counts: &Snapshot) -> fmt::Result {
    gauge(out, "rateguard_connections", "Client connections now open.", counts.connections)?;
    counter(
        out,
        "rateguard_connections_shed",
        "Client connections turned away because there were too many.",
        counts.connections_shed,
    )?;
    gauge(out, "rateguard_memory_store_entries", "Buckets in the in-process store.", counts.memory_entries)?;
    counter(
        out,
        "rateguard_memory_store_evictions",
        "Buckets that the in-process store evicted.",
        counts.memory_evicted,
    )?;
    gauge(out, "rateguard_draining", "1 while the process finishes its last requests.", u64::from(counts.draining))
}

/// A family of counters; the encoder appends `_total` to the name.
fn counters<'a, const L: usize>(
    out: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = ([(&'static str, Value<'a>); L], u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, n) in rows {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&n, None)?;
    }
    Ok(())
}

/// One counter without labels; the encoder appends `_total` to the name.
fn counter(out: &mut DescriptorEncoder, name: &str, help: &str, n: u64) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter::<NoLabelSet, u64, u64>(&n, None)
}

/// A family of gauges.
fn gauges<'a, const L: usize>(
    out: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = ([(&'static str, Value<'a>); L], u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, n) in rows {
        // The encoder fails on an unsigned value beyond this.
        family.encode_family(&labels)?.encode_gauge(&i64::try_from(n).unwrap_or(i64::MAX))?;
    }
    Ok(())
}

fn gauge(out: &mut DescriptorEncoder, name: &str, help: &str, n: u64) -> fmt::Result {
    // The encoder fails on an unsigned value beyond this.
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&n)
}

fn histogram(out: &mut DescriptorEncoder, name: &str, help: &str, spread: &Distribution) -> fmt::Result {
    // The encoder writes f64::MAX as +Inf, and adds the counts up itself.
    let bounds = BOUNDS_US.iter().map(|&us| seconds(us * 1_000)).chain([f64::MAX]);
    let buckets: Vec<(f64, u64)> = bounds.zip(spread.counts).collect();
    out.encode_descriptor(name, help, None, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(
        seconds(spread.sum_ns),
        spread.count(),
        &buckets,
        None,
    )
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A label value, escaped as the text format asks: prometheus-client writes what it is given.
#[derive(Clone, Copy, Debug)]
struct Value<'a>(&'a str);

impl EncodeLabelValue for Value<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\n' => encoder.write_str("\\n")?,
                '"' | '\\' => encoder.write_fmt(format_args!("\\{c}"))?,
                _ => encoder.write_char(c)?,
            }
        }
        Ok(())
    }
}
