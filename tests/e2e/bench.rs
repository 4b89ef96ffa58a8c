// SPDX-License-Identifier: Apache-2.0
//! Benches from the command line: that they run to their end, keep every sample, and leave nothing. Never how fast.

use std::time::Duration;

use crate::context::Context;

crate::tests!("bench":
    Binary jail_is_left_off_by_benches_only,
    Binary flags_that_cannot_be_counted,
    NativeGuest forks_restores_and_boots_in_turn,
    Guest idle_forks_are_counted_and_gone,
);

/// Longest a bench may take: a template is made first.
const LIMIT: Duration = Duration::from_secs(300);

fn jail_is_left_off_by_benches_only(context: &Context) {
    for words in [&["run", "--jail", "off", "--", "true"][..], &["bench", "rate", "--jail", "off"]] {
        context.midge(words.iter().copied()).limit(LIMIT).run().says(&["unexpected argument '--jail'"]);
    }
    let words = ["bench", "boot", "--emulated", "--jail", "off", "--budget", "/nonexistent"];
    context.midge(words).limit(LIMIT).run().code(125).says(&["--jail off", "budget"]);
}

fn flags_that_cannot_be_counted(context: &Context) {
    for flag in [["--template", "x"], ["--image", "base"], ["--cache", "cold"]] {
        let words = ["bench", "fork", "--emulated"].into_iter().chain(flag);
        context.midge(words).limit(LIMIT).run().code(125).says(&[flag[0], "--emulated"]);
    }
}

fn forks_restores_and_boots_in_turn(context: &Context) {
    let (json, page) = (context.temporary.path().join("fork.json"), context.temporary.path().join("page.html"));
    let words = ["bench", "fork", "-n", "3", "--concurrency", "1,2", "--jail", "off", "--json"];
    let text = context.midge(words.map(Into::into).into_iter().chain([json.as_os_str().to_owned()]));
    let text = text.limit(LIMIT).run().code(0).text();
    let ways = ["midge fork", "midge restore", "midge cold boot", "midge cold boot, no jail", "THE JAIL IS OFF"];
    for part in ways.into_iter().chain(["2 at once", "nx_huge_pages", "host answered"]) {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("is written")).expect("is JSON");
    assert_eq!(report["series"][0]["samples"].as_array().map(Vec::len), Some(3), "{report:#}");
    let words = ["bench", "report", "-o"].map(Into::into).into_iter();
    context.midge(words.chain([page.as_os_str().to_owned(), json.as_os_str().to_owned()])).run().code(0);
    assert!(std::fs::read_to_string(&page).expect("is written").ends_with("</html>\n"));
    nothing_left(context);
}

fn idle_forks_are_counted_and_gone(context: &Context) {
    let text = context.midge(["bench", "density", "-n", "3"]).limit(LIMIT).run().code(0).text();
    assert!(text.contains("3 idle forks") && text.contains("left 0"), "{text}");
    nothing_left(context);
}

/// Neither a sandbox nor the template that the bench made.
fn nothing_left(context: &Context) {
    context.assert_nothing_left();
    let list = context.midge(["template", "list"]).run().code(0).text();
    assert!(!list.contains("bench-"), "{list}");
}
