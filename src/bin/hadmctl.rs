//! Command line of `hadmctl`: arguments and exit status only.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::io::Write;
use std::process::ExitCode;

use hadmd::ctl::args::{Parsed, parse};
use hadmd::ctl::{Failure, run};
use hadmd::sys::exit;

fn main() -> ExitCode {
    let options = match parse(lexopt::Parser::from_env()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Print(text)) => {
            return match std::io::stdout().write_all(text.as_bytes()) {
                // A reader that has closed its end is no failure of this program.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("hadmctl: {error}");
                    exit::FAILED.into()
                }
                _ => ExitCode::SUCCESS,
            };
        }
        Err(error) => {
            eprintln!("hadmctl: {error} (hadmctl --help has the usage)");
            return exit::USAGE.into();
        }
    };
    let Err(failure) = run(&options) else { return ExitCode::SUCCESS };
    match &failure {
        // The output has it all, or its reader has seen enough.
        Failure::Unwell | Failure::Shown(_) | Failure::Unread => {}
        // Each line begins with the file's name.
        Failure::Configuration(text) => eprintln!("{text}"),
        failure => eprintln!("hadmctl: {failure}"),
    }
    failure.status().into()
}
