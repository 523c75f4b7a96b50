//! Bytes as Go's client puts them on the wire: a chunk for each write, field names in its spelling.

use super::Setup;
use crate::support::client::Client;

#[test]
fn a_chunk_for_each_write_arrives() {
    let setup = Setup::new();
    let mut client = Client::connect(setup.gateway.address);
    for round in 0..3 {
        client.send(format!(
            "POST /echo/chunked HTTP/1.1\r\nHost: {}\r\nUser-Agent: Go-http-client/1.1\r\n\
             Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nAccept-Encoding: gzip\r\n\r\n",
            setup.gateway.address
        ));
        let mut sent = Vec::new();
        for write in 0..100 {
            let piece = format!("write {write} of round {round}\n").repeat(write + 1);
            client.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
            sent.extend_from_slice(piece.as_bytes());
        }
        client.send(format!("0\r\nX-Sum: {}\r\n\r\n", sent.len()));
        let response = client.response();
        assert_eq!(response.status, 200);
        assert!(response.body == sent, "the body was changed in round {round}");
    }
    let head = setup.origin.heads().pop().unwrap();
    assert!(head.contains("Accept-Encoding: gzip") && head.contains("User-Agent: Go-http-client/1.1"), "{head}");
}
