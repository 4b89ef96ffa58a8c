// SPDX-License-Identifier: Apache-2.0
//! Telling a monitor to drop guest memory.

use std::io;
use std::sync::Arc;

use super::resident::{refused, unexpected};
use super::{Life, Monitor, MonitorError};
use crate::orders::{Answer, Order, Orders, PROMPT};

const ACTION: &str = "giving guest memory back";

/// What tells one monitor to drop memory; goes on where the monitor's own handle is borrowed.
#[derive(Debug, Clone)]
pub struct Discarder(Arc<Orders>);

impl Monitor {
    /// What tells it to drop memory.
    ///
    /// # Errors
    /// [`MonitorError::Order`] when it is on an emulated host, whose memory is not this machine's, or told to end.
    pub fn discarder(&self) -> Result<Discarder, MonitorError> {
        let without = |why| refused(ACTION)(io::Error::other(why).into());
        if let Life::Remote(_) = self.life {
            return Err(without("the memory of an emulated host is not this machine's to take back"));
        }
        let orders = self.orders().ok_or_else(|| without("it has been told to end"))?;
        Ok(Discarder(orders))
    }
}

impl Discarder {
    /// Has it drop these guest-physical ranges (start, length in bytes). They are a guest's claim, which the monitor checks.
    /// Returns how many bytes it has dropped.
    ///
    /// # Errors
    /// [`MonitorError::Order`] when it refuses; then it has dropped nothing, unless this machine failed it in the middle.
    pub async fn discard(&self, ranges: Vec<(u64, u64)>) -> Result<u64, MonitorError> {
        match self.0.order(&Order::Discard { ranges }, &[], PROMPT).await.map_err(refused(ACTION))? {
            Answer::Discarded { bytes } => Ok(bytes),
            other => Err(unexpected(ACTION, &other)),
        }
    }
}
