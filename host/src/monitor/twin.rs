// SPDX-License-Identifier: Apache-2.0
//! A monitor that another monitor has made of itself: no child of ours, so its end is seen by a descriptor of it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::orders::{Orders, process};

/// A process that is held by its control socket and known by a descriptor.
#[derive(Debug)]
pub(super) struct Twin {
    orders: Arc<Orders>,
    /// `None` where it had ended before it could be looked at.
    pidfd: Option<Arc<AsyncFd<OwnedFd>>>,
    pid: u32,
}

impl Twin {
    /// The process `pid`, which a monitor has just made and tied to `orders`. Should it have ended already, its streams tell why.
    pub(super) fn new(pid: u32, orders: Arc<Orders>) -> io::Result<Self> {
        let pidfd = match process(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
            opened => Some(Arc::new(opened?)),
        };
        Ok(Self { orders, pidfd, pid })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn orders(&self) -> Arc<Orders> {
        Arc::clone(&self.orders)
    }

    /// Resolves when it is gone. How it ended only its parent could know.
    pub(super) fn gone(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        let pidfd = self.pidfd.clone();
        async move {
            if let Some(pidfd) = pidfd {
                // It fails only where no process could be waited for at all.
                let _ = pidfd.readable().await;
            }
            None
        }
    }

    pub(super) fn close_lifeline(&self) {
        self.orders.close();
    }

    pub(super) fn kill(&self) {
        if let Some(pidfd) = &self.pidfd
            && let Err(error) = pidfd_send_signal(pidfd.get_ref(), Signal::KILL)
        {
            tracing::debug!(pid = self.pid, %error, "killing a fork");
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.close_lifeline();
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_has_ended_already_is_gone_at_once() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let twin = Twin::new(child.id(), Arc::new(Orders::pair().unwrap().0)).unwrap();
        twin.kill();
        assert_eq!(twin.gone().await, None);
        assert!(Twin::new(0, Arc::new(Orders::pair().unwrap().0)).is_err(), "no process at all");
    }
}
