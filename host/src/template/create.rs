// SPDX-License-Identifier: Apache-2.0
//! How a template comes about: a sandbox is started, set up, warmed, brought to a stand, and copied to disk.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::store::{Draft, Record, VERSION};
use super::{Loading, Template, failed, store};
use crate::error::Error;
use crate::exec::{Exec, Running};
use crate::monitor::{Place, VmmConfig};
use crate::run_dir::new_id;
use crate::sandbox::{Builder, Sandbox};
use crate::timeline::Recorder;
use crate::workspace::Notes;

/// How far behind the world's the wall clock of a template is. Generators of random numbers that programs keep in
/// memory renew themselves after a time (OpenSSL's after an hour at most): in every fork it has passed.
const BEHIND: Duration = Duration::from_secs(2 * 3600);
/// How long a warm command may take until it says that it is ready.
const WARM_MAX: Duration = Duration::from_secs(300);
/// Longest line with which a warm command says so, in bytes.
const WARM_LINE_MAX_BYTES: u64 = 4096;
/// What a warm command may print before it waits for a reader, in bytes.
const WARM_OUTPUT_BYTES: u32 = 1 << 20;
/// Longest wait for the guest to drop the conversation of a warm command.
const SETTLE: Duration = Duration::from_millis(20);

/// Most parts of a working set that a monitor takes.
const WORKING_SET_PARTS_MAX: usize = 2048;
/// Most memory in a working set that a monitor takes, in bytes; each fork has its own copy of it.
const WORKING_SET_MAX_BYTES: u64 = 16 << 20;

/// Longest rehearsal.
const REHEARSAL_MAX: Duration = Duration::from_secs(10);

/// Receives what a command of the plan prints.
pub type OnOutput = Box<dyn FnMut(&[u8]) + Send>;

/// Receives what of a workspace is not in the guest as it is here.
pub type OnPacked = Box<dyn FnOnce(&Notes) + Send>;

/// What is done in a template before it is kept.
#[derive(Default)]
pub struct Plan {
    /// A shell command that is run as root, once; it must succeed. It begins in the workspace, where there is one.
    pub setup: Option<String>,
    /// A shell command that runs in every fork from then on, as the sandbox's user. It counts as ready when it has
    /// printed a line; until a fork is somebody of its own it stands still.
    pub warm: Option<String>,
    /// Told what was noticed when the workspace was packed, before a command runs.
    pub on_packed: Option<OnPacked>,
    /// Told what `setup` prints, and the first line of `warm`.
    pub on_output: Option<OnOutput>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("setup", &self.setup).field("warm", &self.warm).finish_non_exhaustive()
    }
}

impl Template {
    /// Makes a template called `name` of what `builder` describes. It appears whole or not at all. A workspace is kept as it
    /// was packed: [`Sandbox::workspace`] of a fork tells what the plan and the fork changed since.
    ///
    /// # Errors
    /// [`Error::Prepare`] when there is one of that name, [`Error::Setting`] for a console, which a template cannot have,
    /// [`Error::Template`] when a command of the plan fails, and what starting a sandbox and writing its memory can meet.
    pub async fn create(name: &str, builder: Builder, mut plan: Plan) -> Result<Self, Error> {
        let store = store()?;
        let draft = store.begin(name).map_err(failed)?;
        let image = builder.image_name();
        let sandbox = builder.for_template(BEHIND, draft.workspace_image())?.start().await?;
        if let (Some(on_packed), Some(workspace)) = (plan.on_packed.take(), sandbox.workspace()) {
            on_packed(&workspace.manifest().notes);
        }
        if let Some(command) = &plan.setup {
            set_up(&sandbox, command, &mut plan.on_output).await?;
        }
        if let Some(command) = &plan.warm {
            warm_up(&sandbox, command, &mut plan.on_output).await?;
        }
        rehearse(&sandbox).await;
        let (resident, pause) = sandbox.freeze_for_good(&new_id()).await?;
        let (made, place) = (sandbox.made(), resident.place().clone());
        sandbox.kill().await;
        let memory_bytes = resident.save(&draft.files(made.config())).await?;
        drop(resident);
        if let Some(manifest) = made.workspace() {
            draft.keep_workspace(manifest).map_err(failed)?;
        }
        let (env, user) = made.defaults_as_text();
        let made_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = Record {
            version: VERSION,
            name: name.to_owned(),
            id: String::new(),
            made_s,
            place: place.name().to_owned(),
            agent_version: made.agent_version().to_owned(),
            config: made.config().clone(),
            image,
            setup: plan.setup,
            warm: plan.warm,
            user,
            env,
            workspace: made.workspace().map(|manifest| manifest.dir.to_string_lossy().into_owned()),
            memory_bytes,
            pause,
            working_set: Vec::new(),
            foundations: Vec::new(),
        };
        let mut template = Self { store, record };
        template.record.working_set = template.try_out(&draft, &place).await?;
        template.record = draft.publish(template.record).map_err(failed)?;
        Ok(template)
    }

    /// Starts a sandbox of the draft, as a user will, and has it do what each of them does first. Returns the memory that it
    /// has written to. Nobody's sandbox is watched for that: what one does would be seen in the speed of the others.
    async fn try_out(&self, draft: &Draft, place: &Place) -> Result<Vec<(u64, u64)>, Error> {
        let config = VmmConfig { track_writes: true, forkable: false, ..draft.config(&self.record) };
        let sandbox = self.start_as(config, place, Loading(None), Recorder::new()).await?;
        rehearse(&sandbox).await;
        let end = sandbox.kill().await;
        Ok(working_set(&end.written))
    }
}

/// What of the memory that was written to is copied beforehand: as much as a monitor takes.
fn working_set(written: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut bytes = 0_u64;
    let fits = |(_, len): &&(u64, u64)| {
        bytes = bytes.saturating_add(*len);
        bytes <= WORKING_SET_MAX_BYTES
    };
    written.iter().take(WORKING_SET_PARTS_MAX).take_while(fits).copied().collect()
}

fn tell(on_output: &mut Option<OnOutput>, bytes: &[u8]) {
    if let Some(on_output) = on_output {
        on_output(bytes);
    }
}

async fn set_up(sandbox: &Sandbox, command: &str, on_output: &mut Option<OnOutput>) -> Result<(), Error> {
    let script = format!("{{ {command}\n}} 2>&1");
    let exec = Exec::new(["/bin/sh", "-c", &script]).user("root");
    let exec = if sandbox.workspace().is_some() { exec } else { exec.cwd("/root") };
    let mut running = sandbox.exec(exec).await?;
    let mut buffer = [0; 8192];
    if let Some(stdout) = &mut running.stdout {
        while let Ok(got @ 1..) = stdout.read(&mut buffer).await {
            tell(on_output, &buffer[..got]);
        }
    }
    let status = running.wait().await?;
    if status.is_success() {
        return Ok(());
    }
    Err(Error::Template { step: "setup", problem: format!("ended with {}", status.shell_code()) })
}

/// Runs a command that does nothing, so that what a first command needs is in the template's memory and not read from disk
/// in every fork: its way through agent and kernel, the loader, the C library. An image may lack it, which does no harm.
async fn rehearse(sandbox: &Sandbox) {
    if let Ok(running) = sandbox.exec(Exec::new(["true"]).timeout(REHEARSAL_MAX)).await {
        // How it ended says nothing about the template.
        let _ = running.wait().await;
    }
}

/// Starts the command and lets go of it once it has said that it is ready.
async fn warm_up(sandbox: &Sandbox, command: &str, on_output: &mut Option<OnOutput>) -> Result<(), Error> {
    let mut running: Running = sandbox.exec(Exec::new(["/bin/sh", "-c", command]).replay(WARM_OUTPUT_BYTES)).await?;
    let mut line = Vec::new();
    let said = async {
        match &mut running.stdout {
            Some(stdout) => BufReader::new(stdout.take(WARM_LINE_MAX_BYTES)).read_until(b'\n', &mut line).await,
            None => Ok(0),
        }
    };
    let said = tokio::time::timeout(WARM_MAX, said).await;
    tell(on_output, &line);
    let problem = match said {
        Ok(Ok(_)) if line.last() == Some(&b'\n') => {
            // Its conversation ends here; the command does not.
            drop(running);
            tokio::time::sleep(SETTLE).await;
            return Ok(());
        }
        Ok(Ok(_)) => "ended, or closed its output, before it had printed a line".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("printed no line within {} s", WARM_MAX.as_secs()),
    };
    Err(Error::Template { step: "warm", problem })
}
