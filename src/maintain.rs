//! What is done to a lake beside ingest: looking whether it is whole, and giving the quarantine another chance.

pub mod redrive;
pub mod verify;
