//! A small file system of its own, whose disk fills up, fails, hangs or loses power while the rest of the machine does not.
//!
//! ext4 on a loop device. [`Volume::with_power_switch`] is made of a plain file; the disk of [`Volume::on_failing_disk`] is
//! served by nbdkit through FUSE, with a filter that refuses writes on demand. Both need root, which tests often are and need
//! not be: they get the reason why not, and say it.
//!
//! Sources: ext4's `EXT4_IOC_SHUTDOWN` as `xfs_io -x -c shutdown` asks for it (no I/O reaches the disk afterwards, and what was
//! not fsynced is gone); `nbdkit-error-filter(1)`. That the kernel forgets what it could not write, and that a second fsync of
//! the same descriptor then succeeds, was seen on Linux 6.18 with these.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, wait_until};

/// How long mounting and its like may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A mounted file system. Unmounted when dropped.
#[derive(Debug)]
pub struct Volume {
    mounted: Mounted,
    disk: Disk,
    /// The image and the mount point are in it.
    _dir: TempDir,
}

#[derive(Debug)]
enum Disk {
    File(PathBuf),
    Served { nbdfuse: Process, nbdkit: Process, image: PathBuf, refuses: PathBuf },
}

#[derive(Debug)]
struct Mounted(PathBuf);

impl Volume {
    /// A file system of `bytes` whose power can be cut.
    ///
    /// # Errors
    /// Why this machine has none: no root, or a tool that is missing.
    pub fn with_power_switch(bytes: u64) -> Result<Volume, String> {
        // Otherwise it would come to light only in the middle of a test.
        run("xfs_io", &["-V"])?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = dir.path().join("disk");
        File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
        let mounted = Mounted::format_and_mount(dir.path(), &image, &[])?;
        Ok(Volume { mounted, disk: Disk::File(image), _dir: dir })
    }

    /// A file system of `bytes` whose disk fails when told to.
    ///
    /// It has no journal: the first write that fails would make one read-only for ever, and nothing could be seen afterwards.
    ///
    /// # Errors
    /// Why this machine has none: no root, no FUSE, or a tool that is missing.
    pub async fn on_failing_disk(bytes: u64) -> Result<Volume, String> {
        run("nbdkit", &["--version"])?;
        run("nbdfuse", &["--version"])?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (socket, image, refuses) = (dir.path().join("socket"), dir.path().join("disk"), dir.path().join("refuses"));
        File::create(&image).map_err(|error| error.to_string())?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--filter=error", "--unix"]).arg(&socket).arg("memory").arg(bytes.to_string());
        command.arg("error-pwrite-rate=100%").arg(format!("error-file={}", refuses.display()));
        let mut nbdkit = Process::spawn("nbdkit", command, dir.path());
        wait_until(LIMIT, "nbdkit listens", async || socket.exists() || nbdkit.exit_status().is_some()).await;
        let mut command = Command::new("nbdfuse");
        command.arg(&image).arg("--unix").arg(&socket);
        let mut nbdfuse = Process::spawn("nbdfuse", command, dir.path());
        let is_there = || fs::metadata(&image).is_ok_and(|metadata| metadata.len() == bytes);
        wait_until(LIMIT, "the disk is there", async || is_there() || nbdfuse.exit_status().is_some()).await;
        if !is_there() {
            return Err(format!("nbdfuse cannot be used here: {}", nbdfuse.log().trim()));
        }
        let disk = Disk::Served { nbdfuse, nbdkit, image: image.clone(), refuses };
        let mounted = Mounted::format_and_mount(dir.path(), &image, &["-O", "^has_journal"])?;
        Ok(Volume { mounted, disk, _dir: dir })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted.0
    }

    /// Takes all the room that is left, but for what fits into `but_bytes`.
    ///
    /// # Panics
    /// When something else than the end of the room stops it.
    pub fn fill(&self, but_bytes: usize) {
        let (mut ballast, chunk) = (File::create(self.ballast()).expect("a file more"), [0_u8; 4096]);
        let written = loop {
            match ballast.write(&chunk) {
                Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(_) => {}
                Err(error) => break Err::<(), _>(error),
            }
        };
        assert_eq!(written.expect_err("it is bounded").kind(), io::ErrorKind::StorageFull);
        let length = ballast.metadata().expect("it is open").len();
        ballast.set_len(length.saturating_sub(but_bytes as u64)).expect("a file may get shorter");
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// When it was not taken.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Cuts the power: from now on every operation fails, and what was not fsynced will not be there again.
    ///
    /// # Panics
    /// When it cannot.
    pub fn cut_power(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", &self.path().display().to_string()]).expect("it is mounted");
    }

    /// Mounts it again, after nobody uses it any more.
    ///
    /// # Panics
    /// When it cannot be unmounted or mounted.
    pub fn power_on(&mut self) {
        let path = self.path().display().to_string();
        run("umount", &[&path]).expect("nobody uses it any more");
        let (Disk::File(image) | Disk::Served { image, .. }) = &self.disk;
        run("mount", &["-o", "loop", &image.display().to_string(), &path]).expect("it was mounted before");
    }

    /// Lets every write fail with EIO, or none any more.
    ///
    /// # Panics
    /// On a disk that is not made for it.
    pub fn refuse_writes(&self, refuse: bool) {
        let Disk::Served { refuses, .. } = &self.disk else { panic!("a disk that cannot fail") };
        if refuse {
            File::create(refuses).map(drop).expect("a writable directory");
        } else {
            fs::remove_file(refuses).expect("it refused");
        }
    }

    /// Lets the disk answer nothing any more, or go on.
    ///
    /// # Panics
    /// On a disk that is not made for it.
    pub fn hang(&mut self, hang: bool) {
        let Disk::Served { nbdkit, .. } = &mut self.disk else { panic!("a disk that cannot hang") };
        if hang { nbdkit.pause() } else { nbdkit.resume() }
    }

    /// Makes it read-only, or writable again.
    ///
    /// # Panics
    /// When it cannot be mounted anew.
    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", options, &self.path().display().to_string()]).expect("it is mounted");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Disk::Served { nbdkit, refuses, .. } = &mut self.disk {
            // What hangs cannot be unmounted.
            let _ = fs::remove_file(refuses);
            if nbdkit.exit_status().is_none() {
                nbdkit.resume();
            }
        }
        let _ = run("umount", &["--lazy", &self.mounted.0.display().to_string()]);
        if let Disk::Served { nbdfuse, image, .. } = &mut self.disk {
            let _ = run("fusermount3", &["-u", "-z", &image.display().to_string()]);
            nbdfuse.kill();
        }
    }
}

impl Mounted {
    fn format_and_mount(dir: &Path, image: &Path, options: &[&str]) -> Result<Self, String> {
        let (at, image) = (dir.join("mounted"), image.display().to_string());
        fs::create_dir(&at).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &[&["-q", "-F"], options, &[&image]].concat())?;
        run("mount", &["-o", "loop", &image, &at.display().to_string()])?;
        Ok(Self(at))
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ended = Command::new(program).env("PATH", path()).args(arguments).output();
    let ended = ended.map_err(|error| format!("{program} cannot be run: {error}"))?;
    if ended.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    Err(format!("{program} {}: {}", arguments.join(" "), told.trim()))
}

/// With the directories of the superuser's programs, which not every shell has.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
