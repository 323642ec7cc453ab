//! Downloads through a SOCKS 5 proxy (RFC 1928), compared with the expected content.

use crate::client::Place;
use crate::network::TIMEOUT;
use crate::web::Page;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Fetches a page and compares its bytes.
pub(crate) fn fetch(proxy: &Path, place: &Place, page: Page) -> Result<()> {
    let mut stream = UnixStream::connect(proxy)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&[VERSION, 1, NO_AUTHENTICATION])?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice)?;
    let is_open = choice == [VERSION, NO_AUTHENTICATION];
    expect(is_open, "the proxy requires authentication")?;

    let mut request = vec![VERSION, CONNECT, 0];
    match place {
        Place::Address(IpAddr::V4(address)) => {
            request.push(IPV4);
            request.extend(address.octets());
        }
        Place::Address(IpAddr::V6(address)) => {
            request.push(IPV6);
            request.extend(address.octets());
        }
        Place::Name(name) => {
            request.extend([NAME, u8::try_from(name.len()).map_err(Error::other)?]);
            request.extend(name.as_bytes());
        }
    }
    request.extend(page.port.to_be_bytes());
    stream.write_all(&request)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    let code = reply[1];
    expect(code == 0, &format!("the proxy refuses with code {code}"))?;
    // The bound address, which tor leaves empty, and its port.
    let bound = if reply[3] == IPV6 { 16 } else { 4 };
    stream.read_exact(&mut vec![0; bound + 2])?;

    let request = format!("GET {} HTTP/1.0\r\n\r\n", page.path());
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let head = response.windows(4).position(|end| end == b"\r\n\r\n");
    let Some(head) = head else {
        return Err(Error::new(ErrorKind::UnexpectedEof, "incomplete header"));
    };
    let body = &response[head + 4..];
    let ok = response.starts_with(b"HTTP/1.0 200 ") && body == page.body();
    let otherwise = format!("{} of {} bytes, or others", body.len(), page.size);
    expect(ok, &otherwise)
}

fn expect(holds: bool, otherwise: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::other(otherwise))
    }
}
