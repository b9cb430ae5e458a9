//! The program: parse, run, exit code. 0 done, 1 done but a check failed, 2 could not.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = scruple::Arguments::parse();
    match scruple::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            scruple::printer::error(&error);
            ExitCode::from(2)
        }
    }
}
