//! The cron job of the owner's schedule. It only wakes the supervisor: its scheduler
//! looks twice a second at the wall clock and may miss an instant; what must happen at
//! an instant is a deadline of the supervisor's own.

use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::Handle;
use crate::manage::schedule::Schedule;

/// Wakes the supervisor of `handle` at every instant of `schedule`, until what is returned is
/// shut down.
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
