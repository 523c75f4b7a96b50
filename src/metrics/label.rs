//! The values of labels that the program knows without a config: what became of a decision, and what can go wrong.
//!
//! A value's number is its place in `ALL`, and so the place of its count in a row.
//! Pure.

/// What became of a request at one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Enough tokens.
    Allow,
    /// Too few tokens: 429.
    Deny,
    /// Too few tokens, but the limit only watches.
    ShadowDeny,
    /// The store gave no answer and the request passed.
    FailOpen,
    /// The store gave no answer and the request was refused.
    FailClosed,
    /// The store gave no answer; enough tokens in this process.
    LocalAllow,
    /// The store gave no answer; too few tokens in this process: 429.
    LocalDeny,
}

impl Outcome {
    /// Every outcome, in the order of the counts in [`super::Snapshot::decisions`].
    pub const ALL: [Outcome; 7] = [
        Outcome::Allow,
        Outcome::Deny,
        Outcome::ShadowDeny,
        Outcome::FailOpen,
        Outcome::FailClosed,
        Outcome::LocalAllow,
        Outcome::LocalDeny,
    ];

    /// The value of the label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
            Outcome::ShadowDeny => "shadow_deny",
            Outcome::FailOpen => "fail_open",
            Outcome::FailClosed => "fail_closed",
            Outcome::LocalAllow => "local_allow",
            Outcome::LocalDeny => "local_deny",
        }
    }
}

/// Why the store gave no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// No connection, or it broke while the answer was awaited.
    Disconnected,
    /// No answer before the deadline.
    Timeout,
    /// Too many commands already await an answer.
    Overloaded,
    /// The store keeps failing and was not asked.
    Breaker,
    /// It reads its data from disk.
    Loading,
    /// It is a replica now.
    ReadOnly,
    /// It is a replica without its primary, or a primary without its replicas.
    PrimaryDown,
    /// It has no memory for a write.
    OutOfMemory,
    /// It takes no writes while its snapshots fail.
    Misconfigured,
    /// The cluster does not serve the slot.
    Cluster,
    /// Somebody else's value stands at the key.
    WrongType,
    /// Another script blocks it.
    Busy,
    /// It wants another password, or the user may not do this.
    Auth,
    /// It answered with any other error.
    Server,
    /// The answer was not one that the script gives.
    Protocol,
}

impl StoreError {
    /// Every kind, in the order of the counts in [`super::Snapshot::store_errors`].
    pub const ALL: [StoreError; 15] = [
        StoreError::Disconnected,
        StoreError::Timeout,
        StoreError::Overloaded,
        StoreError::Breaker,
        StoreError::Loading,
        StoreError::ReadOnly,
        StoreError::PrimaryDown,
        StoreError::OutOfMemory,
        StoreError::Misconfigured,
        StoreError::Cluster,
        StoreError::WrongType,
        StoreError::Busy,
        StoreError::Auth,
        StoreError::Server,
        StoreError::Protocol,
    ];

    /// The value of the label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            StoreError::Disconnected => "disconnected",
            StoreError::Timeout => "timeout",
            StoreError::Overloaded => "overloaded",
            StoreError::Breaker => "breaker",
            StoreError::Loading => "loading",
            StoreError::ReadOnly => "read_only",
            StoreError::PrimaryDown => "primary_down",
            StoreError::OutOfMemory => "out_of_memory",
            StoreError::Misconfigured => "misconfigured",
            StoreError::Cluster => "cluster",
            StoreError::WrongType => "wrong_type",
            StoreError::Busy => "busy",
            StoreError::Auth => "auth",
            StoreError::Server => "server",
            StoreError::Protocol => "protocol",
        }
    }
}

/// Why an upstream gave no usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// The connection was refused or could not be made.
    Connect,
    /// The connection took too long to make.
    ConnectTimeout,
    /// The connection broke while the request was sent.
    Send,
    /// The connection broke before the response was whole.
    Receive,
    /// The response took too long.
    Timeout,
    /// The response was not valid HTTP.
    BadResponse,
    /// No server of the upstream could be chosen.
    NoServer,
    /// The response had a status that counts as a failure.
    Status,
    /// All servers had as many connections as they may, for too long.
    Busy,
    /// The TLS handshake failed.
    Tls,
}

impl UpstreamError {
    /// Every kind, in the order of the counts in [`super::UpstreamCounts::errors`].
    pub const ALL: [UpstreamError; 10] = [
        UpstreamError::Connect,
        UpstreamError::ConnectTimeout,
        UpstreamError::Send,
        UpstreamError::Receive,
        UpstreamError::Timeout,
        UpstreamError::BadResponse,
        UpstreamError::NoServer,
        UpstreamError::Status,
        UpstreamError::Busy,
        UpstreamError::Tls,
    ];

    /// The value of the label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            UpstreamError::Connect => "connect",
            UpstreamError::ConnectTimeout => "connect_timeout",
            UpstreamError::Send => "send",
            UpstreamError::Receive => "receive",
            UpstreamError::Timeout => "timeout",
            UpstreamError::BadResponse => "bad_response",
            UpstreamError::NoServer => "no_server",
            UpstreamError::Status => "status",
            UpstreamError::Busy => "busy",
            UpstreamError::Tls => "tls",
        }
    }
}
