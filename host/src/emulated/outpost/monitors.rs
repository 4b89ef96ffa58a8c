// SPDX-License-Identifier: Apache-2.0
//! Monitors of the emulated host: started, frozen, forked, written out; and what they say on the way.
//!
//! Every process that is made here has a conversation that carries its output, and ends with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::super::extents;
use super::super::qemu::line;
use super::super::wire::{MAX_LINE_BYTES, RUN_DIR, socket};
use super::Outpost;
use super::guests::Life;
use super::serve::Reader;
use crate::doorman;
use crate::groups::{Allowance, Quarters};
use crate::orders::{self, Answer, Far, Near, Order, OrderError, Orders, PROMPT, SAVING};

/// How long a monitor may take to end when it has been told to; in an emulated machine that is busy.
const LINGER: Duration = Duration::from_secs(10);
/// Lines of a monitor that wait for a slow reader.
const LINES_WAITING: usize = 64;
/// The monitor, in the initramfs.
const MONITOR: &str = "/midge-vmm";

/// Keeps a monitor alive for as long as whoever asked for it is there.
async fn hold(orders: Rc<Orders>, mut reader: Reader) {
    let _ = tokio::io::copy_buf(&mut reader, &mut tokio::io::sink()).await;
    orders.close();
}

/// Starts a monitor; the conversation ends with its wait status.
pub(super) async fn spawn(
    id: &str,
    config: &Value,
    allowance: Allowance,
    reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    outpost.guests.prepare(id)?;
    let quarters = Quarters::make(allowance).map_err(io::Error::other).inspect_err(|_| outpost.guests.ended(id))?;
    let (child, orders) = start(&mut Command::new(MONITOR)).inspect_err(|_| outpost.guests.ended(id))?;
    // Before anything is waited for: its end must never look like an orphan's.
    outpost.guests.started(id, child.id().map(Life::Child), Rc::clone(&orders), Arc::clone(&quarters));
    if let Some(pid) = child.id() {
        quarters.take_in(pid).map_err(io::Error::other).inspect_err(|_| outpost.guests.ended(id))?;
    }
    // A monitor that refuses its configuration may have ended already; its own words say why.
    let _ = orders.configure(&format!("{config}\n"));
    let _ = writer.write_all(b"OK\n").await;
    let status = watch(child, orders, reader, writer).await;
    outpost.guests.ended(id);
    let _ = writer.write_all(format!("X {status}\n").as_bytes()).await;
    Ok(())
}

/// Starts the program, which waits for its configuration.
fn start(program: &mut Command) -> io::Result<(Child, Rc<Orders>)> {
    let (orders, stdin) = Orders::pair()?;
    let child = program
        .args(["--config", "-"])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, Rc::new(orders)))
}

/// Passes a monitor's output on until it has ended; returns its wait status. One that goes on without its lifeline, or
/// without its outputs, is killed.
async fn watch(mut child: Child, orders: Rc<Orders>, reader: Reader, writer: &mut OwnedWriteHalf) -> i32 {
    let mut lifeline = tokio::task::spawn_local(hold(orders, reader));
    let without_lifeline = async {
        let _ = (&mut lifeline).await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = pass_output(child.stdout.take(), child.stderr.take(), writer) => {}
        () = without_lifeline => {}
    }
    lifeline.abort();
    if tokio::time::timeout(LINGER, child.wait()).await.is_err() {
        // An error says that it has ended by itself just now.
        let _ = child.start_kill();
    }
    child.wait().await.map_or(libc::SIGKILL, ExitStatusExt::into_raw)
}

/// Has a monitor twin itself into a resident; the conversation is the resident's.
pub(super) async fn freeze(
    id: &str,
    resident: &str,
    reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    outpost.guests.prepare(resident)?;
    let frozen = async {
        let (near, far) = orders::streams()?;
        let maker = outpost.guests.quarters(id)?;
        maker.grow();
        let (process, pause) = match give(outpost, id, &Order::Freeze {}, &far.descriptors()).await? {
            (Answer::Frozen { pause }, process) => (process, serde_json::to_string(&pause)?),
            (other, _) => return Err(unexpected(&other)),
        };
        // Out of its maker's group, which goes with its maker.
        let quarters = maker.of_copy();
        let known = process.as_ref().and_then(|process| process.try_clone().ok());
        quarters.prepare(known).map_err(io::Error::other)?;
        Ok((process, near, pause, quarters))
    };
    let (process, near, answer, quarters) = frozen.await.inspect_err(|_| outpost.guests.ended(resident))?;
    let _ = writer.write_all(format!("OK\n{answer}\n").as_bytes()).await;
    follow((resident, quarters), process, near, reader, writer, outpost).await
}

/// Has a resident make a VM; the conversation is the VM's.
pub(super) async fn fork(
    resident: &str,
    id: &str,
    reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    outpost.guests.prepare(id)?;
    let made = make_fork(resident, id, outpost).await.inspect_err(|_| outpost.guests.ended(id));
    let (process, near, quarters) = made?;
    let _ = writer.write_all(b"OK\n").await;
    follow((id, quarters), process, near, reader, writer, outpost).await
}

type Made = (Option<OwnedFd>, Near, Arc<Quarters>);

async fn make_fork(resident: &str, id: &str, outpost: &Outpost) -> io::Result<Made> {
    // Each is born where the resident is: one at a time.
    let _turn = outpost.births.lock().await;
    let quarters = outpost.guests.quarters(resident)?;
    let settle = || quarters.prepare(outpost.guests.twin(resident)).map_err(io::Error::other);
    settle()?;
    let uds = socket(id);
    let listener = UnixListener::bind(&uds)?;
    let (near, far): (Near, Far) = orders::streams()?;
    let line = doorman::attend(uds.clone().into())?;
    let [control, events, stderr] = far.descriptors();
    let order = Order::Fork { uds: uds.into() };
    match give(outpost, resident, &order, &[control, events, stderr, listener.as_fd(), line.as_fd()]).await? {
        (Answer::Forked {}, process) => {
            let born_in = quarters.hand_over();
            settle().map(|()| (process, near, born_in))
        }
        (other, _) => Err(unexpected(&other)),
    }
}

/// Has a monitor drop guest memory.
pub(super) async fn discard(
    id: &str,
    ranges: Vec<(u64, u64)>,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    match give(outpost, id, &Order::Discard { ranges }, &[]).await? {
        (Answer::Discarded { bytes }, _) => writer.write_all(format!("OK\n{bytes}\n").as_bytes()).await,
        (other, _) => Err(unexpected(&other)),
    }
}

async fn give(
    outpost: &Outpost,
    id: &str,
    order: &Order,
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<(Answer, Option<OwnedFd>)> {
    let limit = if matches!(order, Order::Save {}) { SAVING } else { PROMPT };
    outpost.guests.orders(id)?.order(order, descriptors, limit).await.map_err(told)
}

fn told(error: OrderError) -> io::Error {
    match error {
        OrderError::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn unexpected(answer: &Answer) -> io::Error {
    io::Error::other(format!("the monitor answered {answer:?}"))
}

/// Passes the output of a process on that a monitor has made, until it is gone.
async fn follow(
    (id, quarters): (&str, Arc<Quarters>),
    process: Option<OwnedFd>,
    near: Near,
    reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    let orders = Rc::new(near.orders);
    let process = process.map(|process| orders::watched(process, Interest::READABLE)).transpose()?.map(Rc::new);
    outpost.guests.started(id, process.clone().map(Life::Twin), Rc::clone(&orders), quarters);
    let lifeline = tokio::task::spawn_local(hold(orders, reader));
    pass_output(Some(near.events), Some(near.stderr), writer).await;
    if let Some(process) = process {
        // It fails only where no process could be waited for at all.
        let _ = process.readable().await;
    }
    lifeline.abort();
    outpost.guests.ended(id);
    Ok(())
}

/// Has a resident write its snapshot, and passes the files on.
pub(super) async fn save(
    resident: &str,
    layers: usize,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    let names = ["state".to_owned(), "memory".to_owned()].into_iter();
    let names: Vec<String> = names.chain((0..layers).map(|index| format!("layer{index}"))).collect();
    let paths: Vec<PathBuf> = names.iter().map(|name| format!("{RUN_DIR}/{resident}/{name}").into()).collect();
    let saved = async {
        let mut files = Vec::new();
        for path in &paths {
            files.push(File::options().read(true).write(true).create_new(true).open(path)?);
        }
        let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        match give(outpost, resident, &Order::Save {}, &descriptors).await? {
            (Answer::Saved { memory_bytes }, _) => Ok((memory_bytes, files)),
            (other, _) => Err(unexpected(&other)),
        }
    };
    let saved = saved.await;
    // Their content lasts as long as they are open.
    for path in &paths {
        let _ = fs::remove_file(path);
    }
    let (memory_bytes, files) = saved?;
    let _ = writer.write_all(format!("OK\n{memory_bytes}\n").as_bytes()).await;
    for file in &files {
        // Whoever receives notices when something is missing.
        if extents::send(writer, file).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Passes both outputs of a process on until they end.
async fn pass_output(
    events: Option<impl AsyncRead + Unpin + 'static>,
    stderr: Option<impl AsyncRead + Unpin + 'static>,
    writer: &mut OwnedWriteHalf,
) {
    let (sender, mut lines) = mpsc::channel::<Vec<u8>>(LINES_WAITING);
    if let Some(events) = events {
        tokio::task::spawn_local(prefix_lines(b'E', events, sender.clone()));
    }
    if let Some(stderr) = stderr {
        tokio::task::spawn_local(prefix_lines(b'S', stderr, sender.clone()));
    }
    drop(sender);
    while let Some(line) = lines.recv().await {
        // A reader that is gone must not keep the monitor's pipes full: its lifeline is closed already.
        let _ = writer.write_all(&line).await;
    }
}

async fn prefix_lines(letter: u8, output: impl AsyncRead + Unpin, to: mpsc::Sender<Vec<u8>>) {
    let mut output = BufReader::new(output);
    while let Ok(Some(mut text)) = line(&mut output, MAX_LINE_BYTES).await {
        text.splice(0..0, [letter, b' ']);
        text.push(b'\n');
        if to.send(text).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn output_is_prefixed_line_by_line() {
        let (sender, mut lines) = mpsc::channel(8);
        prefix_lines(b'S', &b"one\n\ntwo"[..], sender).await;
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.extend(line);
        }
        assert_eq!(all, b"S one\nS \nS two\n");
    }

    /// Watches a shell script in place of a monitor, whose client hangs up when `hang_up` says so; `at_once` lets time pass
    /// as soon as there is nothing else to do.
    fn watched(script: &str, hang_up: bool, at_once: bool) -> (i32, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(at_once).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (child, orders) = start(Command::new("/bin/sh").args(["-c", script])).unwrap();
            orders.configure("{\"mem_mib\":64}\n").unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = far.into_split();
            if hang_up {
                near.shutdown().await.unwrap();
            }
            let status = watch(child, orders, BufReader::new(reader), &mut writer).await;
            drop(writer);
            let mut text = String::new();
            near.read_to_string(&mut text).await.unwrap();
            (status, text)
        })
    }

    #[test]
    fn monitor_gets_its_configuration_and_then_its_lifelines_end() {
        let (status, text) =
            // The configuration is one datagram.
            watched("dd bs=64k count=1 2>/dev/null; cat >/dev/null; echo stopped >&2; exit 7", true, false);
        assert_eq!(text, "E {\"mem_mib\":64}\nS stopped\n");
        assert_eq!(status, 7 << 8);
    }

    #[test]
    fn monitor_that_goes_on_without_its_lifeline_is_killed() {
        assert_eq!(watched("exec sleep 1000", true, true).0, libc::SIGKILL);
    }

    #[test]
    fn monitor_that_closes_its_outputs_and_goes_on_is_killed() {
        assert_eq!(watched("exec sleep 1000 >&- 2>&-", false, true).0, libc::SIGKILL);
    }
}
