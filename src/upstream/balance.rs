//! Who of several servers gets a request. Pure: chance is an argument.
//!
//! All three ways look at each server once, so a choice costs time in proportion to their number.

use std::cell::Cell;

/// What is known of one server that could be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its share, in proportion to those of the others; not zero.
    pub weight: u32,
    /// Its requests under way on this worker.
    pub in_flight: u32,
    /// The hash of its address, the same on every replica.
    pub key: u64,
    /// Where it is in the round.
    pub turn: &'a Cell<i64>,
}

/// Smooth weighted round robin: each server gains its weight at every choice, the one with the most is chosen and pays
/// the sum of all. Over any stretch as long as that sum each gets exactly its share, and never in a bunch (the algorithm of
/// nginx's upstreams).
pub fn in_turn<'a>(candidates: impl Iterator<Item = (usize, Candidate<'a>)>) -> Option<usize> {
    let mut sum = 0;
    let mut best: Option<(usize, &Cell<i64>)> = None;
    for (at, candidate) in candidates {
        let weight = i64::from(candidate.weight);
        sum += weight;
        candidate.turn.set(candidate.turn.get() + weight);
        if best.is_none_or(|(_, turn)| candidate.turn.get() > turn.get()) {
            best = Some((at, candidate.turn));
        }
    }
    let (at, turn) = best?;
    turn.set(turn.get() - sum);
    Some(at)
}

/// Of two different servers taken at random by weight, the one with fewer requests under way for its weight (the power of
/// two choices, Mitzenmacher 2001). `random` gives a number below its argument.
pub fn least_requests<'a>(
    candidates: impl Iterator<Item = (usize, Candidate<'a>)> + Clone,
    mut random: impl FnMut(u64) -> u64,
) -> Option<usize> {
    let sum = candidates.clone().map(|(_, candidate)| u64::from(candidate.weight)).sum();
    if sum == 0 {
        return None;
    }
    let (first, one) = at_weight(candidates.clone(), random(sum))?;
    let others = candidates.filter(|(at, _)| *at != first);
    let rest = sum - u64::from(one.weight);
    if rest == 0 {
        return Some(first);
    }
    let Some((second, two)) = at_weight(others, random(rest)) else { return Some(first) };
    let is_busier = u64::from(one.in_flight) * u64::from(two.weight) > u64::from(two.in_flight) * u64::from(one.weight);
    Some(if is_busier { second } else { first })
}

/// The candidate at this place of the sum of weights.
fn at_weight<'a>(
    mut candidates: impl Iterator<Item = (usize, Candidate<'a>)>,
    mut place: u64,
) -> Option<(usize, Candidate<'a>)> {
    candidates.find(|(_, candidate)| match place.checked_sub(u64::from(candidate.weight)) {
        Some(left) => {
            place = left;
            false
        }
        None => true,
    })
}

/// Weighted rendezvous hashing: every server draws a number from the user's hash and its own, and the best wins. Where a
/// server comes or goes only the users that it gains or loses move (Thaler and Ravishankar 1998).
pub fn by_hash<'a>(candidates: impl Iterator<Item = (usize, Candidate<'a>)>, user: u64) -> Option<usize> {
    let drawn = candidates.map(|(at, candidate)| {
        // 53 bits, so that the number is exact and never 0 or 1.
        let uniform = ((mix(user ^ candidate.key) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (at, f64::from(candidate.weight) / -uniform.ln())
    });
    drawn.max_by(|(_, one), (_, two)| one.total_cmp(two)).map(|(at, _)| at)
}

/// The hash of a user or of an address: FNV-1a, which is the same everywhere and always.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads the difference of any bit over all (the finaliser of SplitMix64).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Servers(Vec<(u32, u32, Cell<i64>)>);

    impl Servers {
        fn of(weights: &[u32]) -> Servers {
            Servers(weights.iter().map(|&weight| (weight, 0, Cell::new(0))).collect())
        }

        fn candidates(&self) -> impl Iterator<Item = (usize, Candidate<'_>)> + Clone {
            self.0.iter().enumerate().map(|(at, (weight, in_flight, turn))| {
                let key = hash(format!("10.0.0.{at}:80").as_bytes());
                (at, Candidate { weight: *weight, in_flight: *in_flight, key, turn })
            })
        }

        fn counts(&self, requests: usize, mut choose: impl FnMut(usize) -> usize) -> Vec<usize> {
            let mut counts = vec![0; self.0.len()];
            (0..requests).for_each(|request| counts[choose(request)] += 1);
            counts
        }
    }

    #[test]
    fn a_round_gives_each_exactly_its_share_and_nobody_a_bunch() {
        let servers = Servers::of(&[5, 1, 1]);
        let order: Vec<usize> = (0..7).map(|_| in_turn(servers.candidates()).unwrap()).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
        let counts = servers.counts(7_000, |_| in_turn(servers.candidates()).unwrap());
        assert_eq!(counts, [5_000, 1_000, 1_000]);
        assert_eq!(in_turn(Servers::of(&[]).candidates()), None);
    }

    #[test]
    fn who_sits_out_gets_no_more_afterwards() {
        let servers = Servers::of(&[1, 1, 1]);
        for _ in 0..100 {
            assert_ne!(in_turn(servers.candidates().filter(|(at, _)| *at != 2)), Some(2));
        }
        assert_eq!(servers.counts(300, |_| in_turn(servers.candidates()).unwrap()), [100; 3]);
    }

    #[test]
    fn fewer_requests_win_and_chance_follows_the_weights() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut servers = Servers::of(&[1, 3]);
        let idle = servers.counts(40_000, |_| least_requests(servers.candidates(), |n| random.u64(..n)).unwrap());
        assert!((9_600..=10_400).contains(&idle[0]), "{idle:?}");
        // Twice as many for three times the weight is less.
        (servers.0[0].1, servers.0[1].1) = (1, 2);
        let busy = servers.counts(100, |_| least_requests(servers.candidates(), |n| random.u64(..n)).unwrap());
        assert_eq!(busy, [0, 100]);
        (servers.0[0].1, servers.0[1].1) = (1, 4);
        let busy = servers.counts(100, |_| least_requests(servers.candidates(), |n| random.u64(..n)).unwrap());
        assert_eq!(busy, [100, 0]);
        assert_eq!(least_requests(Servers::of(&[2]).candidates(), |_| 0), Some(0));
    }

    #[test]
    fn a_server_that_hangs_is_never_chosen_of_three() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut servers = Servers::of(&[1, 1, 1]);
        servers.0[1].1 = 50;
        let counts = servers.counts(1_000, |_| least_requests(servers.candidates(), |n| random.u64(..n)).unwrap());
        assert_eq!(counts[1], 0, "{counts:?}");
    }

    #[test]
    fn a_user_stays_and_only_those_of_a_lost_server_move() {
        let servers = Servers::of(&[1, 1, 2]);
        let user = |number: usize| hash(format!("key:{number}").as_bytes());
        let home = |number| by_hash(servers.candidates(), user(number)).unwrap();
        let counts = servers.counts(40_000, home);
        for (count, share) in counts.iter().zip([10_000, 10_000, 20_000]) {
            assert!(count.abs_diff(share) <= share / 20, "{counts:?}");
        }
        for number in 0..1_000 {
            let without = by_hash(servers.candidates().filter(|(at, _)| *at != 0), user(number)).unwrap();
            assert!(home(number) == 0 || without == home(number));
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the table of its authors.
        assert_eq!(
            (hash(b""), hash(b"a"), hash(b"foobar")),
            (0xcbf29ce484222325, 0xaf63dc4c8601ec8c, 0x85944171f73967e8)
        );
    }
}
