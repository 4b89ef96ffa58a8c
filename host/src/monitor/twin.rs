// SPDX-License-Identifier: Apache-2.0
//! A monitor that another monitor has made of itself: no child of ours, so its end is seen by a descriptor of it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::orders::{Orders, watched};

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
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        // Nobody reaps it but the kernel, which may have done so: then this is ESRCH, or in theory a stranger that was
        // started in this very moment.
        let pidfd = watched(pidfd_open(raw, PidfdFlags::empty())?, Interest::READABLE)?;
        Ok(Self { orders, pidfd: Arc::new(pidfd), pid })
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
