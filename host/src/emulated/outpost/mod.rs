// SPDX-License-Identifier: Apache-2.0
//! The first process of the emulated host: `midge` again, as PID 1.
//!
//! Flow: mounts, loopback and network card (`system`), then one TCP server; each connection is a conversation as `wire` says
//! (`serve`), about the monitors in one table (`guests`). Powers the machine off when the connection that holds it closes,
//! so that nothing outlives the process that started it. Knows nothing of what a monitor runs.

mod guests;
mod monitors;
mod serve;
pub(crate) mod system;

use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::wire::{HOST_MOUNT, PORT, READY, RUN_DIR, TOKEN_WORD};
use guests::Guests;

/// How long it waits for the connection that holds it.
const HOLD_TIMEOUT: Duration = Duration::from_secs(60);

/// What every conversation needs.
#[derive(Debug)]
struct Outpost {
    token: String,
    guests: Guests,
    /// Who makes a fork has it.
    births: tokio::sync::Mutex<()>,
    /// Somebody holds this machine.
    held: Notify,
    /// Nobody holds it any more.
    released: Notify,
}

/// Whether this process was started as the first of an emulated host: then nothing but [`main`] makes sense.
pub fn is_called() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init")
}

/// Runs the emulated host; returns never. An error is the last line on the console.
pub fn main() -> ! {
    if let Err(err) = run() {
        system::say(&format!("midge-outpost: {err}"));
    }
    system::power_off()
}

fn run() -> io::Result<()> {
    system::mount_kernel()?;
    system::mount_work()?;
    system::network_up("lo", Ipv4Addr::LOCALHOST)?;
    // What QEMU's user network expects its first guest to be.
    system::network_up("eth0", Ipv4Addr::new(10, 0, 2, 15))?;
    std::fs::create_dir_all(RUN_DIR)?;
    let token = read_token(&std::fs::read_to_string("/proc/cmdline")?)?;
    let outpost = Rc::new(Outpost {
        token,
        guests: Guests::default(),
        births: tokio::sync::Mutex::default(),
        held: Notify::new(),
        released: Notify::new(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, listen(outpost))
}

/// The file named on the command line is readable by the user who started QEMU, and by us through 9p.
fn read_token(cmdline: &str) -> io::Result<String> {
    let path = cmdline.split_whitespace().find_map(|word| word.strip_prefix(TOKEN_WORD));
    let path = path.ok_or_else(|| io::Error::other(format!("no {TOKEN_WORD} on the command line")))?;
    std::fs::read_to_string(format!("{HOST_MOUNT}{path}"))
}

async fn listen(outpost: Rc<Outpost>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    tokio::task::spawn_local(guests::reap_orphans(Rc::clone(&outpost)));
    tokio::task::spawn_local(accept(listener, Rc::clone(&outpost)));
    system::say(READY);
    if tokio::time::timeout(HOLD_TIMEOUT, outpost.held.notified()).await.is_err() {
        return Err(io::Error::other("nobody came"));
    }
    outpost.released.notified().await;
    outpost.guests.kill_all();
    Ok(())
}

async fn accept(listener: TcpListener, outpost: Rc<Outpost>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::task::spawn_local(serve::conversation(stream, Rc::clone(&outpost)))),
            Err(err) => {
                system::say(&format!("midge-outpost: accepting a connection: {err}"));
                // Out of file descriptors, most likely: they come back when conversations end.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_looked_for_only_where_the_command_line_says() {
        let err = read_token("console=ttyS0 quiet\n").unwrap_err().to_string();
        assert!(err.contains("midge.token="), "{err}");
        let err = read_token("quiet midge.token=/nowhere/token panic=-1").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }
}
