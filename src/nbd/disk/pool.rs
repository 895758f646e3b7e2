//! A few threads for jobs that have to wait for a disk.
//!
//! Jobs start in the order in which they come, and run beside each other. Must never block the caller: the callers bound
//! the number of waiting jobs, by the limit of the server on bytes of requests. Ends when it is dropped, after the jobs
//! that it has. Called by the volumes.

use std::io;

use crossbeam::channel::{Sender, unbounded};

use crate::sys;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads.
#[derive(Clone, Debug)]
pub struct IoPool {
    jobs: Sender<Job>,
}

impl IoPool {
    /// Starts `threads` threads, at least one, named after the disk.
    ///
    /// # Errors
    /// The system cannot start another thread.
    pub fn new(name: &str, threads: usize) -> io::Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        for i in 0..threads.max(1) {
            let queue = queue.clone();
            sys::spawn(&format!("{name}:io{i}"), move || queue.iter().for_each(|job| job()))?;
        }
        Ok(IoPool { jobs })
    }

    /// Hands a job to the threads.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads end only after the last of these is dropped.
        _ = self.jobs.send(Box::new(job));
    }
}
