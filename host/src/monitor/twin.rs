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
    pidfd: Arc<AsyncFd<OwnedFd>>,
    pid: u32,
}

impl Twin {
    /// The process `pid`, which a monitor has just made and tied to `orders`.
    pub(super) fn new(pid: u32, orders: Arc<Orders>) -> io::Result<Self> {
        Ok(Self { orders, pidfd: Arc::new(process(pid)?), pid })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn orders(&self) -> Arc<Orders> {
        Arc::clone(&self.orders)
    }

    /// Resolves when it is gone. How it ended only its parent could know.
    pub(super) fn gone(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        let pidfd = Arc::clone(&self.pidfd);
        async move {
            // It fails only where no process could be waited for at all.
            let _ = pidfd.readable().await;
            None
        }
    }

    pub(super) fn close_lifeline(&self) {
        self.orders.close();
    }

    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
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
