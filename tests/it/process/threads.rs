//! The threads of each kind of work.

use std::fs;

use super::Ground;
use crate::harness::Process;

fn count(process: &Process, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    tasks
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            // A thread may have ended since.
            fs::read_to_string(comm).is_ok_and(|comm| comm.trim_end() == name)
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_work_has_the_threads_that_are_asked_for() {
    let ground = Ground::new().await;
    for (arguments, wanted) in [
        (&[][..], [1, 1]),
        (&["--intake-threads=2", "--delivery-threads=3"], [2, 3]),
    ] {
        let process = ground.start_with(arguments).await;
        let counts = ["intake", "delivery"].map(|name| count(&process, name));
        assert_eq!(counts, wanted);
        process.kill().await;
    }
}
