use std::process::ExitCode;

fn main() -> ExitCode {
    match peers::floor::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
