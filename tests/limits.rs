//! What limits do, over both stores: each behaviour is a function of a [`Store`](crate::support::store::Store), and a
//! test for each store calls it.

/// Tokens: taken, refused, refilled, together or not at all.
mod buckets;

/// Who is limited: users, consumers, plans, addresses, preflights.
mod callers;

/// What stands in Redis: keys, values, times to live; what two gateways share.
mod keys;

/// Tokens taken ahead: how many, what becomes of them, and that they are never too many.
mod leases;

/// What a client, a log and a metric are told, and that they are told the same.
mod replies;

/// No API key in clear, anywhere.
mod secrets;

/// Which requests meet in one bucket.
mod separation;

/// What a backend could take for a limited request, or for another caller's, is counted as such or refused.
mod spellings;

/// How many commands go to Redis in one write, as the metrics tell.
mod writes;
