//! The program `onlooker`: the gateway, a demo, and what people and scripts use beside it.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
