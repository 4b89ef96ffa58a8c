// SPDX-License-Identifier: Apache-2.0

use std::io::{Read as _, Write as _};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn doors_lead_to_their_ports_and_open_once() {
    static GATE: Gate = Gate::new();
    GATE.open();
    let dir = tempfile::tempdir().unwrap();
    let host = Host::Unix(dir.path().to_owned());
    let behind = UnixListener::bind(dir.path().join("door_7103.sock")).unwrap();
    open(&host, 0b100, &GATE).unwrap();
    open(&host, 0b100, &GATE).unwrap();
    let names: Vec<_> =
        fs::read_dir(dir.path().join("doors")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["ask"]);
    let path = dir.path().join("doors/ask");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    let mut program = patient(UnixStream::connect(&path).unwrap());
    let mut answered = patient(behind.accept().unwrap().0);
    answered.write_all(b"y").unwrap();
    let mut byte = [0];
    program.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"y");
    drop(behind);
    // Nobody behind the door: the program is told by the end of its stream.
    let mut refused = patient(UnixStream::connect(&path).unwrap());
    assert_eq!(refused.read(&mut byte).unwrap(), 0);
}
