use super::*;
use crate::cli::tests::{mount_status, status};
use crate::config::{Layer, MountLayer, Surroundings};

fn wanting(specs: &[&str]) -> Config {
    let flags = Layer {
        mount: specs.iter().map(|spec| MountLayer::from_spec(spec).unwrap()).collect(),
        ..Layer::default()
    };
    Config::load(None, flags, &Surroundings { uid: 0, env: &|_| None }).unwrap()
}

#[test]
fn a_running_agent_must_have_the_mounts() {
    let there = status(vec![mount_status("/storage"), mount_status("/more")]);
    check_mounts(&wanting(&[]), &there).unwrap();
    check_mounts(&wanting(&["/storage=s3://key:secret@bucket/storage"]), &there).unwrap();
    for (spec, word) in
        [("/data=s3://bucket/data", "has no such mount"), ("/storage=s3://x/y", "s3://bucket/storage")]
    {
        let failure = check_mounts(&wanting(&[spec]), &there).unwrap_err();
        assert_eq!(failure.status, OWN_FAILURE);
        assert!(
            failure.message.contains(word) && failure.message.contains("--run-dir"),
            "{}",
            failure.message
        );
    }
}

#[test]
fn outcomes_are_reported_as_shells_do() {
    use nix::sys::signal::Signal;
    assert_eq!(Outcome::Exited(0).status(), 0);
    assert_eq!(Outcome::Exited(255).status(), 255);
    assert_eq!(Outcome::Killed(Signal::SIGTERM).status(), 143);
    assert_eq!(Outcome::Killed(Signal::SIGKILL).status(), 137);
}
