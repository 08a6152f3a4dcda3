//! A receiver for tests.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::Target;

/// A receiver that gives these answers, one a connection, and then none.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    /// The requests it got.
    got: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    pub(crate) async fn answering(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let got = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&got);
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = vec![0; 64 * 1024];
                let mut read = 0;
                // The body comes with the header, or just after it.
                while !is_whole(&request[..read]) {
                    match stream.read(&mut request[read..]).await {
                        Ok(more @ 1..) => read += more,
                        _ => break,
                    }
                }
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                requests.lock().expect("unpoisoned").push(text);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            pending::<()>().await;
        });
        Self { address, got }
    }

    pub(crate) fn target(&self, path: &str) -> Target {
        Target::parse(&format!("http://{}{path}", self.address)).expect("an address")
    }

    pub(crate) fn got(&self) -> Vec<String> {
        self.got.lock().expect("unpoisoned").clone()
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

/// An answer of this status, with further headers.
pub(crate) fn answer(status: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n{more}\r\n")
}
