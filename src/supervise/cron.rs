//! The cron job of the operator's schedule. It only wakes the supervisor: its scheduler
//! polls the wall clock twice a second and may miss an instant. Due instants are timers
//! of the supervisor itself.

use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::Handle;
use crate::manage::schedule::Schedule;

/// Wakes the supervisor of `handle` at every instant of `schedule`, until the returned
/// scheduler is shut down.
///
/// # Errors
/// When the scheduler does not start.
pub(crate) async fn start(
    schedule: &Schedule,
    handle: Handle,
) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    let job = Job::new_async(schedule.to_string().as_str(), move |_, _| {
        let handle = handle.clone();
        Box::pin(async move { handle.sweep().await })
    })?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    Ok(scheduler)
}
