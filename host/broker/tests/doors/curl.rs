// SPDX-License-Identifier: Apache-2.0
//! A real client: `curl` through the proxy, where the machine has one.

use std::process::Stdio;

use midge_protocol::Door;
use tokio::process::Command;

use crate::kit::{Ca, PATIENCE, Setting, Site, listen, ok};

/// What curl says: its exit code, standard output and error. `None`: there is no curl.
async fn curl(proxy: u16, args: &[&str]) -> Option<(i32, String, String)> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--proxy", &format!("http://127.0.0.1:{proxy}")]).args(args);
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await.expect("curl ends") {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: starting curl: {error}");
            return None;
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
}

#[tokio::test]
async fn curl_passes_in_the_clear_blind_and_inspected() {
    let ca = Ca::new();
    let plain = Site::new(None, |_| ok("plain")).await;
    let secure =
        Site::new(Some(ca.server("files.test")), |request| ok(request.split(' ').next().unwrap_or_default())).await;
    let rule = |port, more: &str| {
        format!(
            "[[network.rules]]\nname = \"r{port}\"\nhosts = [\"files.test\"]\nports = [{port}]\nranges = [\"127.0.0.0/8\"]\n{more}\n"
        )
    };
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("ca.pem");
    let bundle = bundle.to_str().unwrap();

    let world = Setting { ca: Some(&ca), ..Setting::new(&rule(plain.port, "schemes = [\"http\"]")) }.world();
    let url = format!("http://files.test:{}/", plain.port);
    let Some((code, out, error)) = curl(listen(&world, Door::Egress).await, &[&url]).await else { return };
    assert_eq!((code, out.as_str()), (0, "plain"), "{error}");

    let url = format!("https://files.test:{}/simple/x", secure.port);
    // Not looked into: curl sees the server's own certificate.
    let world = Setting { ca: Some(&ca), ..Setting::new(&rule(secure.port, "")) }.world();
    let der = ca.root.as_ref().to_vec();
    std::fs::write(bundle, pem(&der)).unwrap();
    let said = curl(listen(&world, Door::Egress).await, &["--cacert", bundle, &url]).await.unwrap();
    assert_eq!((said.0, said.1.as_str()), (0, "GET"), "{}", said.2);

    // Looked into: curl trusts the sandbox's authority.
    let more = "methods = [\"GET\", \"POST\"]\npaths = [\"/simple/*\"]";
    let world = Setting { ca: Some(&ca), ..Setting::new(&rule(secure.port, more)) }.world();
    std::fs::write(bundle, world.authority.pem()).unwrap();
    let proxy = listen(&world, Door::Egress).await;
    let said = curl(proxy, &["--cacert", bundle, &url, &url]).await.unwrap();
    assert_eq!((said.0, said.1.as_str()), (0, "GETGET"), "{}", said.2);
    let said = curl(proxy, &["--cacert", bundle, "--data", "x", &url]).await.unwrap();
    assert_eq!((said.0, said.1.as_str()), (0, "POST"), "{}", said.2);
    let other = format!("https://files.test:{}/other", secure.port);
    let said = curl(proxy, &["--cacert", bundle, &other]).await.unwrap();
    assert!(said.0 == 0 && said.1.contains("\"status\":403"), "{said:?}");
    let evil = format!("https://evil.test:{}/", secure.port);
    let said = curl(proxy, &["--cacert", bundle, &evil]).await.unwrap();
    assert!(said.0 != 0 && said.2.contains("403"), "{said:?}");
}

fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three.iter().enumerate().fold(0_u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for digit in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap();
            text.push(if digit <= three.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
