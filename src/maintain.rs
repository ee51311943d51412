//! What is done to a lake beside ingest. For now: looking whether it is whole.

pub mod verify;
