// SPDX-License-Identifier: Apache-2.0
//! The door `peer` of a real guest: where its sandbox meets those of the user's other processes, and the way to its ports.

use std::io;
use std::sync::{Arc, Weak};

use midge_broker::peer::{ClaimError, Inward, PeerDoor, Place};
use midge_broker::{AnyStream, Later};
use midge_policy::{Name, Policy};
use midge_record::Recorder;
use tokio::sync::watch;

use crate::error::{Error, Fault, chain};
use crate::monitor::Stream;
use crate::monitor::events::printable;
use crate::run_dir::private_base;
use crate::sandbox::Sandbox;

/// What cannot be had, in errors.
const NAME: &str = "sandbox's name (--name)";

/// The door of the sandbox that others call `name`.
pub(super) fn door(
    name: &Name,
    sandbox: &Arc<Sandbox>,
    policy: watch::Receiver<Arc<Policy>>,
    recorder: &Recorder,
) -> Result<Arc<PeerDoor>, Error> {
    let ports = Arc::new(Ports(Arc::downgrade(sandbox)));
    PeerDoor::open(&place()?, name, policy, recorder.clone(), ports).map_err(unnamed)
}

/// Refuses a name that another of the user's sandboxes has, before one is started for it; without peers nobody calls it. It is
/// taken by [`super::Household::admit`], which finds it out again.
///
/// # Errors
/// The name is another's, or nothing could be found out.
pub fn check_name_is_free(name: Option<&Name>, policy: &Policy) -> Result<(), Error> {
    match name.filter(|_| !policy.peers().is_empty()) {
        Some(name) => place()?.check_free(name).map_err(unnamed),
        None => Ok(()),
    }
}

/// Where the user's sandboxes meet.
fn place() -> Result<Place, Error> {
    Place::open(&private_base()?).map_err(|error| Error::prepare(NAME, Fault::Host, error))
}

fn unnamed(error: ClaimError) -> Error {
    Error::prepare(NAME, Fault::User, error)
}

/// What the child with that number of a sandbox is called; nothing where that is no name any more.
pub(super) fn of_child(parent: &Name, child: &str) -> Option<Name> {
    let (_, number) = child.rsplit_once('.')?;
    format!("{parent}.{number}").parse().ok()
}

/// The sandboxes that the loop of one that others call `seat` may exchange messages with.
#[must_use]
pub fn message_peers(policy: &Policy, seat: Option<&Name>) -> Vec<String> {
    let peers = policy.peers().iter().filter(|peer| seat.is_some() && peer.messages);
    peers.map(|peer| peer.name.to_string()).collect()
}

/// The ports of one guest. It does not keep the sandbox.
struct Ports(Weak<Sandbox>);

impl Inward for Ports {
    fn dial(&self, port: u16) -> Later<'_, io::Result<AnyStream>> {
        Box::pin(async move {
            let sandbox = self.0.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            match sandbox.dial(port).await {
                Ok(Stream { reader, writer }) => Ok(Box::new(tokio::io::join(reader, writer)) as AnyStream),
                Err(Error::Failed { failure, .. }) if failure.errno == libc::ECONNREFUSED => {
                    Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there"))
                }
                Err(error) => Err(io::Error::other(printable(&chain(&error)))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_to_those_that_the_policy_says_and_from_those_that_have_a_name() {
        let peers = "[[peers]]\nname = \"a\"\nmessages = true\n[[peers]]\nname = \"b\"\nports = [80]\n";
        let policy = Policy::parse(format!("version = 1\n{peers}"), "test").unwrap();
        let seat: Name = "me".parse().unwrap();
        assert_eq!(message_peers(&policy, Some(&seat)), ["a"]);
        assert!(message_peers(&policy, None).is_empty());
    }

    #[test]
    fn children_are_called_by_their_parents_name_and_their_number() {
        let parent: Name = "build".parse().unwrap();
        assert_eq!(of_child(&parent, "0123456789ab.3").unwrap().as_str(), "build.3");
        assert_eq!(of_child(&"build.3".parse().unwrap(), "0123456789ab.3.1").unwrap().as_str(), "build.3.1");
        let long: Name = "x".repeat(64).parse().unwrap();
        assert_eq!((of_child(&long, "a.1"), of_child(&parent, "a")), (None, None));
    }
}
