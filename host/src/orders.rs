// SPDX-License-Identifier: Apache-2.0
//! The host's end of a monitor's control socket: orders with descriptors, and their answers.
//!
//! The socket is also the monitor's lifeline: closing it ends the monitor. One order is under way at a time.
//! The answers are a monitor's words, which a hostile guest may have taken over: bounded, and believed in nothing
//! but numbers. The monitor's side and the table of orders: `vmm/src/orders.rs`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

/// Longest answer, in bytes.
const ANSWER_MAX_BYTES: usize = 16 << 10;
/// Longest text of a monitor in a message, in characters.
const TEXT_MAX_CHARS: usize = 1000;
/// Most descriptors with one order, as the monitor has it.
const DESCRIPTORS_MAX: usize = 16;
/// How long a freeze or a fork may take before the monitor counts as lost.
pub const PROMPT: Duration = Duration::from_secs(30);
/// How long writing a snapshot may take: a large memory to a slow disk.
pub const SAVING: Duration = Duration::from_secs(600);

/// What a monitor is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Twin yourself into a resident; for a monitor whose VM runs.
    Freeze {},
    /// Make a VM; for a resident.
    Fork {
        /// Where its guest's connections go: this and `_<port>`.
        uds: PathBuf,
    },
    /// Write what you hold into the files that come with this; for a resident.
    Save {},
    /// Drop the content of guest memory; for a monitor whose VM runs.
    Discard {
        /// Guest-physical address and length of each part, in bytes, whole pages.
        ranges: Vec<(u64, u64)>,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// There is a resident.
    Frozen {
        /// How long the guest stood still.
        #[serde(flatten)]
        pause: Pause,
    },
    /// There is a fork.
    Forked {},
    /// The files are written.
    Saved {
        /// Bytes of memory that were not zero.
        memory_bytes: u64,
    },
    /// The memory is dropped.
    Discarded {
        /// How much.
        bytes: u64,
    },
    /// It could not be done.
    Failed {
        /// Why.
        what: String,
    },
}

/// How long a guest stood still for a freeze, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// From the order to the guest's going on.
    pub pause_us: u64,
    /// Of that, until its state was taken.
    pub save_us: u64,
    /// Of that, the call of `fork(2)`.
    pub fork_us: u64,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The monitor has refused it.
    #[error("the monitor refused: {what}")]
    Refused {
        /// Its reason.
        what: String,
    },
    /// It did not answer in time.
    #[error("the monitor did not answer within {} s", limit.as_secs())]
    Late {
        /// The limit.
        limit: Duration,
    },
    /// It answered something else.
    #[error("the monitor answered {answer}")]
    Unexpected {
        /// What it said.
        answer: String,
    },
    /// The socket failed, or the monitor is gone.
    #[error("telling the monitor")]
    Io(#[from] io::Error),
}

/// The host's end of one control socket. Dropping it closes it.
#[derive(Debug)]
pub struct Orders {
    socket: AsyncFd<OwnedFd>,
    /// One order at a time, so that answers belong to their orders; how many answers are due to orders that were given
    /// and no longer waited for.
    turn: Mutex<u32>,
}

impl Orders {
    /// A new socket, and the end that becomes a monitor's stdin.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&near, true)?;
        // With every answer the kernel says who gave it.
        sockopt::set_socket_passcred(&near, true)?;
        Ok((Self { socket: watched(near, Interest::READABLE | Interest::WRITABLE)?, turn: Mutex::new(0) }, far))
    }

    /// Sends a monitor its configuration: the first datagram.
    ///
    /// # Errors
    /// When it is too long for one, or the monitor is gone.
    pub fn configure(&self, text: &str) -> io::Result<()> {
        // The socket is empty: nothing has to be waited for.
        rustix::net::send(self.socket.get_ref(), text.as_bytes(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Gives an order and waits for its answer, at most `limit`. With it comes the process that was made, unless none was,
    /// or it has ended already. It is a child of the process that answered, whatever that one says: a monitor that is
    /// forked could otherwise have its host kill a sibling of it, or the process that it was made by.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(Answer, Option<OwnedFd>), OrderError> {
        let mut due = self.turn.lock().await;
        let answered = async {
            self.send(&serde_json::to_vec(order).map_err(io::Error::other)?, descriptors).await?;
            *due += 1;
            loop {
                let answer = self.receive().await;
                *due -= 1;
                if *due == 0 || matches!(answer, Err(OrderError::Io(_))) {
                    return answer;
                }
            }
        };
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok((Answer::Failed { what }, _))) => Err(OrderError::Refused { what: printable(&what) }),
            Ok(answer) => answer,
            Err(_) => {
                // Its answer would be taken for that of the next order.
                self.close();
                Err(OrderError::Late { limit })
            }
        }
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = |socket: &OwnedFd| {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut room);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    async fn receive(&self) -> Result<(Answer, Option<OwnedFd>), OrderError> {
        let mut bytes = vec![0; ANSWER_MAX_BYTES];
        let (len, process) =
            self.socket.async_io(Interest::READABLE, |socket| receive_with_descriptor(socket, &mut bytes)).await?;
        if len == 0 {
            return Err(OrderError::Io(io::ErrorKind::ConnectionReset.into()));
        }
        let answer = serde_json::from_slice(&bytes[..len])
            .map_err(|_| OrderError::Unexpected { answer: printable(&String::from_utf8_lossy(&bytes[..len])) })?;
        Ok((answer, process))
    }

    /// Ends the monitor, as dropping does, whoever else still holds this.
    pub fn close(&self) {
        // It has ended by itself, then.
        let _ = shutdown(self.socket.get_ref(), Shutdown::Both);
    }
}

/// One datagram and the process that came with it, if it is a child of the sender; more than one descriptor is not let in.
fn receive_with_descriptor(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let got = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let (mut sender, mut process) = (None, None);
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmCredentials(who) => sender = Some(who.pid.as_raw_nonzero().get().unsigned_abs()),
            RecvAncillaryMessage::ScmRights(rights) => process = rights.into_iter().next(),
            _ => {}
        }
    }
    let process = process.filter(|process| {
        let is_own = sender.is_some() && parent_of(process) == sender;
        if !is_own {
            tracing::debug!(?sender, "a process that is none of the monitor's children, or has ended");
        }
        is_own
    });
    Ok((got.bytes, process))
}

/// Text of a monitor for a message: bounded, in one line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX_CHARS).collect()
}

/// A descriptor for the runtime to wait for.
///
/// # Errors
/// The runtime's.
#[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays the same while it is registered")]
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and the `AsyncFd` owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// The number that this process' `/proc` has for a process that a monitor has made, from a descriptor of it. `None` when
/// it is gone, or the descriptor is none of a process: a monitor can send any.
#[must_use]
pub fn number_of(process: &OwnedFd) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// The parent of a process that lives, from a descriptor of it.
fn parent_of(process: &OwnedFd) -> Option<u32> {
    let number = number_of(process)?;
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // Its name, in parentheses, may hold anything; state and parent follow.
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    // Only while it is there is the number its own.
    (number_of(process) == Some(number)).then_some(parent)
}

/// What is heard of a process that a monitor makes: its events, its stderr.
#[derive(Debug)]
pub struct Near {
    /// Its control socket.
    pub orders: Orders,
    /// Its stdout: one JSON event a line.
    pub events: pipe::Receiver,
    /// Its stderr.
    pub stderr: pipe::Receiver,
}

/// The ends that go with an order; closed here once it is answered.
#[derive(Debug)]
pub struct Far {
    control: OwnedFd,
    events: OwnedFd,
    stderr: OwnedFd,
}

impl Far {
    /// In the order in which a monitor expects them.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.control.as_fd(), self.events.as_fd(), self.stderr.as_fd()]
    }
}

/// The streams of a process that is about to be made.
///
/// # Errors
/// When there is no descriptor left.
pub fn streams() -> io::Result<(Near, Far)> {
    let (orders, control) = Orders::pair()?;
    let (events, far_events) = io::pipe()?;
    let (stderr, far_stderr) = io::pipe()?;
    let near = Near {
        orders,
        events: pipe::Receiver::from_owned_fd(events.into())?,
        stderr: pipe::Receiver::from_owned_fd(stderr.into())?,
    };
    Ok((near, Far { control, events: far_events.into(), stderr: far_stderr.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::recv;

    /// A monitor that gives these answers, and the orders it has heard.
    fn fake(answers: &'static [&'static str]) -> (Orders, std::thread::JoinHandle<Vec<String>>) {
        let (orders, far) = Orders::pair().unwrap();
        let monitor = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for answer in answers {
                let mut bytes = [0; 1000];
                let (len, _) = recv(&far, &mut bytes[..], RecvFlags::empty()).unwrap();
                heard.push(String::from_utf8(bytes[..len].to_vec()).unwrap());
                rustix::net::send(&far, answer.as_bytes(), SendFlags::NOSIGNAL).unwrap();
            }
            heard
        });
        (orders, monitor)
    }

    #[tokio::test]
    async fn orders_are_json_and_answers_are_understood() {
        let (orders, monitor) = fake(&[
            r#"{"frozen":{"pause_us":3,"save_us":1,"fork_us":2}}"#,
            r#"{"forked":{}}"#,
            r#"{"saved":{"memory_bytes":9}}"#,
            r#"{"discarded":{"bytes":4096}}"#,
        ]);
        let pause = Pause { pause_us: 3, save_us: 1, fork_us: 2 };
        assert_eq!(orders.order(&Order::Freeze {}, &[], PROMPT).await.unwrap().0, Answer::Frozen { pause });
        let fork = Order::Fork { uds: "/x/v.sock".into() };
        assert_eq!(orders.order(&fork, &[], PROMPT).await.unwrap().0, Answer::Forked {});
        assert_eq!(orders.order(&Order::Save {}, &[], SAVING).await.unwrap().0, Answer::Saved { memory_bytes: 9 });
        let discard = Order::Discard { ranges: vec![(8192, 4096), (0, 1)] };
        assert_eq!(orders.order(&discard, &[], PROMPT).await.unwrap().0, Answer::Discarded { bytes: 4096 });
        let heard = monitor.join().unwrap();
        assert_eq!(heard[..3], [r#"{"freeze":{}}"#, r#"{"fork":{"uds":"/x/v.sock"}}"#, r#"{"save":{}}"#]);
        assert_eq!(heard[3..], [r#"{"discard":{"ranges":[[8192,4096],[0,1]]}}"#]);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_waited_for_is_not_taken_for_that_of_the_next_order() {
        let (orders, far) = Orders::pair().unwrap();
        let limit = Duration::from_millis(20);
        assert!(tokio::time::timeout(limit, orders.order(&Order::Freeze {}, &[], PROMPT)).await.is_err());
        for answer in [r#"{"frozen":{"pause_us":3,"save_us":1,"fork_us":2}}"#, r#"{"saved":{"memory_bytes":9}}"#] {
            rustix::net::send(&far, answer.as_bytes(), SendFlags::NOSIGNAL).unwrap();
        }
        assert_eq!(orders.order(&Order::Save {}, &[], PROMPT).await.unwrap().0, Answer::Saved { memory_bytes: 9 });
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_in_one_clean_line() {
        let (orders, _monitor) = fake(&["{\"failed\":{\"what\":\"no\\u001b[2Jmemory\"}}", "hello\n", ""]);
        let refused = orders.order(&Order::Freeze {}, &[], PROMPT).await.unwrap_err();
        assert_eq!(refused.to_string(), "the monitor refused: no[2Jmemory");
        let nonsense = orders.order(&Order::Freeze {}, &[], PROMPT).await.unwrap_err();
        assert!(matches!(&nonsense, OrderError::Unexpected { answer } if answer == "hello"), "{nonsense}");
        assert!(matches!(orders.order(&Order::Freeze {}, &[], PROMPT).await, Err(OrderError::Io(_))));
    }

    /// A descriptor of a process.
    fn process(pid: u32) -> OwnedFd {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    }

    /// What becomes of descriptors that come with an answer.
    async fn answered_with(descriptors: &[BorrowedFd<'_>]) -> Option<OwnedFd> {
        let (orders, far) = Orders::pair().unwrap();
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(&far, &[IoSlice::new(br#"{"forked":{}}"#)], &mut control, SendFlags::NOSIGNAL).unwrap();
        let (answer, process) = orders.order(&Order::Save {}, &[], PROMPT).await.unwrap();
        assert_eq!(answer, Answer::Forked {});
        process
    }

    #[tokio::test]
    async fn a_monitor_can_name_its_own_children_and_no_other_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let own = answered_with(&[process(child.id()).as_fd()]).await.unwrap();
        assert_eq!(number_of(&own), Some(child.id()));
        for other in [std::process::id(), std::os::unix::process::parent_id(), 1] {
            assert!(answered_with(&[process(other).as_fd()]).await.is_none(), "{other}");
        }
        let ended = process(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(answered_with(&[ended.as_fd()]).await.is_none());
        assert!(answered_with(&[std::fs::File::open("/dev/null").unwrap().as_fd()]).await.is_none());
    }

    #[tokio::test]
    async fn descriptors_beyond_one_are_not_let_in() {
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let one = process(child.id());
        let before = count();
        let many = [one.as_fd(); DESCRIPTORS_MAX];
        for _ in 0..20 {
            drop(answered_with(&many).await);
        }
        let after = count();
        // Other tests open and close some meanwhile.
        assert!(after < before + 20, "{before} descriptors before, {after} after {} that were sent", 20 * many.len());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn half_an_answer_and_one_that_is_too_long_are_nonsense_of_bounded_length() {
        let (orders, far) = Orders::pair().unwrap();
        let long = format!("{{\"failed\":{{\"what\":\"{}\"}}}}", "x".repeat(ANSWER_MAX_BYTES));
        for answer in ["{\"frozen\":{\"pause_us\":3", long.as_str()] {
            rustix::net::send(&far, answer.as_bytes(), SendFlags::NOSIGNAL).unwrap();
            let error = orders.order(&Order::Freeze {}, &[], PROMPT).await.unwrap_err();
            assert!(matches!(&error, OrderError::Unexpected { answer } if answer.len() <= TEXT_MAX_CHARS), "{error}");
        }
    }

    /// What it says unasked is taken for the answer to the next order, and for nothing more than numbers; a socket's
    /// worth of it waits.
    #[tokio::test]
    async fn a_monitor_that_answers_without_end_fills_its_own_socket_only() {
        let (orders, far) = Orders::pair().unwrap();
        let said = br#"{"discarded":{"bytes":18446744073709551615}}"#;
        let mut count = 0_u32;
        while rustix::net::send(&far, said, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok() {
            count += 1;
        }
        assert!((1..100_000).contains(&count), "{count} answers wait");
        let answer = orders.order(&Order::Save {}, &[], PROMPT).await.unwrap().0;
        assert_eq!(answer, Answer::Discarded { bytes: u64::MAX });
    }

    #[tokio::test]
    async fn a_monitor_that_does_not_answer_is_given_up() {
        let (orders, far) = Orders::pair().unwrap();
        let limit = Duration::from_millis(20);
        assert!(matches!(orders.order(&Order::Freeze {}, &[], limit).await, Err(OrderError::Late { .. })));
        let mut bytes = [0; 100];
        assert!(recv(&far, &mut bytes[..], RecvFlags::empty()).unwrap().0 > 0, "the order");
        assert_eq!(recv(&far, &mut bytes[..], RecvFlags::empty()).unwrap().0, 0, "and the end");
    }
}
