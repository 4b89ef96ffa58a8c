// SPDX-License-Identifier: Apache-2.0
//! A monitor that another monitor has made of itself: no child of ours, so its end is seen by a descriptor of it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::orders::{Orders, number_of, watched};

/// A process that is held by its control socket and known by a descriptor.
#[derive(Debug)]
pub(super) struct Twin {
    orders: Arc<Orders>,
    /// `None` where it had ended before it could be told of.
    process: Option<Arc<AsyncFd<OwnedFd>>>,
    pid: Option<u32>,
}

impl Twin {
    /// A process that a monitor has just made and tied to `orders`. Should it have ended already, its streams tell why.
    pub(super) fn new(process: Option<OwnedFd>, orders: Arc<Orders>) -> io::Result<Self> {
        let pid = process.as_ref().and_then(number_of);
        // What is no process, or none any more, cannot be held.
        let process = process.filter(|_| pid.is_some());
        let process = process.map(|process| watched(process, Interest::READABLE).map(Arc::new)).transpose()?;
        Ok(Self { orders, process, pid })
    }

    /// Its number, unless it has ended already.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Another descriptor of it.
    pub(super) fn process(&self) -> Option<OwnedFd> {
        self.process.as_ref()?.get_ref().try_clone().ok()
    }

    pub(super) fn orders(&self) -> Arc<Orders> {
        Arc::clone(&self.orders)
    }

    /// Resolves when it is gone. How it ended only its parent could know.
    pub(super) fn gone(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        let process = self.process.clone();
        async move {
            if let Some(process) = process {
                // It fails only where no process could be waited for at all.
                let _ = process.readable().await;
            }
            None
        }
    }

    pub(super) fn close_lifeline(&self) {
        self.orders.close();
    }

    pub(super) fn kill(&self) {
        if let Some(process) = &self.process
            && let Err(error) = pidfd_send_signal(process.get_ref(), Signal::KILL)
        {
            tracing::debug!(pid = ?self.pid, %error, "killing a fork");
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
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    fn held(process: Option<OwnedFd>) -> Twin {
        Twin::new(process, Arc::new(Orders::pair().unwrap().0)).unwrap()
    }

    #[tokio::test]
    async fn a_process_that_has_ended_or_is_none_is_gone_at_once() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let descriptor = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let other = std::fs::File::open("/dev/null").unwrap().into();
        child.wait().unwrap();
        for process in [Some(descriptor), Some(other), None] {
            let twin = held(process);
            twin.kill();
            assert_eq!(twin.gone().await, None);
            assert_eq!(twin.pid(), None);
        }
    }

    #[tokio::test]
    async fn a_process_is_known_by_its_descriptor() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let twin = held(Some(pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap()));
        assert_eq!(twin.pid(), Some(child.id()));
        drop(twin);
        assert!(!child.wait().unwrap().success(), "it is killed");
    }
}
