// SPDX-License-Identifier: Apache-2.0
//! The doors of a guest: the kinds of thing that it may ask its host for, each on a vsock port of its own.

/// One kind. What is behind it on the host is the broker, which holds it against the policy of the sandbox.
///
/// | door | vsock port of the host | in the guest | what is spoken |
/// | --- | --- | --- | --- |
/// | model | 7101 | 127.0.0.1:7101 | HTTP/1.1, the provider's own wire format |
/// | egress | 7102 | 127.0.0.1:7102 | HTTP/1.1 proxy: CONNECT and absolute form |
/// | ask | 7103 | `/run/midge/ask` | lines of JSON |
/// | child | 7104 | `/run/midge/child` | lines of JSON |
/// | peer | 7105 | `/run/midge/peer` | lines of JSON, then a tunnel's bytes |
/// | record | 7106 | `/run/midge/record` | lines of JSON |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Door {
    /// Calls of a language model; the key is added by the host.
    Model,
    /// HTTP and HTTPS to the world.
    Egress,
    /// Approvals and questions to a human.
    Ask,
    /// Sandboxes made of this one.
    Child,
    /// Other sandboxes that both policies name.
    Peer,
    /// What the tool loop says that it does, for the transcript.
    Record,
}

impl Door {
    /// All, in the order of their ports.
    pub const ALL: [Self; 6] = [Self::Model, Self::Egress, Self::Ask, Self::Child, Self::Peer, Self::Record];

    /// The port of the host that a guest connects to.
    #[must_use]
    pub fn port(self) -> u32 {
        match self {
            Self::Model => 7101,
            Self::Egress => 7102,
            Self::Ask => 7103,
            Self::Child => 7104,
            Self::Peer => 7105,
            Self::Record => 7106,
        }
    }

    /// Its name, as in transcripts and of its socket below [`GUEST_DIR`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Egress => "egress",
            Self::Ask => "ask",
            Self::Child => "child",
            Self::Peer => "peer",
            Self::Record => "record",
        }
    }

    /// The TCP port of the guest's loopback that leads here, where a program expects an address of the network.
    #[must_use]
    pub fn loopback(self) -> Option<u16> {
        match self {
            Self::Model => Some(7101),
            Self::Egress => Some(7102),
            Self::Ask | Self::Child | Self::Peer | Self::Record => None,
        }
    }
}

/// Where the agent puts the sockets of the doors in the guest.
pub const GUEST_DIR: &str = "/run/midge";
/// The control group of all commands in the guest, where its kernel has cgroup v2.
pub const COMMANDS_GROUP: &str = "/sys/fs/cgroup/midge";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_door_has_one_port_and_one_name() {
        let ports: Vec<u32> = Door::ALL.iter().map(|door| door.port()).collect();
        assert!(ports.is_sorted_by(|a, b| a < b), "{ports:?}");
        let names: std::collections::BTreeSet<_> = Door::ALL.iter().map(|door| door.name()).collect();
        assert_eq!(names.len(), Door::ALL.len());
    }
}
