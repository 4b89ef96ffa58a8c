// SPDX-License-Identifier: Apache-2.0
//! The doors of a running sandbox: what its programs ask their host for, as streams for whoever answers.

use midge_protocol::Door;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Sandbox;
use crate::error::Error;
use crate::monitor::{Inbound, Listener};

/// Connections that may wait for whoever answers; more wait in their sockets' backlogs.
const WAITING_MAX: usize = 16;

/// The open doors of one sandbox. Dropping it closes them: programs that come then are refused.
#[derive(Debug)]
pub struct Doors {
    arrived: mpsc::Receiver<(Door, Inbound)>,
    /// One task for each door; they end with this.
    _listening: JoinSet<()>,
}

impl Doors {
    /// The next connection of a program in the guest; `None` when the sockets have failed, which is when the host of the
    /// sandbox is gone.
    pub async fn next(&mut self) -> Option<(Door, Inbound)> {
        self.arrived.recv().await
    }
}

impl Sandbox {
    /// Opens doors of the guest: its programs find them where [`Door`] says, and what they ask for arrives here. Copies of the
    /// sandbox have the guest's ends of them open too, with nobody behind until this is called for the copy.
    ///
    /// # Errors
    /// [`Error::Monitor`] when a socket cannot be made; [`Error::Failed`] when the guest has no room for one, or the reason
    /// why it is gone.
    pub async fn open_doors(&self, doors: &[Door]) -> Result<Doors, Error> {
        let (sender, arrived) = mpsc::channel(WAITING_MAX);
        let mut listening = JoinSet::new();
        for door in doors {
            let listener = self.monitor.dialer().listen(door.port()).await?;
            listening.spawn(listen(*door, listener, sender.clone()));
        }
        self.link.open_doors(doors).await?;
        Ok(Doors { arrived, _listening: listening })
    }
}

async fn listen(door: Door, mut listener: Listener, sender: mpsc::Sender<(Door, Inbound)>) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                if sender.send((door, stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => return tracing::warn!(%error, door = door.name(), "a door of the guest is closed"),
        }
    }
}
