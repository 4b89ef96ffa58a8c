// SPDX-License-Identifier: Apache-2.0
//! What the main thread watches beside the devices: the end of a vCPU, signals, the lifeline
//! and console lines.
//!
//! A subscriber of the event loop. It finds out *that* the VM ends and why; ending it is left to
//! `vm`. Bytes on the lifeline mean nothing, only its end does.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::console::Output;
use crate::orders::{Answer, ControlSocket, Lifeline, Received};
use crate::{sys, trace};

/// Why the event loop is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A vCPU ended by itself.
    Guest,
    /// One of [`sys::STOP_SIGNALS`] came.
    Signal,
    /// Whoever holds the other end of the lifeline has closed it, or died.
    Lifeline,
}

impl Cause {
    /// One line for a human.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Guest => "the guest ended",
            Self::Signal => "stopped by a signal",
            Self::Lifeline => "stopped because the lifeline closed",
        }
    }
}

/// What the event loop is left for: its end, or an order.
#[derive(Debug, Default)]
pub struct Inbox {
    cause: Cell<Option<Cause>>,
    order: RefCell<Option<Received>>,
    socket: RefCell<Option<ControlSocket>>,
}

impl Inbox {
    /// Why the VM is to end, once it is.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get()
    }

    /// The order that was received, once.
    pub fn take_order(&self) -> Option<Received> {
        self.order.take()
    }

    /// Answers the latest order; `process` is one that was made.
    pub fn answer(&self, answer: &Answer, process: Option<&OwnedFd>) {
        if let Some(socket) = &*self.socket.borrow() {
            socket.answer(answer, process);
        }
    }

    /// The first cause stays.
    fn end(&self, cause: Cause) {
        self.cause.set(self.cause.get().or(Some(cause)));
    }
}

/// What is watched. Each descriptor is told apart by the number it is registered with.
#[derive(Debug)]
pub struct Control {
    ended: EventFd,
    signals: File,
    /// A plain one; a control socket is in the inbox, which answers on it.
    lifeline: Option<File>,
    console: Option<(EventFd, Output, u64)>,
    inbox: Rc<Inbox>,
}

const ENDED: u32 = 0;
const SIGNALS: u32 = 1;
const LIFELINE: u32 = 2;
const CONSOLE: u32 = 3;
const ORDERS: u32 = 4;

impl Control {
    /// Watches `ended` (a vCPU's end), the stop signals, which must be blocked, the lifeline and
    /// the console's lines, if there are such.
    ///
    /// # Errors
    /// The kernel's error when no descriptor for signals can be had.
    pub fn new(ended: EventFd, lifeline: Option<Lifeline>, console: Option<(EventFd, Output)>) -> io::Result<Self> {
        let (lifeline, socket) = match lifeline {
            None => (None, None),
            Some(Lifeline::Plain(fd)) => (Some(fd), None),
            Some(Lifeline::Control(socket)) => (None, Some(socket)),
        };
        let inbox = Inbox { socket: RefCell::new(socket), ..Inbox::default() };
        Ok(Self {
            ended,
            signals: sys::signal_descriptor(&sys::STOP_SIGNALS)?.into(),
            lifeline: lifeline.map(File::from),
            console: console.map(|(line_ended, output)| (line_ended, output, 0)),
            inbox: Rc::new(inbox),
        })
    }

    /// Where causes and orders will appear.
    pub fn inbox(&self) -> Rc<Inbox> {
        Rc::clone(&self.inbox)
    }

    fn end(&self, cause: Cause) {
        self.inbox.end(cause);
    }

    fn read_lifeline(&mut self, ops: &mut EventOps<'_>) {
        let Some(lifeline) = &mut self.lifeline else { return };
        let mut ignored = [0; 512];
        match lifeline.read(&mut ignored) {
            Ok(0) => self.end(Cause::Lifeline),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => {
                // A lifeline that cannot be read protects nobody: treat it as closed.
                let _ = ops.remove(Events::with_data(lifeline, LIFELINE, EventSet::IN));
                self.end(Cause::Lifeline);
            }
        }
    }

    /// Receives one order: the loop is left for it, and entered again when it is obeyed.
    fn read_order(&self) {
        let socket = self.inbox.socket.borrow();
        let Some(socket) = &*socket else { return };
        match socket.receive() {
            Ok(Some(received)) => drop(self.inbox.order.replace(Some(received))),
            Ok(None) => self.end(Cause::Lifeline),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                socket.answer(&Answer::Failed { what: format!("receiving an order: {error}") }, None);
            }
            Err(_) => self.end(Cause::Lifeline),
        }
    }

    /// Reports console lines that were not reported yet.
    fn drain_console(&mut self) {
        if let Some((line_ended, output, cursor)) = &mut self.console {
            let _ = line_ended.read();
            let mut stdout = io::stdout().lock();
            for line in output.lines_since(cursor) {
                trace::console_line(&line, &mut stdout);
            }
        }
    }
}

impl MutEventSubscriber for Control {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            ENDED => {
                let _ = self.ended.read();
                self.drain_console();
                self.end(Cause::Guest);
            }
            SIGNALS => self.end(Cause::Signal),
            LIFELINE => self.read_lifeline(ops),
            ORDERS => self.read_order(),
            _ => self.drain_console(),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let watch = |ops: &mut EventOps<'_>, events| ops.add(events).is_ok();
        let mut all = watch(ops, Events::with_data(&self.ended, ENDED, EventSet::IN));
        all &= watch(ops, Events::with_data(&self.signals, SIGNALS, EventSet::IN));
        if let Some((line_ended, ..)) = &self.console {
            all &= watch(ops, Events::with_data(line_ended, CONSOLE, EventSet::IN));
        }
        if let Some(socket) = &*self.inbox.socket.borrow() {
            all &= watch(ops, Events::with_data(socket.descriptor(), ORDERS, EventSet::IN));
        }
        if !all {
            // Without these nobody could ever stop the VM: do not start it.
            self.end(Cause::Signal);
        }
        if let Some(lifeline) = &self.lifeline {
            // A regular file or /dev/null cannot be watched and never closes: no lifeline then.
            watch(ops, Events::with_data(lifeline, LIFELINE, EventSet::IN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::tests::{heard, order, pair};
    use crate::orders::{ORDER_MAX_BYTES, Order};
    use event_manager::{EventManager, SubscriberOps};
    use std::io::Write;
    use std::os::fd::AsFd;

    type Loop = EventManager<Box<dyn MutEventSubscriber>>;

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    fn start(control: Control) -> (Loop, Rc<Inbox>) {
        let cause = control.inbox();
        let mut events = Loop::new().unwrap();
        events.add_subscriber(Box::new(control));
        (events, cause)
    }

    #[test]
    fn nothing_happens_until_something_does() {
        let ended = eventfd();
        let (mut events, cause) = start(Control::new(ended.try_clone().unwrap(), None, None).unwrap());
        events.run_with_timeout(0).unwrap();
        assert_eq!(cause.cause(), None);
        ended.write(1).unwrap();
        events.run_with_timeout(1000).unwrap();
        assert_eq!(cause.cause(), Some(Cause::Guest));
    }

    #[test]
    fn bytes_on_the_lifeline_mean_nothing_its_end_stops() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (mut events, cause) = start(Control::new(eventfd(), Some(Lifeline::Plain(reader.into())), None).unwrap());
        writer.write_all(b"noise\n").unwrap();
        events.run_with_timeout(1000).unwrap();
        assert_eq!(cause.cause(), None);
        drop(writer);
        events.run_with_timeout(1000).unwrap();
        assert_eq!(cause.cause(), Some(Cause::Lifeline));
    }

    #[test]
    fn a_file_as_stdin_is_no_lifeline() {
        let null = File::open("/dev/null").unwrap();
        let (mut events, cause) = start(Control::new(eventfd(), Some(Lifeline::Plain(null.into())), None).unwrap());
        events.run_with_timeout(10).unwrap();
        assert_eq!(cause.cause(), None);
    }

    fn with_socket() -> (Loop, Rc<Inbox>, OwnedFd) {
        let (host, monitor) = pair();
        let lifeline = Some(Lifeline::Control(monitor));
        let (events, inbox) = start(Control::new(eventfd(), lifeline, None).unwrap());
        (events, inbox, host)
    }

    #[test]
    fn orders_leave_the_loop_one_at_a_time_with_their_descriptors() {
        let (mut events, inbox, host) = with_socket();
        events.run_with_timeout(0).unwrap();
        assert!(inbox.take_order().is_none());
        order(&host, br#"{"freeze":{}}"#, &[host.as_fd(), host.as_fd()]);
        order(&host, br#"{"save":{}}"#, &[]);
        for (expected, descriptors) in [(Order::Freeze {}, 2), (Order::Save {}, 0)] {
            events.run_with_timeout(1000).unwrap();
            let received = inbox.take_order().unwrap();
            assert_eq!((received.order, received.descriptors.len()), (Ok(expected), descriptors));
            assert!(inbox.take_order().is_none(), "once");
        }
        events.run_with_timeout(0).unwrap();
        assert!(inbox.take_order().is_none());
        assert_eq!(inbox.cause(), None);
    }

    #[test]
    fn an_order_that_makes_no_sense_is_one_to_be_answered() {
        let (mut events, inbox, host) = with_socket();
        order(&host, b"hello", &[]);
        events.run_with_timeout(1000).unwrap();
        assert!(inbox.take_order().unwrap().order.unwrap_err().contains("understanding the order"));
        inbox.answer(&Answer::Failed { what: "what?".to_owned() }, None);
        assert_eq!(heard(&host), r#"{"failed":{"what":"what?"}}"#);
        assert_eq!(inbox.cause(), None);
    }

    #[test]
    fn an_order_too_long_is_refused_at_once_and_the_next_one_is_heard() {
        let (mut events, inbox, host) = with_socket();
        order(&host, &vec![b' '; ORDER_MAX_BYTES + 1], &[]);
        order(&host, br#"{"freeze":{}}"#, &[]);
        events.run_with_timeout(1000).unwrap();
        assert!(inbox.take_order().is_none());
        assert!(heard(&host).starts_with(r#"{"failed":{"what":"receiving an order"#));
        events.run_with_timeout(1000).unwrap();
        assert_eq!(inbox.take_order().unwrap().order, Ok(Order::Freeze {}));
        assert_eq!(inbox.cause(), None);
    }

    #[test]
    fn the_end_of_the_control_socket_is_that_of_the_vm_after_the_last_order() {
        let (mut events, inbox, host) = with_socket();
        order(&host, br#"{"freeze":{}}"#, &[]);
        drop(host);
        events.run_with_timeout(1000).unwrap();
        assert!(inbox.take_order().is_some());
        assert_eq!(inbox.cause(), None, "the order comes first");
        inbox.answer(&Answer::Failed { what: "nobody hears this".to_owned() }, None);
        events.run_with_timeout(1000).unwrap();
        assert_eq!(inbox.cause(), Some(Cause::Lifeline));
    }

    #[test]
    fn without_a_control_socket_an_answer_goes_nowhere() {
        let (_events, inbox) = start(Control::new(eventfd(), None, None).unwrap());
        inbox.answer(&Answer::Forked {}, None);
        assert!(inbox.take_order().is_none());
    }

    #[test]
    fn the_first_cause_stays() {
        let control = Control::new(eventfd(), None, None).unwrap();
        control.end(Cause::Lifeline);
        control.end(Cause::Guest);
        assert_eq!(control.inbox().cause(), Some(Cause::Lifeline));
        assert!(Cause::Lifeline.describe().contains("lifeline"));
    }
}
