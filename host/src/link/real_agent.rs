// SPDX-License-Identifier: Apache-2.0
//! Test support: a link to the real agent, run as an ordinary process of this machine without a VM.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use midge_protocol::READY_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, copy};
use tokio::net::{UnixListener, UnixStream};

use super::fake::LIMITS;
use super::{Identity, Link};
use crate::error::Error;
use crate::groups::Share;
use crate::monitor::{Dialer, Place};
use crate::timeline::Recorder;

/// The agent's process and the link to it.
pub(crate) struct Agent {
    process: Child,
    pub(crate) link: Link,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Agent {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let listener = place().listen("agent", &socket, READY_PORT).await.unwrap();
        std::os::unix::fs::symlink(format!("v.sock_{READY_PORT}"), dir.path().join("ready.sock")).unwrap();
        tokio::spawn(stand_in_for_the_monitor(UnixListener::bind(&socket).unwrap(), dir.path().join("agent.sock")));
        let process = Command::new(binary())
            .arg("--serve-unix")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let dialer = Dialer::new(place(), "agent", &socket);
        let (link, _) =
            Link::establish(dialer, listener, pending(), identity(), LIMITS, Recorder::new()).await.unwrap();
        Self { process, link, dir }
    }

    /// Resumes the agent, which was left frozen.
    pub(crate) async fn resume(&self, recorder: &Recorder) -> Result<Link, Error> {
        let dialer = Dialer::new(place(), "agent", &self.dir.path().join("v.sock"));
        Link::resume(dialer, None, pending(), identity(), LIMITS, recorder.clone()).await
    }
}

fn place() -> Place {
    Place::Native { vmm: "/nonexistent".into(), allow_missing: Vec::new(), share: Share::default() }
}

fn identity() -> Identity {
    Identity { hostname: "h".into(), machine_id: [0; 16], behind: std::time::Duration::ZERO }
}

/// What a monitor does with `CONNECT <port>`.
async fn stand_in_for_the_monitor(listener: UnixListener, agent: PathBuf) {
    while let Ok((mut host, _)) = listener.accept().await {
        let agent = agent.clone();
        tokio::spawn(async move {
            while host.read_u8().await.unwrap() != b'\n' {}
            let guest = UnixStream::connect(agent).await.unwrap();
            host.write_all(b"OK 1\n").await.unwrap();
            relay(host, guest).await;
        });
    }
}

/// Passes bytes and half-closes on; ends when either side is gone in both directions.
async fn relay(mut host: UnixStream, mut guest: UnixStream) {
    let (mut from_host, mut to_host) = host.split();
    let (mut from_guest, mut to_guest) = guest.split();
    let inward = async {
        // Either side may hang up at any time: that is what some tests are about.
        let _ = copy(&mut from_host, &mut to_guest).await;
        let host_is_gone =
            from_host.as_ref().ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed());
        if !host_is_gone {
            let _ = to_guest.shutdown().await;
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = inward => {}
        _ = copy(&mut from_guest, &mut to_host) => {}
    }
}

/// Builds the agent, which `cargo test -p midge` alone would not.
fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "midge-agent"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .status();
        assert!(built.unwrap().success(), "the agent does not build");
        let exe = std::env::current_exe().unwrap();
        exe.parent().unwrap().parent().unwrap().join("midge-agent")
    })
}
