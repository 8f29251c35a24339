//! `cargo xtask image`: what docker/Dockerfile makes, as far as that can be seen without a container engine: the release builds, in
//! a root of each kind of image, and their size. `cargo xtask test` does the same with what the tests are built of.

use anyhow::{Context, Result};
use xshell::cmd;

use crate::test::needs;
use crate::{build, workspace};

pub fn main() -> Result<()> {
    let sh = workspace::shell()?;
    needs::provide_one(&sh, "musl-gcc", "musl-tools")?;
    needs::provide_one(&sh, "busybox", "busybox-static")?;
    let shim = build::shim(&sh)?;
    let program = build::for_images(&sh)?;
    for image in ["debian", "alpine"] {
        cmd!(sh, "docker/check.sh {image} {program} {shim}")
            .quiet()
            .run()
            .with_context(|| format!("the image {image} does not do what it is to do"))?;
    }
    Ok(())
}
