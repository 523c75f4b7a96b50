//! RateGuard: an HTTP/1.1 reverse proxy that enforces rate limits which hold across all its replicas.
//!
//! # The map
//!
//! Rooms stand along the way of a request. Imports point down only, and every room is pure (no IO, no clock, no
//! environment: time is an argument) unless marked S for shell; shells are leaves. `tests/tidy.rs` keeps it so.
//!
//! ```text
//! 7  main S                              args -> cli
//! 6  cli S   demo S                      the commands
//! 5  control S   worker S   admin S      threads: one control, one worker per core; the admin port
//! 4  server S   proxy S                  accept -> one client, the whole story
//!    relay      tunnel                   one exchange with a backend -> what a 101 makes of it
//!    gateway    explain                  what a worker needs; what a request would meet, in words
//! 3  config     reply                    text -> only valid values; failures and denials -> bytes
//! 2  limit      upstream (dial S, pool S, probe S)  buckets, policy, stores; backends and their connections
//! 1  identity   route   redis (client S, connection S, dial S)   conn S   deadlines S   splice S
//! 0  http   metrics   coroutine   log S   time S   resolve (lookup S, rounds S)   tls S
//!
//! beside the gateway: backend S (the demo backend), tools S (burst, spread, healthcheck)
//! ```
//!
//! # The life of a request
//!
//! ```text
//! server   accepts; a task per connection
//! proxy    conn::fill -> http::head::parse          refuse what is ambiguous
//!          identity::of, identity::endpoint         who asks, for what
//!          route::longest, limit::policy::apply     where it goes, which buckets it is charged to
//!          limit::decide                            memory: locked shards; redis: one EVALSHA, pipelined, or none
//!            deny  -> reply::too_many               429 with its reason
//!            allow -> relay::exchange               http::forward, upstream::pool, both bodies streamed
//!                     reply::redirect               where the route leads elsewhere
//! ```
//!
//! # Threads
//!
//! ```text
//! control (main)   signals, admin port, starting and stopping     a fault here stops no worker
//! resolver         names to addresses, side by side               the only runtime that is not monoio's
//! worker 0..n      pinned; own io_uring (or epoll), own SO_REUSEPORT listener, own pools, own Redis connections
//!                  shared between workers: read-only rules, the in-process store (sharded), the connection cap
//! ```

pub mod admin;
pub mod backend;
pub mod cli;
pub mod config;
pub mod conn;
pub mod control;
pub mod coroutine;
pub mod deadlines;
pub mod demo;
pub mod explain;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod limit;
pub mod log;
pub mod metrics;
pub mod proxy;
pub mod redis;
pub mod relay;
pub mod reply;
pub mod resolve;
pub mod route;
pub mod server;
pub mod splice;
pub mod time;
pub mod tls;
pub mod tools;
pub mod tunnel;
pub mod upstream;
pub mod worker;
