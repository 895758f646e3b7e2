//! Command line of `hadmd`: arguments and exit status only.
#![deny(clippy::indexing_slicing, clippy::string_slice)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::io::Write;
use std::process::ExitCode;

use hadmd::daemon::args::{Parsed, parse};
use hadmd::daemon::start::{check, start};
use hadmd::sys::{self, exit};

fn main() -> ExitCode {
    sys::give_memory_back();
    let options = match parse(lexopt::Parser::from_env()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Print(text)) => {
            return match std::io::stdout().write_all(text.as_bytes()) {
                // A reader that has closed its end is no failure of this program.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("hadmd: {error}");
                    exit::FAILED.into()
                }
                _ => ExitCode::SUCCESS,
            };
        }
        Err(error) => {
            eprintln!("hadmd: {error} (hadmd --help has the usage)");
            return exit::USAGE.into();
        }
    };
    if options.check { check(&options) } else { start(*options) }.into()
}
