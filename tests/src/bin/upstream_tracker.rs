//! The tracker as upstream starts it, to compare with and to test the harness itself.

use torrust_tracker::{app, bootstrap};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let (configuration, tracker) = bootstrap::app::setup();
    let jobs = app::start(&configuration, tracker).await;
    tokio::signal::ctrl_c().await?;
    for job in jobs {
        // A job that panicked has said so already.
        let _ = job.await;
    }
    Ok(())
}
