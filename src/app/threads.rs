//! Threads for one kind of work, apart from all others.
//!
//! Taking requests and delivering share little, and each is many short tasks. Where any thread
//! may take any of them, what a task needs lies in another processor's cache, and threads wait
//! for one another's locks: with one event a message that was a third of all CPU
//! (`docs/decisions/threads.md`).

use std::{convert::Infallible, io, sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
    task::JoinHandle,
};

/// Threads with a runtime of their own, which end soon after this is dropped.
pub(super) struct Threads {
    handle: Handle,
    _ends: oneshot::Sender<Infallible>,
}

impl Threads {
    /// Starts so many threads, at least one, that bear a name.
    ///
    /// # Errors
    ///
    /// Where the system gives no thread or no file descriptor.
    pub(super) fn start(name: &'static str, count: usize) -> io::Result<Self> {
        let (ends, ended) = oneshot::channel();
        let (started, starts) = mpsc::channel();
        // Where there are several, this one only waits.
        let own = match count {
            0 | 1 => name.to_owned(),
            _ => format!("{name}-wait"),
        };
        thread::Builder::new().name(own).spawn(move || {
            let runtime = match runtime(name, count) {
                Ok(runtime) => runtime,
                Err(error) => {
                    // Nobody waits for it any more only after a panic there.
                    let _told = started.send(Err(error));
                    return;
                }
            };
            let _told = started.send(Ok(runtime.handle().clone()));
            let _dropped: Result<Infallible, _> = runtime.block_on(ended);
            // What blocks a thread is not waited for.
            runtime.shutdown_background();
        })?;
        // A runtime whose threads do not start panics.
        let panicked = || io::Error::other("the system gave no thread");
        let handle = starts.recv().map_err(|_| panicked())??;
        Ok(Self {
            handle,
            _ends: ends,
        })
    }

    /// Its runtime, for what is to hold these threads itself.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs a task on these threads, and what it spawns.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
}

fn runtime(name: &str, count: usize) -> io::Result<Runtime> {
    let mut builder = match count {
        // One alone needs no locks to share its tasks.
        0 | 1 => Builder::new_current_thread(),
        count => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(count);
            builder
        }
    };
    builder.thread_name(name).enable_all().build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::sync::Barrier;

    use super::*;

    /// Names of the threads on which so many tasks run that each wait for all others.
    async fn names(threads: &Threads, tasks: usize) -> BTreeSet<String> {
        let barrier = std::sync::Arc::new(Barrier::new(tasks));
        let begun: Vec<_> = (0..tasks)
            .map(|_| {
                let barrier = barrier.clone();
                threads.spawn(async move {
                    barrier.wait().await;
                    thread::current().name().unwrap().to_owned()
                })
            })
            .collect();
        let mut names = BTreeSet::new();
        for task in begun {
            names.insert(task.await.unwrap());
        }
        names
    }

    #[tokio::test]
    async fn tasks_run_on_threads_of_their_own_kind() {
        for count in [1, 3] {
            let threads = Threads::start("own", count).unwrap();
            assert_eq!(threads.handle.metrics().num_workers(), count);
            assert_eq!(names(&threads, 20).await, BTreeSet::from(["own".into()]));
        }
    }

    #[tokio::test]
    async fn they_end_with_what_runs_on_them() {
        for count in [1, 2] {
            let threads = Threads::start("own", count).unwrap();
            let task = threads.spawn(std::future::pending::<()>());
            drop(threads);
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }
}
