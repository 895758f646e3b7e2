//! Command line of `hadmctl`: arguments and exit status only.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::io::Write;
use std::process::ExitCode;

use hadmd::ctl::args::{Parsed, USAGE, parse};
use hadmd::ctl::{Failure, run};

fn main() -> ExitCode {
    let options = match parse(lexopt::Parser::from_env()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Print(text)) => {
            return match std::io::stdout().write_all(text.as_bytes()) {
                // A reader that went away is no failure of this program.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("hadmctl: {error}");
                    ExitCode::FAILURE
                }
                _ => ExitCode::SUCCESS,
            };
        }
        Err(error) => {
            eprint!("hadmctl: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        // Whoever read the output has seen enough.
        Ok(()) | Err(Failure::Unread) => ExitCode::SUCCESS,
        Err(Failure::Configuration(text)) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
        Err(Failure::NoPeer(why)) => {
            eprintln!("hadmctl: {why}");
            ExitCode::from(2)
        }
        Err(Failure::Unwell) => ExitCode::FAILURE,
        Err(Failure::Said(why)) => {
            eprintln!("hadmctl: {why}");
            ExitCode::FAILURE
        }
    }
}
