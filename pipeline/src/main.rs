//! `tidings`: the command line. Each command is one file in `commands/` and one arm of its enum.

mod commands;

// An event is read on one thread and let go of on another, in some thirty pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    commands::main()
}
