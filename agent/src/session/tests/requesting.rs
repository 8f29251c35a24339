//! Requests: each one reaches the sink once, each answer its asker.

use std::time::{Duration, Instant};

use storeshim_protocol::Intent;
use storeshim_protocol::request::{Ask, Request};

use super::super::Reply;
use super::{Agent, start, wait_until};

fn receive(agent: &Agent) -> (Request, Box<dyn Reply>) {
    agent.requests.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn a_request_is_answered_and_handed_on_once() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    for errno in [0, libc::ESTALE, libc::EIO] {
        let word = client.post(agent.mount);
        let (request, reply) = receive(&agent);
        assert_eq!(request, Request { mount: agent.mount as u8, ask: Ask::Barrier { ino: 0 } });
        std::thread::sleep(Duration::from_millis(20));
        assert!(agent.requests.try_recv().is_err(), "it was handed on twice");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                reply.reply(errno);
            });
            assert_eq!(client.wait(word), errno);
        });
    }
}

#[test]
fn the_doorbell_wakes_the_agent() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    agent.until("it is attached", |_| agent.sessions.list().len() == 1);
    let mut quickest = Duration::MAX;
    for _ in 0..50 {
        let begun = Instant::now();
        let word = client.post(agent.mount);
        receive(&agent).1.reply(0);
        client.wait(word);
        quickest = quickest.min(begun.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(quickest < Duration::from_millis(2), "requests wait for the next poll: {quickest:?}");
}

#[test]
fn intents_pushed_before_a_request_are_told_before_it() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    for ino in 1..200 {
        client.push(agent.mount, Intent::Attributes { ino });
        let word = client.post(agent.mount);
        let (_, reply) = receive(&agent);
        let (told, _) = agent.freeze_once();
        assert!(told.inodes.contains(&ino) || agent.sink.lock().unwrap().inodes.contains(&ino));
        reply.reply(0);
        assert_eq!(client.wait(word), 0);
    }
}

#[test]
fn a_request_for_no_mount_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    for mount in [agent.mount + 1, 7, 8, 255] {
        let word = client.post(mount);
        assert_eq!(client.wait(word), libc::EINVAL);
    }
    assert!(agent.requests.try_recv().is_err());
}

#[test]
fn a_late_answer_does_not_meet_the_next_request() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let _ = client.post(agent.mount);
    let (_, old) = receive(&agent);
    assert_eq!(client.slot().request().abandon(), None);
    let word = client.post(agent.mount);
    let (_, new) = receive(&agent);
    old.reply(0);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(client.slot().request().take_reply(), None);
    new.reply(libc::EIO);
    assert_eq!(client.wait(word), libc::EIO);
}

#[test]
fn an_answer_may_outlive_client_and_agent() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let _ = client.post(agent.mount);
    let (_, reply) = receive(&agent);
    drop(client);
    wait_until("the client is buried", || agent.sessions.list().is_empty());
    let survivor = agent.attach();
    let word = survivor.post(agent.mount);
    let (_, to_survivor) = receive(&agent);
    agent.sessions.stop();
    let Agent { dir, sessions, .. } = agent;
    drop(sessions);
    reply.reply(0);
    to_survivor.reply(libc::EIO);
    assert_eq!(survivor.wait(word), libc::EIO);
    drop(start(&dir));
}

#[test]
fn a_request_that_an_agent_has_left_is_served_by_the_next() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let word = client.post(agent.mount);
    let (_, dropped) = receive(&agent);
    drop(dropped);
    agent.sessions.stop();
    let next = Agent::new(place.path());
    receive(&next).1.reply(0);
    assert_eq!(client.wait(word), 0);
}
