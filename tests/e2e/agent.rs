// SPDX-License-Identifier: Apache-2.0
//! The doors of a guest, and the agent's work through them.

use midge::exec::Exec;
use midge::sandbox::{Doors, Sandbox};
use midge_protocol::Door;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::context::Context;
use crate::forks::{small, text_of};
use crate::library::inside;

crate::tests!("agent":
    Guest doors_lead_to_the_host_of_each_copy,
);

fn doors_lead_to_the_host_of_each_copy(context: &Context) {
    inside(context, "doors");
}

/// Asks at a socket and at a port, as any user; what comes back, or how it ended.
const ASK: &str = r#"exec python3 -c '
import socket
def ask(family, place, size):
    with socket.socket(family) as s:
        try:
            s.settimeout(60)
            s.connect(place)
            s.sendall(b"x" * size)
            s.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := s.recv(65536):
                answer += piece
            return answer.decode() or "nobody"
        except ConnectionError:
            return "nobody"
print(ask(socket.AF_UNIX, "/run/midge/ask", 3), ask(socket.AF_INET, ("127.0.0.1", 7101), 3_000_000))
'"#;

/// Says who it is, which door it was, and how many bytes came in, to everybody.
async fn answer(mut doors: Doors, who: String) {
    while let Some((door, mut stream)) = doors.next().await {
        let who = who.clone();
        tokio::spawn(async move {
            let mut question = Vec::new();
            stream.reader.read_to_end(&mut question).await.expect("is asked");
            let text = format!("{who}/{}/{}", door.name(), question.len());
            stream.writer.write_all(text.as_bytes()).await.expect("hears");
            stream.writer.shutdown().await.expect("hears");
        });
    }
}

async fn asked(sandbox: &Sandbox) -> String {
    let running = sandbox.exec(Exec::new(["sh", "-c", ASK])).await.expect("starts");
    let output = running.output().await.expect("ends");
    assert!(output.status.is_success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

pub(crate) async fn doors() {
    let sandbox = small().forkable().start().await.expect("starts");
    assert_eq!(text_of(&sandbox, "ls /run/midge 2>&1 | wc -l").await, "1\n", "no door is open that nobody asked for");
    let both = [Door::Ask, Door::Model];
    let first = tokio::spawn(answer(sandbox.open_doors(&both).await.expect("opens"), "first".to_owned()));
    assert_eq!(asked(&sandbox).await, "first/ask/3 first/model/3000000\n");
    let copy = sandbox.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    assert_eq!(asked(&copy).await, "nobody nobody\n", "a copy has nobody behind its doors");
    let second = tokio::spawn(answer(copy.open_doors(&both).await.expect("opens"), "second".to_owned()));
    let (one, two) = tokio::join!(asked(&sandbox), asked(&copy));
    assert_eq!(
        (one.as_str(), two.as_str()),
        ("first/ask/3 first/model/3000000\n", "second/ask/3 second/model/3000000\n")
    );
    if sandbox.place_name() == "native" {
        first.abort();
        assert!(first.await.is_err_and(|end| end.is_cancelled()));
        assert_eq!(asked(&sandbox).await, "nobody nobody\n", "closed doors");
        let again = sandbox.open_doors(&both).await.expect("opens again");
        let third = tokio::spawn(answer(again, "third".to_owned()));
        assert_eq!(asked(&sandbox).await, "third/ask/3 third/model/3000000\n");
        third.abort();
    }
    second.abort();
    copy.kill().await;
    sandbox.kill().await;
}
