//! Runs a session's tasks one after the other, and publishes how each began and ended.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use onlooker_protocol::event::kind;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, error};

use super::{
    session::{Running, Session, Stillness},
    window::Unnumbered,
};
use crate::agent::{Agent, Completed, Failed, Task};

/// Works until the session ends, then tells the agent. The running work is dropped at that moment.
pub(crate) async fn work_through(session: Arc<Session>, agent: Arc<dyn Agent>) {
    let tasks = async {
        loop {
            let running = session.next_task().await;
            work_on(&session, agent.as_ref(), running).await;
            session.task_is_over();
        }
    };
    tokio::select! {
        biased;
        () = session.ended.cancelled() => {}
        () = tasks => {}
    }
    session.task_is_over();
    if std::panic::catch_unwind(AssertUnwindSafe(|| agent.session_ended(&session.id))).is_err() {
        error!(session.id = %session.id, "the agent panicked at the end of a session");
    }
}

async fn work_on(session: &Arc<Session>, agent: &dyn Agent, running: Arc<Running>) {
    let task = Task::new(session.clone(), running.clone());
    debug!(session.id = %session.id, task = %running.id, "task started");
    let work = async {
        task.publish(kind::TASK_STARTED, json!({"taskId": running.id})).await;
        agent.work(task.clone()).await
    };
    let result = tokio::select! {
        biased;
        () = running.stop.cancelled() => None,
        () = out_of_time(session.stillness.subscribe(), running.parameters.max_duration) => Some(Err(Failed {
            error: "the task ran longer than its maxDuration".to_owned(),
            code: "max_duration".to_owned(),
        })),
        result = AssertUnwindSafe(work).catch_unwind() => Some(result.unwrap_or_else(|_| {
            error!(session.id = %session.id, task = %running.id, "the agent panicked");
            Err(Failed { error: "the agent failed unexpectedly".to_owned(), code: "panic".to_owned() })
        })),
    };
    if let Some(result) = result {
        let (kind, data) = ending(result);
        session.publish(Unnumbered::new(kind, Some(&running.id), data)).await;
    }
    // What the agent may have left running with a clone of the task publishes nothing any longer.
    running.stop.cancel();
}

fn ending(result: Result<Completed, Failed>) -> (&'static str, Value) {
    match result {
        Ok(Completed { message, mut data }) => {
            data.insert("message".to_owned(), Value::String(message));
            (kind::TASK_COMPLETED, Value::Object(data))
        }
        Err(Failed { error, code }) => (kind::ERROR, json!({"error": error, "code": code})),
    }
}

/// Returns when the task has run this many milliseconds, not counting the time that it was paused, under control or
/// waiting for a guardrail. Never without a limit.
async fn out_of_time(mut stillness: watch::Receiver<Stillness>, max_duration_ms: Option<u64>) {
    let Some(max) = max_duration_ms else { return std::future::pending().await };
    let mut left = Duration::from_millis(max);
    loop {
        if stillness.wait_for(|s| s.running()).await.is_err() {
            return std::future::pending().await;
        }
        let since = Instant::now();
        tokio::select! {
            biased;
            _ = stillness.wait_for(|s| !s.running()) => left = left.saturating_sub(since.elapsed()),
            () = tokio::time::sleep(left) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_at_rest_does_not_count_against_the_limit() {
        let stillness = watch::Sender::new(Stillness::default());
        let began = Instant::now();
        let clock = tokio::spawn(out_of_time(stillness.subscribe(), Some(1_000)));
        tokio::time::sleep(Duration::from_millis(400)).await;
        stillness.send_modify(|s| s.asking = 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        stillness.send_modify(|s| *s = Stillness { paused: true, ..Stillness::default() });
        tokio::time::sleep(Duration::from_secs(60)).await;
        stillness.send_modify(|s| s.paused = false);
        clock.await.unwrap();
        assert_eq!(began.elapsed().as_millis(), 121_000);
    }
}
