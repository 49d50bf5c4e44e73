//! Answers who asks for the metrics over HTTP: one short answer for each connection, few at once, none for long.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::control::{self, Request, Response};
use crate::model::plain;
use crate::notices::Endpoint;
use crate::tell::metrics;

const REQUEST_MAX: usize = 8 << 10;
const CLIENTS_MAX: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// Listens for as long as the process lives.
pub fn serve(endpoint: &Endpoint, socket: &Path) -> Result<(), String> {
    let told = |name: &dyn std::fmt::Display, error: io::Error| {
        format!("cannot listen at {name}: {}", plain(&error))
    };
    let served = Arc::new(AtomicUsize::new(0));
    let socket = socket.to_owned();
    match endpoint {
        Endpoint::Tcp(addr) => {
            let listener = TcpListener::bind(addr).map_err(|error| told(addr, error))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let set = || {
                        stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)))
                    };
                    if set().is_ok() {
                        attend(stream, &socket, &served);
                    }
                }
            });
        }
        Endpoint::Unix(path) => {
            // What an earlier one left.
            let _ = fs::remove_file(path);
            let listener = UnixListener::bind(path).map_err(|error| told(&path.display(), error))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let set = || {
                        stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)))
                    };
                    if set().is_ok() {
                        attend(stream, &socket, &served);
                    }
                }
            });
        }
    }
    Ok(())
}

/// On a thread of its own, unless there are too many.
fn attend<S: Read + Write + Send + 'static>(mut stream: S, socket: &Path, served: &Arc<AtomicUsize>) {
    if served.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
        served.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let (served, socket) = (served.clone(), socket.to_owned());
    thread::spawn(move || {
        // Whoever hangs up or talks nonsense gets nothing.
        let _ = answer(&mut stream, &socket);
        served.fetch_sub(1, Ordering::Relaxed);
    });
}

fn answer<S: Read + Write>(stream: &mut S, socket: &Path) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut some = [0; 1024];
        let length = stream.read(&mut some)?;
        if length == 0 || request.len() + length > REQUEST_MAX {
            return Ok(());
        }
        request.extend_from_slice(&some[..length]);
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") || request.starts_with(b"GET /metrics?") {
        let status = match control::ask(socket, &Request::Status { jail: None }) {
            Ok(Response::Status(status)) => Some(status),
            _ => None,
        };
        ("200 OK", metrics::text(status.as_deref()))
    } else {
        ("404 Not Found", "there is only /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        metrics::TYPE,
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
