//! The number of threads that want to run.
//!
//! Called by readers of links while they wait.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Returns the number of threads of this machine that run or want to, the caller among them; `None` where /proc does
/// not say.
pub fn runnable_threads() -> Option<usize> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let mut text = [0; 128];
    let n = FILE.get_or_init(|| File::open("/proc/loadavg").ok()).as_ref()?.read_at(&mut text, 0).ok()?;
    runnable(std::str::from_utf8(text.get(..n)?).ok()?)
}

/// Finds it in three averages and `runnable/all last-pid`.
fn runnable(text: &str) -> Option<usize> {
    text.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_runs() {
        assert!(runnable_threads().is_none_or(|threads| threads >= 1));
        assert_eq!(runnable("0.20 0.18 0.12 3/80 11206\n"), Some(3));
        assert_eq!(runnable("0.20 0.18"), None);
    }
}
