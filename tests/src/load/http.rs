//! The HTTP side of a load. Connections are kept alive and used again; when all of them
//! wait for an answer, another is opened, so that the rate is kept.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::Pace;
use super::account::{Door, Outcome};
use super::book::Book;
use crate::announce::Announce;
use crate::http1::{Answer, Connection};

/// Announces until stopped. Each announce is a task of its own, which ends with the
/// answer or with the runtime.
pub(super) async fn send(mut pace: Pace, to: SocketAddr, book: Arc<Book>) {
    let idle = Arc::new(Idle {
        to,
        connections: Mutex::default(),
    });
    while let Some(due) = pace.due().await {
        for _ in 0..due {
            let (number, announce) = book.send(Door::Http);
            let (idle, book) = (Arc::clone(&idle), Arc::clone(&book));
            tokio::spawn(async move {
                let outcome = match idle.ask(announce).await {
                    Ok(answer) => judge(&answer),
                    Err(error) => Outcome::Refused(format!("{error:#}")),
                };
                book.end(number, outcome);
            });
        }
    }
}

/// Connections that wait for no answer.
struct Idle {
    to: SocketAddr,
    connections: Mutex<Vec<Connection>>,
}

impl Idle {
    async fn ask(&self, announce: Announce) -> Result<Answer> {
        let mut connection = match self.kept().await {
            Some(connection) => connection,
            None => Connection::open(self.to).await?,
        };
        let answer = connection.get(&announce.http()).await?;
        self.lock().push(connection);
        Ok(answer)
    }

    /// One the server has not closed meanwhile, as it may an idle one (RFC 9112, 9.5).
    async fn kept(&self) -> Option<Connection> {
        loop {
            let mut connection = self.lock().pop()?;
            if connection.is_usable().await {
                return Some(connection);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tracker's refusal is a 200 too, with `failure reason` in place of an interval (BEP 3).
fn judge(answer: &Answer) -> Outcome {
    let peers = answer.body.windows(10).any(|part| part == b"8:interval");
    if answer.status.is_success() && peers {
        Outcome::Answered
    } else {
        Outcome::Refused(format!(
            "{}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        ))
    }
}
