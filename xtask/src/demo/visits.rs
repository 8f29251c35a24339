//! `cargo xtask demo visits`: the visit counter of the examples on the real runtime of Workers, with a process in the place of the
//! container, which is killed and wiped between visits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use storeshim_workerd::{Class, Engine, Runtime, Worker, package};

use crate::{build, workspace};

/// A container is there within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `cargo xtask demo visits`.
#[derive(Args)]
pub struct Arguments {
    /// How often the container is lost.
    #[arg(long, default_value_t = 3)]
    losses: u32,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let losses = arguments.losses;
    let sh = workspace::shell()?;
    if !package().join("node_modules").exists() {
        println!("installing the Worker's packages");
        let _in = sh.push_dir(package());
        xshell::cmd!(sh, "npm install --no-save --silent --no-audit --no-fund").run()?;
    }
    let built = build::build(&sh, false)?;
    let server = package().join("../examples/visits-node/server.mjs");
    // What the image's entry point does, in a directory in the place of the container's disk.
    let entry = format!(
        "mkdir $DISK/storage; export STORESHIM_SHIM={} STORAGE=$DISK/storage PORT=$PORT_8080 STORESHIM_LOG_LEVEL=warn; exec {} \
         run --run-dir $DISK/run --state-dir $DISK/state --mount \
         \"$DISK/storage=do://listen:$PORT_8000?bind=127.0.0.1,placement=identity\" -- node {} >/dev/null",
        built.shim.display(),
        built.program.display(),
        server.display(),
    );
    let engine = Engine::start(&["sh", "-c", &entry])?;
    let main = package().join("../examples/visits-node/src/worker.ts");
    let classes = [Class { name: "Visits", binding: "VISITS", container: true }];
    let runtime =
        Runtime::start(&Worker { entry: &main, classes: &classes, engine: Some(&engine.socket()) }, None)?;
    println!("workerd runs at {}", runtime.url("/container/demo"));
    let mut expected = 0;
    for loss in 0..=losses {
        for _ in 0..2 {
            expected += 1;
            let said = visit(&runtime)?;
            ensure!(
                said == format!("visit {expected}"),
                "the counter says '{said}' instead of 'visit {expected}'"
            );
            println!("GET /container/demo  →  {said}");
        }
        if loss < losses {
            engine.kill_all()?;
            println!("the container is killed and its disk wiped");
            let kept = runtime.get("/container/demo/files/visits")?;
            println!("GET /container/demo/files/visits, while it sleeps  →  {kept}");
        }
    }
    Ok(())
}

fn visit(runtime: &Runtime) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = runtime.ask("GET", "/container/demo", b"").context("workerd does not answer")?;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        if status == 200 {
            return Ok(text);
        }
        if Instant::now() > deadline {
            bail!("no visit within {} s: {status} {text}\n{}", PATIENCE.as_secs(), runtime.said());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
