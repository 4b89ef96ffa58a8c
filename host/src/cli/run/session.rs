// SPDX-License-Identifier: Apache-2.0
//! One run from the first check to the last word, without regard to signals: whoever drops it ends it.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use midge::agent::{self, Life};
use midge::error::Error;
use midge::exec::{Exec, ExitStatus, Running};
use midge::monitor::events::printable;
use midge::progress::{Bar, Silent, Watch};
use midge::sandbox::{Sandbox, Where};
use midge::template::Template;
use midge::workspace::review::notes;
use midge::workspace::{ApplyOptions, PackLimits};
use tokio::sync::mpsc;

use super::args::{Mode, RunArgs};
use super::guarded::{self, Guarded};
use super::input::Input;
use super::output::{Captured, Copied, capture, copy};
use super::report::Report;
use super::review::{Asked, review_aside, unapplied};
use super::signals::Target;
use super::terminal::{self, Raw};
use crate::cli::agent::args::Approve;
use crate::cli::fail::say;

/// Console lines that may wait for a slow terminal; more are dropped.
const CONSOLE_LINES: usize = 4096;
/// How long the console's last lines may take to be printed.
const LAST_LINES: Duration = Duration::from_secs(2);
/// What a shell reports for a command that wrote into a closed pipe.
const PIPE_CLOSED: u8 = 128 + SIGPIPE;
const SIGPIPE: u8 = 13;
const SIGKILL: u8 = 9;
/// How long a command may go on after its output's reader left.
const AFTER_READER_LEFT: Duration = Duration::from_secs(2);

pub(super) struct Session<'a> {
    pub(super) args: RunArgs,
    pub(super) target: &'a Target,
    /// Held by everything of the run to its end.
    pub(super) life: Life,
}

impl Session<'_> {
    /// Does it all and gives the exit code.
    pub(super) async fn run(self, report: &mut Report) -> Result<u8, Error> {
        let asked = guarded::Asked::of(&self.args).await?;
        let (console, printer) = self.args.console.then(print_console).unzip();
        let sandbox = match &self.args.template {
            Some(name) => {
                let template = Template::open(name)?;
                self.args.check_workspace(template.record().workspace.is_some())?;
                template
                    .start(self.place(), asked.as_ref().is_some_and(|asked| asked.policy.children().allowed))
                    .await?
            }
            None => {
                self.args.check_workspace(false)?;
                self.builder(console, asked.as_ref()).start().await?
            }
        };
        let sandbox = Arc::new(sandbox);
        report.started(&sandbox);
        self.warn(&sandbox);
        let timed = sandbox.recorder();
        let allowed = asked.as_ref().map(|asked| asked.policy.workspace().clone());
        let guarded = match asked {
            Some(asked) => Some(Guarded::new(asked, &self.args, self.place(), &sandbox, self.life.clone()).await?),
            None => None,
        };
        let finished = match &guarded {
            Some(guarded) => guarded.during(self.command(&sandbox, Some(guarded), report)).await,
            None => self.command(&sandbox, None, report).await,
        };
        self.target.set(None);
        timed.note("exit");
        let closed = match (guarded, &finished) {
            (Some(guarded), Ok(code)) => guarded.end(*code, report, self.args.json).await,
            _ => Ok(()),
        };
        let after = match &finished {
            Ok(_) => self.bring_back(&sandbox, allowed.as_ref(), report).await,
            Err(_) => Ok(()),
        };
        agent::end(sandbox).await;
        if let Some(printer) = printer {
            // It ends with the monitor, whose lines it prints; one that does not go away has been complained of.
            let _ = tokio::time::timeout(LAST_LINES, printer).await;
        }
        let timeline = timed.timeline();
        if self.args.timeline {
            print(&timeline.to_string());
        }
        report.timeline(timeline);
        let code = finished?;
        closed.and(after).map(|()| code)
    }

    fn place(&self) -> Where {
        Where::Auto.allowing(self.args.allow_missing.clone()).sharing(self.args.share())
    }

    fn builder(
        &self,
        console: Option<mpsc::Sender<String>>,
        asked: Option<&guarded::Asked>,
    ) -> midge::sandbox::Builder {
        let args = &self.args;
        let watch: Arc<dyn Watch> = if args.json { Arc::new(Silent) } else { Arc::new(Bar::new()) };
        let mut builder = Sandbox::builder().watch(watch).place(self.place());
        builder = match asked.map(|asked| (asked.policy.limits(), asked.policy.children())) {
            None => builder.mem_mib(args.mem).cpus(args.cpus).disk_mib(args.disk),
            Some((limits, children)) => {
                let builder = if children.allowed { builder.forkable() } else { builder };
                let builder = builder.mem_mib(args.mem.min(limits.memory_mib)).cpus(args.cpus.min(limits.vcpus));
                builder.disk_mib(args.disk.min(limits.disk_mib))
            }
        };
        if let Some(image) = &args.image {
            builder = builder.image(image);
        }
        if let Some(kernel) = &args.kernel {
            builder = builder.kernel(kernel);
        }
        if let Some(dir) = args.workspace.as_ref().and_then(|workspace| workspace.dir.as_ref()) {
            let limits = PackLimits { skip_unreadable: args.skip_unreadable, ..PackLimits::default() };
            builder = builder.workspace(dir).pack_limits(limits);
        }
        if let Some(seconds) = args.boot_timeout {
            builder = builder.boot_timeout(Duration::from_secs(seconds));
        }
        if let Some(console) = console {
            builder = builder.console(console);
        }
        builder
    }

    /// Tells what of the workspace the guest does not see as it is.
    fn warn(&self, sandbox: &Sandbox) {
        if let Some(workspace) = sandbox.workspace().filter(|_| !self.args.json) {
            notes(&workspace.manifest().notes).lines().for_each(say);
        }
    }

    /// Runs the command with its streams, and gives the exit code.
    async fn command(&self, sandbox: &Sandbox, guarded: Option<&Guarded>, report: &mut Report) -> Result<u8, Error> {
        let limit = self.args.timeout.into_iter().chain(guarded.and_then(Guarded::wall)).min();
        let running = sandbox.exec(self.exec(guarded.is_some(), limit)).await?;
        self.target.set(Some(running.controls()));
        let raw = self.args.tty.then(Raw::enter).flatten();
        let resizes = self.args.tty.then(|| tokio::spawn(follow_size(running.controls())));
        let status = if self.args.json {
            let (status, stdout, stderr) = captured(running).await;
            report.output(stdout, stderr);
            status.map(|status| (status, false))
        } else {
            passed_through(running).await
        };
        drop(raw);
        if let Some(resizes) = resizes {
            resizes.abort();
        }
        let (status, reader_left) = status?;
        if status.timed_out
            && let Some(limit) = limit
        {
            say(&format!("timed out after {} s: the command and all it had started were killed", limit.as_secs_f64()));
        }
        let code = if reader_left { PIPE_CLOSED } else { status.shell_code() };
        report.status(&status);
        Ok(code)
    }

    fn exec(&self, has_doors: bool, limit: Option<Duration>) -> Exec {
        let args = &self.args;
        let mut exec = Exec::new(&args.command).stdin(args.approve != Approve::Ask);
        if has_doors {
            exec = agent::with_doors(exec);
        }
        for (name, value) in &args.env {
            exec = exec.env(name, value);
        }
        if let Some(user) = &args.user {
            exec = exec.user(user);
        }
        if let Some(limit) = limit {
            exec = exec.timeout(limit);
        }
        if args.tty {
            let (rows, columns) = terminal::size();
            exec = exec.tty(rows, columns);
            if let Some(term) = std::env::var_os("TERM") {
                exec = exec.default_env("TERM", term);
            }
        }
        exec
    }

    /// Shows what changed in the workspace, and applies what is to be applied.
    async fn bring_back(
        &self,
        sandbox: &Sandbox,
        allowed: Option<&midge_policy::Workspace>,
        report: &mut Report,
    ) -> Result<(), Error> {
        let Some(workspace) = sandbox.workspace() else { return Ok(()) };
        let mode = allowed.map_or(self.args.mode(), |allowed| self.args.mode().at_most(allowed.mode));
        report.workspace(mode, &workspace.manifest().notes);
        if mode == Mode::Discard {
            return Ok(());
        }
        let mut changes = workspace.collect().await?;
        changes.keep(|path| allowed.is_some_and(|allowed| allowed.keeps(path.as_bytes()).is_some()));
        sandbox.recorder().note("changes_collected");
        let dir = workspace.dir().to_owned();
        let options = ApplyOptions {
            allow_git_internals: self.args.allow_git_internals,
            allow_outside_links: self.args.allow_outside_links,
            ..ApplyOptions::default()
        };
        let again = match &self.args.template {
            Some(_) => ":apply".to_owned(),
            None => format!("{}:apply", dir.display()),
        };
        let next = unapplied(self.args.mode(), mode, &again);
        let asked = Asked { mode, options, next, quiet: self.args.json };
        report.reviewed(review_aside(changes, dir, asked).await?);
        Ok(())
    }
}

/// Prints console lines to standard error until the monitor is gone.
fn print_console() -> (mpsc::Sender<String>, tokio::task::JoinHandle<()>) {
    let (sender, mut lines) = mpsc::channel::<String>(CONSOLE_LINES);
    let printer = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            print(&format!("{}\n", printable(&line)));
        }
    });
    (sender, printer)
}

/// Prints to standard error, whose reader may have left.
fn print(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Tells the command's terminal whenever ours changes its size.
async fn follow_size(controls: midge::exec::Controls) {
    let Ok(mut changes) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change()) else {
        return;
    };
    while changes.recv().await.is_some() {
        let (rows, columns) = terminal::size();
        controls.resize(rows, columns);
    }
}

/// Connects the command's streams with ours; also tells whether the reader of our output left.
async fn passed_through(mut running: Running) -> Result<(ExitStatus, bool), Error> {
    let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
    let controls = running.controls();
    let feeding = async {
        let Some(stdin) = stdin else { return };
        match Input::start() {
            Ok(mut input) => input.copy_to(stdin).await,
            Err(error) => say(&format!("reading standard input: {error}; the command gets none")),
        }
    };
    let printing = async {
        let Some(stdout) = stdout else { return false };
        let copied = copy(stdout, io::stdout()).await;
        match copied {
            Copied::All => return false,
            Copied::ReaderLeft => {}
            Copied::Failed(kind) => say(&format!("writing standard output: {kind}; the command is ended")),
        }
        controls.signal(SIGPIPE);
        true
    };
    let complaining = async {
        if let Some(stderr) = stderr {
            copy(stderr, io::stderr()).await;
        }
    };
    finish(running, feeding, printing, complaining).await
}

/// Waits for the command and its output; input ends with the command. A command whose reader left gets little time.
async fn finish(
    running: Running,
    feeding: impl Future<Output = ()>,
    printing: impl Future<Output = bool>,
    complaining: impl Future<Output = ()>,
) -> Result<(ExitStatus, bool), Error> {
    let controls = running.controls();
    let waiting = running.wait();
    let mut late = std::pin::pin!(tokio::time::sleep(Duration::MAX));
    tokio::pin!(waiting, feeding, printing, complaining);
    let (mut fed, mut printed, mut complained, mut status) = (false, None, false, None);
    loop {
        tokio::select! {
            () = &mut feeding, if !fed => fed = true,
            reader_left = &mut printing, if printed.is_none() => {
                printed = Some(reader_left);
                if reader_left {
                    late.set(tokio::time::sleep(AFTER_READER_LEFT));
                }
            }
            () = &mut complaining, if !complained => complained = true,
            ended = &mut waiting, if status.is_none() => status = Some(ended?),
            () = &mut late, if printed == Some(true) && status.is_none() => {
                controls.signal(SIGKILL);
                late.set(tokio::time::sleep(AFTER_READER_LEFT));
            }
        }
        if let (Some(reader_left), true, Some(status)) = (printed, complained, &status) {
            return Ok((status.clone(), reader_left));
        }
    }
}

/// For `--json`: our standard input goes in, the output is kept.
async fn captured(mut running: Running) -> (Result<ExitStatus, Error>, Captured, Captured) {
    let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
    let feeding = async {
        if let (Some(stdin), Ok(mut input)) = (stdin, Input::start()) {
            input.copy_to(stdin).await;
        }
        std::future::pending::<()>().await;
    };
    let keep = async |stream| match stream {
        Some(stream) => capture(stream).await,
        None => Captured::default(),
    };
    let all = async { tokio::join!(running.wait(), keep(stdout), keep(stderr)) };
    tokio::select! {
        all = all => all,
        () = feeding => (Err(Error::Local { during: "reading standard input", source: io::ErrorKind::Other.into() }), Captured::default(), Captured::default()),
    }
}
