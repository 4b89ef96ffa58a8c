// SPDX-License-Identifier: Apache-2.0
//! The sandbox's own certificate authority, for hosts whose requests the policy looks into, and the TLS towards the world.
//!
//! The authority is made for one sandbox and lives in the broker's memory: its certificate goes to the guest's trust store, its
//! key nowhere. What it signs is good for nobody but that guest.

mod hello;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

pub(crate) use hello::{Hello, Sniff, sniff};

/// How long an authority is good for. A sandbox that lives longer needs a new one.
pub const AUTHORITY_DAYS: i64 = 30;
/// How long a leaf is good for; it is made anew after half of that.
const LEAF_HOURS: i64 = 24;
/// How far a guest's clock may be behind.
const SKEW_HOURS: i64 = 24;
/// Most leaves that are kept.
const LEAVES_MAX: usize = 256;
/// What is spoken inside.
const ALPN: &[u8] = b"http/1.1";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate could not be made.
    #[error("making a certificate for {name}: {source}")]
    Certificate {
        /// Whose.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// rustls does not take what it was given.
    #[error("setting up TLS: {0}")]
    Config(#[from] rustls::Error),
    /// There is nothing to check servers against.
    #[error(
        "reading the host's root certificates: none was found{why}; install the package ca-certificates, or name a file of roots"
    )]
    NoRoots {
        /// Errors of single files, in words.
        why: String,
    },
}

struct Leaf {
    host: String,
    made: Instant,
    config: Arc<ServerConfig>,
}

/// One sandbox's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// One key for all leaves: they are all this broker's.
    leaf_key: KeyPair,
    leaves: Mutex<VecDeque<Leaf>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, with new keys, for the sandbox called `sandbox`.
    ///
    /// # Errors
    /// [`TlsError::Certificate`]: keys could not be made.
    pub fn new(sandbox: &str) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Certificate { name: format!("the authority of {sandbox}"), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("Midge sandbox {sandbox}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::hours(SKEW_HOURS);
        params.not_after = now + time::Duration::days(AUTHORITY_DAYS);
        let key = KeyPair::generate().map_err(failed)?;
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        let leaf_key = KeyPair::generate().map_err(failed)?;
        Ok(Self { issuer: Issuer::new(params, key), pem, leaf_key, leaves: Mutex::default() })
    }

    /// The certificate, for the guest's trust store.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What a connection of the guest to `host` (a DNS name or an address) is answered with.
    pub(crate) fn server(&self, host: &str) -> Result<Arc<ServerConfig>, TlsError> {
        let fresh = Duration::from_secs(3600 * LEAF_HOURS.unsigned_abs() / 2);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.retain(|leaf| leaf.made.elapsed() < fresh);
        if let Some(leaf) = leaves.iter().find(|leaf| leaf.host == host) {
            return Ok(Arc::clone(&leaf.config));
        }
        let config = Arc::new(self.leaf(host)?);
        if leaves.len() >= LEAVES_MAX {
            leaves.pop_front();
        }
        leaves.push_back(Leaf { host: host.to_owned(), made: Instant::now(), config: Arc::clone(&config) });
        Ok(config)
    }

    fn leaf(&self, host: &str) -> Result<ServerConfig, TlsError> {
        let failed = |source| TlsError::Certificate { name: host.to_owned(), source };
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
        // A common name holds 64 characters; the name that counts is the alternative one.
        params.distinguished_name = name("Midge");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::hours(SKEW_HOURS);
        params.not_after = now + time::Duration::hours(LEAF_HOURS);
        let leaf = params.signed_by(&self.leaf_key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What servers are checked against: the host's own roots and `extra` ones.
///
/// # Errors
/// [`TlsError::NoRoots`]: there are none at all. [`TlsError::Config`]: an extra one is no certificate.
pub fn roots(extra: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(native.certs);
    for root in extra {
        store.add(root.clone())?;
    }
    if store.is_empty() {
        let why = native.errors.iter().map(|error| format!(" ({error})")).collect();
        return Err(TlsError::NoRoots { why });
    }
    Ok(store)
}

/// What the broker says towards servers.
pub(crate) fn client(roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
