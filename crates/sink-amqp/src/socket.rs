//! A connection's socket, held beside the library so that it can be cut.
//!
//! The library reads and writes on a thread of its own, and that ends only when the broker answers or the socket does: a
//! broker that accepts a connection and then stays silent would cost a thread for each attempt. Dropping the library's
//! handle does not end it.

use std::{
    io,
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
};

/// A second handle of a socket. Cuts the connection when it is dropped.
pub(crate) struct Cutter(TcpStream);

impl Cutter {
    pub(crate) fn of(stream: &tokio::net::TcpStream) -> io::Result<Self> {
        Ok(Self(stream.as_fd().try_clone_to_owned()?.into()))
    }

    /// Ends the connection in both directions.
    pub(crate) fn cut(&self) {
        // It fails only on a socket that has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.cut();
    }
}
