//! A command that prints ring text: how key management services, hardware modules
//! and decrypted files plug in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};
use zeroize::Zeroizing;

use super::{MAX_RING_TEXT, SourceError};
use crate::secret::SecretText;

/// Most bytes of a command's standard error that are kept.
const MAX_MESSAGES: usize = 4096;

/// How often a command that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a command gave.
#[derive(Debug)]
pub struct CommandOutput {
    /// What it printed.
    pub text: Result<SecretText, SourceError>,
    /// The beginning of what it wrote to standard error.
    pub messages: String,
}

/// Runs `command` by `/bin/sh` and takes what it prints, at most [`MAX_RING_TEXT`]
/// bytes within `timeout`. It must end with exit status 0. Nothing that it has started
/// in its process group outlives it.
///
/// `prepare` may add to how it is started; where `give_up` says so, it is not waited
/// for any more.
pub fn run_key_command(
    command: &str,
    timeout: Duration,
    prepare: impl FnOnce(&mut Command),
    give_up: impl Fn() -> bool,
) -> CommandOutput {
    let mut messages = Vec::new();
    let text = run(command, timeout, prepare, give_up, &mut messages);
    if messages.len() == MAX_MESSAGES {
        // Half a key would not be known for one.
        let end = messages.iter().rposition(u8::is_ascii_whitespace);
        messages.truncate(end.unwrap_or(0));
    }
    CommandOutput {
        text,
        messages: String::from_utf8_lossy(&messages).into_owned(),
    }
}

fn run(
    command: &str,
    timeout: Duration,
    prepare: impl FnOnce(&mut Command),
    give_up: impl Fn() -> bool,
    messages: &mut Vec<u8>,
) -> Result<SecretText, SourceError> {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    prepare(&mut shell);
    let mut child = shell.spawn()?;
    let text = read(&mut child, timeout, give_up, messages);
    end(&mut child);
    text
}

/// Kills what is left of the command and of whatever it has started, and waits for
/// it: who is process 1, as in a container, or a subreaper inherits it, and PostgreSQL
/// takes a child that it does not know for a backend that has crashed.
fn end(child: &mut Child) {
    let Some(group) = Pid::from_raw(child.id().cast_signed()) else {
        return;
    };
    let deadline = Instant::now() + Duration::from_secs(1);
    // Until there is no such group; a process that was killed is one of it until it was
    // waited for.
    while kill_process_group(group, Signal::KILL).is_ok() && Instant::now() < deadline {
        let _ = child.try_wait();
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.try_wait();
}

fn read(
    child: &mut Child,
    timeout: Duration,
    give_up: impl Fn() -> bool,
    messages: &mut Vec<u8>,
) -> Result<SecretText, SourceError> {
    let deadline = Instant::now() + timeout;
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
    };
    // One allocation of the final size: growing would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_RING_TEXT + 1));
    let mut pipes = [
        Pipe::new(output.as_fd(), &mut text, Full::IsAnError),
        Pipe::new(errors.as_fd(), messages, Full::DropsTheRest),
    ];
    loop {
        // Asked first: what it wrote before its end is there to be read.
        let ended = child.try_wait()?;
        let news = wait_for_news(
            &pipes,
            if ended.is_some() {
                Duration::ZERO
            } else {
                LOOK
            },
        )?;
        for (pipe, has_news) in pipes.iter_mut().zip(news) {
            if has_news {
                pipe.read()?;
            }
        }
        if let Some(status) = ended
            && !news.contains(&true)
        {
            // What it has left running may hold the pipe open.
            return match status.success() {
                true => SecretText::from_source(core::mem::take(&mut text)),
                false => Err(SourceError::Exit(status)),
            };
        }
        if Instant::now() > deadline {
            return Err(SourceError::Timeout(timeout));
        }
        if give_up() {
            return Err(SourceError::GivenUp);
        }
    }
}

/// What to do with more than is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Full {
    IsAnError,
    DropsTheRest,
}

/// One of a command's outputs.
struct Pipe<'a> {
    pipe: BorrowedFd<'a>,
    kept: &'a mut Vec<u8>,
    limit: usize,
    full: Full,
    open: bool,
}

impl<'a> Pipe<'a> {
    fn new(pipe: BorrowedFd<'a>, kept: &'a mut Vec<u8>, full: Full) -> Self {
        let limit = match full {
            Full::IsAnError => MAX_RING_TEXT,
            Full::DropsTheRest => MAX_MESSAGES,
        };
        Self {
            pipe,
            kept,
            limit,
            full,
            open: true,
        }
    }

    /// Takes what is there. There is something, or the end.
    fn read(&mut self) -> Result<(), SourceError> {
        let mut part = Zeroizing::new([0; 4096]);
        let len = match rustix::io::read(self.pipe, part.as_mut_slice()) {
            Ok(len) => len,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        self.open = len > 0;
        let room = self.limit - self.kept.len();
        if len > room && self.full == Full::IsAnError {
            return Err(SourceError::TooLarge);
        }
        self.kept.extend_from_slice(&part[..len.min(room)]);
        Ok(())
    }
}

/// Which pipes have something to read, or their end.
fn wait_for_news(pipes: &[Pipe<'_>; 2], time: Duration) -> Result<[bool; 2], SourceError> {
    let mut asked: Vec<_> = pipes
        .iter()
        .filter(|pipe| pipe.open)
        .map(|pipe| PollFd::from_borrowed_fd(pipe.pipe, PollFlags::IN))
        .collect();
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut asked, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    let mut answers = asked.iter().map(|answer| !answer.revents().is_empty());
    Ok(pipes
        .each_ref()
        .map(|pipe| pipe.open && answers.next().unwrap_or(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str) -> CommandOutput {
        run_key_command(command, Duration::from_secs(10), |_| {}, || false)
    }

    #[test]
    fn what_it_prints_is_taken() {
        let output = run("echo key; echo why >&2");
        assert_eq!(output.text.expect("printed").expose(), "key\n");
        assert_eq!(output.messages, "why\n");
        assert_eq!(run("true").text.expect("nothing").expose(), "");
    }

    #[test]
    fn a_failure_is_told_by_its_exit_status() {
        let output = run("echo key; echo why >&2; exit 3");
        let error = output.text.expect_err("failed").to_string();
        assert_eq!(error, "it failed with exit status: 3");
        assert_eq!(output.messages, "why\n");
        let error = run("kill -9 $$").text.expect_err("failed").to_string();
        assert!(error.contains("signal: 9"), "{error}");
        let error = run("/no/such/program").text.expect_err("failed");
        assert!(error.to_string().contains("127"), "{error}");
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_that_it_started() {
        let started = Instant::now();
        let command = "sleep 1000 & echo $!; sleep 1000";
        let output = run_key_command(command, Duration::from_millis(300), |_| {}, || false);
        assert!(matches!(output.text, Err(SourceError::Timeout(_))));
        assert!(started.elapsed() < Duration::from_secs(5));
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let command = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let output = run_key_command(&command, Duration::from_millis(500), |_| {}, || false);
        assert!(matches!(output.text, Err(SourceError::Timeout(_))));
        let pid = std::fs::read_to_string(pid).expect("started");
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        // Gone, or a zombie that nobody has asked about.
        assert!(state.is_ok_and(|state| state.contains(") Z ")) || !is_there(pid.trim()));
    }

    fn is_there(pid: &str) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn one_that_leaves_something_running_has_ended() {
        let started = Instant::now();
        let output = run("echo key; sleep 5 & exit 0");
        assert_eq!(output.text.expect("printed").expose(), "key\n");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn one_that_prints_too_much_is_stopped() {
        let print = |bytes: usize| run(&format!("head -c {bytes} /dev/zero | tr '\\0' '#'"));
        assert_eq!(
            print(MAX_RING_TEXT).text.expect("printed").expose().len(),
            MAX_RING_TEXT
        );
        let error = print(MAX_RING_TEXT + 1).text.expect_err("too much");
        assert!(matches!(error, SourceError::TooLarge));
        let started = Instant::now();
        let error = run("yes").text.expect_err("too much");
        assert!(matches!(error, SourceError::TooLarge));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn messages_are_cut_off_and_do_not_block() {
        let output = run("yes why | head -c 1000000 >&2; echo key");
        assert_eq!(output.text.expect("printed").expose(), "key\n");
        assert_eq!(output.messages.len(), MAX_MESSAGES - 1);
    }

    #[test]
    fn a_message_that_is_cut_off_loses_its_last_word() {
        let output = run("head -c 4090 /dev/zero | tr '\\0' '#' >&2; echo ' a-long-word' >&2");
        assert_eq!(output.messages.len(), 4090);
        let output = run("head -c 5000 /dev/zero | tr '\\0' '#' >&2");
        assert_eq!(output.messages, "");
    }

    #[test]
    fn one_that_is_given_up_is_not_waited_for() {
        let started = Instant::now();
        let timeout = Duration::from_secs(100);
        let output = run_key_command("sleep 1000", timeout, |_| {}, || true);
        assert!(matches!(output.text, Err(SourceError::GivenUp)));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let error = run("printf '\\377'").text.expect_err("refused");
        assert!(matches!(error, SourceError::NotUtf8));
    }
}
