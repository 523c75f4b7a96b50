//! Who vouches for servers and clients of TLS, and servers that are vouched for.

use super::Folder;
use super::origin::Origin;
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use std::net::TcpStream;
use std::sync::Arc;

/// An authority, and what it vouches for, as PEM files in a folder.
pub struct Authority {
    folder: Folder,
    key: KeyPair,
    certificate: Certificate,
}

/// A server's end of a connection.
pub type Secured = StreamOwned<ServerConnection, TcpStream>;

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut about = CertificateParams::new(Vec::new()).unwrap();
        // Whose name is its issuer's is taken for self-signed.
        about.distinguished_name.push(DnType::CommonName, "authority");
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = about.self_signed(&key).unwrap();
        let authority = Authority { folder: Folder::new(), key, certificate };
        authority.write("ca.pem", &authority.certificate.pem());
        authority
    }

    pub fn write(&self, name: &str, text: &str) {
        self.folder.write(name, text);
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Writes `<name>.pem` and `<name>.key` for this host.
    pub fn vouch(&self, name: &str, host: &str) {
        self.vouch_until(name, host, 4096);
    }

    /// As `vouch`, until this year.
    pub fn vouch_until(&self, name: &str, host: &str, year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut about = CertificateParams::new(vec![host.to_owned()]).unwrap();
        about.distinguished_name.push(DnType::CommonName, name);
        about.not_after = date_time_ymd(year, 1, 1);
        let certificate = about.signed_by(&key, &self.certificate, &self.key).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// What a server needs that shows the certificate `name` and speaks HTTP/1.1 in one of these versions.
    pub fn server(
        &self,
        name: &str,
        asks_for_certificates: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_file_iter(self.path(&format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
        let builder = if asks_for_certificates {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// A backend that speaks TLS under a certificate for `host`; `serve` is as for [`Origin::new`].
    pub fn origin(&self, host: &str, serve: impl Fn(Secured, usize) + Send + Sync + 'static) -> Origin {
        self.vouch("server", host);
        secured(self.server("server", false, rustls::ALL_VERSIONS), serve)
    }
}

/// A backend that speaks TLS in this way.
pub fn secured(config: Arc<ServerConfig>, serve: impl Fn(Secured, usize) + Send + Sync + 'static) -> Origin {
    Origin::new(move |stream, number| {
        serve(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream), number);
    })
}
