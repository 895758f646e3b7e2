//! `hadm-probe`: plays the kernel module towards a running hadmd. Arguments and exit status only; everything else is
//! in the library's module `probe`.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage.

use std::process::ExitCode;

use hadmd::probe::args::{self, Parsed};
use hadmd::probe::{run, say};
use hadmd::sys::exit;

fn main() -> ExitCode {
    let options = match args::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Print(text)) => {
            use std::io::Write;
            return match std::io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => exit::FAILED.into(),
            };
        }
        Err(wrong) => {
            say(format_args!("{wrong} (see hadm-probe --help)"));
            return exit::USAGE.into();
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(failure);
            exit::FAILED.into()
        }
    }
}
