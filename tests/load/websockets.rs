//! WebSockets of a real implementation on both sides: what is sent comes back whole and in order, in one tunnel that is
//! used hard and in many at once.

use crate::echo::Gathering;
use crate::meter::{KIB, MIB, PATIENT, alone, resident};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use crate::support::{PATIENCE, seed, until};
use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Error, Message, WebSocket};

const MESSAGES: usize = 100_000;

/// Messages that are sent before their echoes are read, at most.
const BATCH_MAX: usize = 64;

const TUNNELS: usize = 200;

/// Memory that a tunnel at rest holds, both its connections counted, in a debug build.
const TUNNEL_COST_MAX: usize = 28 * KIB;

/// What a gateway may grow by while a tunnel is used hard.
const GROWTH_MAX: usize = 2 * MIB;

/// Sends every message back; counts the connections that were closed as they should be.
fn echoing_origin(closed: Arc<AtomicUsize>) -> Origin {
    Origin::new(move |stream, _| {
        let mut socket = tungstenite::accept(stream).unwrap();
        loop {
            match socket.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message).unwrap(),
                Ok(Message::Close(frame)) => assert_eq!(frame, Some(farewell())),
                Ok(_) => {}
                Err(Error::ConnectionClosed) => {
                    closed.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                // The test has failed already where its client is gone.
                Err(_) => return,
            }
        }
    })
}

fn farewell() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: "that is all".into() }
}

fn connect(gateway: &Gateway) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let (socket, _) = tungstenite::client(format!("ws://{}/", gateway.address), stream).unwrap();
    socket
}

/// Says farewell and waits for the answer to it, and for the end of the connection.
fn close(mut socket: WebSocket<TcpStream>) {
    socket.close(Some(farewell())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Close(Some(farewell())));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
}

/// A message of any kind and of up to 4 KiB.
fn message(random: &mut fastrand::Rng) -> Message {
    let most = if random.bool() { 16 } else { 4 * KIB };
    let mut data = vec![0; random.usize(..=most)];
    random.fill(&mut data);
    if random.bool() {
        let text: String = data.iter().map(|byte| char::from(byte & 0x7F)).collect();
        return Message::text(text);
    }
    Message::binary(data)
}

/// Sends a message, now and then in fragments.
fn send(socket: &mut WebSocket<TcpStream>, message: &Message, random: &mut fastrand::Rng) {
    if random.u8(..10) > 0 {
        return socket.write(message.clone()).unwrap();
    }
    let data = message.clone().into_data();
    let mut kind = if message.is_text() { Data::Text } else { Data::Binary };
    let cut = random.usize(..=data.len());
    for (piece, is_last) in [(data.slice(..cut), false), (data.slice(cut..), true)] {
        socket.write(Message::Frame(Frame::message(piece, OpCode::Data(kind), is_last))).unwrap();
        kind = Data::Continue;
    }
}

/// Sends some messages and a ping, and reads what comes back.
fn exchange(socket: &mut WebSocket<TcpStream>, count: usize, random: &mut fastrand::Rng) -> usize {
    let mut sent = VecDeque::new();
    let mut bytes = 0;
    for _ in 0..count {
        let message = message(random);
        send(socket, &message, random);
        bytes += message.len();
        sent.push_back(message);
    }
    let ping = random.u64(..).to_be_bytes().to_vec();
    socket.send(Message::Ping(ping.clone().into())).unwrap();
    let mut has_pong = false;
    while !sent.is_empty() || !has_pong {
        match socket.read().unwrap() {
            Message::Pong(data) => {
                assert!(data == ping, "a pong to another ping");
                has_pong = true;
            }
            echo => {
                let left = sent.len();
                assert!(Some(&echo) == sent.front(), "not the echo of the message before the last {left}");
                sent.pop_front();
            }
        }
    }
    bytes
}

#[test]
fn a_hundred_thousand_messages_come_back_in_order() {
    let _alone = alone();
    let mut random = fastrand::Rng::with_seed(seed());
    let closed = Arc::new(AtomicUsize::new(0));
    let origin = echoing_origin(closed.clone());
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    let mut socket = connect(&gateway);
    exchange(&mut socket, BATCH_MAX, &mut random);
    let before = resident(&gateway);
    let start = Instant::now();
    let (mut messages, mut bytes) = (0, 0);
    while messages < MESSAGES {
        let count = random.usize(1..=BATCH_MAX).min(MESSAGES - messages);
        bytes += exchange(&mut socket, count, &mut random);
        messages += count;
    }
    let grown = resident(&gateway).saturating_sub(before);
    println!("{messages} messages, {} MiB in {:?}: grew by {} KiB", bytes / MIB, start.elapsed(), grown / KIB);
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
    close(socket);
    until("the backend saw the farewell", || closed.load(Ordering::SeqCst) == 1);
    until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn two_hundred_tunnels_carry_their_own_messages() {
    let _alone = alone();
    let seed = seed();
    let closed = Arc::new(AtomicUsize::new(0));
    let origin = echoing_origin(closed.clone());
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    let before = resident(&gateway);
    let (open, counted) = (Gathering::of(TUNNELS + 1), Gathering::of(TUNNELS + 1));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..TUNNELS {
            let (open, counted, gateway) = (&open, &counted, &gateway);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ number as u64);
                let mut socket = connect(gateway);
                exchange(&mut socket, 1, &mut random);
                assert!(open.wait() && counted.wait(), "not all tunnels were opened");
                for _ in 0..10 {
                    exchange(&mut socket, 10, &mut random);
                }
                close(socket);
            });
        }
        assert!(open.wait(), "not all tunnels were opened");
        assert_eq!(gateway.metric("rateguard_connections"), TUNNELS as f64);
        let cost = resident(&gateway).saturating_sub(before) / TUNNELS;
        println!("{TUNNELS} tunnels at rest: {cost} bytes each");
        assert!(counted.wait());
        assert!(cost < TUNNEL_COST_MAX, "a tunnel at rest holds {cost} bytes");
    });
    println!("{TUNNELS} tunnels with 100 messages each in {:?}", start.elapsed());
    until("the backends saw the farewells", || closed.load(Ordering::SeqCst) == TUNNELS);
    until("the clients are forgotten", || gateway.metric("rateguard_connections") == 0.0);
}
