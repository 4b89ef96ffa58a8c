// SPDX-License-Identifier: Apache-2.0

use super::*;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::{TlsAcceptor, TlsConnector};

async fn shake(authority: &Authority, trusted: &str, host: &'static str, alpn: &[u8]) -> std::io::Result<()> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let acceptor = TlsAcceptor::from(authority.server(host).unwrap());
    let server = tokio::spawn(async move { acceptor.accept(far).await.map(drop) });
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let mut config = Arc::unwrap_or_clone(client(store).unwrap());
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = host.try_into().unwrap();
    let _stream = TlsConnector::from(Arc::new(config)).connect(name, near).await?;
    server.await.unwrap()
}

#[tokio::test]
async fn a_guest_that_trusts_the_authority_trusts_its_leaves() {
    let authority = Authority::new("a").unwrap();
    let long = "a-name-that-is-longer-than.the-sixty-four-characters.of-a-common-name.example.test";
    for host in ["pypi.test", "127.0.0.1", "::1", long] {
        shake(&authority, authority.pem(), host, ALPN).await.unwrap();
    }
}

#[tokio::test]
async fn another_sandbox_does_not() {
    let (one, other) = (Authority::new("a").unwrap(), Authority::new("a").unwrap());
    assert!(shake(&one, other.pem(), "pypi.test", ALPN).await.is_err());
}

#[tokio::test]
async fn nothing_but_http_1_1_is_spoken_inside() {
    let authority = Authority::new("a").unwrap();
    assert!(shake(&authority, authority.pem(), "pypi.test", b"h2").await.is_err());
}

#[test]
fn leaves_are_kept_and_bounded() {
    let authority = Authority::new("a").unwrap();
    let first = authority.server("a.test").unwrap();
    assert!(Arc::ptr_eq(&first, &authority.server("a.test").unwrap()));
    for n in 0..LEAVES_MAX {
        authority.server(&format!("h{n}.test")).unwrap();
    }
    assert_eq!(authority.leaves.lock().unwrap().len(), LEAVES_MAX);
    assert!(!Arc::ptr_eq(&first, &authority.server("a.test").unwrap()));
}

#[test]
fn what_is_given_out_has_no_key() {
    let authority = Authority::new("a").unwrap();
    assert!(authority.pem().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(!authority.pem().contains("PRIVATE") && !format!("{authority:?}").contains("key"));
}
