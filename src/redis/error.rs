//! What a server's error means for who asked, and for those who ask next. Pure.
//!
//! The code is the first word of the error (Redis protocol specification, "Simple errors"). Redis before 7 puts the code
//! of an error inside a script behind words of its own, so there it is looked for further inside.

/// An error by its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerError {
    /// NOSCRIPT: the server does not know the script. Nothing was executed.
    NoScript,
    /// LOADING: the server reads its data from disk.
    Loading,
    /// READONLY: a replica now, after a failover.
    ReadOnly,
    /// MASTERDOWN: a replica that has lost its primary.
    MasterDown,
    /// NOREPLICAS: a primary that may not write for want of replicas.
    NoReplicas,
    /// OOM: no memory for a write.
    OutOfMemory,
    /// MISCONF: no writes while snapshots fail.
    Misconfigured,
    /// MOVED: the slot is another node's.
    Moved,
    /// ASK: this once, another node has the slot.
    Ask,
    /// TRYAGAIN: the keys of one slot are on two nodes, in a resharding.
    TryAgain,
    /// CLUSTERDOWN: nobody has the slot.
    ClusterDown,
    /// CROSSSLOT: keys of two slots in one command.
    CrossSlot,
    /// WRONGTYPE: somebody else's value stands at the key.
    WrongType,
    /// BUSY: another script runs for too long.
    Busy,
    /// NOAUTH, WRONGPASS: the server wants a password, or another one.
    NoAuth,
    /// NOPERM: the user may not do this.
    NoPermission,
    /// Any other.
    Other,
}

/// What is to be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Send the script itself: the only command that is ever asked twice.
    SendScript,
    /// Ask the node that the error names.
    Follow,
    /// Ask about each key by itself.
    Split,
    /// Ask again later: it passes by itself, or an operator ends it.
    Wait,
    /// Leave this server, resolve its name again: its role has changed.
    Reconnect,
    /// Nothing: it concerns this key alone.
    LeaveKey,
}

const CODES: [(&[u8], ServerError); 17] = [
    (b"NOSCRIPT", ServerError::NoScript),
    (b"LOADING", ServerError::Loading),
    (b"READONLY", ServerError::ReadOnly),
    (b"MASTERDOWN", ServerError::MasterDown),
    (b"NOREPLICAS", ServerError::NoReplicas),
    (b"OOM", ServerError::OutOfMemory),
    (b"MISCONF", ServerError::Misconfigured),
    (b"MOVED", ServerError::Moved),
    (b"ASK", ServerError::Ask),
    (b"TRYAGAIN", ServerError::TryAgain),
    (b"CLUSTERDOWN", ServerError::ClusterDown),
    (b"CROSSSLOT", ServerError::CrossSlot),
    (b"WRONGTYPE", ServerError::WrongType),
    (b"BUSY", ServerError::Busy),
    (b"NOAUTH", ServerError::NoAuth),
    (b"WRONGPASS", ServerError::NoAuth),
    (b"NOPERM", ServerError::NoPermission),
];

/// What Redis 7.0, and Valkey, say without a code where a command within the script is not permitted.
const RIGHTS: [&[u8]; 2] = [b"user executing the script can't", b"ACL failure in script"];

impl ServerError {
    /// Reads the text of an error reply, without its `-`.
    pub fn of(text: &[u8]) -> ServerError {
        let mut words = text.split(|&b| b == b' ').map(|word| word.strip_prefix(b"-").unwrap_or(word));
        let first = words.next().unwrap_or_default();
        if let Some(error) = of_code(first) {
            return error;
        }
        match first {
            b"ERR" if RIGHTS.iter().any(|right| memchr::memmem::find(text, right).is_some()) => {
                ServerError::NoPermission
            }
            b"ERR" => words.find_map(of_code).unwrap_or(ServerError::Other),
            _ => ServerError::Other,
        }
    }

    /// What is to be done about it.
    pub fn remedy(self) -> Remedy {
        match self {
            ServerError::NoScript => Remedy::SendScript,
            ServerError::Moved | ServerError::Ask => Remedy::Follow,
            ServerError::TryAgain => Remedy::Split,
            ServerError::ReadOnly | ServerError::MasterDown | ServerError::NoAuth => Remedy::Reconnect,
            ServerError::WrongType | ServerError::CrossSlot => Remedy::LeaveKey,
            ServerError::Loading
            | ServerError::NoReplicas
            | ServerError::OutOfMemory
            | ServerError::Misconfigured
            | ServerError::ClusterDown
            | ServerError::Busy
            | ServerError::NoPermission
            | ServerError::Other => Remedy::Wait,
        }
    }

    /// Whether every other question would meet it too, so that it is the store's failure and not one key's.
    pub fn is_of_the_store(self) -> bool {
        !matches!(
            self,
            ServerError::NoScript
                | ServerError::Moved
                | ServerError::Ask
                | ServerError::TryAgain
                | ServerError::WrongType
                | ServerError::CrossSlot
        )
    }
}

fn of_code(word: &[u8]) -> Option<ServerError> {
    CODES.iter().find(|(code, _)| *code == word).map(|(_, error)| *error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_by_their_code() {
        for (text, error) in [
            ("NOSCRIPT No matching script. Please use EVAL.", ServerError::NoScript),
            ("LOADING Redis is loading the dataset in memory", ServerError::Loading),
            (
                "READONLY You can't write against a read only replica. script: 1, on @user_script:57.",
                ServerError::ReadOnly,
            ),
            ("OOM command not allowed when used memory > 'maxmemory'.", ServerError::OutOfMemory),
            ("MOVED 3999 127.0.0.1:6381", ServerError::Moved),
            ("ASK 3999 127.0.0.1:6381", ServerError::Ask),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", ServerError::WrongType),
            ("WRONGPASS invalid username-password pair or user is disabled.", ServerError::NoAuth),
            ("ERR unknown command 'OOMPH'", ServerError::Other),
            ("ERR The user executing the script can't run this command or subcommand", ServerError::NoPermission),
            ("ERR ACL failure in script: User gate has no permissions", ServerError::NoPermission),
            ("OOMPH", ServerError::Other),
            ("", ServerError::Other),
            ("oom", ServerError::Other),
        ] {
            assert_eq!(ServerError::of(text.as_bytes()), error, "{text}");
        }
    }

    #[test]
    fn older_servers_wrap_the_code_of_a_script_s_error() {
        for (text, error) in [
            (
                "ERR Error running script (call to f_1): @user_script:57: -READONLY You can't write",
                ServerError::ReadOnly,
            ),
            (
                "ERR Error running script (call to f_1): @user_script: 57: -OOM command not allowed",
                ServerError::OutOfMemory,
            ),
            ("ERR Error running script (call to f_1): @user_script:18: WRONGTYPE Operation", ServerError::WrongType),
            ("WRONGTYPE a:OOM does not hold a token bucket", ServerError::WrongType),
        ] {
            assert_eq!(ServerError::of(text.as_bytes()), error, "{text}");
        }
    }

    #[test]
    fn what_concerns_one_key_is_not_the_store_s_failure() {
        let of_one: Vec<ServerError> =
            CODES.iter().map(|(_, error)| *error).filter(|error| error.remedy() == Remedy::LeaveKey).collect();
        assert_eq!(of_one, [ServerError::CrossSlot, ServerError::WrongType]);
        assert!(of_one.iter().all(|error| !error.is_of_the_store()));
        assert!(ServerError::ReadOnly.is_of_the_store() && ServerError::Other.is_of_the_store());
    }
}
