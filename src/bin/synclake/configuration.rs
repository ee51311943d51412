//! docs/configuration.md: a section per program, generated from its arguments and compared in its tests.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// The document.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

/// Keys of the settings file that every command reads. `ingest`, `doctor` and `iam-policy` read others.
pub(crate) const SHARED_KEYS: [&str; 4] = ["lake", "region", "endpoint_url", "profile"];

/// Compares the section of a program with its arguments. `SYNCLAKE_UPDATE_DOCS=1` writes it.
pub(crate) fn compare(program: &str, mut command: Command, keys: &[String]) {
    command.build();
    let (begin, end) = (format!("<!-- begin {program} -->\n"), format!("<!-- end {program} -->"));
    let document = std::fs::read_to_string(PATH).unwrap();
    let (before, rest) = document.split_once(&begin).unwrap();
    let (section, after) = rest.split_once(&end).unwrap();
    let generated = section_of(program, &command, keys);
    if std::env::var_os("SYNCLAKE_UPDATE_DOCS").is_some() {
        std::fs::write(PATH, format!("{before}{begin}{generated}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(section, generated, "run this test with SYNCLAKE_UPDATE_DOCS=1");
}

fn section_of(program: &str, command: &Command, keys: &[String]) -> String {
    let mut text = format!("\n## `{program}`\n\n");
    let commands: Vec<&Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    if commands.is_empty() {
        table(&mut text, command.get_arguments(), keys);
        return text;
    }
    text += "Every command has these:\n\n";
    table(&mut text, command.get_arguments().filter(|arg| arg.is_global_set()), &[]);
    for command in commands {
        let name = command.get_name();
        let all = ["ingest", "doctor", "iam-policy"].contains(&name);
        let keys = if all { keys.to_vec() } else { SHARED_KEYS.map(str::to_owned).to_vec() };
        let nested: Vec<&Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
        for command in if nested.is_empty() { vec![command] } else { nested } {
            let name =
                if command.get_name() == name { name.to_owned() } else { format!("{name} {}", command.get_name()) };
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            write!(text, "\n### `{program} {name}`\n\n{}.\n\n", about.trim_end_matches('.')).unwrap();
            table(&mut text, command.get_arguments().filter(|arg| !arg.is_global_set()), &keys);
        }
    }
    text
}

fn table<'a>(text: &mut String, args: impl Iterator<Item = &'a Arg>, keys: &[String]) {
    *text += "| flag | variable | key | default | meaning |\n|---|---|---|---|---|\n";
    for arg in args.filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())) {
        let value = match arg.get_action().takes_values() {
            true => format!(" <{}>", arg.get_value_names().map_or("VALUE".into(), |names| names.join("> <"))),
            false => String::new(),
        };
        let flag = match (arg.get_long(), arg.get_short()) {
            (Some(long), Some(short)) => format!("`-{short}`, `--{long}{value}`"),
            (Some(long), None) => format!("`--{long}{value}`"),
            (None, Some(short)) => format!("`-{short}{value}`"),
            (None, None) => format!("`{}`", value.trim()),
        };
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let key = keys.iter().find(|key| *key == arg.get_id().as_str()).cloned().unwrap_or_default();
        let about = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
        let (about, told) = match about.rsplit_once(" [default: ") {
            Some((about, default)) => {
                (about.to_owned(), default.trim_end_matches("].").trim_end_matches(']').to_owned())
            }
            None => (about, String::new()),
        };
        let set: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = if set.is_empty() || !arg.get_action().takes_values() { told } else { set.join(", ") };
        let possible: Vec<String> =
            arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
        let possible = match possible.is_empty() || !arg.get_action().takes_values() {
            true => String::new(),
            false => format!(" One of {}.", possible.join(", ")),
        };
        let stop = if about.ends_with(['.', ')', ']']) { "" } else { "." };
        writeln!(
            text,
            "| {flag} | {} | {} | {} | {}{stop}{possible} |",
            code(&variable),
            code(&key),
            default.replace('|', "\\|"),
            about.replace('|', "\\|").replace('<', "&lt;")
        )
        .unwrap();
    }
}
