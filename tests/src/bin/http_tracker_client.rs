//! Upstream's own HTTP client, as it ships it.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    torrust_tracker::console::clients::http::app::run().await
}
