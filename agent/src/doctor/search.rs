//! Finds the libraries of a program as its loader will: RPATH, LD_LIBRARY_PATH, RUNPATH, the system's directories. It
//! must not know what is in them. Sources: ld.so(8), musl's `ldso/dynlink.c`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::elf::Elf;
use super::libc::Libc;

/// How deep `include` lines of ld.so.conf are followed.
const DEPTH_MAX: usize = 4;
/// More libraries than this have no program.
const LIBRARIES_MAX: usize = 2000;

/// The libraries that are loaded with a program.
#[derive(Debug, Default)]
pub struct Closure {
    /// Found ones, in the order of loading.
    pub found: Vec<Elf>,
    /// Names that were found nowhere.
    pub absent: Vec<String>,
}

/// Finds everything that `program` needs.
pub fn closure(program: &Elf) -> Closure {
    let libc = program.interpreter.as_deref().map_or(Libc::Other, Libc::of_loader);
    let system = system_directories(&libc, program.interpreter.as_deref());
    let preset: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
        .map(|list| std::env::split_paths(&list).collect())
        .unwrap_or_default();
    let mut closure = Closure::default();
    // The loader serves under its own name, too.
    let mut seen: BTreeSet<String> = program.interpreter.iter().filter_map(|path| file_name(path)).collect();
    let mut waiting = vec![(program.needed().to_vec(), inherited(program), own(program))];
    while let Some((names, rpath, runpath)) = waiting.pop() {
        for name in names {
            if !seen.insert(name.clone()) || seen.len() > LIBRARIES_MAX {
                continue;
            }
            let places = rpath.iter().chain(&preset).chain(&runpath).chain(&system);
            match find(&name, program, places) {
                Some(library) => {
                    let mut rpath = inherited(&library);
                    rpath.extend(inherited(program));
                    waiting.push((library.needed().to_vec(), rpath, own(&library)));
                    closure.found.push(library);
                }
                None if matches!(libc, Libc::Musl(_)) && name.starts_with("libc.") => {}
                None => closure.absent.push(name),
            }
        }
    }
    closure.found.extend(program.interpreter.as_deref().and_then(|path| Elf::read(path).ok()));
    closure
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

fn find<'a>(name: &str, program: &Elf, mut places: impl Iterator<Item = &'a PathBuf>) -> Option<Elf> {
    let fits = |path: PathBuf| Elf::read(&path).ok().filter(|elf| elf.machine == program.machine);
    if name.contains('/') {
        return fits(PathBuf::from(name));
    }
    places.find_map(|place| fits(place.join(name)))
}

fn inherited(of: &Elf) -> Vec<PathBuf> {
    of.rpath().iter().flat_map(|entry| expand(entry, of)).collect()
}

fn own(of: &Elf) -> Vec<PathBuf> {
    of.runpath().iter().flat_map(|entry| expand(entry, of)).collect()
}

/// An entry with its `$ORIGIN` and `$LIB` replaced; `$LIB` may be several things.
fn expand(entry: &str, of: &Elf) -> Vec<PathBuf> {
    let origin = of.path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
    let origin = origin.unwrap_or_default().to_string_lossy().into_owned();
    let entry = entry.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin);
    if !entry.contains("$LIB") && !entry.contains("${LIB}") {
        return if entry.is_empty() { Vec::new() } else { vec![PathBuf::from(entry)] };
    }
    let triple = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    [triple.as_str(), "lib64", "lib"]
        .map(|lib| PathBuf::from(entry.replace("${LIB}", lib).replace("$LIB", lib)))
        .to_vec()
}

fn system_directories(libc: &Libc, interpreter: Option<&Path>) -> Vec<PathBuf> {
    let list = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    if let Libc::Musl(_) = libc {
        let arch = interpreter.and_then(file_name).unwrap_or_default();
        let arch = arch.trim_start_matches("ld-").split('.').next().unwrap_or_default().to_owned();
        let text = std::fs::read_to_string(format!("/etc/ld-{arch}.path"));
        return match text {
            Ok(text) => text.split(['\n', ':']).filter(|line| !line.is_empty()).map(PathBuf::from).collect(),
            Err(_) => list(&["/lib", "/usr/local/lib", "/usr/lib"]),
        };
    }
    let mut places = configured(Path::new("/etc/ld.so.conf"), 0);
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    places.extend(["/lib", "/usr/lib"].map(|base| Path::new(base).join(&triple)));
    places.extend(list(&["/lib64", "/usr/lib64", "/lib", "/usr/lib"]));
    places
}

/// The directories of an ld.so.conf, with those of the files that it includes.
fn configured(file: &Path, depth: usize) -> Vec<PathBuf> {
    let Ok(text) = std::fs::read_to_string(file) else { return Vec::new() };
    let mut places = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include") {
            Some(pattern) if depth < DEPTH_MAX => {
                for file in matching(file.parent().unwrap_or(Path::new("/")).join(pattern.trim())) {
                    places.extend(configured(&file, depth + 1));
                }
            }
            None if line.starts_with('/') => places.push(PathBuf::from(line)),
            _ => {}
        }
    }
    places
}

/// Files for a pattern with a `*` in its last part only, in their order.
fn matching(pattern: PathBuf) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (pattern.parent(), file_name(&pattern)) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| file_name(path).is_some_and(|file| super::known::fits(&name, &file)))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_files_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        write("ld.so.conf", "# first\ninclude d/*.conf\n/opt/z\nhwcap 1 x\n");
        write("d/b.conf", "/opt/b # second\n");
        write("d/a.conf", "/opt/a\ninclude ../ld.so.conf\n");
        write("d/a.txt", "/opt/no\n");
        let places = configured(&dir.path().join("ld.so.conf"), 0);
        assert_eq!(places.first().unwrap(), Path::new("/opt/a"));
        assert_eq!(places.last().unwrap(), Path::new("/opt/z"));
        assert!(places.contains(&"/opt/b".into()) && !places.contains(&"/opt/no".into()));
    }

    #[test]
    fn this_test_finds_its_libraries() {
        let program = Elf::read(&std::env::current_exe().unwrap()).unwrap();
        let closure = closure(&program);
        assert!(closure.absent.is_empty(), "{:?}", closure.absent);
        let has = |part: &str| closure.found.iter().any(|elf| elf.path.to_string_lossy().contains(part));
        assert!(has("libc.so") || has("ld-musl"), "no libc");
    }
}
