//! Tidiness: files that grow too long, words that have no place in finished code, modules that nobody names, links
//! in documents that lead nowhere.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::workspace;

/// Lines of a source file.
const LINES_MAX: usize = 700;
/// Characters of a line.
const WIDTH_MAX: usize = 140;
/// Each word in two parts, so that this file does not hold it.
const BANNED: [(&str, &str); 6] =
    [("TO", "DO"), ("FIX", "ME"), ("HA", "CK"), ("unimpl", "emented!"), ("dbg", "!("), ("print", "k(")];

/// Everything untidy, one line each: file, line, what.
pub fn look(sh: &Shell) -> Result<Vec<String>> {
    let listed = cmd!(sh, "git ls-files --cached --others --exclude-standard").quiet().read()?;
    let root = workspace::root();
    let files: Vec<&str> = listed.lines().filter(|file| root.join(file).is_file()).collect();
    let mut findings = Vec::new();
    for file in &files {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        if file.ends_with(".rs") {
            findings.extend(source(file, &text));
        }
        if file.ends_with(".md") {
            findings.extend(links(file, &text, &root));
        }
    }
    findings.extend(dead_modules(&files, &root));
    findings.extend(missing_tests(&files, &root));
    Ok(findings)
}

fn source(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!("{file}: {lines} lines; more than {LINES_MAX} want to be two files"));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") && !is_test_module(file) {
        findings.push(format!("{file}:1: does not say what it is for"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if line.chars().count() > WIDTH_MAX {
            findings.push(format!("{file}:{number}: wider than {WIDTH_MAX}"));
        }
        for word in BANNED.map(|(head, tail)| format!("{head}{tail}")) {
            if line.contains(&word) {
                findings.push(format!("{file}:{number}: `{word}` is not finished"));
            }
        }
    }
    findings
}

/// Tests that belong to the module of the same name need no words of their own.
fn is_test_module(file: &str) -> bool {
    file.ends_with("/tests.rs")
}

/// Links to files of this repository that are not there.
fn links(file: &str, text: &str, root: &Path) -> Vec<String> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            if !root.join(folder).join(path).exists() {
                findings.push(format!("{file}:{number}: the link to {path} leads nowhere"));
            }
        }
    }
    findings
}

/// Where the promises name the tests that try to break them.
const PROMISES: &str = "docs/semantics.md";

/// Tests that the promises name and that nobody has written.
fn missing_tests(files: &[&str], root: &Path) -> Vec<String> {
    let Ok(promises) = std::fs::read_to_string(root.join(PROMISES)) else { return Vec::new() };
    let sources: String = files
        .iter()
        .filter(|file| file.ends_with(".rs"))
        .filter_map(|file| std::fs::read_to_string(root.join(file)).ok())
        .collect();
    let is_name =
        |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    promises
        .split("**Tests:**")
        .skip(1)
        .filter_map(|rest| rest.split("\n\n").next())
        .flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2).filter(is_name).collect::<Vec<_>>())
        .filter(|name| !sources.contains(&format!("fn {name}(")))
        .map(|name| format!("{PROMISES}: there is no test {name}"))
        .collect()
}

/// Sources below a `src` that no other file names as a module.
fn dead_modules(files: &[&str], root: &Path) -> Vec<String> {
    let mut named = BTreeSet::new();
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        let path = Path::new(file);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let folder = path.parent().unwrap_or(Path::new(""));
        let children = match stem.as_ref() {
            "mod" | "lib" | "main" => folder.to_owned(),
            _ => folder.join(stem.as_ref()),
        };
        for line in text.lines() {
            if let Some(path) =
                line.trim().strip_prefix("#[path = \"").and_then(|rest| rest.split('"').next())
            {
                named.insert(normal(&folder.join(path)));
            }
            if let Some(name) = module(line) {
                named.insert(children.join(format!("{name}.rs")));
                named.insert(children.join(name).join("mod.rs"));
            }
        }
    }
    let is_module = |file: &&&str| {
        let path = Path::new(file);
        file.ends_with(".rs")
            && path.components().any(|part| part.as_os_str() == "src")
            && !path.components().any(|part| part.as_os_str() == "bin")
            && !file.ends_with("src/lib.rs")
            && !file.ends_with("src/main.rs")
    };
    files
        .iter()
        .filter(is_module)
        .filter(|file| !named.contains(Path::new(file)))
        .map(|file| format!("{file}: no module names it"))
        .collect()
}

/// The name in `mod name;` and its like.
fn module(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
    line.strip_prefix("mod ")?.strip_suffix(';')
}

fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untidy_sources_are_found() {
        let banned = format!("//! Job.\n// {}{}: later\n", "TO", "DO");
        assert_eq!(source("a.rs", &banned).len(), 1);
        assert_eq!(source("a.rs", "fn x() {}\n").len(), 1);
        assert_eq!(source("a/tests.rs", "fn x() {}\n").len(), 0);
        assert_eq!(source("a.rs", &format!("//! {}\n", "x".repeat(WIDTH_MAX))).len(), 1);
        assert_eq!(source("a.rs", &"//! line\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(source("a.rs", "//! Job.\nfn x() {}\n").len(), 0);
    }

    #[test]
    fn dead_links_and_modules_are_found() {
        let dir = std::env::temp_dir().join(format!("tidy-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("src")).unwrap();
        std::fs::write(dir.join("src/lib.rs"), "mod used;\n").unwrap();
        std::fs::write(dir.join("src/used.rs"), "").unwrap();
        std::fs::write(dir.join("src/dead.rs"), "").unwrap();
        let text = "[a](src/lib.rs) [b](https://x/y) [c](#here) [d](src/none.md#x)";
        let found = links("README.md", text, &dir);
        let files = ["src/lib.rs", "src/used.rs", "src/dead.rs"];
        let dead = dead_modules(&files, &dir);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, ["README.md:1: the link to src/none.md leads nowhere"]);
        assert_eq!(dead, ["src/dead.rs: no module names it"]);
    }

    /// This repository is tidy: a test, so that nobody has to remember to look.
    #[test]
    fn this_repository_is_tidy() {
        let findings = look(&workspace::shell().unwrap()).unwrap();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
