//! `cargo xtask demo visits`: the visit counter of the examples on the real runtime of Workers, with a process in the place of the
//! container, which is killed and wiped between visits.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use storeshim_workerd::{Class, Engine, Runtime, Worker, package};

use crate::test::needs;
use crate::{build, workspace};

/// A container is there within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(50);
/// Visits to each container.
const VISITS: u32 = 2;
/// The container's address in the Worker.
const CONTAINER: &str = "/container/demo";

/// Arguments of `cargo xtask demo visits`.
#[derive(Args)]
pub struct Arguments {
    /// How often the container is lost.
    #[arg(long, default_value_t = 3)]
    losses: u32,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let losses = arguments.losses;
    println!(
        "A visit counter that keeps its count in a file of /storage, in a Cloudflare Container whose disk is lost again and again."
    );
    println!(
        "The runtime of Workers is the real one; the container is a process, and its disk a directory that goes with it.\n"
    );
    let (runtime, engine) = set_up()?;
    let mut counted = 0;
    for life in 0..=losses {
        println!("\nContainer {} of {}", life + 1, losses + 1);
        for _ in 0..VISITS {
            counted += 1;
            visit(&runtime, counted)?;
        }
        if life < losses {
            lose(&runtime, &engine, counted)?;
        }
    }
    let starts = u32::try_from(engine.starts()?)?;
    ensure!(starts > losses, "the container was started {starts} times only: it was not lost");
    println!(
        "\nThe count went on: {counted} visits in {starts} containers, {losses} of them killed and wiped, and none was forgotten."
    );
    Ok(())
}

fn step(what: &str) {
    println!("  {what}");
}

fn set_up() -> Result<(Runtime, Engine)> {
    println!("Setting up");
    let sh = workspace::shell()?;
    needs::provide_worker(&sh)?;
    step("building storeshim; the first time takes some minutes");
    let built = build::named(&sh, false)?;
    let server = package().join("../examples/visits-node/server.mjs").canonicalize()?;
    // What the image's entry point does, in a directory in the place of the container's disk.
    let entry = format!(
        "mkdir $DISK/storage; export STORESHIM_SHIM={} STORAGE=$DISK/storage PORT=$PORT_8080 STORESHIM_LOG_LEVEL=error; exec {} \
         run --run-dir $DISK/run --state-dir $DISK/state --mount \
         \"$DISK/storage=do://listen:$PORT_8000?bind=127.0.0.1,placement=identity\" -- node {} >/dev/null",
        built.shim.display(),
        built.program.display(),
        server.display(),
    );
    let engine = Engine::start(&["sh", "-c", &entry], Some(&needs::path_with_tools()?))?;
    let main = package().join("../examples/visits-node/src/worker.ts");
    let classes = [Class { name: "Visits", binding: "VISITS", container: true }];
    let runtime =
        Runtime::start(&Worker { entry: &main, classes: &classes, engine: Some(&engine.socket()) }, None)?;
    step(
        "the Worker of examples/visits-node runs in workerd; its Durable Object starts the container when somebody visits",
    );
    Ok((runtime, engine))
}

/// Visits the counter, which must say that this is visit number `expected`.
fn visit(runtime: &Runtime, expected: u32) -> Result<()> {
    let began = Instant::now();
    let deadline = began + PATIENCE;
    let said = loop {
        let (status, body) = runtime.ask("GET", CONTAINER, b"").context("workerd does not answer")?;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        if status == 200 {
            break text;
        }
        if Instant::now() > deadline {
            bail!("no visit within {} s: {status} {text}\n{}", PATIENCE.as_secs(), runtime.said());
        }
        std::thread::sleep(PAUSE);
    };
    ensure!(
        said == format!("visit {expected}"),
        "the counter says '{said}' instead of 'visit {expected}': the count did not go on"
    );
    step(&format!("GET {CONTAINER} → {said}   ({} ms)", began.elapsed().as_millis()));
    Ok(())
}

/// Takes the container and its disk away; the Durable Object still has the count.
fn lose(runtime: &Runtime, engine: &Engine, counted: u32) -> Result<()> {
    let disks: Vec<PathBuf> = engine.disks()?;
    let killed = engine.kill_all()?;
    ensure!(killed == 1, "{killed} containers were killed instead of one");
    ensure!(disks.iter().all(|disk| !disk.exists()), "the container's disk is still there: {disks:?}");
    step("the container is killed (SIGKILL) and its disk wiped; nothing of it is left");
    let file = format!("{CONTAINER}/files/visits");
    let kept = runtime.get(&file)?;
    ensure!(
        kept == counted.to_string(),
        "the Durable Object has '{kept}' in the file instead of '{counted}'"
    );
    step(&format!("GET {file} → {kept}   (from the Durable Object: no container runs)"));
    Ok(())
}
