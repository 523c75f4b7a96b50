//! The pieces of the hot path that are measured, each as a closure that does its work once. `micro.rs` takes their
//! time, `instructions.rs` has them counted. What a piece needs is made beforehand; what it writes to is used again, as
//! in the gateway. Pure.

use rateguard::http::changes::NONE;
use rateguard::http::forward::{self, Delivery, Hop};
use rateguard::http::head::{RequestHead, ResponseHead};
use rateguard::http::{Bounds, Method, RESPONSE_BOUNDS, Version};
use rateguard::identity::{self, Caller, Consumer, Identity, Settings};
use rateguard::limit::memory::Store;
use rateguard::limit::policy::{By, Limit, Policy, Quota, Share, Sheet, Subject};
use rateguard::redis::resp;
use rateguard::reply::{self, Addressee, Denial, Failure};
use rateguard::route::{Asked, Match, PathTree};
use rateguard::time::Micros;
use rateguard::upstream::balance::{self, Candidate};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::hint::black_box;
use std::net::IpAddr;

/// As the gateway has them by default.
const BOUNDS: Bounds = Bounds { head_max: 16 * 1024, fields_max: 100, body_max: None };

const DATE: &str = "Thu, 26 Nov 2026 12:00:00 GMT";
const REQUEST_ID: &str = "0192f3c4-5b6a-7d8e-9f01-23456789abcd";

/// To whom our own answers go.
const TO: Addressee<'static> =
    Addressee { version: Version::Http11, asked: Method::Get, keep_alive: true, request_id: REQUEST_ID, date: DATE };

/// A path like most.
pub const PLAIN_TARGET: &[u8] = b"/api/v1/orders/4711/items?page=2&sort=created";

/// A path with everything that has to be undone.
pub const NASTY_TARGET: &[u8] = b"//api/%76%31/./orders;v=1/..%2Forders/%34711//x/../items%5c%2e/?page=2&sort=created";

/// What curl sends.
pub const CURL: &[u8] =
    b"GET /api/v1/orders HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n";

/// What a browser sends from a page of the same site: 20 fields, 909 bytes.
pub const BROWSER: &[u8] = b"GET /api/v1/orders/4711/items?page=2&sort=created HTTP/1.1\r\n\
    Host: api.example.com\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    X-Requested-With: XMLHttpRequest\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36\r\n\
    Accept: application/json, text/plain, */*\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Google Chrome\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\n\
    DNT: 1\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    Origin: https://www.example.com\r\n\
    Sec-Fetch-Site: same-site\r\n\
    Sec-Fetch-Mode: cors\r\n\
    Sec-Fetch-Dest: empty\r\n\
    Referer: https://www.example.com/account/orders/4711?from=overview\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8,fr;q=0.7\r\n\
    Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=essential%2Canalytics\r\n\
    If-None-Match: W/\"5eb63bbbe01eeed093cb22bb8f5acdc3\"\r\n\
    X-API-Key: 2c26b46b68ffc68ff99b453c1d304134\r\n\
    Priority: u=1, i\r\n\r\n";

/// The one in [`BROWSER`].
const API_KEY: &str = "2c26b46b68ffc68ff99b453c1d304134";

/// What a backend answers.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx\r\n\
    Date: Thu, 26 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Content-Length: 1432\r\n\
    Connection: keep-alive\r\n\
    Vary: Accept-Encoding, Origin\r\n\
    Cache-Control: private, max-age=0, must-revalidate\r\n\
    ETag: W/\"5eb63bbbe01eeed093cb22bb8f5acdc3\"\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n\r\n";

/// A request head is parsed.
pub fn parse_request(text: &'static [u8]) -> impl FnMut() {
    let mut head = RequestHead::default();
    move || assert!(black_box(&mut head).parse(black_box(text), &BOUNDS).unwrap())
}

/// A response head is parsed.
pub fn parse_response(text: &'static [u8]) -> impl FnMut() {
    let mut head = ResponseHead::default();
    move || assert!(black_box(&mut head).parse(black_box(text), &RESPONSE_BOUNDS, Method::Get).unwrap())
}

/// The path of a target is normalised.
pub fn endpoint(target: &'static [u8]) -> impl FnMut() {
    let mut out = Vec::new();
    move || identity::endpoint(black_box(target), black_box(&mut out))
}

/// Who sent a request is found out, its API key's hash among those of so many consumers.
pub fn caller_by_key(consumers: usize) -> impl FnMut() {
    let known = |number: usize| Consumer {
        name: format!("consumer-{number}"),
        key_sha256: Sha256::digest(if number == 0 { API_KEY.to_owned() } else { number.to_string() }).into(),
        plan: None,
    };
    let identity = Identity::new(Settings { consumers: (0..consumers).map(known).collect(), ..Settings::default() });
    let (head, mut caller, peer) = (parsed(BROWSER), Caller::default(), IpAddr::from([203, 0, 113, 7]));
    move || black_box(&identity).of(black_box(&head), BROWSER, peer, black_box(&mut caller)).unwrap()
}

/// Who sent a request is found out, for two addresses in turn.
pub fn caller_by_address() -> impl FnMut() {
    let identity = Identity::new(Settings::default());
    let (head, mut caller) = (parsed(CURL), Caller::default());
    let mut peers = [IpAddr::from([203, 0, 113, 7]), IpAddr::from([198, 51, 100, 44])];
    move || {
        peers.reverse();
        black_box(&identity).of(black_box(&head), CURL, peers[0], black_box(&mut caller)).unwrap();
    }
}

/// A request gets an id.
pub fn request_id() -> impl FnMut() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut out = Vec::new();
    move || {
        out.clear();
        forward::push_request_id(black_box(&mut out), random.u128(..));
    }
}

/// The route of a request is found, of so many, each asked for in turn.
pub fn longest(routes: usize) -> impl FnMut() {
    let path = |number| format!("/api/v1/service-{number}");
    let scope = |number| Match { path: path(number), ..Match::default() };
    let tree = PathTree::new((0..routes).map(|number| (scope(number), number)));
    let paths: Vec<String> = (0..routes).map(|number| path(number) + "/items/4711").collect();
    let head = parsed(CURL);
    let mut turn = 0;
    move || {
        turn = (turn + 1) % paths.len();
        let path = paths[turn].as_bytes();
        let asked = Asked { host: b"api.example.com", path, head: &head, buffer: CURL, trusted: false };
        assert_eq!(black_box(&tree).longest(black_box(&asked)), Some(turn));
    }
}

/// The limits of a request are found, so many of `all`, and the keys of their buckets written.
pub fn apply(matching: usize, all: usize, by: &[By]) -> impl FnMut() {
    let path = (0..matching).map(|depth| format!("/part-{depth}")).collect::<String>();
    let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]).collect();
    let near = ends.iter().map(|end| path[..*end].to_owned());
    let far = (matching..all).map(|number| format!("/elsewhere-{number}"));
    let one = |(number, path): (usize, String)| Limit { by: by.to_vec(), ..limit(number, &path, 10) };
    let limits: Vec<Limit> = near.chain(far).enumerate().map(one).collect();
    let policy = Policy::new(&limits, &[], "rl").unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nHost: api.example.com\r\nAccept: */*\r\n\r\n").into_bytes();
    let (head, caller, mut sheet) = (parsed(&text), caller(0), Sheet::default());
    move || {
        let endpoint = path.as_bytes();
        let subject =
            Subject { head: &head, buffer: &text, host: b"api.example.com", endpoint, route: "app", caller: &caller };
        black_box(&policy).apply(black_box(&subject), &mut sheet).unwrap();
        assert_eq!(sheet.applied().len(), matching);
    }
}

/// Buckets in memory, one for each user and limit, none of them full or empty.
pub struct Buckets {
    policy: Policy,
    store: Store,
    head: RequestHead,
}

impl Buckets {
    /// As many limits on each request as that, and as many users.
    pub fn new(limits: usize, users: usize) -> Buckets {
        let limits: Vec<Limit> = (0..limits).map(|number| limit(number, "/", 1_000_000_000)).collect();
        let policy = Policy::new(&limits, &[], "rl").unwrap();
        let buckets = Buckets { policy, store: Store::default(), head: parsed(CURL) };
        for user in 0..users {
            buckets.charge(&mut buckets.sheet(user), 0);
        }
        assert_eq!(buckets.store.entries(), (users * limits.len()) as u64);
        buckets
    }

    /// What a request of this user is charged to.
    pub fn sheet(&self, user: usize) -> Sheet {
        sheet(&self.policy, &self.head, &caller(user))
    }

    /// A decision, so many microseconds after the start.
    pub fn charge(&self, sheet: &mut Sheet, now_us: u64) {
        self.store.charge(black_box(&self.policy), black_box(sheet), Share::Whole, Micros(now_us));
    }
}

/// The store in memory decides, for each user in turn.
pub fn decide(limits: usize, users: usize) -> impl FnMut() {
    let buckets = Buckets::new(limits, users);
    let mut sheets: Vec<Sheet> = (0..users).map(|user| buckets.sheet(user)).collect();
    let mut turn = 0;
    move || {
        turn += 1;
        let at = turn % sheets.len();
        buckets.charge(&mut sheets[at], turn as u64);
    }
}

/// A request head is written for the backend.
pub fn forward_request(text: &'static [u8]) -> impl FnMut() {
    let (head, mut out) = (parsed(text), Vec::new());
    move || {
        let hop = Hop {
            peer: "203.0.113.7",
            trusted: false,
            request_id: REQUEST_ID.as_bytes(),
            target: None,
            authority: "app",
            changes: &NONE,
        };
        out.clear();
        forward::request(black_box(&mut out), black_box(text), &head, black_box(&hop));
    }
}

/// A response head is written for the client, with what its limit says.
pub fn forward_response(text: &'static [u8]) -> impl FnMut() {
    let mut head = ResponseHead::default();
    assert!(head.parse(text, &RESPONSE_BOUNDS, Method::Get).unwrap());
    let mut out = Vec::new();
    move || {
        let to = Delivery {
            version: Version::Http11,
            asked: Method::Get,
            keep_alive: true,
            extra: b"RateLimit-Policy: \"limit-0\";q=10;w=10\r\nRateLimit: \"limit-0\";r=9;t=1\r\n",
            changes: &NONE,
            date: DATE,
        };
        out.clear();
        forward::response(black_box(&mut out), black_box(text), &head, black_box(&to));
    }
}

/// The fields of a limited response are written.
pub fn rate_limit_fields(limits: usize) -> impl FnMut() {
    let limits: Vec<Limit> = (0..limits).map(|number| limit(number, "/", 10)).collect();
    let (policy, sheet) = charged(&limits, 1);
    let mut out = Vec::new();
    move || {
        out.clear();
        reply::rate_limit_fields(black_box(&mut out), black_box(&policy), black_box(&sheet));
    }
}

/// A denial is worked out from the sheet and answered.
pub fn too_many() -> impl FnMut() {
    let (policy, sheet) = charged(&[limit(0, "/", 1)], 2);
    assert!(sheet.denied(&policy));
    let (mut fields, mut out) = (Vec::new(), Vec::new());
    move || {
        fields.clear();
        out.clear();
        let denial = Denial::of(black_box(&policy), black_box(&sheet)).unwrap();
        reply::rate_limit_fields(&mut fields, &policy, &sheet);
        reply::too_many(black_box(&mut out), &denial, &fields, black_box(&TO));
    }
}

/// A request that no route matches is answered.
pub fn failure() -> impl FnMut() {
    let mut out = Vec::new();
    move || {
        out.clear();
        reply::failure(black_box(&mut out), black_box(&Failure::NoRoute), &[], black_box(&TO));
    }
}

/// A command as the store in Redis is asked with, for so many buckets: digest, keys, five numbers each. It is put together
/// by the same two functions; what the store itself does around them is not to be had from outside.
pub fn encode(buckets: usize) -> impl FnMut() {
    let limits: Vec<Limit> = (0..buckets).map(|number| limit(number, "/", 10)).collect();
    let (_, sheet) = charged(&limits, 1);
    let mut numbers = Vec::new();
    for number in ["10000000", "1", "1000000", "1000000", "1"] {
        resp::push_bulk(&mut numbers, number.as_bytes());
    }
    let mut out = Vec::new();
    move || {
        out.clear();
        resp::push_array(&mut out, 3 + 6 * buckets);
        for part in [b"EVALSHA".as_slice(), b"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", b"1"] {
            resp::push_bulk(&mut out, black_box(part));
        }
        sheet.keys().for_each(|key| resp::push_bulk(&mut out, black_box(key)));
        (0..buckets).for_each(|_| out.extend_from_slice(black_box(&numbers)));
        black_box(&out);
    }
}

/// The answer to such a command is read.
pub fn decode(buckets: usize) -> impl FnMut() {
    let answer = format!("*{buckets}\r\n{}", ":8999872\r\n".repeat(buckets)).into_bytes();
    move || {
        let parsed = resp::parse(black_box(&answer)).unwrap().unwrap();
        assert_eq!(black_box(parsed).used, answer.len());
    }
}

/// A way to choose one of several servers.
#[derive(Clone, Copy)]
pub enum Choice {
    /// Each in its turn.
    InTurn,
    /// The less busy one of two.
    LeastRequests,
    /// By the user.
    ByHash,
}

/// One of so many servers is chosen.
pub fn choose(choice: Choice, servers: usize) -> impl FnMut() {
    let turns: Vec<Cell<i64>> = vec![Cell::new(0); servers];
    let keys: Vec<u64> = (0..servers).map(|number| balance::hash(format!("10.0.0.{number}:80").as_bytes())).collect();
    let mut random = fastrand::Rng::with_seed(7);
    move || {
        let candidate = |at: usize| Candidate { weight: 1, in_flight: at as u32 % 3, key: keys[at], turn: &turns[at] };
        let candidates = black_box(0..servers).map(|at| (at, candidate(at)));
        let chosen = match choice {
            Choice::InTurn => balance::in_turn(candidates),
            Choice::LeastRequests => balance::least_requests(candidates, |n| random.u64(..n)),
            Choice::ByHash => balance::by_hash(candidates, random.u64(..)),
        };
        assert!(black_box(chosen).is_some());
    }
}

fn parsed(text: &[u8]) -> RequestHead {
    let mut head = RequestHead::default();
    assert!(head.parse(text, &BOUNDS).unwrap());
    head
}

/// One token a second for each user.
fn limit(number: usize, path: &str, burst: u64) -> Limit {
    Limit {
        scope: Match { path: path.into(), ..Match::default() },
        ..Limit::of_each_user(&format!("limit-{number}"), Quota { rate: "1/s".parse().unwrap(), burst })
    }
}

fn caller(number: usize) -> Caller {
    Caller { user: format!("key:{number:032x}").into_bytes(), ip_text: b"ip:203.0.113.7".to_vec(), ..Caller::default() }
}

fn sheet(policy: &Policy, head: &RequestHead, caller: &Caller) -> Sheet {
    let subject =
        Subject { head, buffer: CURL, host: b"api.example.com", endpoint: b"/api/v1/orders", route: "app", caller };
    let mut sheet = Sheet::default();
    policy.apply(&subject, &mut sheet).unwrap();
    sheet
}

/// A sheet that was charged so many times at one moment.
fn charged(limits: &[Limit], times: usize) -> (Policy, Sheet) {
    let policy = Policy::new(limits, &[], "rl").unwrap();
    let mut sheet = sheet(&policy, &parsed(CURL), &caller(0));
    let store = Store::default();
    for _ in 0..times {
        store.charge(&policy, &mut sheet, Share::Whole, Micros(0));
    }
    (policy, sheet)
}
