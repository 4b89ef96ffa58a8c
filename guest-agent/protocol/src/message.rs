// SPDX-License-Identifier: Apache-2.0
//! The two directions of the protocol, each an enum: a kind's number and its body stand here once.

use crate::field::{Field, FieldError, Payload};
use crate::records::{
    Attach, Change, Changes, Entry, Exec, Exited, Failure, FileRead, FileWrite, Freeze, Gathered, Hello, InitFailed,
    List, Metadata, Mkdir, Move, Output, Refused, Remove, Started, Stat, Stats, TarIn, TarOut, Welcome, WindowSize,
};

/// One direction of a conversation.
pub trait Message: Sized {
    /// Which way it goes, for error texts.
    const DIRECTION: &'static str;
    /// Longest payload accepted, in bytes.
    const MAX_PAYLOAD_BYTES: usize;
    /// Number and name of every kind, in the order of the byte table.
    const KINDS: &'static [(u16, &'static str, &'static str)];

    /// The number of this message's kind.
    fn kind(&self) -> u16;
    /// The name of this message's kind.
    fn name(&self) -> &'static str;
    /// Appends the body.
    fn put_payload(&self, out: &mut Vec<u8>);
    /// Reads a body. `None` when the kind is unknown.
    fn take_payload(kind: u16, bytes: &[u8]) -> Option<Result<Self, FieldError>>;
}

/// The whole of `bytes` as one value.
fn whole<T: Field>(bytes: &[u8]) -> Result<T, FieldError> {
    let mut payload = Payload::new(bytes);
    let value = T::take(&mut payload)?;
    payload.finish().map(|()| value)
}

macro_rules! direction {
    ($(#[$doc:meta])* $enum:ident ($words:literal, $limit:expr) {
        $($(#[$kind_doc:meta])* $kind:ident $(($body:ty))? = $number:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $enum { $($(#[$kind_doc])* $kind $(($body))?,)* }

        impl Message for $enum {
            const DIRECTION: &'static str = $words;
            const MAX_PAYLOAD_BYTES: usize = $limit;
            const KINDS: &'static [(u16, &'static str, &'static str)] =
                &[$(($number, stringify!($kind), concat!("", $(stringify!($body))?)),)*];

            fn kind(&self) -> u16 {
                match self { $(direction!(@pattern $kind $(($body))? _body) => $number,)* }
            }
            fn name(&self) -> &'static str {
                match self { $(direction!(@pattern $kind $(($body))? _body) => stringify!($kind),)* }
            }
            fn put_payload(&self, out: &mut Vec<u8>) {
                match self { $(direction!(@pattern $kind $(($body))? body) => direction!(@put body out $($body)?),)* }
            }
            fn take_payload(kind: u16, bytes: &[u8]) -> Option<Result<Self, FieldError>> {
                Some(match kind {
                    $($number => direction!(@take bytes $kind $($body)?),)*
                    _ => return None,
                })
            }
        }

        #[cfg(test)]
        impl crate::sample::Sample for $enum {
            fn sample(source: &mut crate::sample::Source) -> Self {
                let choices: &[fn(&mut crate::sample::Source) -> Self] = &[
                    $(direction!(@sample $kind $($body)?),)*
                ];
                choices[source.below(choices.len())](source)
            }
        }
    };
    (@pattern $kind:ident ($body:ty) $name:ident) => { Self::$kind($name) };
    (@pattern $kind:ident $name:ident) => { Self::$kind };
    (@put $name:ident $out:ident $body:ty) => { $name.put($out) };
    (@put $name:ident $out:ident) => { {} };
    (@take $bytes:ident $kind:ident $body:ty) => { whole::<$body>($bytes).map(Self::$kind) };
    (@take $bytes:ident $kind:ident) => { Payload::new($bytes).finish().map(|()| Self::$kind) };
    (@sample $kind:ident $body:ty) => { |source| Self::$kind(<$body as crate::sample::Sample>::sample(source)) };
    (@sample $kind:ident) => { |_| Self::$kind };
}

direction! {
    /// What the host sends into the guest.
    ToAgent("to the agent", crate::MAX_PAYLOAD_TO_AGENT_BYTES) {
        /// Answers `Hello`; control conversation.
        Welcome(Welcome) = 0x0001,
        /// Are you there? Answered by `Pong` with the same number; control conversation.
        Ping(u64) = 0x0002,
        /// Answered by `Stats`; control conversation.
        GetStats = 0x0003,
        /// Kill every process but the agent and write all file systems out; answered by `Done`; control conversation.
        Quiesce = 0x0004,
        /// Write all file systems out, answer `Done`, reset the machine; control conversation. The reset may overtake the
        /// answer.
        Shutdown = 0x0005,
        /// Stop everything but the agent, so that the machine can be copied; answered by `Done`; control conversation.
        Freeze(Freeze) = 0x0006,
        /// Undo `Freeze` in the machine it was sent to; answered by `Done`; control conversation.
        Thaw = 0x0007,
        /// Become a machine of its own after `Freeze`, in a copy; answered by `Done`; first message. Its conversation is the
        /// control conversation from then on.
        Resume(Welcome) = 0x0008,
        /// Take free memory, after `Freeze`; answered by `Gathered`; control conversation.
        Gather = 0x0009,
        /// The host's wall clock, in nanoseconds since 1970: the one of `Resume` is old by the time a cold guest hears it. Not
        /// answered; control conversation.
        SetClock(u64) = 0x000a,
        /// Open the doors whose bits are set, in the order of [`crate::Door::ALL`], bit 0 first: from then on the guest's programs
        /// can ask its host for what is behind them; answered by `Done`; control conversation.
        OpenDoors(u64) = 0x000b,
        /// Run a command; first message.
        Exec(Exec) = 0x0010,
        /// Take over a running command; first message.
        Attach(Attach) = 0x0011,
        /// Bytes for the command's standard input: at most [`crate::STDIN_WINDOW_BYTES`] beyond the last `StdinTaken`.
        Stdin(Vec<u8>) = 0x0012,
        /// The command's standard input ends. On a terminal the end-of-file character is typed.
        StdinEof = 0x0013,
        /// Send this signal to the command's process group.
        Signal(u8) = 0x0014,
        /// The terminal's size has changed.
        Resize(WindowSize) = 0x0015,
        /// Read a file.
        FileRead(FileRead) = 0x0020,
        /// Write a file.
        FileWrite(FileWrite) = 0x0021,
        /// List a directory.
        List(List) = 0x0022,
        /// What a path is.
        Stat(Stat) = 0x0023,
        /// Make a directory.
        Mkdir(Mkdir) = 0x0024,
        /// Remove a path.
        Remove(Remove) = 0x0025,
        /// Rename a path.
        Move(Move) = 0x0026,
        /// Unpack an archive.
        TarIn(TarIn) = 0x0027,
        /// Pack an archive.
        TarOut(TarOut) = 0x0028,
        /// What the run changed.
        Changes(Changes) = 0x0029,
        /// Content for `FileWrite` and `TarIn`.
        Data(Vec<u8>) = 0x002a,
        /// The content is complete.
        End = 0x002b,
        /// Connect to this TCP port of the guest's 127.0.0.1; answered by `Done`, after which every byte of the stream, and the end of
        /// each direction, is the connection's; first message.
        Dial(u16) = 0x0030,
    }
}

direction! {
    /// What the guest sends out. Everything in it is hostile to the host.
    ToHost("to the host", crate::MAX_PAYLOAD_TO_HOST_BYTES) {
        /// The guest is ready; first message of the control conversation.
        Hello(Hello) = 0x8001,
        /// Answers `Ping`.
        Pong(u64) = 0x8002,
        /// Answers `GetStats`.
        Stats(Stats) = 0x8003,
        /// A request without a result of its own has succeeded.
        Done = 0x8004,
        /// A request has failed.
        Error(Failure) = 0x8005,
        /// The guest could not be set up; in place of `Hello`.
        InitFailed(InitFailed) = 0x8006,
        /// Answers `Gather`.
        Gathered(Gathered) = 0x8007,
        /// The command runs.
        Started(Started) = 0x8010,
        /// Output of the command, or of its terminal.
        Stdout(Output) = 0x8011,
        /// Error output of the command.
        Stderr(Output) = 0x8012,
        /// The command has ended.
        Exited(Exited) = 0x8013,
        /// The command could not be started.
        Refused(Refused) = 0x8014,
        /// The command has taken its standard input up to this offset.
        StdinTaken(u64) = 0x8015,
        /// Content of a file or an archive.
        Data(Vec<u8>) = 0x8020,
        /// The answer is complete.
        End = 0x8021,
        /// What a path is.
        Metadata(Metadata) = 0x8022,
        /// One entry of a directory.
        Entry(Entry) = 0x8023,
        /// One path that the run changed.
        Change(Change) = 0x8024,
    }
}

/// Name and direction of the kind `kind`, if it is known in any direction.
#[must_use]
pub fn kind_name(kind: u16) -> Option<(&'static str, &'static str)> {
    fn find<M: Message>(kind: u16) -> Option<(&'static str, &'static str)> {
        M::KINDS.iter().find(|(number, ..)| *number == kind).map(|(_, name, _)| (*name, M::DIRECTION))
    }
    find::<ToAgent>(kind).or_else(|| find::<ToHost>(kind))
}
