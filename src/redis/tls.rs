//! TLS to Redis: certificates and keys from files, once at the start, and the handshake.
//!
//! Shell. Everything else of TLS is rustls's.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: reads files and owns a connection")]

use super::{Address, Place, Settings, Tls};
use monoio::net::TcpStream;
use monoio_rustls::{ClientTlsStream, TlsConnector};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// Why TLS cannot be spoken; names the key of the configuration.
#[derive(Debug, Error)]
#[error("store.tls.{key}: {problem}")]
pub struct BadTls {
    key: &'static str,
    problem: String,
}

fn bad(key: &'static str, problem: impl ToString) -> BadTls {
    BadTls { key, problem: problem.to_string() }
}

/// What a worker needs to speak TLS with its Redis.
#[derive(Clone)]
pub struct Secure {
    config: Arc<ClientConfig>,
    /// What every certificate must hold; `None` = the host that is connected to.
    name: Option<ServerName<'static>>,
}

impl Secure {
    /// Reads the files that the settings name; `None` where they ask for no TLS.
    pub fn load(settings: &Settings) -> Result<Option<Secure>, BadTls> {
        let Some(tls) = &settings.tls else { return Ok(None) };
        let name = tls.name.as_deref().map(server_name).transpose().map_err(|problem| bad("name", problem))?;
        if let (Place::Server(Address::Tcp { host, .. }), None) = (&settings.place, &name) {
            server_name(host).map_err(|problem| bad("name", problem))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("ca", error))?
            .with_root_certificates(roots(tls)?);
        let config = match (&tls.certificate, &tls.key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(certificates("certificate", certificate)?, private_key(key)?)
                .map_err(|error| bad("certificate", error))?,
            _ => builder.with_no_client_auth(),
        };
        Ok(Some(Secure { config: Arc::new(config), name }))
    }

    /// Shakes hands with this host.
    pub(super) async fn open(&self, host: &str, stream: TcpStream) -> io::Result<ClientTlsStream<TcpStream>> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        TlsConnector::from(self.config.clone()).connect(name, stream).await.map_err(io::Error::from)
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no host name"))
}

/// Who may vouch for the server: the given authority alone, or whom the system trusts.
fn roots(tls: &Tls) -> Result<RootCertStore, BadTls> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
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

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| bad(key, format!("{}: {error}", path.display())))?;
    match found.is_empty() {
        true => Err(bad(key, format!("{}: holds no certificate", path.display()))),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, BadTls> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| bad("key", format!("{}: {error}", path.display())))
}
