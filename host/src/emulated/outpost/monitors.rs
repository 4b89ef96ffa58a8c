// SPDX-License-Identifier: Apache-2.0
//! Monitors of the emulated host: started, frozen, forked, written out; and what they say on the way.
//!
//! Every process that is made here has a conversation that carries its output, and ends with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::super::extents;
use super::super::qemu::line;
use super::super::wire::{MAX_LINE_BYTES, RUN_DIR, socket};
use super::Outpost;
use super::serve::Reader;
use crate::orders::{self, Answer, Far, Near, Order, OrderError, Orders, PROMPT, SAVING};

/// Lines of a monitor that wait for a slow reader.
const LINES_WAITING: usize = 64;
/// The monitor, in the initramfs.
const MONITOR: &str = "/midge-vmm";

/// What a monitor ends with.
enum Lifeline {
    Pipe(ChildStdin),
    Orders(Rc<Orders>),
}

impl Lifeline {
    /// Lasts as long as whoever asked for the monitor does.
    async fn hold(self, mut reader: Reader) {
        match self {
            Self::Pipe(mut stdin) => {
                let _ = tokio::io::copy_buf(&mut reader, &mut stdin).await;
            }
            Self::Orders(orders) => {
                let _ = tokio::io::copy_buf(&mut reader, &mut tokio::io::sink()).await;
                orders.close();
            }
        }
    }
}

/// Starts a monitor; the conversation ends with its wait status.
pub(super) async fn spawn(
    id: &str,
    config: &Value,
    takes_orders: bool,
    reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    outpost.guests.prepare(id)?;
    let (mut child, lifeline) = start(config, takes_orders).await.inspect_err(|_| outpost.guests.ended(id))?;
    let orders = match &lifeline {
        Lifeline::Orders(orders) => Some(Rc::clone(orders)),
        Lifeline::Pipe(_) => None,
    };
    outpost.guests.started(id, child.id(), orders);
    let _ = writer.write_all(b"OK\n").await;
    let lifeline = tokio::task::spawn_local(lifeline.hold(reader));
    pass_output(child.stdout.take(), child.stderr.take(), writer).await;
    let status = child.wait().await.map_or(libc::SIGKILL, ExitStatusExt::into_raw);
    lifeline.abort();
    outpost.guests.ended(id);
    let _ = writer.write_all(format!("X {status}\n").as_bytes()).await;
    Ok(())
}

/// Starts the program and hands it its configuration.
async fn start(config: &Value, takes_orders: bool) -> io::Result<(Child, Lifeline)> {
    let (orders, stdin) = if takes_orders {
        let (orders, far) = Orders::pair()?;
        (Some(Rc::new(orders)), Stdio::from(far))
    } else {
        (None, Stdio::piped())
    };
    let mut child = Command::new(MONITOR)
        .args(["--config", "-"])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let text = format!("{config}\n");
    // A monitor that refuses its configuration may have ended already; its own words say why.
    let lifeline = match (orders, child.stdin.take()) {
        (Some(orders), _) => {
            let _ = orders.configure(&text);
            Lifeline::Orders(orders)
        }
        (None, Some(mut stdin)) => {
            let _ = stdin.write_all(text.as_bytes()).await;
            Lifeline::Pipe(stdin)
        }
        (None, None) => return Err(io::ErrorKind::BrokenPipe.into()),
    };
    Ok((child, lifeline))
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
        match give(outpost, id, &Order::Freeze {}, &far.descriptors()).await? {
            Answer::Frozen { pid, pause } => Ok((pid, near, serde_json::to_string(&pause)?)),
            other => Err(unexpected(&other)),
        }
    };
    let (pid, near, answer) = frozen.await.inspect_err(|_| outpost.guests.ended(resident))?;
    let _ = writer.write_all(format!("OK\n{answer}\n").as_bytes()).await;
    follow(resident, pid, near, reader, writer, outpost).await
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
    let (pid, near) = made?;
    let _ = writer.write_all(b"OK\n").await;
    follow(id, pid, near, reader, writer, outpost).await
}

async fn make_fork(resident: &str, id: &str, outpost: &Outpost) -> io::Result<(u32, Near)> {
    let uds = socket(id);
    let listener = UnixListener::bind(&uds)?;
    let (near, far): (Near, Far) = orders::streams()?;
    let [control, events, stderr] = far.descriptors();
    let order = Order::Fork { uds: uds.into() };
    match give(outpost, resident, &order, &[control, events, stderr, listener.as_fd()]).await? {
        Answer::Forked { pid } => Ok((pid, near)),
        other => Err(unexpected(&other)),
    }
}

async fn give(
    outpost: &Outpost,
    id: &str,
    order: &Order,
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<Answer> {
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
    id: &str,
    pid: u32,
    near: Near,
    reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    let orders = Rc::new(near.orders);
    outpost.guests.started(id, Some(pid), Some(Rc::clone(&orders)));
    let lifeline = tokio::task::spawn_local(Lifeline::Orders(orders).hold(reader));
    pass_output(Some(near.events), Some(near.stderr), writer).await;
    gone(pid).await;
    lifeline.abort();
    outpost.guests.ended(id);
    Ok(())
}

/// Waits until a process that is no child of ours is gone.
async fn gone(pid: u32) {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pidfd = raw.and_then(|raw| pidfd_open(raw, PidfdFlags::empty()).ok());
    if let Some(pidfd) = pidfd.and_then(|pidfd| orders::watched(pidfd, Interest::READABLE).ok()) {
        let _ = pidfd.readable().await;
    }
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
            Answer::Saved { memory_bytes } => Ok((memory_bytes, files)),
            other => Err(unexpected(&other)),
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
}
