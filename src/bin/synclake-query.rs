//! `synclake-query`: starts the program `synclake` beside it under its own name. Most of both programs is DataFusion, so
//! one file holds it for both.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Holds the id of the process that started `synclake`. A process keeps its id when it starts another program in its
/// place, so this program finds its own id here only if the file `synclake` is this program again.
const STARTED_BY: &str = "SYNCLAKE_QUERY_STARTED_BY";

fn main() -> ExitCode {
    let program =
        std::env::current_exe().map_or_else(|_| PathBuf::from("synclake"), |me| me.with_file_name("synclake"));
    let id = std::process::id().to_string();
    if std::env::var_os(STARTED_BY).is_some_and(|started_by| started_by == *id) {
        eprintln!(
            "error: {program:?} is not the program synclake, but a link to synclake-query or a copy of it; install both \
             programs again into one folder"
        );
        return ExitCode::from(1);
    }
    let mut command = Command::new(&program);
    let error = command.arg0("synclake-query").args(std::env::args_os().skip(1)).env(STARTED_BY, id).exec();
    eprintln!(
        "error: cannot start {program:?}: {error}; synclake-query is a part of synclake: put both into one folder"
    );
    ExitCode::from(1)
}
