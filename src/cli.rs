//! The command line.
//!
//! What a command is asked for goes to standard output, one line a thing and without colour, so that it can be piped;
//! the log and everything about the command itself goes to standard error. The exit status says how it ended: see
//! [`Status`]. Errors say what to do next.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

mod answer;
mod check_config;
mod data;
mod demo;
mod failure;
mod guardrails;
mod key;
mod line;
mod links;
mod log;
mod notices;
mod panics;
mod recordings;
mod remote;
mod serve;
mod sessions;
mod signals;
mod watch;

use failure::{Failure, Status};

const EXAMPLES: &str = "\
Begin here:
  onlooker demo                        a gateway with a session to look at, in one process
  onlooker serve                       the gateway itself, on 127.0.0.1:8787
  onlooker start --prompt \"Buy a lamp\"  a session with a task
  onlooker guardrails                  what waits for a person

Exit status: 0 done, 1 failed, 64 wrong usage or configuration, 69 gateway unavailable, 77 not allowed.";

/// A realtime gateway for the sessions of AI agents that browse and act.
#[derive(Parser)]
#[command(name = "onlooker", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    CheckConfig(check_config::CheckConfig),
    Key(key::NewKey),
    Demo(demo::Demo),
    Start(sessions::Start),
    Sessions(sessions::List),
    Watch(watch::Watch),
    Guardrails(guardrails::List),
    Answer(answer::AnswerOne),
    Why(guardrails::Why),
    Links(links::Links),
    Notices(notices::Notices),
    Replay(recordings::Replay),
    Record(recordings::Record),
    Inspect(data::Inspect),
    Export(data::Export),
}

pub(crate) fn main() -> ExitCode {
    // Another part of the process cannot have installed one yet.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = match parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Status::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::failed(format!("cannot start: {error}"))),
    };
    let ended = runtime.block_on(run(arguments.command));
    // What still blocks (a read of standard input) must not keep the program.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(arguments)
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serve) => serve.run().await,
        Command::CheckConfig(check) => check.run(),
        Command::Key(key) => key.run(),
        Command::Demo(demo) => demo.run().await,
        Command::Start(start) => start.run().await,
        Command::Sessions(list) => list.run().await,
        Command::Watch(watch) => watch.run().await,
        Command::Guardrails(list) => list.run().await,
        Command::Answer(answer) => answer.run().await,
        Command::Why(why) => why.run().await,
        Command::Links(links) => links.run().await,
        Command::Notices(notices) => notices.run().await,
        Command::Replay(replay) => replay.run().await,
        Command::Record(record) => record.run().await,
        Command::Inspect(inspect) => inspect.run(),
        Command::Export(export) => export.run(),
    }
}

fn report(failure: &Failure) -> ExitCode {
    if let Some(text) = failure.text() {
        // Where it is written to may be closed; the status still says how it ended.
        let _ = writeln!(io::stderr(), "onlooker: {text}");
    }
    failure.status().into()
}

/// Writes one line to standard output.
///
/// # Errors
/// A closed pipe ends the command quietly.
fn say(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| Failure::from_output(&error))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        std::iter::once("onlooker").chain(line.split_whitespace()).map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_holds_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_a_help_text_with_examples() {
        for command in Arguments::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains("Usage:") && help.contains("Example"), "{name}: {help}");
            assert!(help.contains(&format!("onlooker {name}")), "{name} shows how it is called: {help}");
        }
    }

    #[test]
    fn wrong_usage_is_told_from_a_call_for_help() {
        assert!(parse(arguments("serve --no-such-flag")).is_err_and(|error| error.use_stderr()));
        assert!(parse(arguments("")).is_err_and(|error| error.use_stderr()));
        assert!(parse(arguments("serve --help")).is_err_and(|error| !error.use_stderr()));
        assert!(parse(arguments("watch")).is_err_and(|error| error.use_stderr()), "a session or --project");
        assert!(parse(arguments("answer g --text yes --decline")).is_err());
        assert!(parse(arguments("sessions --gateway ftp://x")).is_err());
        for line in ["links", "links --json", "links code --environment e --gateway http://x", "links remove l"] {
            assert!(parse(arguments(line)).is_ok(), "{line}");
        }
        assert!(parse(arguments("links remove")).is_err() && parse(arguments("links --json code")).is_err());
    }
}
