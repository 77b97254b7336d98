use std::process::ExitCode;

fn main() -> ExitCode {
    match peers::run::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
