//! File systems of their own, for what the one at hand does not do: be full, clone files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A file system, mounted for as long as this lives.
pub struct Volume {
    mounted: PathBuf,
    /// The directory of the file it is in.
    image: Option<TempDir>,
}

impl Volume {
    /// One of so many bytes.
    pub fn in_memory(at: &Path, bytes: u64) -> Result<Self> {
        let size = format!("size={bytes}");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "end-to-end"])
            .arg(at))?;
        Ok(Self {
            mounted: at.to_owned(),
            image: None,
        })
    }

    /// XFS, which clones files; of 1 GiB.
    pub fn xfs(at: &Path) -> Result<Self> {
        let home = TempDir::new()?;
        let image = home.path().join("image");
        run(Command::new("truncate").args(["--size", "1G"]).arg(&image))?;
        run(Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1"])
            .arg(&image))?;
        let volume = Self {
            mounted: at.to_owned(),
            image: Some(home),
        };
        volume.mount()?;
        Ok(volume)
    }

    /// Mounts one that is in a file, again after [`Self::unmount`].
    pub fn mount(&self) -> Result<()> {
        let home = self.image.as_ref().context("it is in memory alone")?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(home.path().join("image"))
            .arg(&self.mounted))
    }

    /// What is below its mount point shows.
    pub fn unmount(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.mounted))
    }

    /// Whoever writes to it waits, as for a disk that does not answer, until [`Self::thaw`].
    pub fn freeze(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("-f").arg(&self.mounted))
    }

    /// It goes on.
    pub fn thaw(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("-u").arg(&self.mounted))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A frozen one cannot be unmounted; one that is not frozen cannot be thawed.
        let _ = self.thaw();
        // Lazily: a tracker of a failed test may still be there.
        let unmounted = Command::new("umount").arg("-l").arg(&self.mounted).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.mounted.display());
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "this test needs a file system of its own, and mounting one is not permitted (run the \
         tests as root): {command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
