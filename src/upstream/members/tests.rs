//! Who belongs to an upstream as its names change, and what is still known of those that come back.

use super::*;
use crate::upstream::health::tests::settings as health;
use crate::upstream::proxy_protocol::ProxyProtocol;
use crate::upstream::queue::Turn;
use crate::upstream::way::Patience;
use crate::upstream::{Balance, Connections, Retries, Server, StatusSet};
use std::net::IpAddr;

const SECOND: Duration = Duration::from_secs(1);

/// An upstream of two names, whose addresses a test chooses.
struct Names {
    group: Group,
    targets: [Arc<Target>; 2],
}

impl Names {
    fn new() -> Names {
        Names::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Names {
        let targets = ["a", "b"].map(|host| Arc::new(Target::new(host, 80)));
        let server = |host: &str| {
            let address = Address::Tcp { host: host.into(), port: 80 };
            Server { address, weight: 1, backup: false }
        };
        let mut settings = Settings {
            name: "app".into(),
            servers: vec![server("a"), server("b")],
            balance: Balance::RoundRobin,
            retries: Retries { max: 1, statuses: StatusSet::default(), budget_percent: 20 },
            patience: Patience { connect: SECOND, response: SECOND, attempt: None },
            idle: SECOND,
            health: health(),
            connections: Connections {
                max: None,
                max_pending: 0,
                pending: SECOND,
                max_idle: 1,
                max_age: None,
                keepalive: None,
            },
            tls: None,
            proxy_protocol: ProxyProtocol::Off,
        };
        change(&mut settings);
        let group = Group::new(settings, None, |host, _| targets[usize::from(host == "b")].clone());
        Names { group, targets }
    }

    /// The name of this number has these addresses now.
    fn say(&self, name: usize, last_bytes: impl Iterator<Item = u16>, now: Micros) -> Change {
        let address = |last: u16| IpAddr::from([10, 0, (last >> 8) as u8, last as u8]);
        self.targets[name].learn(Ok(last_bytes.map(address).collect()));
        self.group.refresh(now)
    }

    fn member(&self, at: usize) -> Arc<Member> {
        self.group.members()[at].clone()
    }
}

fn at(seconds: u64) -> Micros {
    Micros(seconds * 1_000_000)
}

#[test]
fn an_address_that_comes_back_is_no_new_server_but_may_be_tried_at_once() {
    let names = Names::new();
    names.say(0, 1..3, at(1));
    let first = names.member(0);
    assert!(first.eject(at(20), 60 * SECOND, true, false).is_some());
    first.add_requests(7);
    assert_eq!(names.say(0, 2..3, at(21)).removed.len(), 1);
    let change = names.say(0, 1..3, at(30));
    assert_eq!((change.added.len(), change.removed.len()), (1, 0));
    let back = names.member(0);
    assert!(Arc::ptr_eq(&first, &back));
    assert_eq!((back.state(at(30)), back.requests()), (State::OnTrial, 7));
    assert_eq!(back.eject(at(31), 60 * SECOND, true, true), Some(120 * SECOND), "it is not new");
}

#[test]
fn what_is_known_of_addresses_that_have_gone_is_bounded() {
    let names = Names::new();
    names.say(0, 1..2, at(1));
    let first = names.member(0);
    names.say(0, 2..3, at(2));
    names.say(0, 1..2, at(2).after(KEPT));
    assert!(!Arc::ptr_eq(&first, &names.member(0)), "too long ago");
    for round in 0..50 {
        names.say(0, 1000 * round..1000 * (round + 1), at(1000).after(SECOND * round.into()));
    }
    assert_eq!(names.group.roster.lock().gone.len(), MEMBERS_MAX);
}

#[test]
fn names_that_are_answered_one_after_the_other_at_the_start_are_not_behind() {
    let names = Names::new();
    names.say(0, 1..2, at(1));
    names.say(1, 2..3, at(2));
    let weight = |at: usize, now| names.member(at).weight(now, 30 * SECOND);
    assert_eq!((weight(0, at(2)), weight(1, at(2))), (1000, 1000));
    names.say(1, 2..4, at(40));
    assert_eq!((weight(1, at(40)), weight(2, at(40))), (1000, 100), "one that comes later is");
}

#[test]
fn an_address_that_comes_beside_others_is_tried_before_it_has_its_share() {
    let names = Names::new();
    names.say(0, 1..2, at(1));
    assert_eq!(names.member(0).state(at(1)), State::Well, "there is nobody better");
    names.say(0, 1..3, at(2));
    names.say(1, 9..10, at(2));
    let (new, of_another_name) = (names.member(1), names.member(2));
    assert_eq!((new.state(at(2)), of_another_name.state(at(2))), (State::OnTrial, State::Well));
    let mut now = at(2);
    let mut left_alone = || {
        assert!(new.begin_trial(now, 10 * SECOND) && !new.begin_trial(now, 10 * SECOND));
        let time = new.eject(now, 10 * SECOND, true, true).unwrap();
        now = now.after(time);
        time.as_secs()
    };
    assert_eq!([(); 6].map(|()| left_alone()), [1, 2, 4, 8, 10, 10], "no longer than others at first");
    assert!(new.begin_trial(now, 10 * SECOND));
    assert_eq!(
        new.state(now.after(SECOND)),
        State::OnTrial,
        "a trial that nobody hears of holds the next for a second"
    );
    assert_eq!((new.recover(now), new.recover(now)), (Some(News::Arrived), None));
    assert_eq!(new.eject(now, 10 * SECOND, true, false).map(|time| time.as_secs() >= 10), Some(true), "as any other");
    assert_eq!(new.recover(now), Some(News::Back));
}

#[test]
fn addresses_that_replace_all_others_have_their_share_at_once_and_so_where_nobody_is_ejected() {
    let names = Names::new();
    names.say(0, 1..3, at(1));
    names.say(0, 3..5, at(20));
    assert_eq!((names.member(0).state(at(20)), names.member(1).state(at(20))), (State::Well, State::Well));
    let mut lenient = Names::new();
    lenient.group.settings.health.eject = None;
    lenient.say(0, 1..2, at(1));
    lenient.say(0, 1..3, at(20));
    assert_eq!(lenient.member(1).state(at(20)), State::Well);
}

#[test]
fn an_answered_question_brings_in_a_new_address() {
    let names = Names::new();
    names.say(0, 1..2, at(1));
    names.say(0, 1..3, at(20));
    let new = names.member(1);
    assert_eq!(new.probed(false, &health(), at(21)), None);
    assert_eq!(new.eject(at(21), 10 * SECOND, false, true), Some(SECOND), "it answered badly");
    assert_eq!(new.probed(true, &health(), at(22)), Some(News::Arrived));
    assert_eq!((new.state(at(22)), new.back_since()), (State::Well, at(22)));
}

#[test]
fn probes_that_found_a_new_address_down_have_to_find_it_up() {
    let names = Names::new();
    names.say(0, 1..2, at(1));
    names.say(0, 1..3, at(20));
    let new = names.member(1);
    let up = || names.group.report(at(30)).servers[1].is_up;
    assert!(up(), "nothing speaks against it");
    let told = [false, false, false, true, true].map(|is_good| new.probed(is_good, &health(), at(30)));
    assert_eq!(told, [None, None, Some(News::Down), None, Some(News::Up)]);
    assert!(up());
    assert_eq!(new.recover(at(31)), None);
}

#[test]
fn an_address_that_was_gone_for_long_is_tried_again_where_others_are_well() {
    let names = Names::new();
    names.say(0, 1..4, at(1));
    names.say(0, 1..2, at(100));
    names.say(0, 1..3, at(105));
    names.say(0, 1..4, at(110));
    let states = [1, 2].map(|member| names.member(member).state(at(110)));
    assert_eq!(states, [State::Well, State::OnTrial], "after 5 s and after 10 s");
    names.member(0).eject(at(111), 60 * SECOND, true, false);
    names.member(1).eject(at(111), 60 * SECOND, true, false);
    names.say(0, 1..5, at(112));
    assert_eq!(names.member(3).state(at(112)), State::Well, "nobody of its name is well");
}

/// Servers at two names, the second a backup, that take one connection each while requests line up.
fn narrow() -> (Arc<Group>, [Arc<Target>; 2]) {
    let names = Names::with(|settings| {
        settings.connections.max = Some(1);
        settings.servers[1].backup = true;
    });
    names.say(0, 1..=1, at(1));
    names.say(1, 2..=2, at(1));
    (Arc::new(names.group), names.targets)
}

fn lined_up(group: &Group, number: usize) -> Vec<Turn<'_>> {
    (0..number).map(|_| group.queue.join(0, true, number).unwrap()).collect()
}

#[test]
fn room_that_somebody_was_called_for_calls_nobody_else() {
    let (group, _) = narrow();
    let permit = Permit::take(&group, &group.members()[0]).unwrap();
    let mut waiting = lined_up(&group, 3);
    group.call_next();
    assert_eq!(group.queue.waiting(), 3, "there is none: backups have none to give beside a server that is well");
    drop(permit);
    group.call_next();
    assert_eq!(group.queue.waiting(), 2);
    let taken = Permit::take(&group, &group.members()[0]).unwrap();
    waiting.remove(0).leave_served();
    group.call_next();
    assert_eq!(group.queue.waiting(), 2);
    drop(taken);
    assert_eq!(group.queue.waiting(), 1);
}

#[test]
fn room_of_a_new_server_calls_the_next_while_another_is_called() {
    let (group, targets) = narrow();
    let permit = Permit::take(&group, &group.members()[0]).unwrap();
    let _waiting = lined_up(&group, 3);
    drop(permit);
    targets[0].learn(Ok([1, 3].map(|last| IpAddr::from([10, 0, 0, last])).into()));
    group.refresh(at(20));
    let new = group.members()[1].clone();
    group.call_for_trial(at(20));
    group.call_next();
    assert_eq!((group.queue.waiting(), new.state(at(20))), (2, State::OnTrial), "one is called already");
    new.recover(at(21));
    group.call_next();
    group.call_next();
    assert_eq!(group.queue.waiting(), 1);
}

#[test]
fn a_server_on_trial_calls_one_alone() {
    let (group, _) = narrow();
    let server = group.members()[0].clone();
    server.eject(at(1), SECOND, false, false);
    let backup = Permit::take(&group, &group.members()[1]).unwrap();
    let _waiting = lined_up(&group, 3);
    group.call_for_trial(at(1));
    group.call_next();
    assert_eq!(group.queue.waiting(), 3, "the sick one is not asked, and the backup is full");
    group.call_for_trial(at(3));
    group.call_for_trial(at(3));
    assert_eq!(group.queue.waiting(), 2);
    drop(backup);
    assert_eq!(group.queue.waiting(), 2, "who is called for the trial may take that too");
}

#[test]
fn where_all_are_sick_their_room_counts() {
    let (group, _) = narrow();
    let permit = Permit::take(&group, &group.members()[0]).unwrap();
    group.members().iter().for_each(|member| assert!(member.eject(at(1), SECOND, false, false).is_some()));
    let _waiting = lined_up(&group, 3);
    group.call_next();
    assert_eq!(group.queue.waiting(), 3, "only one of the first tier may be asked");
    drop(permit);
    assert_eq!(group.queue.waiting(), 2);
}
