//! Upstream's own UDP client, as it ships it.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    torrust_tracker::console::clients::udp::app::run().await
}
