//! TLS as a client: certificates and keys from files, the handshake, and a connection in two halves.
//!
//! Shell. The protocol is rustls's; what is here moves its bytes. Both halves share one session and never hold it while
//! they wait, so they may be used side by side. Reading only deciphers: what it makes the session say (an alert, the answer
//! to a key update) leaves with the next write, in order. monoio-rustls has the reading half write such an alert itself,
//! and panics where a write is under way: a backend could end the process with one broken record.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: reads files and owns connections")]

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::cell::RefCell;
use std::io::{self, BufRead, Write};
use std::mem::take;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use thiserror::Error;

/// Bytes of records read at once: a whole record and its header.
const RECORDS_READ: usize = 16 * 1024 + 512;

/// How TLS is spoken with a server. All files hold PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The authority that vouches for the server; `None` = those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate, where the server asks for one.
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate.
    pub key: Option<PathBuf>,
    /// The name that the servers' certificates must hold; `None` = the host of each.
    pub name: Option<String>,
}

/// Why TLS cannot be spoken; names the key of the configuration.
#[derive(Debug, Error)]
#[error("{section}.{key}: {problem}")]
pub struct BadTls {
    section: String,
    key: &'static str,
    problem: String,
}

/// What is wrong with one key.
struct Flaw(&'static str, String);

fn bad(key: &'static str, problem: impl ToString) -> Flaw {
    Flaw(key, problem.to_string())
}

impl Flaw {
    fn of(self, section: &str) -> BadTls {
        BadTls { section: section.to_owned(), key: self.0, problem: self.1 }
    }
}

/// What a worker needs to speak TLS with its servers.
#[derive(Clone)]
pub struct Secure {
    config: Arc<ClientConfig>,
    /// What every certificate must hold; `None` = the host that is connected to.
    name: Option<ServerName<'static>>,
}

impl Secure {
    /// Reads the files that the settings name. `section` is where the configuration has them, such as `store.tls`.
    pub fn load(settings: &Settings, section: &str) -> Result<Secure, BadTls> {
        Secure::read(settings).map_err(|flaw| flaw.of(section))
    }

    fn read(settings: &Settings) -> Result<Secure, Flaw> {
        let name = settings.name.as_deref().map(server_name).transpose().map_err(|problem| bad("name", problem))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("ca", error))?
            .with_root_certificates(roots(settings)?);
        let config = match (&settings.certificate, &settings.key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(certificates("certificate", certificate)?, private_key(key)?)
                .map_err(|error| bad("certificate", error))?,
            _ => builder.with_no_client_auth(),
        };
        Ok(Secure { config: Arc::new(config), name })
    }

    /// Offers to speak HTTP/1.1 (ALPN), for servers that speak other protocols too.
    pub fn for_http(mut self) -> Secure {
        Arc::make_mut(&mut self.config).alpn_protocols = vec![b"http/1.1".to_vec()];
        self
    }

    /// Whether a certificate can hold the name of this host, which `section` needs where it gives no other name.
    pub fn check(&self, host: &str, section: &str) -> Result<(), BadTls> {
        match self.name {
            Some(_) => Ok(()),
            None => server_name(host).map(drop).map_err(|problem| bad("name", problem).of(section)),
        }
    }

    /// Shakes hands with this host.
    pub async fn open(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        let session = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        let mut stream = Stream::of(stream, session);
        stream.shake_hands().await?;
        Ok(stream)
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no host name"))
}

/// Who may vouch for the server: the given authority alone, or whom the system trusts.
fn roots(settings: &Settings) -> Result<RootCertStore, Flaw> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            for certificate in certificates("ca", path)? {
                roots.add(certificate).map_err(|error| bad("ca", error))?;
            }
        }
        None => {
            let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if added == 0 {
                return Err(bad("ca", "the system trusts nobody; name the file of an authority"));
            }
        }
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| bad(key, format!("{}: {error}", path.display())))?;
    match found.is_empty() {
        true => Err(bad(key, format!("{}: holds no certificate", path.display()))),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Flaw> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| bad("key", format!("{}: {error}", path.display())))
}

/// A connection after its handshake.
pub struct Stream {
    /// What comes in.
    pub reader: ReadHalf,
    /// What goes out.
    pub writer: WriteHalf,
    fd: RawFd,
}

/// The reading half.
pub struct ReadHalf {
    half: OwnedReadHalf<TcpStream>,
    session: Rc<RefCell<ClientConnection>>,
    /// Records as received.
    input: Vec<u8>,
    /// How much of them the session has taken.
    used: usize,
}

/// The writing half.
pub struct WriteHalf {
    half: OwnedWriteHalf<TcpStream>,
    session: Rc<RefCell<ClientConnection>>,
}

/// What follows the plaintext that is at hand.
enum Then {
    /// More, once it is received.
    Wait,
    /// The peer has said that nothing follows.
    End,
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Stream {
    fn of(stream: TcpStream, session: ClientConnection) -> Stream {
        let fd = stream.as_raw_fd();
        let session = Rc::new(RefCell::new(session));
        let (reader, writer) = stream.into_split();
        Stream {
            reader: ReadHalf { half: reader, session: session.clone(), input: Vec::new(), used: 0 },
            writer: WriteHalf { half: writer, session },
            fd,
        }
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            self.writer.flush().await.0?;
            if !self.reader.session.borrow().is_handshaking() {
                return Ok(());
            }
            self.reader.receive().await?;
            match self.reader.decipher(&mut Vec::new()) {
                Ok(Then::Wait) => {}
                Ok(Then::End) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake alert")),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), "tls handshake eof"));
                }
                Err(error) => {
                    // The alert: the server's log can tell what we could not accept.
                    let _ = self.writer.flush().await;
                    return Err(error);
                }
            }
        }
    }
}

impl ReadHalf {
    /// Reads behind what `into` holds, as much as there is room for without growing it. Nothing read is the proper end
    /// of the peer's sending; one without a farewell is [`io::ErrorKind::UnexpectedEof`].
    pub async fn read(&mut self, mut into: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let before = into.len();
        if before == into.capacity() {
            into.reserve(1);
        }
        loop {
            let then = self.decipher(&mut into);
            match then {
                // The session remembers an end or a fault behind these.
                _ if into.len() > before => return (Ok(into.len() - before), into),
                Ok(Then::End) => return (Ok(0), into),
                Ok(Then::Wait) => {}
                Err(error) => return (Err(error), into),
            }
            if let Err(error) = self.receive().await {
                return (Err(error), into);
            }
        }
    }

    /// Whether all that was received has been read.
    pub fn is_empty(&self) -> bool {
        let mut session = self.session.borrow_mut();
        let waits = matches!(session.reader().fill_buf(), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        waits && self.used == self.input.len()
    }

    /// Gives back the memory for records while none are awaited.
    pub fn shrink(&mut self) {
        if self.used == self.input.len() {
            (self.input, self.used) = (Vec::new(), 0);
        }
    }

    /// Moves plaintext to `into`, as far as it has room.
    fn decipher(&mut self, into: &mut Vec<u8>) -> io::Result<Then> {
        let mut session = self.session.borrow_mut();
        loop {
            loop {
                let mut reader = session.reader();
                let chunk = match reader.fill_buf() {
                    Ok([]) => return Ok(Then::End),
                    Ok(chunk) => chunk,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let moved = chunk.len().min(into.capacity() - into.len());
                if moved == 0 {
                    return Ok(Then::Wait);
                }
                into.extend_from_slice(&chunk[..moved]);
                reader.consume(moved);
            }
            let mut records = &self.input[self.used..];
            let is_last = records.is_empty();
            if !is_last {
                self.used += session.read_tls(&mut records)?;
            }
            // Asked without news too: it repeats the fault that came behind the last plaintext.
            session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if is_last {
                return Ok(Then::Wait);
            }
        }
    }

    /// Receives more records, once the session has taken those before.
    async fn receive(&mut self) -> io::Result<()> {
        let mut input = take(&mut self.input);
        input.clear();
        self.used = 0;
        input.reserve_exact(RECORDS_READ);
        let (read, input) = self.half.read(input).await;
        self.input = input;
        if read? == 0 {
            self.session.borrow_mut().read_tls(&mut io::empty())?;
        }
        Ok(())
    }
}

impl WriteHalf {
    /// Sends a piece of `bytes`, at most as much as the session takes at once. Gives how many of them are sent, or may
    /// have been where it failed: none if nothing left at all.
    pub async fn write(&mut self, bytes: &[u8]) -> (io::Result<()>, usize) {
        let taken = self.session.borrow_mut().writer().write(bytes);
        match taken {
            Ok(taken) => match self.flush().await {
                (Ok(()), _) => (Ok(()), taken),
                (Err(error), 0) => (Err(error), 0),
                (Err(error), _) => (Err(error), taken),
            },
            Err(error) => (Err(error), 0),
        }
    }

    /// Says that nothing more comes.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.session.borrow_mut().send_close_notify();
        self.flush().await.0?;
        self.half.shutdown().await
    }

    /// Sends what the session has to say; gives how many bytes of it have left.
    async fn flush(&mut self) -> (io::Result<()>, usize) {
        let mut records = Vec::new();
        let mut sent = 0;
        loop {
            if let Err(error) = self.gather(&mut records) {
                return (Err(error), sent);
            }
            if sent == records.len() {
                return (Ok(()), sent);
            }
            let (written, slice) = self.half.write(records.slice(sent..)).await;
            records = slice.into_inner();
            match written {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), sent),
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), sent),
            }
        }
    }

    /// Takes the records that the session wants to send: bounded, since it takes no plaintext beyond its own limit.
    fn gather(&self, records: &mut Vec<u8>) -> io::Result<()> {
        let mut session = self.session.borrow_mut();
        while session.wants_write() {
            session.write_tls(records)?;
        }
        Ok(())
    }
}
