//! Ports of this machine's loopback.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// `count` different ports that nobody listens on now.
///
/// # Errors
/// If the operating system has none left.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    // All are held until all are chosen, so that none is given twice.
    let listeners =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<Vec<_>>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Whether a service could listen there.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::{Ipv4Addr, TcpListener};

    use super::{free_ports, is_free};

    #[test]
    fn ports_are_free_and_differ() {
        let ports = free_ports(8).unwrap();

        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 8);
        assert!(ports.into_iter().all(is_free));
    }

    #[test]
    fn a_port_with_a_listener_is_busy() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();

        assert!(!is_free(listener.local_addr().unwrap().port()));
    }
}
