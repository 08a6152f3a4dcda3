//! Upstream's own checker, as it ships it. It prints what it found of each service.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    torrust_tracker::console::clients::checker::app::run().await?;
    Ok(())
}
