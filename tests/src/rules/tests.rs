// SPDX-License-Identifier: Apache-2.0
//! Both sides of every rule.

use super::*;

fn rust(text: &str) -> Source {
    Source::new("x/src/a.rs", text)
}

#[test]
fn header_needs_licence_then_place() {
    assert!(header("a.rs", &format!("// {SPDX}\n//! Place.\n")).is_empty());
    assert_eq!(header("a.rs", "//! Place.\n")[0].line, 1);
    assert_eq!(header("a.rs", &format!("// {SPDX}\nuse a;\n"))[0].line, 2);
    assert!(header("run", &format!("#!/bin/sh\n# {SPDX}\n")).is_empty());
    assert_eq!(header("run", "#!/bin/sh\necho\n").len(), 1);
    assert!(header("README.md", "# Midge\n").is_empty());
}

#[test]
fn file_of_400_lines_passes_and_401_does_not() {
    assert!(sizes(&rust(&"//\n".repeat(FILE_MAX_LINES))).is_empty());
    assert_eq!(sizes(&rust(&"//\n".repeat(FILE_MAX_LINES + 1))).len(), 1);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "//\n".repeat(FILE_MAX_LINES));
    assert!(sizes(&rust(&tests)).is_empty());
}

#[test]
fn function_of_70_lines_passes_and_71_does_not() {
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", "\n".repeat(lines - 2));
    assert!(sizes(&rust(&function(70))).is_empty());
    assert_eq!(sizes(&rust(&function(71)))[0].line, 1);
}

#[test]
fn line_length_counts_characters() {
    assert!(sizes(&rust(&format!("// {}\n", "ä".repeat(LINE_MAX_CHARS - 3)))).is_empty());
    assert_eq!(sizes(&rust(&format!("// {}\n", "ä".repeat(LINE_MAX_CHARS - 2)))).len(), 1);
}

#[test]
fn forbidden_words_count_only_in_product_code() {
    assert_eq!(words(&rust("fn a() { b.unwrap(); }\n")).len(), 1);
    assert!(words(&rust("fn a() { b.unwrap_or(1); } // .unwrap()\n")).is_empty());
    assert!(words(&rust("#[test]\nfn a() { b.unwrap(); }\n")).is_empty());
    assert_eq!(words(&rust("#[test]\nfn a() { dbg!(1); }\n")).len(), 1);
    let later = ["TO", "DO"].concat();
    assert_eq!(words(&rust(&format!("let a = 1; // {later}: b\n"))).len(), 1);
    assert!(words(&rust(&format!("let a = \"{later}\";\n"))).is_empty());
}

#[test]
fn unsafe_needs_a_reason_in_its_module() {
    let reason = "#![expect(unsafe_code, reason = \"ioctl\")]\n";
    assert_eq!(unsafe_fence(&rust("fn a() { unsafe { b() } }\n"), &[]).len(), 1);
    assert!(unsafe_fence(&rust(&format!("{reason}fn a() {{ unsafe {{ b() }} }}\n")), &[]).is_empty());
    assert!(unsafe_fence(&rust("fn a() { unsafe { b() } }\n"), &[&rust(reason)]).is_empty());
    assert_eq!(unsafe_fence(&rust("#![expect(unsafe_code)]\nfn a() { unsafe { b() } }\n"), &[]).len(), 1);
}

#[test]
fn attribute_over_several_lines_is_understood() {
    let spread = "#![expect(\n    unsafe_code,\n    reason = \"ioctl\"\n)]\nfn a() { unsafe { b() } }\n";
    assert!(unsafe_fence(&rust(spread), &[]).is_empty());
    let long = "#[expect(unsafe_code, reason = \"fork\")]\nfn a() {\n\n\n\n\n\n\n\n\n unsafe { b() } }\n";
    assert!(unsafe_fence(&rust(long), &[]).is_empty());
    let item = "#[expect(unsafe_code, reason = \"fork\")]\nfn a() { unsafe { b() } }\nfn c() {\n\n\n\n\n\n\n\n unsafe { b() } }\n";
    assert_eq!(unsafe_fence(&rust(item), &[]).len(), 1);
}

#[test]
fn places_are_found_by_line() {
    let names = ["/elsewhere/".to_owned()];
    assert_eq!(places("a.md", "x\nsee /elsewhere/b\n", &names)[0].line, 2);
    assert!(places("a.md", "elsewhere\n", &names).is_empty());
}

#[test]
fn set_up_has_exactly_its_commands() {
    let readme = "# M\n## Set up\ntext\n```sh\n./dev demo   # the main job\n./dev test\n```\n";
    assert!(set_up_commands(readme, &["./dev demo", "./dev test"]).is_empty());
    assert_eq!(set_up_commands(readme, &["./dev demo"]).len(), 1);
    assert_eq!(set_up_commands("# M\n", &[]).len(), 1);
}

#[test]
fn table_is_read_without_its_head() {
    let text =
        "| a |\n|---|\n| no |\n\n## Map\nx\n\n| name | start |\n| --- | --- |\n| `ram` | 0x0 |\n| b | c |\n\n| d |\n";
    assert_eq!(table_after(text, "## Map"), [["ram", "0x0"], ["b", "c"]]);
    assert!(table_after(text, "## None").is_empty());
}

#[test]
fn seccomp_rule_without_a_caller_is_found() {
    let policy = |comment: &str, action: &str| {
        format!(
            r#"{{"main": {{"mismatch_action": "{action}", "filter": [{{"syscall": "read", "comment": "{comment}"}}]}}}}"#
        )
    };
    assert!(seccomp_policy("a.json", &policy("vsock: host socket", "kill_process")).is_empty());
    assert_eq!(seccomp_policy("a.json", &policy("", "kill_process")).len(), 1);
    assert_eq!(seccomp_policy("a.json", &policy("vsock: host socket", "allow")).len(), 1);
    assert_eq!(seccomp_policy("a.json", "{").len(), 1);
}

#[test]
fn limit_needs_a_unit() {
    assert_eq!(units(&rust("const QUEUE_MAX: u16 = 256;\n")).len(), 1);
    assert!(units(&rust("const QUEUE_MAX_BYTES: u16 = 256;\n")).is_empty());
    assert!(units(&rust("/// Most descriptors of a chain.\nconst CHAIN_MAX: u16 = 256;\n")).is_empty());
    assert!(units(&rust("const NAME: &str = \"\";\n")).is_empty());
}
