//! Names of backends and of the store: what nameservers say, what they fail to say, and what changes while we run.

use crate::support::client::{self, Client};
use crate::support::dns::{Dns, Says, addresses, for_seconds};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_request};
use crate::support::redis::Redis;
use crate::support::{Folder, until};
use rateguard::resolve::lookup::{ADDRESSES_MAX, Answer, Kind, Lookups};
use rateguard::resolve::{Interval, Settings};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longer than any test waits: what is asked for within it, is asked for a reason.
const NEVER: &str = "interval = \"1h\"";

fn settings(servers: &[&Dns]) -> Settings {
    Settings {
        servers: servers.iter().map(|dns| dns.address).collect(),
        interval: Interval::Ttl,
        timeout: Duration::from_millis(300),
    }
}

/// Asks as on a system whose files say `hosts` and `resolv`.
fn find_on(folder: &Folder, servers: &[&Dns], hosts: &str, resolv: &str, name: &str) -> Result<Answer, String> {
    let files = [folder.write("hosts", hosts), folder.write("resolv.conf", resolv)];
    let [hosts, resolv] = files;
    find_by(&Lookups::with_files(settings(servers), hosts, resolv), name)
}

fn find_by(lookups: &Lookups, name: &str) -> Result<Answer, String> {
    find_again(lookups, name, &[])
}

/// Asks for a name that has had these addresses.
fn find_again(lookups: &Lookups, name: &str, had: &[&str]) -> Result<Answer, String> {
    let had: Vec<IpAddr> = had.iter().map(|address| address.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(lookups.find(name, &had)).map_err(|error| error.to_string())
}

fn find(servers: &[&Dns], name: &str) -> Result<Answer, String> {
    find_on(&Folder::new(), servers, "", "", name)
}

fn found(ttl: u64, addresses: &[&str]) -> Result<Answer, String> {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl), unheard: None })
}

fn failed(why: &str) -> Result<Answer, String> {
    Err(why.into())
}

#[test]
fn addresses_of_both_kinds_and_by_aliases_are_found() {
    let dns = Dns::start();
    dns.say("four.test", addresses(&["127.0.0.3", "127.0.0.2"]));
    dns.say("six.test", for_seconds(7, &["::1"]));
    dns.say("both.test", addresses(&["::1", "127.0.0.2"]));
    dns.say("my_service", addresses(&["127.0.0.2"]));
    dns.say("alias.test", Says::Alias("four.test", 5));
    dns.say("bare.test", Says::BareAlias("alias.test", 90));
    dns.say("round.test", Says::BareAlias("round.test", 60));
    let four = found(60, &["127.0.0.2", "127.0.0.3"]);
    assert_eq!(find(&[&dns], "four.test"), four);
    assert_eq!(find(&[&dns], "four.test."), four, "with its dot");
    assert_eq!(find(&[&dns], "FOUR.Test"), four);
    assert_eq!(find(&[&dns], "six.test"), found(7, &["::1"]));
    assert_eq!(find(&[&dns], "both.test"), found(60, &["127.0.0.2", "::1"]));
    assert_eq!(find(&[&dns], "my_service"), found(60, &["127.0.0.2"]));
    for alias in ["alias.test", "bare.test"] {
        assert_eq!(find(&[&dns], alias), found(5, &["127.0.0.2", "127.0.0.3"]), "{alias}");
    }
    assert!(find(&[&dns], "round.test").is_err());
    assert_eq!(dns.over_tcp(), 0);
}

#[test]
fn a_nameserver_that_is_mute_about_ipv6_is_heard_about_ipv4() {
    let dns = Dns::start();
    dns.say("four.test", Says::OnlyFour(vec![[127, 0, 0, 2].into()]));
    assert_eq!(find(&[&dns], "four.test"), found(60, &["127.0.0.2"]));
}

#[test]
fn answers_too_long_for_a_datagram_are_fetched_by_tcp_and_bounded() {
    let dns = Dns::start();
    dns.say("cut.test", Says::Truncated(vec![[127, 0, 0, 2].into()]));
    assert_eq!(find(&[&dns], "cut.test"), found(60, &["127.0.0.2"]));
    let many =
        |count: u32| (1..=count).map(|number| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number))).collect::<Vec<_>>();
    let most = u32::try_from(ADDRESSES_MAX).unwrap();
    for (count, kept) in [(100, 100), (most, most), (2000, most)] {
        dns.say("many.test", Says::Addresses(many(count), 60));
        assert_eq!(find(&[&dns], "many.test").unwrap().addresses, many(kept));
    }
    assert!(dns.over_tcp() >= 4);
}

#[test]
fn failures_are_told_in_few_words() {
    let dns = Dns::start();
    dns.say("empty.test", addresses(&[]));
    dns.say("failing.test", Says::Failure);
    dns.say("mute.test", Says::Nothing);
    assert_eq!(find(&[&dns], "unknown.test"), failed("there is no such name"));
    assert_eq!(find(&[&dns], "empty.test"), failed("the name has no address"));
    assert_eq!(find(&[&dns], "failing.test"), failed("the nameserver says: Server Failure"));
    let start = Instant::now();
    assert_eq!(find(&[&dns], "mute.test"), failed("no nameserver answers"));
    assert!(start.elapsed() < Duration::from_secs(2), "it waits for one timeout");
    assert!(find(&[&dns], "a..b").is_err());
}

#[test]
fn where_a_nameserver_fails_the_next_is_asked_and_what_one_denies_is_believed() {
    let (first, second) = (Dns::start(), Dns::start());
    for (name, says) in [("failing.test", Says::Failure), ("mute.test", Says::Nothing)] {
        first.say(name, says);
        second.say(name, addresses(&["127.0.0.2"]));
        assert_eq!(find(&[&first, &second], name), found(60, &["127.0.0.2"]), "{name}");
    }
    let search = ["one.test", "two.test", "three.test", "four.test"];
    for domain in search {
        first.say(&format!("name.{domain}"), Says::Nothing);
    }
    second.say("name.four.test", addresses(&["127.0.0.3"]));
    let resolv = format!("search {}\n", search.join(" "));
    let searched = find_on(&Folder::new(), &[&first, &second], "", &resolv, "name");
    assert_eq!(searched, found(60, &["127.0.0.3"]), "a mute nameserver takes no timeout for each name");
    second.say("denied.test", addresses(&["127.0.0.2"]));
    assert_eq!(find(&[&first, &second], "denied.test"), failed("there is no such name"));
    assert_eq!(second.questions("denied.test"), 0);
}

/// A nameserver that fails about one kind of address has not said that there are none any more.
#[test]
fn where_a_nameserver_fails_about_addresses_that_there_were_the_next_is_asked() {
    let (first, second) = (Dns::start(), Dns::start());
    let alone = Lookups::with_files(settings(&[&first]), "", "");
    let both = Lookups::with_files(settings(&[&first, &second]), "", "");
    let six: IpAddr = "::1".parse().unwrap();
    first.say("name.test", Says::OnlySix(vec![six]));
    second.say("name.test", addresses(&["::1", "127.0.0.2"]));
    assert_eq!(find_again(&both, "name.test", &["127.0.0.2"]), found(60, &["127.0.0.2", "::1"]));
    let half = |kind: Kind, address: &str| found(60, &[address]).map(|answer| Answer { unheard: Some(kind), ..answer });
    assert_eq!(find_again(&alone, "name.test", &["127.0.0.2", "::1"]), half(Kind::Four, "::1"));
    assert_eq!(find_again(&alone, "name.test", &["::1"]), found(60, &["::1"]), "nothing is lost");
    first.say("name.test", Says::OnlyFour(vec![[127, 0, 0, 2].into()]));
    assert_eq!(find_again(&alone, "name.test", &["::1"]), half(Kind::Six, "127.0.0.2"));
    first.say("name.test", addresses(&["127.0.0.2"]));
    assert_eq!(find_again(&alone, "name.test", &["::1"]), found(60, &["127.0.0.2"]), "it is said that there are none");
}

#[test]
fn addresses_of_two_members_of_a_search_list_are_not_mixed() {
    let dns = Dns::start();
    dns.say("name.one.test", addresses(&["127.0.0.2"]));
    dns.say("name.two.test", addresses(&["::1"]));
    let searched = find_on(&Folder::new(), &[&dns], "", "search one.test two.test\n", "name");
    assert_eq!(searched, found(60, &["127.0.0.2"]));
}

#[test]
fn the_nameserver_that_answered_last_is_asked_first() {
    let (first, second) = (Dns::start(), Dns::start());
    first.say("name.test", Says::Nothing);
    second.say("name.test", addresses(&["127.0.0.2"]));
    let lookups = Lookups::with_files(settings(&[&first, &second]), "", "");
    assert!(find_by(&lookups, "name.test").is_ok());
    let before = first.questions("name.test");
    assert!(find_by(&lookups, "name.test").is_ok());
    assert_eq!((first.questions("name.test"), second.questions("name.test")), (before, 2));
}

#[test]
fn the_system_s_files_are_honoured() {
    let (dns, folder) = (Dns::start(), Folder::new());
    dns.say("api", addresses(&["127.0.0.2"]));
    dns.say("api.one.test", addresses(&["127.0.0.3"]));
    dns.say("a.b.two.test", addresses(&["127.0.0.4"]));
    dns.say("a.b", addresses(&["127.0.0.5"]));
    let hosts = "127.0.0.9 api.test Mine # own\n::9 mine\nnonsense\n";
    let resolv = "search one.test two.test\noptions ndots:2\n";
    let on = |name: &str| find_on(&folder, &[&dns], hosts, resolv, name).map(|answer| answer.addresses[0].to_string());
    for (name, address) in [
        ("api", "127.0.0.3"),
        ("api.", "127.0.0.2"),
        ("a.b", "127.0.0.4"),
        ("a.b.", "127.0.0.5"),
        ("api.one.test", "127.0.0.3"),
        ("api.test", "127.0.0.9"),
        ("mine", "127.0.0.9"),
        ("MINE.", "127.0.0.9"),
    ] {
        assert_eq!(on(name).as_deref(), Ok(address), "{name}");
    }
    assert_eq!(dns.questions("api.test") + dns.questions("mine.one.test") + dns.questions("mine"), 0);
    let resolv = "search one.test two.test\n";
    assert_eq!(find_on(&folder, &[&dns], "", resolv, "a.b"), found(60, &["127.0.0.5"]), "it has a dot");
}

#[test]
fn this_host_is_found_without_asking_anybody() {
    let dns = Dns::start();
    assert_eq!(
        find(&[&dns], "localhost").map(|answer| answer.addresses),
        found(0, &["127.0.0.1", "::1"]).map(|answer| answer.addresses)
    );
    let four = find_on(&Folder::new(), &[&dns], "127.0.0.1 localhost\n", "", "localhost");
    assert_eq!(four.map(|answer| answer.addresses), Ok(vec![[127, 0, 0, 1].into()]), "as the file says");
    assert_eq!(dns.questions("localhost"), 0);
}

#[test]
fn the_system_s_files_are_read_again_when_they_change() {
    let (dns, folder) = (Dns::start(), Folder::new());
    dns.say("api.one.test", addresses(&["127.0.0.2"]));
    let (hosts, resolv) = (folder.write("hosts", ""), folder.path().join("resolv.conf"));
    let mut lookups = Lookups::with_files(settings(&[&dns]), hosts, resolv);
    assert_eq!(find_by(&lookups, "api"), failed("there is no such name"));
    assert!(!lookups.refresh(), "nothing has changed");
    folder.write("resolv.conf", "search one.test");
    assert!(lookups.refresh() && !lookups.refresh());
    assert_eq!(find_by(&lookups, "api"), found(60, &["127.0.0.2"]));
    folder.write("hosts", "127.0.0.3 api");
    assert!(lookups.refresh());
    assert_eq!(find_by(&lookups, "api").unwrap().addresses, [IpAddr::from([127, 0, 0, 3])]);
}

/// A gateway that asks this nameserver, with further lines of its section, and sends everything to `servers`.
fn gateway(dns: &Dns, lines: &str, servers: &[&str], rest: &str) -> Gateway {
    let timeout = if lines.contains("timeout") { "" } else { "timeout = \"300ms\"" };
    let section = format!("[dns]\nservers = \"{}\"\n{timeout}\n{lines}\n{rest}", dns.address);
    let stand_in = SocketAddr::from(([127, 0, 0, 1], 1));
    let servers: Vec<String> = servers.iter().map(|server| format!("{server:?}")).collect();
    Gateway::start(&config("", &[stand_in], &section).replace(&format!("\"{stand_in}\""), &servers.join(", ")))
}

/// What an origin does that says its number and closes.
fn say_and_close(number: usize) -> impl Fn(TcpStream, usize) + Send + Sync + 'static {
    move |mut stream, _| {
        if read_request(&mut stream).is_some() {
            let number = number.to_string();
            let length = number.len();
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{number}");
            let _ = stream.write_all(answer.as_bytes());
        }
    }
}

/// Backends on 127.0.0.2, 127.0.0.3 and so on, all on one port, that say their last number and close.
struct Origins {
    port: u16,
    _origins: Vec<Origin>,
}

fn origins<const N: usize>() -> Origins {
    // On the first address the kernel gives a port that is nobody's; on the others it is nobody's either.
    let first = Origin::at(SocketAddr::from(([127, 0, 0, 2], 0)), say_and_close(2));
    let port = first.address.port();
    let others = (3..N + 2).map(|number| {
        let address = SocketAddr::from(([127, 0, 0, u8::try_from(number).unwrap()], port));
        Origin::at(address, say_and_close(number))
    });
    let origins = std::iter::once(first).chain(others).collect();
    Origins { port, _origins: origins }
}

/// Who answers: the last number of its address, or the status where nobody does.
fn who(gateway: &Gateway) -> String {
    let response = client::get(gateway.address, "/");
    if response.status == 200 { response.text() } else { response.status.to_string() }
}

#[test]
fn a_name_that_is_unknown_at_the_start_may_appear_later() {
    let (dns, origins) = (Dns::start(), origins::<1>());
    let gateway = gateway(&dns, NEVER, &[&format!("api.test:{}", origins.port)], "");
    assert_eq!(who(&gateway), "502");
    assert_eq!(gateway.log_of("cannot resolve; keeping what was known").len(), 1);
    dns.say("api.test", addresses(&["127.0.0.2"]));
    until("the name is known", || who(&gateway) == "2");
    assert_eq!(gateway.log_of("resolved").len(), 1);
}

#[test]
fn a_name_that_stops_resolving_is_still_served_and_told_of_once() {
    let (dns, origins) = (Dns::start(), origins::<1>());
    dns.say("api.test", addresses(&["127.0.0.2"]));
    let gateway = gateway(&dns, "interval = \"100ms\"", &[&format!("api.test:{}", origins.port)], "");
    assert_eq!(who(&gateway), "2");
    let asked_again = |what: &str, times: usize| {
        let before = dns.questions("api.test");
        until(what, || dns.questions("api.test") >= before + times);
    };
    dns.say("api.test", Says::NoName);
    asked_again("the name was denied", 2);
    dns.say("api.test", Says::Failure);
    asked_again("the nameserver has failed", 1);
    assert_eq!(who(&gateway), "2");
    assert_eq!(gateway.log_of("cannot resolve; keeping what was known").len(), 1);
    dns.say("api.test", addresses(&["127.0.0.2"]));
    until("the name is back", || gateway.log_of("resolved").len() == 2);
    asked_again("the name is asked for again", 3);
    assert_eq!(gateway.log_of("resolved").len(), 2, "it is told of once");
}

#[test]
fn a_name_half_of_which_stops_resolving_keeps_that_half() {
    let (dns, origins) = (Dns::start(), origins::<1>());
    dns.say("api.test", addresses(&["127.0.0.2"]));
    let gateway = gateway(&dns, "interval = \"100ms\"", &[&format!("api.test:{}", origins.port)], "");
    assert_eq!(who(&gateway), "2");
    // An address that nobody listens on.
    dns.say("api.test", Says::OnlySix(vec!["::1".parse().unwrap()]));
    until("the other half is known", || !gateway.log_of("servers of the upstream have changed").is_empty());
    let change = &gateway.log_of("servers of the upstream have changed")[0];
    assert_eq!(change["removed"], "[]", "{change}");
    for _ in 0..20 {
        assert_eq!(who(&gateway), "2");
    }
}

#[test]
fn a_name_that_moves_is_followed() {
    let (dns, origins) = (Dns::start(), origins::<2>());
    dns.say("api.test", addresses(&["127.0.0.2"]));
    let gateway = gateway(&dns, "interval = \"100ms\"", &[&format!("api.test:{}", origins.port)], "");
    assert_eq!(who(&gateway), "2");
    dns.say("api.test", addresses(&["127.0.0.3"]));
    until("the name is followed", || who(&gateway) == "3");
    dns.say("api.test", addresses(&["127.0.0.2", "127.0.0.3"]));
    until("both are used", || who(&gateway) != who(&gateway));
}

#[test]
fn addresses_that_are_told_before_anybody_listens_there_cost_no_request() {
    let (dns, origins) = (Dns::start(), origins::<2>());
    dns.say("api.test", addresses(&["127.0.0.2", "127.0.0.3"]));
    let gateway = gateway(&dns, "interval = \"100ms\"", &[&format!("api.test:{}", origins.port)], "");
    until("both are used", || who(&gateway) != who(&gateway));
    let early = ["127.0.0.77", "127.0.0.78", "127.0.0.79"];
    dns.say("api.test", addresses(&[&["127.0.0.2", "127.0.0.3"], &early[..]].concat()));
    until("they are known", || gateway.log_of("resolved").len() == 2);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert!(["2", "3"].contains(&who(&gateway).as_str()));
    }
    let last = SocketAddr::new(early[2].parse().unwrap(), origins.port);
    let _late = Origin::at(last, say_and_close(79));
    let start = Instant::now();
    until("who listens at last has its share", || who(&gateway) == "79");
    assert!(start.elapsed() < Duration::from_secs(6), "it was left alone for {:?}", start.elapsed());
    until("it has said so", || gateway.log_of("server is new and answers").len() == 1);
    assert_eq!(gateway.log_of("server is left alone").len(), 0);
}

#[test]
fn a_server_that_is_named_again_is_the_same_as_before() {
    let (dns, origins) = (Dns::start(), origins::<2>());
    let gateway = gateway(&dns, "interval = \"100ms\"", &[&format!("api.test:{}", origins.port)], "");
    let name = format!("api.test:{0} (127.0.0.2:{0})", origins.port);
    let series = format!("rateguard_upstream_server_requests_total{{upstream=\"app\",server=\"{name}\"}}");
    dns.say("api.test", addresses(&["127.0.0.2"]));
    until("the name is known", || who(&gateway) == "2");
    assert!((0..50).all(|_| who(&gateway) == "2"));
    dns.say("api.test", addresses(&["127.0.0.3"]));
    until("the name is followed", || who(&gateway) == "3");
    dns.say("api.test", addresses(&["127.0.0.2"]));
    until("what it was sent before still counts", || gateway.metric(&series) >= 50.0);
}

#[test]
fn records_that_hold_for_less_than_the_interval_are_asked_for_when_they_end() {
    let (dns, origins) = (Dns::start(), origins::<2>());
    dns.say("short.test", for_seconds(1, &["127.0.0.2"]));
    dns.say("long.test", for_seconds(3600, &["127.0.0.2"]));
    let servers = ["short.test", "long.test"].map(|name| format!("{name}:{}", origins.port));
    let gateway = gateway(&dns, NEVER, &servers.each_ref().map(String::as_str), "");
    dns.say("short.test", for_seconds(1, &["127.0.0.3"]));
    until("the name is followed", || who(&gateway) == "3");
    assert_eq!(dns.questions("long.test"), 1);
}

#[test]
fn a_name_is_asked_for_at_once_where_its_address_is_dead() {
    let (dns, origins) = (Dns::start(), origins::<1>());
    // Nobody listens there, on this port.
    dns.say("api.test", addresses(&["127.0.0.77"]));
    let gateway = gateway(&dns, NEVER, &[&format!("api.test:{}", origins.port)], "");
    assert_eq!(dns.questions("api.test"), 1);
    assert_eq!(who(&gateway), "502");
    until("the name is asked for again", || dns.questions("api.test") == 2);
    dns.say("api.test", addresses(&["127.0.0.2"]));
    let start = Instant::now();
    until("the name is followed", || who(&gateway) == "2");
    let most = 3 + usize::try_from(start.elapsed().as_millis() / 100).unwrap();
    assert!(dns.questions("api.test") <= most, "{} questions, not {most}", dns.questions("api.test"));
}

#[test]
fn mute_nameservers_hold_up_no_start_and_no_literal_address() {
    let (dns, origins) = (Dns::start(), origins::<1>());
    dns.say("mute.test", Says::Nothing);
    let start = Instant::now();
    let servers = [format!("mute.test:{}", origins.port), format!("127.0.0.2:{}", origins.port)];
    let servers = servers.each_ref().map(String::as_str);
    let patient = gateway(&dns, "timeout = \"1min\"", &servers, "");
    let mut client = Client::connect(patient.address);
    assert_eq!(client.get("/", "").status, 200, "the next server is tried");
    assert!(start.elapsed() < Duration::from_secs(10));
    let gateway = gateway(&dns, "", &servers, "");
    until("the name is given up", || gateway.log_of("cannot resolve; keeping what was known").len() == 1);
    dns.say("mute.test", addresses(&["127.0.0.2"]));
    until("the name is found after all", || gateway.log_of("resolved").len() == 1);
}

#[test]
fn names_that_nobody_answers_for_do_not_hold_up_others() {
    let (dns, origins) = (Dns::start(), origins::<1>());
    let mut servers: Vec<String> = (0..100).map(|number| format!("mute-{number}.test:{}", origins.port)).collect();
    servers.push(format!("api.test:{}", origins.port));
    for number in 0..100 {
        dns.say(&format!("mute-{number}.test"), Says::Nothing);
    }
    dns.say("api.test", addresses(&["127.0.0.2"]));
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let gateway = gateway(&dns, "interval = \"100ms\"", &servers, "");
    let before = dns.questions("api.test");
    let start = Instant::now();
    until("the name is asked for", || dns.questions("api.test") >= before + 10);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?} for ten intervals", start.elapsed());
    assert_eq!(gateway.log_of("resolved").len(), 1);
}

#[test]
fn the_store_is_found_by_its_name() {
    let (dns, origins, redis) = (Dns::start(), origins::<1>(), Redis::start());
    dns.say("redis.test", Says::Alias("primary.test", 60));
    dns.say("primary.test", addresses(&["127.0.0.1"]));
    let rest = format!(
        "[store]\nurl = \"redis://redis.test:{}\"\ndeadline = \"1s\"\n\
         [[limits]]\nname = \"l\"\nrate = \"1/h\"\nby = []\n",
        redis.port
    );
    let gateway = gateway(&dns, "", &[&format!("127.0.0.2:{}", origins.port)], &rest);
    gateway.until_store_connected();
    assert_eq!((who(&gateway), who(&gateway)), ("2".into(), "429".into()));
}

#[test]
fn the_store_s_name_is_asked_for_again_where_the_server_is_none_any_more() {
    let (dns, origins, redis) = (Dns::start(), origins::<1>(), Redis::start());
    dns.say("redis.test", addresses(&["127.0.0.1"]));
    let rest = format!(
        "[store]\nurl = \"redis://redis.test:{}\"\n[[limits]]\nname = \"l\"\nrate = \"1000/s\"\nby = []\n",
        redis.port
    );
    let gateway = gateway(&dns, NEVER, &[&format!("127.0.0.2:{}", origins.port)], &rest);
    gateway.until_store_connected();
    assert_eq!(dns.questions("redis.test"), 1);
    let mut connection = redis.connection();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg("1").exec(&mut connection).unwrap();
    until("the name is asked for again", || who(&gateway) == "2" && dns.questions("redis.test") > 1);
}
