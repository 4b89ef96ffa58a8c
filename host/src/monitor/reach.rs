// SPDX-License-Identifier: Apache-2.0
//! How orders reach a monitor whose VM runs, wherever it is; and the order to drop guest memory.

use std::sync::Arc;

use super::place::emulated;
use super::resident::{gone_already, refused, unexpected};
use super::{Life, Monitor, MonitorError};
use crate::emulated::EmulatedHost;
use crate::groups::Quarters;
use crate::orders::{Answer, Order, Orders, PROMPT};

/// What gives one monitor orders. It does not borrow the monitor, nor keep it alive.
#[derive(Debug, Clone)]
pub struct Reach {
    pub(super) place: super::Place,
    pub(super) way: Way,
    pub(super) quarters: Option<Arc<Quarters>>,
}

/// Where the monitor is.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// A process of this machine.
    Here(Arc<Orders>),
    /// On an emulated host, under this name.
    There(Arc<EmulatedHost>, String),
}

impl Monitor {
    /// What gives it orders.
    ///
    /// # Errors
    /// [`MonitorError::Order`] when it takes none, or has been told to end.
    pub fn reach(&self) -> Result<Reach, MonitorError> {
        let way = match &self.life {
            Life::Native(process) => {
                Way::Here(process.orders().ok_or_else(gone_already("giving the monitor an order"))?)
            }
            Life::Twin(twin) => Way::Here(twin.orders()),
            Life::Remote(remote) => Way::There(Arc::clone(remote.host()), remote.id().to_owned()),
        };
        Ok(Reach { place: self.dialer.place().clone(), way, quarters: self.quarters.clone() })
    }
}

impl Reach {
    /// Has it drop these guest-physical ranges (start, length in bytes). They are a guest's claim, which the monitor checks.
    /// Returns how many bytes it has dropped.
    ///
    /// # Errors
    /// [`MonitorError::Order`], or [`MonitorError::Emulated`] there, when it refuses; then it has dropped nothing, unless its host failed it in the middle.
    pub async fn discard(&self, ranges: Vec<(u64, u64)>) -> Result<u64, MonitorError> {
        const ACTION: &str = "giving guest memory back";
        let orders = match &self.way {
            Way::Here(orders) => orders,
            Way::There(host, id) => return host.discard(id, ranges).await.map_err(emulated("drop guest memory")),
        };
        match orders.order(&Order::Discard { ranges }, &[], PROMPT).await.map_err(refused(ACTION))? {
            (Answer::Discarded { bytes }, _) => Ok(bytes),
            (other, _) => Err(unexpected(ACTION, &other)),
        }
    }
}
