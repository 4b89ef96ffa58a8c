// SPDX-License-Identifier: Apache-2.0
//! What an agent needs in its guest: the loop's program, certificates to trust, and the variables by which programs find the doors.

use std::path::Path;

use midge_protocol::{COMMANDS_GROUP, GUEST_DIR};

use crate::error::{Error, Fault};
use crate::exec::Exec;
use crate::files::{WriteHow, WriteOptions};
use crate::sandbox::{Sandbox, binaries};

/// Where programs of the guest find the model, without the path of an API.
pub const BASE_URL: &str = "http://127.0.0.1:7101";
/// Where they find the proxy.
const PROXY: &str = "http://127.0.0.1:7102";
/// Where the loop's program is put. In memory: it is no change to the guest's disk.
const LOOP: &str = "turn";
/// All certificates to trust: the guest's own and the broker's authority.
const ROOTS: &str = "roots.pem";
/// The authority alone, for programs that add to what they trust.
const AUTHORITY: &str = "authority.pem";
/// Bundles of certificates as distributions have them; the first that is there is taken.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Longest bundle that is read, in bytes.
const BUNDLE_MAX_BYTES: u64 = 4 << 20;
/// In a key's place, for clients that do not start without one.
const NO_KEY: &str = "the-host-has-the-key";

fn below(name: &str) -> String {
    format!("{GUEST_DIR}/{name}")
}

/// Variables that lead programs to the doors, for every command of a guest that has them open. They hold no secret.
#[must_use]
pub fn environment() -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        all.push((name, PROXY.to_owned()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        all.push((name, "localhost,127.0.0.1,::1".to_owned()));
    }
    let roots =
        ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "CARGO_HTTP_CAINFO"];
    for name in roots {
        all.push((name, below(ROOTS)));
    }
    all.push(("NODE_EXTRA_CA_CERTS", below(AUTHORITY)));
    all.push(("ANTHROPIC_BASE_URL", BASE_URL.to_owned()));
    for name in ["OPENAI_BASE_URL", "OPENAI_API_BASE"] {
        all.push((name, format!("{BASE_URL}/v1")));
    }
    for name in ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"] {
        all.push((name, NO_KEY.to_owned()));
    }
    all.push(("MIDGE_DOORS", GUEST_DIR.to_owned()));
    all
}

/// `exec` with these variables, where it does not set them itself.
#[must_use]
pub fn with_doors(exec: Exec) -> Exec {
    environment().into_iter().fold(exec, |exec, (name, value)| exec.default_env(name, value))
}

/// Puts certificates into the guest: its own and `authority`.
pub(super) async fn trust(sandbox: &Sandbox, authority: &str) -> Result<(), Error> {
    let mut roots = Vec::new();
    for bundle in BUNDLES {
        if let Ok(found) = sandbox.files().read(bundle, BUNDLE_MAX_BYTES).await {
            roots = found;
            break;
        }
    }
    roots.push(b'\n');
    roots.extend_from_slice(authority.as_bytes());
    write(sandbox, ROOTS, 0o644, &roots).await?;
    write(sandbox, AUTHORITY, 0o644, authority.as_bytes()).await
}

/// Puts the loop's program into the guest and gives its path there.
pub(super) async fn put_loop(sandbox: &Sandbox) -> Result<String, Error> {
    let path = binaries::turn()?;
    let program = read(&path).await?;
    write(sandbox, LOOP, 0o755, &program).await?;
    Ok(below(LOOP))
}

/// Lets the guest have no more than so many processes and threads, unless it may have fewer already. Its root can undo that.
pub(super) async fn bound_processes(sandbox: &Sandbox, most: u64) -> Result<(), Error> {
    const NUMBER_MAX_BYTES: u64 = 32;
    let path = format!("{COMMANDS_GROUP}/pids.max");
    let has = sandbox.files().read(&path, NUMBER_MAX_BYTES).await?;
    let has = str::from_utf8(&has).ok().and_then(|has| has.trim().parse::<u64>().ok());
    if has.is_some_and(|has| has <= most) {
        return Ok(());
    }
    let options = WriteOptions { how: WriteHow::Append, ..WriteOptions::default() };
    sandbox.files().write(path, options, &mut most.to_string().as_bytes()).await
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let read = tokio::fs::read(path).await;
    read.map_err(|error| Error::prepare("programs of Midge", Fault::Host, format!("{}: {error}", path.display())))
}

async fn write(sandbox: &Sandbox, name: &str, mode: u32, mut content: &[u8]) -> Result<(), Error> {
    let options = WriteOptions { mode: Some(mode), parents: true, ..WriteOptions::default() };
    sandbox.files().write(below(name), options, &mut content).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge_protocol::Door;

    #[test]
    fn addresses_are_those_of_the_doors() {
        let address = |door: Door| format!("http://127.0.0.1:{}", door.loopback().unwrap());
        assert_eq!((BASE_URL, PROXY), (address(Door::Model).as_str(), address(Door::Egress).as_str()));
    }

    #[test]
    fn variables_are_said_once() {
        let mut names: Vec<_> = environment().into_iter().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
