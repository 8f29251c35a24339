//! Faults of connections, against a Durable Object that is played by the test.
