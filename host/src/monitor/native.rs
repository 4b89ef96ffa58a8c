// SPDX-License-Identifier: Apache-2.0
//! A monitor as a child process of ours.
//!
//! Its stdin is its control socket and its lifeline: should this process die in any way, the socket closes and the monitor
//! stops.
//! A thread of its own reaps it, so that no zombie is left even when no async runtime runs any more.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::MonitorError;
use crate::groups::Quarters;
use crate::orders::Orders;

/// Children that have not been reaped yet.
static UNREAPED: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Waits until every monitor that this process started, and that has been killed or stopped, is gone; at most
/// `limit`. For the way out of `main`: where nobody adopts orphans, their zombies would stay.
pub fn reap_all(limit: Duration) {
    let (count, changed) = &UNREAPED;
    let count = count.lock().unwrap_or_else(PoisonError::into_inner);
    drop(changed.wait_timeout_while(count, limit, |count| *count > 0));
}

fn count_unreaped(change: impl FnOnce(&mut usize)) {
    let (count, changed) = &UNREAPED;
    change(&mut count.lock().unwrap_or_else(PoisonError::into_inner));
    changed.notify_all();
}

/// A child process; dropping it kills it.
pub(crate) struct Process {
    pid: Pid,
    /// Where it takes orders; the end of orders is the end of the monitor.
    orders: Option<Arc<Orders>>,
    /// `None` once reaped: from then on the number may belong to a stranger.
    child: Arc<Mutex<Option<Child>>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// A process that has just been started, with what can be heard of it.
pub(super) struct Spawned {
    pub(super) process: Process,
    pub(super) events: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    /// Arrives when it has been reaped.
    pub(super) status: oneshot::Receiver<ExitStatus>,
}

/// Starts `binary` and hands it its configuration.
pub(super) fn spawn(binary: &Path, config_line: &str, quarters: &Quarters) -> Result<Spawned, MonitorError> {
    let is_executable = binary.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if !is_executable {
        return Err(MonitorError::Missing { path: binary.to_path_buf() });
    }
    start(binary, config_line, quarters).map_err(|source| MonitorError::Spawn { path: binary.to_path_buf(), source })
}

fn start(binary: &Path, config_line: &str, quarters: &Quarters) -> io::Result<Spawned> {
    let (orders, far) = Orders::pair()?;
    let mut child = Command::new(binary)
        .args(["--config", "-"])
        .env_clear()
        .current_dir("/")
        // Away from the terminal's process group: Ctrl-C is for us to understand, not for the monitor.
        .process_group(0)
        .stdin(far)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_child(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let child = Arc::new(Mutex::new(Some(child)));
    // From here on an early return kills the child, and the thread reaps it.
    let process = Process { pid, orders: Some(Arc::new(orders)), child };
    let status = reap_later(pid, Arc::clone(&process.child))?;
    let events = receiver(stdout.map(OwnedFd::from))?;
    let stderr = receiver(stderr.map(OwnedFd::from))?;
    // Whatever it starts once it knows what to do is in the group too.
    quarters.take_in(process.pid()).map_err(io::Error::other)?;
    let told = process.orders.as_ref().map_or(Ok(()), |orders| orders.configure(config_line));
    // One that refuses its configuration says why by itself.
    told.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
    Ok(Spawned { process, events, stderr, status })
}

fn receiver(fd: Option<OwnedFd>) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd.ok_or(io::ErrorKind::NotFound)?)
}

fn reap_later(pid: Pid, child: Arc<Mutex<Option<Child>>>) -> io::Result<oneshot::Receiver<ExitStatus>> {
    let (send, status) = oneshot::channel();
    let slot = Arc::clone(&child);
    let reap = move || {
        // Waits without reaping, so that nobody holds the lock for long and `kill` never meets a reused number.
        let leave_it = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), leave_it), Err(Errno::INTR)) {}
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut child) = slot.take()
            && let Ok(status) = child.wait()
        {
            // Nobody may be waiting any more.
            let _ = send.send(status);
        }
        count_unreaped(|count| *count -= 1);
    };
    count_unreaped(|count| *count += 1);
    let started = std::thread::Builder::new().name("midge-reaper".into()).stack_size(64 << 10).spawn(reap);
    if let Err(error) = started {
        count_unreaped(|count| *count -= 1);
        let mut slot = child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut child) = slot.take() {
            child.kill()?;
            child.wait()?;
        }
        return Err(error);
    }
    Ok(status)
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn close_lifeline(&mut self) {
        if let Some(orders) = self.orders.take() {
            orders.close();
        }
    }

    /// Where it takes orders, until its lifeline is closed.
    pub(super) fn orders(&self) -> Option<Arc<Orders>> {
        self.orders.clone()
    }

    pub(super) fn kill(&mut self) {
        let slot = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some()
            && let Err(error) = kill_process(self.pid, Signal::KILL)
        {
            tracing::debug!(pid = ?self.pid, %error, "killing the monitor");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    /// A shell script in place of the monitor.
    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("fake-vmm");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A script that was just written may still be open for writing in a fork of another test's thread.
    fn start_script(path: &Path, config: &str) -> Spawned {
        for _ in 0..50 {
            match spawn(path, config, &Quarters::none()) {
                Err(MonitorError::Spawn { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => return other.unwrap(),
            }
        }
        panic!("{} stays busy", path.display());
    }

    fn is_alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    async fn gone(pid: u32) -> bool {
        for _ in 0..500 {
            if !is_alive(pid) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn config_arrives_and_the_lifeline_stays_open_until_closed() {
        let dir = tempfile::tempdir().unwrap();
        let vmm = script(
            dir.path(),
            "echo \"got $(dd bs=9999 count=1 status=none)\"; cat >/dev/null; echo lifeline >&2; exit 7",
        );
        let mut spawned = start_script(&vmm, "{}\n");
        let mut heard = [0; 7];
        spawned.events.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"got {}\n");
        assert!(is_alive(spawned.process.pid()));
        spawned.process.close_lifeline();
        assert_eq!(spawned.status.await.unwrap().code(), Some(7));
        let mut last_words = String::new();
        spawned.stderr.read_to_string(&mut last_words).await.unwrap();
        assert_eq!(last_words, "lifeline\n");
    }

    #[tokio::test]
    async fn dropping_kills_and_leaves_no_zombie() {
        let dir = tempfile::tempdir().unwrap();
        let spawned = start_script(&script(dir.path(), "exec sleep 1000"), "{}\n");
        let pid = spawned.process.pid();
        assert!(is_alive(pid));
        drop(spawned);
        assert!(gone(pid).await, "a zombie would still have its /proc entry");
    }

    #[tokio::test]
    async fn killing_twice_or_late_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let mut spawned = start_script(&script(dir.path(), "exit 0"), "{}\n");
        assert!(spawned.status.await.unwrap().success());
        spawned.process.kill();
        spawned.process.kill();
    }

    #[tokio::test]
    async fn missing_or_unexecutable_binary_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        for path in [dir.path().join("absent"), plain, dir.path().to_path_buf()] {
            let error = spawn(&path, "{}\n", &Quarters::none()).err().unwrap();
            assert!(matches!(&error, MonitorError::Missing { path: p } if *p == path), "{error}");
            assert!(error.to_string().contains("MIDGE_VMM"));
        }
    }
}
