//! `synclake-query`: starts the program `synclake` beside it under its own name. Most of both programs is DataFusion, so
//! one file holds it for both.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let program =
        std::env::current_exe().map_or_else(|_| PathBuf::from("synclake"), |me| me.with_file_name("synclake"));
    let error = Command::new(&program).arg0("synclake-query").args(std::env::args_os().skip(1)).exec();
    eprintln!(
        "error: cannot start {program:?}: {error}; synclake-query is a part of synclake: put both into one folder"
    );
    ExitCode::from(1)
}
