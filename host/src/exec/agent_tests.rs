// SPDX-License-Identifier: Apache-2.0
//! Commands run by the real agent, as processes of this machine.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use super::{Exec, ExecId, Outcome, Output, attach};
use crate::error::Error;
use crate::link::real_agent::Agent;

fn sh(script: &str) -> Exec {
    Exec::new(["sh", "-c", script]).user("0").cwd("/")
}

async fn output(agent: &Agent, exec: Exec) -> Output {
    exec.start(&agent.link).await.unwrap().output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_code_and_surroundings() {
    let agent = Agent::start().await;
    let exec = sh("echo \"$A $0\"; echo err >&2; pwd; exit 7").env("A", "b  c").cwd("/usr");
    let output = output(&agent, exec).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b  c sh\n/usr\n");
    assert_eq!((output.stderr.as_slice(), output.status.outcome), (&b"err\n"[..], Outcome::Code(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_many_times_the_window_comes_back_unchanged() {
    let agent = Agent::start().await;
    let mut running = sh("sleep 0.2; cat").stdin(true).start(&agent.link).await.unwrap();
    let (mut stdin, mut stdout) = (running.stdin.take().unwrap(), running.stdout.take().unwrap());
    let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move { stdin.write_all(&sent).await });
    let mut got = Vec::new();
    stdout.read_to_end(&mut got).await.unwrap();
    writer.await.unwrap().unwrap();
    assert!(got == expected, "{} bytes of {}", got.len(), expected.len());
    assert!(running.wait().await.unwrap().is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_timeouts_end_commands() {
    let agent = Agent::start().await;
    let running = sh("exec sleep 100").start(&agent.link).await.unwrap();
    running.controls().signal(15);
    assert_eq!(running.wait().await.unwrap().outcome, Outcome::Signal(15));
    let limited = sh("echo before; sleep 100").timeout(Duration::from_millis(200));
    let output = output(&agent, limited).await;
    assert!(output.status.timed_out && output.status.shell_code() == 124, "{}", output.status);
    assert_eq!(output.stdout, b"before\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_has_its_size_and_a_new_one() {
    let agent = Agent::start().await;
    let exec = sh("stty size; read x; stty size").tty(33, 101).stdin(true);
    let mut running = exec.start(&agent.link).await.unwrap();
    let (mut stdin, mut stdout) = (running.stdin.take().unwrap(), running.stdout.take().unwrap());
    let mut first = [0; 8];
    stdout.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"33 101\r\n");
    running.controls().resize(10, 20);
    stdin.write_all(b"\n").await.unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("10 20\r\n"), "{rest:?}");
    assert!(running.wait().await.unwrap().is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_has_the_shells_code() {
    let agent = Agent::start().await;
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let error = Exec::new([program]).user("0").start(&agent.link).await.unwrap_err();
        assert!(matches!(error, Error::NotStarted { exit_code, .. } if exit_code == code), "{error}");
        assert!(error.to_string().contains(program), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_client_finds_its_output_again() {
    let agent = Agent::start().await;
    let exec = sh("echo one; read x; echo two; echo err >&2").stdin(true).replay(4096);
    let mut running = exec.start(&agent.link).await.unwrap();
    let id = running.id();
    let mut first = [0; 4];
    running.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    let offset = running.stdout.as_ref().unwrap().offset();
    // Lost as by a crash: nothing says goodbye.
    drop(running);
    let mut again = attach(&agent.link, id, offset, 0).await.unwrap();
    again.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    let output = again.output().await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"two\n"[..], &b"err\n"[..]));
    assert!(attach(&agent.link, ExecId(u64::MAX), 0, 0).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_is_given_up_is_killed() {
    let agent = Agent::start().await;
    let mut running = sh("echo $$; exec sleep 600").start(&agent.link).await.unwrap();
    let mut line = String::new();
    tokio::io::BufReader::new(running.stdout.as_mut().unwrap()).read_line(&mut line).await.unwrap();
    let process = format!("/proc/{}", line.trim());
    assert!(std::path::Path::new(&process).exists(), "{process}");
    drop(running);
    // Far less than it would sleep, far more than a busy machine needs.
    let gone = async {
        while std::path::Path::new(&process).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it went on after its client had gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_do_not_mix() {
    let agent = Agent::start().await;
    let mut tasks = Vec::new();
    for number in 0..20 {
        let link = agent.link.clone();
        tasks.push(tokio::spawn(async move {
            let exec = sh(&format!("for i in 1 2 3; do echo {number}; sleep 0.01; done"));
            (number, exec.start(&link).await.unwrap().output().await.unwrap())
        }));
    }
    for task in tasks {
        let (number, output) = task.await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n").repeat(3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_are_this_machines() {
    let agent = Agent::start().await;
    let stats = agent.link.stats().await.unwrap();
    assert!(stats.memory_total_kib > 0 && stats.memory_available_kib <= stats.memory_total_kib, "{stats:?}");
}
