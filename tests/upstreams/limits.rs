//! How many connections there may be, who waits for one, and that none is lost.

use super::moody::{Mood, Moody};
use super::{GET, OK, POST, ask, errors, gateway, is_upstream_problem, refusing};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, config};
use crate::support::{seed, until};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const ASKING: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn pending(gateway: &Gateway) -> usize {
    gateway.metric("rateguard_upstream_pending{upstream=\"app\"}") as usize
}

/// Connections to this server, as the gateway counts them.
fn counted(gateway: &Gateway, server: &Moody) -> usize {
    let address = server.address;
    gateway.metric(&format!("rateguard_upstream_server_connections{{upstream=\"app\",server=\"{address}\"}}")) as usize
}

fn sends(gateway: &Gateway, request: &str) -> Client {
    let mut client = Client::connect(gateway.address);
    client.send(request);
    client
}

/// So many requests held at the server, the first of them while there is room, each on a client of its own.
fn held(gateway: &Gateway, server: &Moody, requests: usize) -> Vec<Client> {
    server.be(Mood::Holds);
    let hold = |number| {
        let client = sends(gateway, GET);
        until("it is held", || server.under_way() == number);
        client
    };
    (1..=requests).map(hold).collect()
}

/// So many requests that wait in line, in their order.
fn lined_up(gateway: &Gateway, requests: usize) -> Vec<Client> {
    let join = |number| {
        let client = sends(gateway, &GET.replace("/ ", &format!("/{number} ")));
        until("it waits", || pending(gateway) == number);
        client
    };
    (1..=requests).map(join).collect()
}

/// The server can be asked as much at once as is allowed, so nothing was lost.
fn has_all(gateway: &Gateway, server: &Moody, max: usize) {
    server.be(Mood::Well);
    until("the counts agree", || counted(gateway, server) == server.open() && server.under_way() == 0);
    let clients = held(gateway, server, max);
    server.be(Mood::Well);
    for mut client in clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn there_are_never_more_connections_than_allowed_over_all_workers() {
    const MAX: usize = 4;
    let server = Moody::new();
    let lines = format!("connections = {{ max = {MAX}, pending = \"20s\" }}");
    let gateway = gateway(&[server.address], &lines);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let mut client = Client::connect(gateway.address);
                    for _ in 0..4 {
                        assert_eq!(client.get("/", "").status, 200);
                    }
                }
            });
        }
    });
    assert_eq!(server.requests(), 24 * 40);
    assert!(server.most_under_way() <= MAX, "{}", server.most_under_way());
    assert!((2..=MAX).contains(&server.most_open()), "{}", server.most_open());
    has_all(&gateway, &server, MAX);
}

#[test]
fn who_waits_is_served_in_order() {
    let server = Moody::new();
    let connections = "connections = { max = 1, pending = \"20s\" }\n[[routes]]";
    let text = config("", &[server.address], "").replace("[[routes]]", connections);
    let gateway = Gateway::start(&text.replace("workers = 2", "workers = 1"));
    let first = held(&gateway, &server, 1);
    let waiting = lined_up(&gateway, 12);
    server.be(Mood::Well);
    for mut client in first.into_iter().chain(waiting) {
        assert_eq!(client.response().status, 200);
    }
    let order: Vec<String> = (1..=12).map(|number| format!("GET /{number} HTTP/1.1")).collect();
    assert_eq!(server.lines()[1..], order);
    assert_eq!(server.connections(), 1);
}

#[test]
fn with_several_workers_nobody_is_passed_over_often() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max = 1, pending = \"20s\" }");
    let first = held(&gateway, &server, 1);
    let waiting = lined_up(&gateway, 30);
    server.be(Mood::Well);
    for mut client in first.into_iter().chain(waiting) {
        assert_eq!(client.response().status, 200);
    }
    let lines = server.lines();
    for number in 1..=30 {
        let at = lines.iter().position(|line| *line == format!("GET /{number} HTTP/1.1")).unwrap();
        assert!(at <= number + 8, "{number} was served as number {at}");
    }
    assert_eq!(server.most_under_way(), 1);
}

#[test]
fn where_too_many_wait_the_next_is_503_at_once() {
    let server = Moody::new();
    let lines = "connections = { max = 1, max_pending = 2, pending = \"20s\" }";
    let gateway = gateway(&[server.address], lines);
    let first = held(&gateway, &server, 1);
    let waiting = lined_up(&gateway, 2);
    let response = ask(&gateway, "GET");
    is_upstream_problem(&response, 503);
    assert_eq!(response.field("Retry-After"), Some("1"));
    assert_eq!((errors(&gateway, "busy"), pending(&gateway)), (1.0, 2));
    server.be(Mood::Well);
    for mut client in first.into_iter().chain(waiting) {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn where_nobody_may_wait_the_next_is_503_at_once() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max = 1, max_pending = 0, pending = \"20s\" }");
    let mut first = held(&gateway, &server, 1);
    is_upstream_problem(&ask(&gateway, "POST"), 503);
    server.be(Mood::Well);
    assert_eq!(first[0].response().status, 200);
    // What is idle on one worker cannot serve the other's, and goes when somebody asks.
    until("there is room again", || ask(&gateway, "GET").status == 200);
}

#[test]
fn who_has_waited_long_enough_gets_503_and_keeps_its_connection() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max = 1, pending = \"300ms\" }");
    let mut first = held(&gateway, &server, 1);
    let start = Instant::now();
    let mut second = Client::connect(gateway.address);
    let response = second.get("/", "X-Request-Id: my-id\r\n");
    is_upstream_problem(&response, 503);
    assert_eq!((response.field("Retry-After"), pending(&gateway)), (Some("1"), 0));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    server.be(Mood::Well);
    assert_eq!(first[0].response().status, 200);
    assert_eq!(second.get("/", "").status, 200);
    assert_eq!(server.most_open(), 1);
}

#[test]
fn nobody_waits_in_line_for_longer_than_a_response_may_take() {
    let server = Moody::in_mood(Mood::Holds);
    let limits = "connections = { max = 1, pending = \"1min\" }";
    let hasty = "[[routes]]\npath = \"/hasty\"\nupstream = \"app\"\ntimeouts = { response = \"100ms\" }";
    let text = config("", &[server.address], hasty);
    let gateway = Gateway::start(&text.replacen("[[routes]]", &format!("{limits}\n[[routes]]"), 1));
    let mut first = sends(&gateway, GET);
    until("it is asked", || server.under_way() == 1);
    let mut hasty = sends(&gateway, &POST.replace("POST /", "POST /hasty"));
    assert_eq!(hasty.response().status, 503);
    server.be(Mood::Well);
    assert_eq!(first.response().status, 200);
    assert_eq!(server.requests(), 1, "what nobody waits for is not sent");
}

#[test]
fn who_leaves_the_line_leaves_nothing_behind() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max = 2, pending = \"3s\" }");
    let first = held(&gateway, &server, 2);
    let waiting = lined_up(&gateway, 10);
    for (number, client) in waiting.into_iter().enumerate() {
        if number % 2 == 0 {
            reset(client.stream);
        }
    }
    until("the line is empty", || pending(&gateway) == 0);
    server.be(Mood::Well);
    drop(first);
    has_all(&gateway, &server, 2);
    until("all clients are forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn who_has_left_when_its_turn_comes_keeps_nobody_waiting() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max = 1, pending = \"20s\" }");
    let mut first = held(&gateway, &server, 1);
    let gone = lined_up(&gateway, 6);
    let mut last = sends(&gateway, GET);
    until("it waits too", || pending(&gateway) == 7);
    gone.into_iter().for_each(|client| reset(client.stream));
    server.be(Mood::Well);
    assert_eq!((first[0].response().status, last.response().status), (200, 200));
    has_all(&gateway, &server, 1);
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_tunnel_holds_its_connection_until_it_ends() {
    let server = Moody::in_mood(Mood::Says(SWITCHING));
    let gateway = gateway(&[server.address], "connections = { max = 3, pending = \"300ms\" }");
    let open = || {
        let mut client = sends(&gateway, ASKING);
        assert_eq!(client.response().status, 101);
        client
    };
    let mut tunnels: Vec<Client> = (0..3).map(|_| open()).collect();
    is_upstream_problem(&ask(&gateway, "GET"), 503);
    assert_eq!(counted(&gateway, &server), 3);
    tunnels.pop();
    until("its connection is given back", || counted(&gateway, &server) == 2);
    tunnels.push(open());
    reset(tunnels.remove(0).stream);
    until("its connection is given back", || counted(&gateway, &server) == 2);
    drop(tunnels);
    has_all(&gateway, &server, 3);
}

#[test]
fn a_server_that_is_back_takes_those_that_wait_for_the_others() {
    let servers = [Moody::in_mood(Mood::SaysAndEnds("")), Moody::new()];
    let lines = "connections = { max = 1, pending = \"20s\" }\nhealth = { unhealthy_after = 1, eject = \"1s\" }";
    let gateway = gateway(&servers.each_ref().map(|server| server.address), lines);
    let mut client = Client::connect(gateway.address);
    until("one is sick", || {
        assert_eq!(client.get("/", "").status, 200);
        gateway.log_of("server is left alone").len() == 1
    });
    servers[1].be(Mood::Holds);
    let mut hanging = sends(&gateway, GET);
    until("the other is at its limit", || servers[1].under_way() == 1);
    let waiting: Vec<Client> = (0..4).map(|_| sends(&gateway, GET)).collect();
    servers[0].be(Mood::Well);
    for mut client in waiting {
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(servers[1].under_way(), 1);
    servers[1].be(Mood::Well);
    assert_eq!(hanging.response().status, 200);
}

#[test]
fn kept_connections_that_have_died_are_replaced_within_the_limit() {
    let server = Moody::in_mood(Mood::SaysAndEnds(std::str::from_utf8(OK).unwrap()));
    let gateway = gateway(&[server.address], "retries = 0\nconnections = { max = 1, pending = \"20s\" }");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut client = Client::connect(gateway.address);
                for _ in 0..25 {
                    assert_eq!(client.get("/", "").status, 200);
                }
            });
        }
    });
    assert_eq!((server.requests(), server.most_under_way()), (300, 1));
    server.be(Mood::Well);
    assert_eq!(ask(&gateway, "GET").status, 200);
}

/// One of many things that clients do, some of them rude.
fn act(gateway: &Gateway, random: &mut fastrand::Rng) {
    let mut client = Client::connect(gateway.address);
    match random.u8(..7) {
        0 | 1 => drop(client.send(GET).try_response(true)),
        2 => drop(client.send(GET)),
        3 => {
            client.send(GET);
            reset(client.stream);
        }
        4 => drop(client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\nhello")),
        5 => {
            client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            std::thread::sleep(Duration::from_millis(random.u64(..5)));
            drop(client.send("zzz\r\n").try_response(true));
        }
        _ => {
            client.send(ASKING);
            std::thread::sleep(Duration::from_millis(random.u64(..5)));
            reset(client.stream);
        }
    }
}

#[test]
fn after_a_storm_no_connection_is_missing() {
    const MAX: usize = 4;
    let seed = seed();
    let server = Moody::new();
    let (_held, dead) = refusing();
    let lines = format!(
        "timeouts = {{ response = \"2s\", idle = \"100ms\" }}\nhealth = {{ eject = \"off\" }}\nretry_budget = \"100%\"\n\
         connections = {{ max = {MAX}, max_pending = 8, pending = \"100ms\", max_age = \"500ms\" }}"
    );
    let gateway = gateway(&[dead, server.address], &lines);
    let moods = [
        Mood::Well,
        Mood::Holds,
        Mood::SaysAndEnds(""),
        Mood::Says(SWITCHING),
        Mood::SaysAndEnds("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        Mood::Says("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),
        Mood::Says("nonsense\r\n\r\n"),
    ];
    std::thread::scope(|scope| {
        for number in 0..12 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed.wrapping_add(number));
                (0..60).for_each(|_| act(gateway, &mut random));
            });
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..40 {
            server.be(moods[random.usize(..moods.len())]);
            std::thread::sleep(Duration::from_millis(25));
        }
        // Nobody is held for ever.
        server.be(Mood::Well);
    });
    assert!(server.most_open() <= MAX, "{}", server.most_open());
    until("all clients are forgotten", || gateway.metric("rateguard_connections") == 0.0);
    assert_eq!(pending(&gateway), 0);
    // What is idle on one worker is no room for the other's retries, which the dead server makes of half of the requests.
    until("no connection is kept", || counted(&gateway, &server) == 0);
    has_all(&gateway, &server, MAX);
}

#[test]
fn no_more_unused_connections_are_kept_than_wanted() {
    for (most, workers) in [(0, 2), (1, 2)] {
        let server = Moody::new();
        let gateway = gateway(&[server.address], &format!("connections = {{ max_idle = {most} }}"));
        let clients = held(&gateway, &server, 8);
        assert_eq!(server.open(), 8);
        server.be(Mood::Well);
        for mut client in clients {
            assert_eq!(client.response().status, 200);
        }
        until("the others are closed", || server.open() <= most * workers);
        until("they are not counted", || counted(&gateway, &server) == server.open());
    }
}

#[test]
fn a_connection_is_replaced_when_it_is_too_old_and_not_before() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max_age = \"600ms\" }");
    let mut client = Client::connect(gateway.address);
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.get("/", "").status, 200);
    }
    if start.elapsed() < Duration::from_millis(300) {
        assert_eq!(server.connections(), 1);
    }
    until("a second one replaces it", || {
        assert_eq!(client.get("/", "").status, 200);
        server.connections() == 2
    });
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(server.most_open(), 1);
}

#[test]
fn clients_that_leave_while_they_wait_in_line_keep_no_server() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "connections = { max = 1, pending = \"20s\" }");
    let mut first = held(&gateway, &server, 1).remove(0);
    let mut waiting = lined_up(&gateway, 5);
    let mut last = waiting.pop().unwrap();
    for (number, client) in waiting.into_iter().enumerate() {
        if number % 2 == 0 {
            socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    // Half a close is legal, and is waited for a second.
    std::thread::sleep(Duration::from_millis(1500));
    server.be(Mood::Well);
    assert_eq!((first.response().status, last.response().status), (200, 200));
    assert_eq!(server.lines()[1..], ["GET /5 HTTP/1.1"]);
    has_all(&gateway, &server, 1);
}

#[test]
fn connections_that_were_only_looked_at_are_no_requests() {
    const REQUESTS: usize = 20;
    let server = Moody::in_mood(Mood::SaysAndEnds("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    let gateway = gateway(&[server.address], "");
    let mut client = Client::connect(gateway.address);
    for number in 1..=REQUESTS {
        assert_eq!(client.send(GET).response().status, 200);
        until("it has closed", || server.connections() == number && server.open() == 0);
    }
    let address = server.address;
    let series = format!("rateguard_upstream_server_requests_total{{upstream=\"app\",server=\"{address}\"}}");
    until("all are counted", || gateway.metric(&series) as usize >= REQUESTS);
    assert_eq!((gateway.metric(&series) as usize, server.requests()), (REQUESTS, REQUESTS));
}
