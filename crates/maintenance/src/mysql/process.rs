//! A client program as a child process: what it is told on its standard input, what it
//! writes, what it says when it fails, and its end, whoever wants that.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Address, Error};
use crate::snapshot::Watch;

/// What a program gets of this process's environment.
const KEPT: [&str; 6] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "LANG", "LC_ALL"];
/// Bytes read at a time.
const CHUNK: usize = 128 << 10;
/// Chunks that wait to be taken; then the program waits.
const CHUNKS: usize = 8;
/// Most that is kept of what it says; what matters comes last.
const SAID: usize = 4 << 10;
/// How often it is looked whether somebody wants it to end, or it has.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a program may take to end that has closed its output, or was killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A running program. Killed when dropped, with all that it has started.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    address: Address,
    handle: Handle,
    output: Receiver<io::Result<Vec<u8>>>,
    said: Arc<Mutex<Vec<u8>>>,
    /// Ends when the program has said all it has to say.
    silence: Receiver<()>,
}

/// Ends a program from outside. Clones are of the same program.
#[derive(Debug, Clone)]
pub(super) struct Handle(Arc<Mutex<Child>>);

impl Handle {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills it and all that it has started, unless it has ended: its number may be
    /// another's by then.
    pub(super) fn kill(&self) {
        let mut child = self.child();
        if let Ok(None) = child.try_wait()
            && let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            // It may end by itself at this very moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Kills it and waits; whether it is gone.
    pub(super) fn end(&self, within: Duration) -> bool {
        self.kill();
        self.ended(within, &Watch::default()).is_some()
    }

    /// Its status, if it ends within this time and before the watch is cancelled.
    fn ended(&self, within: Duration, watch: &Watch) -> Option<ExitStatus> {
        let began = now();
        loop {
            if let Some(status) = self.child().try_wait().unwrap_or_default() {
                return Some(status);
            }
            if watch.cancelled().is_some() || began.elapsed() >= within {
                return None;
            }
            watch.pause(LOOK_EVERY);
        }
    }
}

impl Process {
    /// Starts `command`, called `name` in errors, in a process group of its own, and writes
    /// `input` to it, all of it, which must fit into a pipe.
    pub(super) fn start(
        name: &str,
        address: &Address,
        command: &mut Command,
        input: &str,
    ) -> Result<Self, Error> {
        let (process, mut stdin) = Self::start_fed(name, address, command)?;
        // One that ends before it has read this will say why.
        let _ = stdin.write_all(input.as_bytes());
        Ok(process)
    }

    /// As [`Process::start`], to be written to by the caller.
    pub(super) fn start_fed(
        name: &str,
        address: &Address,
        command: &mut Command,
    ) -> Result<(Self, ChildStdin), Error> {
        let not_started = |source| Error::NotStarted {
            program: name.to_owned(),
            source,
        };
        let mut child = command
            // The service's environment may hold its configuration, and with it the password;
            // and HOME leads to files with other passwords.
            .env_clear()
            .envs(
                KEPT.iter()
                    .filter_map(|name| Some((name, env::var_os(name)?))),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(not_started)?;
        let piped = "it was asked for above";
        let stdin = child.stdin.take().expect(piped);
        let stdout = child.stdout.take().expect(piped);
        let mut stderr = child.stderr.take().expect(piped);
        let handle = Handle(Arc::new(Mutex::new(child)));
        let (send, output) = sync_channel(CHUNKS);
        let (silent, silence) = sync_channel::<()>(0);
        let said = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&said);
        let reading = move || pass_on(stdout, &send);
        let listening = move || {
            let _silent = silent;
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                let mut said = keep.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&buffer[..read]);
                let too_much = said.len().saturating_sub(SAID);
                said.drain(..too_much);
            }
        };
        let process = Self {
            name: name.to_owned(),
            address: address.clone(),
            handle,
            output,
            said,
            silence,
        };
        let thread = |name: &str| thread::Builder::new().name(name.into());
        thread("client-output")
            .spawn(reading)
            .map_err(not_started)?;
        thread("client-errors")
            .spawn(listening)
            .map_err(not_started)?;
        Ok((process, stdin))
    }

    /// What ends it from outside.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What it is called in errors.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The next piece of its output; `None` when it has closed it.
    ///
    /// # Errors
    ///
    /// When nothing comes by `deadline`, where it was to do `what`, or before the watch is
    /// cancelled.
    pub(super) fn next(
        &self,
        what: &'static str,
        limit: Option<(Instant, Duration)>,
        watch: &Watch,
    ) -> Result<Option<Vec<u8>>, Error> {
        loop {
            match self.output.recv_timeout(LOOK_EVERY) {
                Ok(Ok(chunk)) => return Ok(Some(chunk)),
                Ok(Err(source)) => {
                    return Err(Error::Pipe {
                        program: self.name.clone(),
                        source,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(why) = watch.cancelled() {
                return Err(Error::Cancelled(why));
            }
            if let Some((began, within)) = limit
                && began.elapsed() >= within
            {
                return Err(self.silent(what, within));
            }
        }
    }

    /// All of its output, and that it ended well.
    pub(super) fn output(
        &self,
        what: &'static str,
        within: Duration,
        watch: &Watch,
    ) -> Result<String, Error> {
        let began = now();
        let mut output = Vec::new();
        while let Some(chunk) = self.next(what, Some((began, within)), watch)? {
            output.extend(chunk);
        }
        self.finish(watch)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Waits for its end, its output having ended.
    ///
    /// # Errors
    ///
    /// When it was not a good one.
    pub(super) fn finish(&self, watch: &Watch) -> Result<(), Error> {
        self.finish_within(END_WITHIN, watch)
    }

    /// The same of one that has more to do than to end.
    pub(super) fn finish_within(&self, within: Duration, watch: &Watch) -> Result<(), Error> {
        let Some(status) = self.handle.ended(within, watch) else {
            return Err(match watch.cancelled() {
                Some(why) => Error::Cancelled(why),
                None => self.silent("its end", within),
            });
        };
        if status.success() {
            Ok(())
        } else {
            Err(self.failed(&status.to_string()))
        }
    }

    /// Why it has ended, if it has done so by itself and with an error; else kills it.
    pub(super) fn finish_or_kill(&self) -> Option<Error> {
        let ended = self.handle.ended(Duration::from_secs(1), &Watch::default());
        self.handle.kill();
        let status = ended.filter(|status| !status.success() && status.code().is_some())?;
        Some(self.failed(&status.to_string()))
    }

    fn failed(&self, status: &str) -> Error {
        // What it has started may keep the pipe open.
        let _ = self.silence.recv_timeout(Duration::from_secs(1));
        let said = {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&said).into_owned()
        };
        let said = self.address.redacted(&said);
        // Of an option for other versions the program says that it does not know it.
        let lines = said.lines().map(str::trim);
        let lines: Vec<_> = lines
            .filter(|line| !line.is_empty() && !line.contains("loose-"))
            .collect();
        Error::Failed {
            program: self.name.clone(),
            address: Box::new(self.address.clone()),
            status: status.to_owned(),
            said: if lines.is_empty() {
                "it did not say why".to_owned()
            } else {
                lines.join("; ")
            },
        }
    }

    fn silent(&self, what: &'static str, within: Duration) -> Error {
        Error::Silent {
            program: self.name.clone(),
            address: Box::new(self.address.clone()),
            what,
            within,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Waited for, so that it has let go of the server's locks, and leaves no zombie.
        self.handle.end(Duration::from_secs(1));
    }
}

/// Reads until the end, or until nobody takes it any more.
fn pass_on(mut stdout: impl io::Read, to: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let passed = match stdout.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => {
                chunk.truncate(read);
                to.send(Ok(chunk))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                drop(to.send(Err(error)));
                return;
            }
        };
        if passed.is_err() {
            return;
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "for how long a program is waited for, where it is waited for"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}
