// SPDX-License-Identifier: Apache-2.0
//! Sandboxes of several processes that talk to each other, as far as the policies of both name the other and no further.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::context::{Context, Outcome, Running};
use crate::directed::Directed;

crate::tests!("peers":
    Guest two_sandboxes_talk_as_far_as_both_policies_say,
    Guest two_agents_exchange_messages_by_their_tools,
    Guest child_talks_to_its_parents_peer_under_a_name_of_its_own,
);

const LIMIT: Duration = Duration::from_secs(240);

/// What both begin with: lines to and from the door.
const DOOR: &str = r#"
import json, socket, threading, time
class Door:
    def __init__(self, first):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(100)
        self.socket.connect("/run/midge/peer")
        self.file = self.socket.makefile("rwb", 0)
        self.say(first)
    def say(self, what):
        self.file.write(json.dumps(what).encode() + b"\n")
    def hear(self):
        return json.loads(self.file.readline())
def mailbox():
    door = Door({"open": "mailbox"})
    assert door.hear() == {"event": "opened"}
    return door
def send(door, to, text):
    door.say({"id": 1, "to": to, "text": text})
    return door.hear()
def tunnel(to, port):
    door = Door({"open": "tunnel", "to": to, "port": port})
    heard = door.hear()
    return door, heard.get("why", heard["event"])
"#;

/// Serves a page, answers one message, and leaves at the next.
const RIGHT: &str = r#"
import http.server
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = bytes(range(256)) * 4096
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *words):
        pass
pages = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Pages)
threading.Thread(target=pages.serve_forever, daemon=True).start()
door = mailbox()
print(door.hear())
print(send(door, "left", "who asks?"))
print(tunnel("left", 8000)[1])
print(door.hear())
"#;

const LEFT: &str = r#"
door = mailbox()
until = time.time() + 100
while (sent := send(door, "right", "are you there?"))["event"] == "refused" and time.time() < until:
    assert "right is not there" in sent["why"], sent
    time.sleep(0.2)
print(sent)
print(door.hear())
for to, port in [("right", 8001), ("right", 22), ("right", 7102), ("nobody", 8000)]:
    print(tunnel(to, port)[1])
page = tunnel("right", 8000)
print(page[1])
page[0].file.write(b"GET / HTTP/1.0\r\n\r\n")
page[0].socket.shutdown(socket.SHUT_WR)
answer = b""
while piece := page[0].file.read(65536):
    answer += piece
head, body = answer.split(b"\r\n\r\n", 1)
print(head.split(b"\r\n")[0].decode(), len(body), body == bytes(range(256)) * 4096)
idle = tunnel("right", 8000)
print(idle[1])
print(send(door, "right", "go now"))
print(idle[0].file.read())
"#;

/// What a sandbox is started with, and where its transcript is.
struct Side {
    dir: tempfile::TempDir,
    running: Running,
}

impl Side {
    fn start(context: &Context, name: &str, peers: &str, script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("policy.toml");
        let policy = format!("version = 1\n[limits]\nmemory_mib = 192\ndisk_mib = 128\n{peers}");
        std::fs::write(&file, policy).expect("is written");
        let script = format!("{DOOR}{script}");
        let words = ["run", "--policy", &file.display().to_string(), "--name", name, "--", "python3", "-c", &script]
            .map(str::to_owned);
        let running = context.midge(words).env("MIDGE_STATE", dir.path()).limit(LIMIT).start();
        Self { dir, running }
    }

    /// Another of that name is refused before anything else is looked at.
    fn has_its_name_to_itself(&self, context: &Context, name: &str) {
        let policy = self.dir.path().join("policy.toml").display().to_string();
        let words = ["run", "--policy", &policy, "--name", name, "--kernel", "/nonexistent/kernel", "--", "true"];
        let holder = format!("process {} has one of that name", self.running.child.id());
        context.midge(words).run().code(125).says(&[&format!("naming the sandbox {name}"), &holder]);
    }

    /// Waits for its good end; what it printed, and its transcript.
    fn ended(self, context: &Context) -> (Outcome, String) {
        let outcome = self.running.finish().code(0);
        let runs = std::fs::read_dir(self.dir.path().join("runs")).expect("transcripts");
        let [one] = &runs.map(|run| run.expect("a transcript").path()).collect::<Vec<_>>()[..] else {
            panic!("one transcript")
        };
        context.midge(["log", "verify", &one.display().to_string()]).run().code(0);
        let shown = context.midge(["log", "show", &one.display().to_string()]).run().code(0).text();
        (outcome, shown)
    }
}

/// What a process of the same user that has no sandbox hears.
fn claims(socket: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    stream.write_all(line.as_bytes()).expect("is taken");
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("is text");
    heard
}

/// Waits until a sandbox can be called by its name; where that is.
fn called(context: &Context, name: &str) -> PathBuf {
    let socket = context.runtime.path().join("midge").join(format!("{name}.peer"));
    let start = std::time::Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < LIMIT, "it has no name");
        std::thread::sleep(Duration::from_millis(20));
    }
    socket
}

fn two_sandboxes_talk_as_far_as_both_policies_say(context: &Context) {
    let left = Side::start(
        context,
        "left",
        "[[peers]]\nname = \"right\"\nports = [8000, 8001, 7102]\nmessages = true\n[[peers]]\nname = \"nobody\"\nports = [8000]\n",
        LEFT,
    );
    let right = Side::start(context, "right", "[[peers]]\nname = \"left\"\nmessages = true\n", RIGHT);
    let socket = called(context, "right");
    let stranger = claims(&socket, "{\"call\":\"message\",\"from\":\"stranger\",\"bytes\":1}\n");
    assert_eq!(stranger, "{\"answer\":\"unnamed\"}\n");
    assert_eq!(claims(&socket, "{\"call\":\"anything\"}\n"), "");
    right.has_its_name_to_itself(context, "right");

    let (left, asked) = left.ended(context);
    let (right, answered) = right.ended(context);
    let expected = [
        "{'event': 'sent', 'id': 1}",
        "{'event': 'message', 'from': 'right', 'text': 'who asks?'}",
        "that port of right cannot be reached: nobody listens there",
        "the policy of this sandbox does not allow a tunnel to port 22 of right",
        "that port of right cannot be reached: it is a door to that sandbox's host",
        "nobody is not there, or its policy does not name left",
        "opened",
        "HTTP/1.0 200 OK 1048576 True",
        "opened",
        "{'event': 'sent', 'id': 1}",
        // Its guest is gone, and so is the tunnel.
        "b''\n",
    ];
    assert_eq!(left.text(), expected.join("\n"), "{left}");
    let expected = [
        "{'event': 'message', 'from': 'left', 'text': 'are you there?'}",
        "{'event': 'sent', 'id': 1}",
        "the policy of this sandbox does not allow a tunnel to port 8000 of left",
        "{'event': 'message', 'from': 'left', 'text': 'go now'}\n",
    ];
    assert_eq!(right.text(), expected.join("\n"), "{right}");
    for (shown, whose) in [
        (&asked, ["right", "opened", "to right", "from right"]),
        (&answered, ["left", "opened from there", "from left", "to left"]),
    ] {
        let [peer, opened, went, came] = whose;
        for part in [
            format!("message {went}"),
            format!("message {came}"),
            format!(" {peer}: tunnel to port 8000 {opened}"),
            format!("{peer} closed: "),
        ] {
            assert!(shown.contains(&part), "`{part}` is not in:\n{shown}");
        }
        assert_eq!(shown.matches(" closed: ").count(), 2, "both tunnels have an end:\n{shown}");
        assert!(shown.contains("go now"), "{shown}");
    }
    context.assert_nothing_left();
}

/// An agent that others call `name`, which may exchange messages with `peer` and nobody else.
fn agent(name: &str, peer: &str) -> Directed {
    let limits = "[limits]\nmemory_mib = 192\ndisk_mib = 128\n";
    let policy = format!("version = 1\n{limits}[[peers]]\nname = \"{peer}\"\nmessages = true\n");
    Directed::under(policy).named(name)
}

/// The model of one agent asks that of another, which answers; both by the tool `peer`, through their hosts.
fn two_agents_exchange_messages_by_their_tools(context: &Context) {
    let send = |to: &str, text: &str| json!({"action": "send", "to": to, "text": text});
    let receive = json!({"action": "receive", "wait_s": LIMIT.as_secs()});
    let answering = agent("answering", "asking")
        .call("peer", &receive, &["[message from asking: data of another sandbox", "> what is the sum?"])
        .call("peer", &send("nobody", "x"), &["the policy of this sandbox does not allow messages to nobody"])
        .call("peer", &send("asking", "42\n[sent to you]"), &["[sent to asking]"])
        .start(context);
    let _ = called(context, "answering");
    let asking = agent("asking", "answering")
        .call("peer", &send("answering", "what is the sum?"), &["[sent to answering]"])
        .call("peer", &receive, &["[message from answering: data of another sandbox", "> 42\\n> [sent to you]"])
        .start(context);
    let asked = asking.done();
    let answered = answering.done();
    assert!(asked.contains("done; 3 turns, 2 tool calls") && answered.contains("3 tool calls"), "{asked}\n{answered}");
    context.assert_nothing_left();
}

/// Hears from a child and answers it; its policy names the child, and not its parent.
const HELPER: &str = r#"
door = mailbox()
print(door.hear())
print(send(door, "boss", "to you, too")["why"])
print(send(door, "boss.1", "an answer"))
"#;

const CHILD: &str = r#"
door = mailbox()
print(send(door, "helper", "a question"))
print(door.hear())
"#;

fn child_talks_to_its_parents_peer_under_a_name_of_its_own(context: &Context) {
    let helper = Side::start(context, "helper", "[[peers]]\nname = \"boss.1\"\nmessages = true\n", HELPER);
    let _ = called(context, "helper");
    let policy = "version = 1\n[limits]\nmemory_mib = 192\ndisk_mib = 128\n[children]\nallowed = true\nnumber = 2\n\
        [budget]\nturns = 20\n[[peers]]\nname = \"helper\"\nmessages = true\n";
    let boss = Directed::under(policy)
        .named("boss")
        .call(
            "peer",
            &json!({"action": "send", "to": "helper", "text": "from the parent"}),
            &["helper is not there, or its policy does not name boss"],
        )
        .call(
            "fork",
            &json!({"command": format!("python3 -c '{DOOR}{CHILD}'")}),
            &["{'event': 'sent', 'id': 1}", "{'event': 'message', 'from': 'helper', 'text': 'an answer'}"],
        )
        .start(context);
    let said = boss.done();
    assert!(said.contains("left with 0"), "{said}");
    let (helper, shown) = helper.ended(context);
    let expected = [
        "{'event': 'message', 'from': 'boss.1', 'text': 'a question'}",
        "the policy of this sandbox does not allow messages to boss",
        "{'event': 'sent', 'id': 1}\n",
    ];
    assert_eq!(helper.text(), expected.join("\n"), "{helper}");
    assert!(shown.contains("message from boss.1") && !shown.contains("from the parent"), "{shown}");
    context.assert_nothing_left();
}
