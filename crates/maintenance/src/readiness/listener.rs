//! Where the endpoint listens: a TCP port, or a Unix domain socket.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::{fs, io, net};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config::Address;
use crate::disk::{self, Disk};

/// Who may connect to a socket: its owner and its group. To connect is to write (unix(7)).
const SOCKET_MODE: u32 = 0o660;

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address} (maintenance.readiness.bind_address): {source}; {}", self.hint())]
pub struct Error {
    /// Where.
    pub address: Address,
    /// What the operating system said.
    pub source: io::Error,
}

impl Error {
    fn hint(&self) -> &'static str {
        match (&self.address, self.source.kind()) {
            (Address::Unix(_), io::ErrorKind::PermissionDenied) => {
                "its directory must be writable for the tracker; make it so or choose another path"
            }
            (Address::Unix(_), io::ErrorKind::NotFound) => {
                "its directory must exist; create it or choose another path"
            }
            (Address::Unix(_), io::ErrorKind::InvalidInput) => {
                "a socket's path may have 95 bytes, because it is prepared in a directory beside \
                 it; choose a shorter one"
            }
            _ => "stop what uses the address or choose another",
        }
    }
}

/// An address that is listened on. Connections wait in its queue until they are taken, so a
/// service can find out that the port is taken before it starts anything. Dropped, it
/// removes its socket's file.
#[derive(Debug)]
pub struct Listener {
    // Dropped first, while nobody else can listen there yet.
    file: Option<SocketFile>,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Tcp(net::TcpListener),
    Unix(unix::UnixListener),
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    disk: Disk,
}

impl Listener {
    /// Listens on `address`. A socket's file that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// When the address cannot be had; for a socket's also if there is a file in its place,
    /// or somebody listens.
    pub fn bind(address: &Address, disk: &Disk) -> Result<Self, Error> {
        let bound = match address {
            Address::Tcp(address) => bind_tcp(*address),
            Address::Unix(path) => bind_unix(path, disk),
        };
        bound.map_err(|source| Error {
            address: address.clone(),
            source,
        })
    }

    /// Where it listens, a port that was left to the operating system included.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn address(&self) -> io::Result<Address> {
        match (&self.inner, &self.file) {
            (Inner::Tcp(listener), _) => listener.local_addr().map(Address::Tcp),
            (Inner::Unix(_), Some(file)) => Ok(Address::Unix(file.path.clone())),
            (Inner::Unix(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Takes connections from here on, within a tokio runtime.
    pub(super) fn open(self) -> io::Result<Accepting> {
        let inner = match self.inner {
            Inner::Tcp(listener) => Open::Tcp(TcpListener::from_std(listener)?),
            Inner::Unix(listener) => Open::Unix(UnixListener::from_std(listener)?),
        };
        Ok(Accepting {
            _file: self.file,
            inner,
        })
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let listener = net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Listener {
        file: None,
        inner: Inner::Tcp(listener),
    })
}

/// The socket is made in a directory of its own, which others do not get into, and moved
/// out of it when its mode is right: at no moment is there one that the umask has left open
/// to everybody. A stale one is replaced by the same move.
fn bind_unix(path: &Path, disk: &Disk) -> io::Result<Listener> {
    check_place(path)?;
    let failed = |error: disk::Error| error.source;
    let room = disk::temporary_of(path);
    if fs::symlink_metadata(&room).is_ok_and(|found| found.is_dir()) {
        // Of a process that was killed just here.
        disk.remove_dir_all(&room).map_err(failed)?;
    }
    disk.create_dir(&room).map_err(failed)?;
    let prepare = || -> io::Result<unix::UnixListener> {
        let inside = room.join("socket");
        let listener = unix::UnixListener::bind(&inside)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(SOCKET_MODE))?;
        disk.rename(&inside, path).map_err(failed)?;
        Ok(listener)
    };
    let prepared = prepare();
    // If the room stays, the next start removes it.
    let _ = disk.remove_dir_all(&room);
    let inner = Inner::Unix(prepared?);
    let file = Some(SocketFile {
        path: path.to_owned(),
        disk: disk.clone(),
    });
    Ok(Listener { file, inner })
}

/// That there is nothing at `path` but, perhaps, a socket that nobody listens on.
fn check_place(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file of this name that is no socket",
        )),
        Ok(_) => match unix::UnixStream::connect(path) {
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there",
            )),
            // Unless the file was removed just now.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        },
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If it stays, the next start finds that nobody listens on it.
        let _ = self.disk.remove_file(&self.path);
    }
}

/// A listener at work. The file goes first, as above.
#[derive(Debug)]
pub(super) struct Accepting {
    _file: Option<SocketFile>,
    inner: Open,
}

#[derive(Debug)]
enum Open {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that was taken.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepting {
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        Ok(match &self.inner {
            Open::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
            Open::Unix(listener) => Stream::Unix(listener.accept().await?.0),
        })
    }
}

#[cfg(test)]
mod tests;
