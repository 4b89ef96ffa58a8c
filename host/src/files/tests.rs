// SPDX-License-Identifier: Apache-2.0
//! Files through the real agent, and agents that lie about them.

use midge_protocol::{Entry, ErrorCode, Failure, FileKind, Metadata, ToAgent, ToHost};

use super::{Files, WriteHow, WriteOptions};
use crate::error::Error;
use crate::link::fake::{Guest, Peer};
use crate::link::real_agent::Agent;

fn pattern(len: usize) -> Vec<u8> {
    (0..251).cycle().take(len).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn content_goes_in_and_comes_out_unchanged() {
    let agent = Agent::start().await;
    let files = Files::new(&agent.link);
    let path = agent.dir.path().join("deep/er/file");
    let content = pattern(300_000);
    let options = WriteOptions { mode: Some(0o640), parents: true, ..WriteOptions::default() };
    files.write(&path, options, &mut &content[..]).await.unwrap();
    assert_eq!(files.read(&path, 300_000).await.unwrap(), content);
    assert_eq!(std::fs::read(&path).unwrap(), content);
    let meta = files.stat(&path, true).await.unwrap();
    assert_eq!((meta.kind, meta.mode, meta.size), (FileKind::File, 0o640, 300_000));
    let mut middle = Vec::new();
    assert_eq!(files.read_range(&path, 1000, 70_000, &mut middle).await.unwrap(), 70_000);
    assert_eq!(middle, content[1000..71_000]);
    let append = WriteOptions { how: WriteHow::Append, ..WriteOptions::default() };
    files.write(&path, append, &mut &b"tail"[..]).await.unwrap();
    assert!(files.read(&path, 300_004).await.unwrap().ends_with(b"tail"));
    let error = files.read(&path, 300_003).await.unwrap_err();
    assert!(error.to_string().contains("300003"), "one byte too long is refused: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_made_listed_renamed_and_removed() {
    let agent = Agent::start().await;
    let files = Files::new(&agent.link);
    let at = |name: &str| agent.dir.path().join(name);
    files.mkdir(at("d/e"), 0o755, true).await.unwrap();
    files.write(at("d/f"), WriteOptions::default(), &mut &b"x"[..]).await.unwrap();
    let mut names: Vec<_> = files.list(at("d")).await.unwrap();
    names.sort_by(|one, other| one.0.cmp(&other.0));
    let seen: Vec<_> = names.iter().map(|(name, meta)| (name.to_str().unwrap(), meta.kind)).collect();
    assert_eq!(seen, [("e", FileKind::Dir), ("f", FileKind::File)]);
    files.rename(at("d/f"), at("d/g"), false).await.unwrap();
    let code = |error: Error| match error {
        Error::Failed { failure, .. } => failure.code,
        other => panic!("{other}"),
    };
    assert_eq!(code(files.rename(at("d/g"), at("d/e"), false).await.unwrap_err()), ErrorCode::AlreadyExists);
    assert_eq!(code(files.remove(at("d"), false).await.unwrap_err()), ErrorCode::NotEmpty);
    assert_eq!(code(files.read(at("absent"), 1).await.unwrap_err()), ErrorCode::NotFound);
    files.remove(at("d"), true).await.unwrap();
    assert!(!at("d").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_travel_as_archives() {
    let agent = Agent::start().await;
    let files = Files::new(&agent.link);
    let at = |name: &str| agent.dir.path().join(name);
    std::fs::create_dir_all(at("from/sub")).unwrap();
    std::fs::write(at("from/sub/big"), pattern(200_000)).unwrap();
    std::os::unix::fs::symlink("sub/big", at("from/link")).unwrap();
    let mut archive = Vec::new();
    let len = files.pack(at("from"), &mut archive).await.unwrap();
    assert_eq!(len, archive.len() as u64);
    files.unpack(at("to"), None, &mut &archive[..]).await.unwrap();
    assert_eq!(std::fs::read(at("to/sub/big")).unwrap(), pattern(200_000));
    assert_eq!(std::fs::read_link(at("to/link")).unwrap().to_str(), Some("sub/big"));
    assert!(files.unpack(at("bad"), None, &mut &b"no archive at all".repeat(100)[..]).await.is_err());
}

/// Lets a fake agent answer one request of `work` with `answers`.
async fn answered<T>(answers: &[ToHost], work: impl AsyncFnOnce(Files<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let (guest, _control, link) = Guest::linked().await;
    let agent = async {
        let mut peer: Peer = guest.accept().await;
        assert!(peer.next().await.is_some());
        for answer in answers {
            peer.say(answer).await;
        }
        peer
    };
    let (result, _peer) = tokio::join!(work(Files::new(&link)), agent);
    result
}

fn metadata() -> Metadata {
    Metadata { kind: FileKind::File, mode: 0, uid: 0, gid: 0, size: 0, mtime_ns: 0, target: None }
}

#[tokio::test]
async fn agent_that_sends_more_than_was_asked_for_is_refused() {
    let answers = [ToHost::Data(vec![0; 10]), ToHost::Data(vec![0; 2]), ToHost::End];
    let mut into = Vec::new();
    let result = answered(&answers, async |files| files.read_range("/x", 0, 11, &mut into).await).await;
    assert!(matches!(result.unwrap_err(), Error::Unexpected { .. }));
    assert_eq!(into.len(), 10);
}

#[tokio::test]
async fn answers_of_the_wrong_kind_are_refused() {
    let entry = ToHost::Entry(Entry { name: "x".into(), metadata: metadata() });
    let wrong = answered(&[entry], async |files| files.stat("/x", true).await).await.unwrap_err();
    assert!(wrong.to_string().contains("Entry") && wrong.to_string().contains("Metadata"), "{wrong}");
    let wrong = answered(&[ToHost::End], async |files| files.mkdir("/x", 0o700, false).await).await.unwrap_err();
    assert!(wrong.to_string().contains("End") && wrong.to_string().contains("Done"), "{wrong}");
}

#[tokio::test]
async fn refusal_in_the_middle_of_a_write_ends_the_write() {
    let (guest, _control, link) = Guest::linked().await;
    let agent = async {
        let mut peer = guest.accept().await;
        assert!(matches!(peer.next().await, Some(ToAgent::FileWrite(_))));
        assert!(matches!(peer.next().await, Some(ToAgent::Data(_))));
        let failure = Failure { code: ErrorCode::NoSpace, errno: 28, text: "writing /x: no space".into() };
        peer.say(&ToHost::Error(failure)).await;
        peer
    };
    // Without end: only the refusal can end it.
    let mut endless = tokio::io::repeat(1);
    let files = Files::new(&link);
    let (result, _peer) = tokio::join!(files.write("/x", WriteOptions::default(), &mut endless), agent);
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::Failed { failure, .. } if failure.code == ErrorCode::NoSpace), "{error}");
    assert!(error.next_step().unwrap().contains("--disk"));
}

#[tokio::test]
async fn failing_source_is_the_callers_fault_not_the_guests() {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("source is broken")))
        }
    }
    let (guest, _control, link) = Guest::linked().await;
    let files = Files::new(&link);
    let mut source = Broken;
    let (result, _peer) = tokio::join!(files.write("/x", WriteOptions::default(), &mut source), guest.accept());
    assert!(matches!(result.unwrap_err(), Error::Local { source, .. } if source.to_string() == "source is broken"));
}
