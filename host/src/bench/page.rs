// SPDX-License-Identifier: Apache-2.0
//! Reports as one page: tables, pictures and what was aimed at, in one file that needs nothing from anywhere.

use std::fmt::Write as _;

use super::plot::safe;
use super::{Report, svg};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid #ccc}\
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:12.5px;line-height:1.35}svg{width:100%;height:auto}\
dt{font-weight:bold}dd{margin:0 0 .3rem 1rem}";

/// The page of these reports, in their order.
#[must_use]
pub fn html(reports: &[Report]) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Midge: measured</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>Midge: measured</h1>\n<ul>\n"
    );
    // Writing to a string cannot fail.
    for (number, report) in reports.iter().enumerate() {
        let _ = writeln!(out, "<li><a href=\"#r{number}\">{}</a></li>", safe(&report.title));
    }
    out.push_str("</ul>\n");
    for (number, report) in reports.iter().enumerate() {
        let _ = writeln!(out, "<h2 id=\"r{number}\">{}</h2>", safe(&report.title));
        out.push_str(&svg(report));
        let _ = writeln!(out, "<pre>{}</pre>", safe(&report.to_string()));
        out.push_str("<details><summary>How it was asked for</summary><dl>\n");
        for (name, value) in &report.options {
            let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", safe(name), safe(value));
        }
        out.push_str("</dl></details>\n");
    }
    out + "</body>\n</html>\n"
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn page_is_whole_and_asks_nobody_for_anything() {
        let mut hostile = report();
        hostile.title = "<script>alert(1)</script>".to_owned();
        let page = html(&[report(), hostile]);
        assert_eq!((page.matches("<svg ").count(), page.matches("</svg>").count()), (2, 2));
        assert!(page.ends_with("</html>\n") && page.contains("qemu, old") && page.contains("a bench for tests"));
        assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("@import"));
        // The name space of SVG is a name, not a place.
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    }
}
