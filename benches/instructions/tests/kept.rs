//! Each push is compared: instructions are steady where seconds are not.

use std::process::Command;

#[test]
fn no_stage_takes_more_instructions_than_kept() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_instructions"));
    if std::env::var_os("ONLOOKER_KEEP_INSTRUCTIONS").is_some_and(|keep| !keep.is_empty()) {
        program.arg("--update");
    }
    let run = program.output().expect("the program runs");
    let (said, complained) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    println!("{said}");
    assert!(run.status.success(), "{said}\n{complained}");
}
