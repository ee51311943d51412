//! What is done to a lake beside ingest: looking whether it is whole, giving the quarantine another
//! chance, and keeping the resolved state.

pub mod redrive;
pub mod refresh;
pub mod verify;
