//! A Redis Cluster: three primaries, each with a replica, all real.

use super::redis::{Redis, hold_port, port_of};
use super::until;
use socket2::Socket;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// Servers that had slots at the start.
pub const PRIMARIES: usize = 3;

pub struct Cluster {
    /// The primaries, then the replica of each.
    pub servers: Vec<Redis>,
    _bus_ports: Vec<Socket>,
}

impl Cluster {
    /// Without replicas, which take a second to come up.
    pub fn of_primaries() -> Cluster {
        Cluster::start(PRIMARIES)
    }

    pub fn with_replicas() -> Cluster {
        Cluster::start(2 * PRIMARIES)
    }

    fn start(count: usize) -> Cluster {
        let bus_ports: Vec<Socket> = (0..count).map(|_| hold_port()).collect();
        let cluster = Cluster { servers: bus_ports.iter().map(server).collect(), _bus_ports: bus_ports };
        let share = SLOTS / PRIMARIES as u16;
        for (number, primary) in cluster.servers[..PRIMARIES].iter().enumerate() {
            let first = share * number as u16;
            let last = if number == PRIMARIES - 1 { SLOTS - 1 } else { first + share - 1 };
            let epoch = (number + 1).to_string();
            ask(primary, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
            ask(primary, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
        }
        for (server, bus) in cluster.servers.iter().zip(&cluster._bus_ports).skip(1) {
            let (port, bus) = (server.port.to_string(), port_of(bus).to_string());
            ask(&cluster.servers[0], &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        until("all servers know each other", || {
            cluster
                .servers
                .iter()
                .all(|server| nodes(server).lines().filter(|line| !line.contains("handshake")).count() == count)
        });
        for (primary, replica) in cluster.servers[..PRIMARIES].iter().zip(&cluster.servers[PRIMARIES..]) {
            let id = id(primary);
            until("a replica follows", || {
                redis::cmd("CLUSTER").arg(&["REPLICATE", &id]).exec(&mut replica.connection()).is_ok()
            });
        }
        cluster.settle();
        cluster
    }

    /// Waits until every server says that the cluster is whole, and every replica has caught up.
    pub fn settle(&self) {
        until("the cluster is whole", || self.servers.iter().all(is_whole));
        for replica in &self.servers[PRIMARIES.min(self.servers.len())..] {
            until("the replica has caught up", || {
                super::sentinel::info(replica, "replication").contains("master_link_status:up")
            });
        }
    }

    /// The URL of a store in this cluster; two seeds, the rest must be found.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.servers[0].port, self.servers[1].port)
    }

    /// The place of the primary that had the slot of a key at the start.
    pub fn owner_of(&self, key: &str) -> usize {
        (usize::from(slot_of(key)) / (usize::from(SLOTS) / PRIMARIES)).min(PRIMARIES - 1)
    }

    /// A further server, without slots.
    pub fn join(&self) -> Newcomer {
        let bus_port = hold_port();
        let server = server(&bus_port);
        let (port, bus) = (server.port.to_string(), port_of(&bus_port).to_string());
        ask(&self.servers[0], &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        let id = id(&server);
        until("all know the new server, and it knows the cluster", || {
            self.servers.iter().all(|other| nodes(other).contains(&id)) && is_whole(&server)
        });
        Newcomer { server, _bus_port: bus_port }
    }

    /// Begins to move a key's slot from one primary to another; gives the keys that are in it.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) -> Vec<String> {
        self.begin_move_between(slot, from, &self.servers[to])
    }

    pub fn begin_move_to(&self, slot: u16, from: usize, to: &Newcomer) -> Vec<String> {
        self.begin_move_between(slot, from, &to.server)
    }

    fn begin_move_between(&self, slot: u16, from: usize, to: &Redis) -> Vec<String> {
        let slot_text = slot.to_string();
        let (source, target) = (id(&self.servers[from]), id(to));
        // Old news of who has the slot may be on its way yet.
        until("both take the slot for the source's, and on its way", || {
            tells(to, &["CLUSTER", "SETSLOT", &slot_text, "IMPORTING", &source])
                && tells(&self.servers[from], &["CLUSTER", "SETSLOT", &slot_text, "MIGRATING", &target])
        });
        let mut source = self.servers[from].connection();
        redis::cmd("CLUSTER").arg(&["GETKEYSINSLOT", &slot_text, "1000"]).query(&mut source).unwrap()
    }

    /// Moves these keys.
    pub fn move_keys(&self, keys: &[String], from: usize, to: usize) {
        let port = self.servers[to].port.to_string();
        for key in keys {
            // One that has expired meanwhile is no key any more, which is no error.
            ask(&self.servers[from], &["MIGRATE", "127.0.0.1", &port, key, "0", "5000", "REPLACE"]);
        }
    }

    /// Ends the move of a slot: its new server is told, and tells the others.
    ///
    /// The others are told once they have heard of it, to end the move on their side too. Where one is told first, and then
    /// hears that who has lost the slot claims it no more, or who has it now did not yet, Redis 7.0.15 notes that the slot's
    /// owner does not claim it, and SETSLOT does not strike that out: when the slot is its own later, it leaves it to whoever
    /// still claims it, whatever the epochs, and deletes its keys.
    pub fn end_move(&self, slot: u16, to: usize) {
        let (slot, id) = (slot.to_string(), id(&self.servers[to]));
        let tell = |server: &Redis| ask(server, &["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        tell(&self.servers[to]);
        // Who takes a slot gives itself the highest epoch that it knows of: where it has not heard of another's, two have
        // the same, and what they tell each other of their slots undoes what they were told here.
        until("all have heard who has which slots, by an epoch of its own", || {
            let views: Vec<View> = self.servers.iter().map(view).collect();
            views.iter().all(|view| *view == views[0]) && has_own_epochs(&views[0])
        });
        self.servers[..PRIMARIES].iter().for_each(tell);
    }
}

/// What a server takes each primary to have: its id, its epoch, its slots.
type View = Vec<(String, String, Vec<String>)>;

fn view(server: &Redis) -> View {
    let text = nodes(server);
    let primaries = text.lines().filter(|line| line.contains("master"));
    let mut view: View = primaries
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let settled = words[8..].iter().filter(|slots| !slots.starts_with('['));
            (words[0].into(), words[6].into(), settled.map(ToString::to_string).collect())
        })
        .collect();
    view.sort();
    view
}

fn has_own_epochs(view: &View) -> bool {
    let epochs: std::collections::BTreeSet<&str> = view.iter().map(|(_, epoch, _)| epoch.as_str()).collect();
    epochs.len() == view.len()
}

/// A server that has joined a cluster later.
pub struct Newcomer {
    server: Redis,
    _bus_port: Socket,
}

fn server(bus_port: &Socket) -> Redis {
    let bus = port_of(bus_port).to_string();
    Redis::start_with(
        &[
            &["--cluster-enabled", "yes", "--cluster-port", &bus][..],
            &["--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"],
        ]
        .concat(),
    )
}

fn is_whole(server: &Redis) -> bool {
    let state: String = redis::cmd("CLUSTER").arg("INFO").query(&mut server.connection()).unwrap();
    state.contains("cluster_state:ok") && state.contains("cluster_slots_ok:16384")
}

/// The slot of a key.
pub fn slot_of(key: &str) -> u16 {
    redis_protocol::redis_keyslot(key.as_bytes())
}

fn tells(server: &Redis, command: &[&str]) -> bool {
    redis::cmd(command[0]).arg(&command[1..]).exec(&mut server.connection()).is_ok()
}

fn ask(server: &Redis, command: &[&str]) {
    redis::cmd(command[0])
        .arg(&command[1..])
        .exec(&mut server.connection())
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

fn nodes(server: &Redis) -> String {
    redis::cmd("CLUSTER").arg("NODES").query(&mut server.connection()).unwrap()
}

fn id(server: &Redis) -> String {
    redis::cmd("CLUSTER").arg("MYID").query(&mut server.connection()).unwrap()
}
