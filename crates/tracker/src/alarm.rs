//! What must not end by itself says so when it does. A thread or a task that receives
//! requests and dies would otherwise leave a process that looks alive and serves nobody.
//!
//! Each holds a [`Lifeline`] for as long as it runs. However it ends, by returning or by a
//! panic, the lifeline is dropped and its name arrives at the [`Alarm`]. During a shutdown
//! they all end; nobody listens to the alarm any more then.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Hears of every end.
#[derive(Debug)]
pub struct Alarm {
    ends: UnboundedReceiver<String>,
    /// Keeps the channel open while nothing runs.
    line: UnboundedSender<String>,
}

/// Held by what runs; dropped by its end.
#[derive(Debug)]
pub struct Lifeline {
    name: String,
    line: UnboundedSender<String>,
}

impl Alarm {
    /// An alarm that nothing is tied to yet.
    pub fn new() -> Self {
        let (line, ends) = unbounded_channel();
        Self { ends, line }
    }

    /// A lifeline for what is called `name`.
    pub fn lifeline(&self, name: impl Into<String>) -> Lifeline {
        Lifeline {
            name: name.into(),
            line: self.line.clone(),
        }
    }

    /// Waits until something ends and says what it was.
    pub async fn raised(&mut self) -> String {
        let name = self.ends.recv().await;
        name.expect("a sender is kept, so the channel does not end")
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // Nobody listens any more: the process is ending as a whole.
        let _ = self.line.send(std::mem::take(&mut self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_kind_of_end_is_heard() {
        let mut alarm = Alarm::new();
        let (returns, panics) = (alarm.lifeline("returns"), alarm.lifeline("panics"));
        let thread = std::thread::spawn(move || drop(returns));
        thread.join().expect("it returns");
        assert_eq!(alarm.raised().await, "returns");
        let thread = std::thread::spawn(move || {
            let _lifeline = panics;
            panic!("this panic is part of the test");
        });
        thread.join().expect_err("it panics");
        assert_eq!(alarm.raised().await, "panics");
    }
}
