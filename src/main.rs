//! The program: parse, run, exit code. 0 done, 1 done but a check failed, 2 could not.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // SAFETY: ignoring a signal runs no code of ours. A write beyond the account's file size limit then is an error like
    // that of a full disk; by default it kills the program without a word.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    scruple_weights::guard::install();
    let arguments = scruple::Arguments::parse();
    match scruple::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            scruple::printer::error(&error);
            ExitCode::from(2)
        }
    }
}
