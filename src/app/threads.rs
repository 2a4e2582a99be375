//! Separate threads for each kind of work.
//!
//! Handling requests and delivering share little data, and both consist of many short tasks. If
//! any thread may run any task, its data is often in the cache of another processor, and threads
//! wait for each other's locks. With one event per message this took a third of all CPU time
//! (`docs/decisions/threads.md`).

use std::{convert::Infallible, io, sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
    task::JoinHandle,
};

/// Threads with a separate async runtime. They end soon after this value is dropped.
pub(super) struct Threads {
    handle: Handle,
    /// Ends the threads when it is dropped.
    _keep_alive: oneshot::Sender<Infallible>,
}

impl Threads {
    /// Starts `count` threads with this name, at least one.
    ///
    /// # Errors
    ///
    /// If the system cannot provide a thread or a file descriptor.
    pub(super) fn start(name: &'static str, count: usize) -> io::Result<Self> {
        let (keep_alive, dropped) = oneshot::channel();
        let (started, result) = mpsc::channel();
        // With several worker threads, this additional thread only waits for the end.
        let thread_name = match count {
            0 | 1 => name.to_owned(),
            _ => format!("{name}-wait"),
        };
        thread::Builder::new().name(thread_name).spawn(move || {
            let runtime = match runtime(name, count) {
                Ok(runtime) => runtime,
                Err(error) => {
                    // The receiver is gone only after a panic.
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(runtime.handle().clone()));
            let _: Result<Infallible, _> = runtime.block_on(dropped);
            // Does not wait for blocking tasks.
            runtime.shutdown_background();
        })?;
        // The runtime panics if its threads cannot start.
        let panicked = || io::Error::other("the system started no thread");
        let handle = result.recv().map_err(|_| panicked())??;
        Ok(Self {
            handle,
            _keep_alive: keep_alive,
        })
    }

    /// Handle of the runtime, for a task that owns these threads.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs a task, and all tasks that it spawns, on these threads.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
}

fn runtime(name: &str, count: usize) -> io::Result<Runtime> {
    let mut builder = match count {
        // A single thread needs no locks for its tasks.
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

    /// Names of the threads that run `tasks` tasks, each waiting for the others.
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
    async fn tasks_run_on_these_threads_only() {
        for count in [1, 3] {
            let threads = Threads::start("test", count).unwrap();
            assert_eq!(threads.handle.metrics().num_workers(), count);
            assert_eq!(names(&threads, 20).await, BTreeSet::from(["test".into()]));
        }
    }

    #[tokio::test]
    async fn dropping_ends_the_threads_and_their_tasks() {
        for count in [1, 2] {
            let threads = Threads::start("test", count).unwrap();
            let task = threads.spawn(std::future::pending::<()>());
            drop(threads);
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }
}
