// SPDX-License-Identifier: Apache-2.0
//! The one place that starts processes and takes ended ones from the process table: the programs of commands, and as
//! PID 1 every orphan. A process id is used only under the lock under which it would be given up.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::fd::Bell;
use crate::sys::process::{Ended, kill, reap, wait_any};
use crate::sys::spawn::{Program, Step, spawn};

/// Stack of the reaping thread, in bytes.
const STACK_BYTES: usize = 64 * 1024;

/// A started program. Its end is told here, once.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: libc::pid_t,
    started: Instant,
    notice: Arc<Notice>,
}

#[derive(Debug)]
struct Notice {
    bell: Arc<Bell>,
    ended: Mutex<Option<(Ended, Duration)>>,
}

#[derive(Debug, Default)]
struct Reaper {
    table: Mutex<Table>,
    started: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    running: BTreeMap<libc::pid_t, (Instant, Arc<Notice>)>,
    /// Processes started so far: tells a wait that found none whether one came since.
    starts: u64,
}

fn reaper() -> io::Result<&'static Reaper> {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    static THREAD: Mutex<bool> = Mutex::new(false);
    let reaper = REAPER.get_or_init(Reaper::default);
    let mut has_thread = lock(&THREAD);
    if !*has_thread {
        thread::Builder::new().name("reaper".into()).stack_size(STACK_BYTES).spawn(|| reaper.run())?;
        *has_thread = true;
    }
    Ok(reaper)
}

/// A lock whose data stays whole whatever happens to a thread that holds it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts `program`; `bell` rings when it has ended.
pub(crate) fn start(program: &Program, bell: Arc<Bell>) -> Result<Child, (Step, io::Error)> {
    let reaper = reaper().map_err(|error| (Step::Clone, error))?;
    let notice = Arc::new(Notice { bell, ended: Mutex::new(None) });
    let mut table = lock(&reaper.table);
    let started = Instant::now();
    let result = spawn(program);
    // Even a program that did not start leaves a process to take.
    table.starts += 1;
    reaper.started.notify_one();
    let pid = result?;
    table.running.insert(pid, (started, Arc::clone(&notice)));
    Ok(Child { pid, started, notice })
}

impl Child {
    /// How it ended and after what time, once it has.
    pub(crate) fn ended(&self) -> Option<(Ended, Duration)> {
        *lock(&self.notice.ended)
    }

    /// When it was started.
    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    /// Sends a signal to its process group, or to `group` of its session. Does nothing once it has ended.
    pub(crate) fn signal_group(&self, group: Option<libc::pid_t>, signal: libc::c_int) -> io::Result<()> {
        let Ok(reaper) = reaper() else { return Ok(()) };
        let table = lock(&reaper.table);
        if table.running.contains_key(&self.pid) { kill(-group.unwrap_or(self.pid), signal) } else { Ok(()) }
    }
}

impl Reaper {
    fn run(&self) {
        loop {
            let seen = lock(&self.table).starts;
            match wait_any() {
                Ok(Some(pid)) => self.take(pid),
                // No process means no descendant that could become an orphan of ours: the next one is started here.
                Ok(None) => {
                    let table = lock(&self.table);
                    drop(self.started.wait_while(table, |table| table.starts == seen));
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn take(&self, pid: libc::pid_t) {
        let mut table = lock(&self.table);
        let Ok(ended) = reap(pid) else { return };
        if let Some((started, notice)) = table.running.remove(&pid) {
            *lock(&notice.ended) = Some((ended, started.elapsed()));
            notice.bell.ring();
        }
    }
}
