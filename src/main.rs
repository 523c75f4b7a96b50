//! The binary: hands the command line to [`rateguard::cli`] and its exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    rateguard::cli::main()
}
