//! The HTTP side of a load, on connections that are kept alive and used again.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Pacer;
use super::account::{Door, Outcome};
use super::book::Book;
use crate::announce;
use crate::http1::{Answer, Pool};

/// Announces until stopped. Each announce is a task of its own, which ends with the
/// answer or with the runtime.
pub(super) async fn send(mut pacer: Pacer, to: SocketAddr, book: Arc<Book>) {
    let pool = Arc::new(Pool::new(to));
    while let Some(due) = pacer.due().await {
        for _ in 0..due {
            let (number, announce) = book.send(Door::Http);
            let (pool, book) = (Arc::clone(&pool), Arc::clone(&book));
            tokio::spawn(async move {
                let outcome = match pool.get(&announce.http()).await {
                    Ok(answer) => judge(&answer),
                    Err(error) => Outcome::Refused(format!("{error:#}")),
                };
                book.end(number, outcome);
            });
        }
    }
}

fn judge(answer: &Answer) -> Outcome {
    match announce::accepted(answer) {
        Ok(()) => Outcome::Answered,
        Err(why) => Outcome::Refused(why),
    }
}
