//! Clients that cost time, and what others notice of them. Over real sockets, and where not
//! said otherwise in real time.

#![expect(
    clippy::disallowed_methods,
    reason = "how long others wait is measured"
)]

use tokio::io::AsyncWriteExt as _;

use super::*;

/// The longest a renewal may take: a sidecar renews at a third of its time to live, which is
/// 5 s at the least, so two thirds of that are left.
const RENEWED_WITHIN: Duration = Duration::from_millis(3_300);

const RENEW: &str = "POST /api/v1/runs/20261122T025900Z-abcd/renew HTTP/1.1\r\n\
                     Host: 127.0.0.1\r\nContent-Type: application/json\r\n\
                     Content-Length: 29\r\nConnection: close\r\n\r\n{\"lease\": \"0123456789abcdef\"}";

/// Renews over and over, as the driver would let it, and gives the longest it took.
async fn renew(server: &mut Server, times: usize) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        let began = Instant::now();
        let stream = server.connect().await?;
        send(&stream, RENEW).await?;
        let Some(Command::Renew { reply, .. }) = server.commands.recv().await else {
            return Err("no renewal came".into());
        };
        let minute = Duration::from_secs(60);
        let granted = Granted {
            holder: Holder::try_from("nas".to_owned())?,
            ttl: minute,
            expires: minute,
            deadline: minute,
        };
        reply.send(Ok(granted)).map_err(|_| "nobody waits")?;
        let (head, body) = answer(&stream).await?;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert_eq!(body["expires_seconds"], 60.0);
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

/// 200 clients that send a byte a second of `request`, for ever, and come back at once when
/// they are turned out.
fn dawdle(address: SocketAddr, request: &'static str) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        clients.spawn(async move {
            loop {
                let Ok(mut stream) = TcpStream::connect(address).await else {
                    continue;
                };
                let (at_once, slowly) = request.split_once('|').unwrap_or(("", request));
                let mut sent = stream.write_all(at_once.as_bytes()).await;
                for byte in slowly.bytes() {
                    if sent.is_err() {
                        break;
                    }
                    sleep(Duration::from_secs(1)).await;
                    sent = stream.write_all(&[byte]).await;
                }
            }
        });
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_headers_and_bodies_do_not_keep_a_renewal_out() -> Result {
    for request in [
        "GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Content-Length: 60000\r\n\r\n|                                              ",
    ] {
        let mut server = Server::start()?;
        let clients = dawdle(server.address, request);
        // They have every slot before the first renewal, or soon after it.
        let longest = renew(&mut server, 8).await?;
        println!("200 clients, a byte a second: a renewal takes {longest:?} at most");
        assert!(longest < RENEWED_WITHIN, "{longest:?}");
        assert_eq!(clients.len(), 200, "none gave up");
    }
    Ok(())
}

/// Whole requests, which cost nothing to make, and none of which is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_a_run_do_not_keep_a_renewal_out() -> Result {
    let mut server = Server::start()?;
    let address = server.address;
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        clients.spawn(async move {
            loop {
                let Ok(stream) = TcpStream::connect(address).await else {
                    continue;
                };
                let poll =
                    "GET /ready?wait=60 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                if send(&stream, poll).await.is_ok() {
                    let _ = receive(&stream, |_| false).await;
                }
            }
        });
    }
    let longest = renew(&mut server, 8).await?;
    println!("200 clients that poll: a renewal takes {longest:?} at most");
    assert!(longest < RENEWED_WITHIN, "{longest:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_a_gigabyte_is_refused_before_it_has_come() -> Result {
    const GIGABYTE: usize = 1 << 30;
    let server = Server::start()?;
    let head =
        "POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    for length in ["Content-Length: 1073741824", "Transfer-Encoding: chunked"] {
        let stream = TcpStream::connect(server.address).await?;
        let (mut from, mut to) = stream.into_split();
        to.write_all(format!("{head}{length}\r\n\r\n").as_bytes())
            .await?;
        let sending = tokio::spawn(async move {
            let chunk = [&b"10000\r\n"[..], &vec![b' '; 0x10000], b"\r\n"].concat();
            let mut sent = 0;
            while sent < GIGABYTE && to.write_all(&chunk).await.is_ok() {
                sent += chunk.len();
            }
            sent
        });
        let mut answer = Vec::new();
        // The rest of the body is in the way of a clean end.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut answer).await;
        let answer = String::from_utf8(answer)?;
        assert!(answer.starts_with("HTTP/1.1 413"), "{length}: {answer}");
        drop(from);
        let sent = sending.await?;
        assert!(sent < GIGABYTE / 8, "{length}: {sent} bytes were taken");
    }
    Ok(())
}

#[tokio::test]
async fn a_poll_is_answered_as_soon_as_a_run_is_ready() -> Result {
    let server = Server::start()?;
    let stream = server.connect().await?;
    send(
        &stream,
        "GET /ready?wait=60 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await?;
    // On its way, and then there.
    for state in [Phase::Preparing, Phase::Flushing, Phase::Offered] {
        server.published.send_replace(published(state));
        yield_now().await;
    }
    let (head, body) = answer(&stream).await?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(body["taken_by"], "sidecar");
    Ok(())
}

/// With the clock paused; the connection's own limits come before, and let it wait. Each in a
/// runtime of its own: hyper reckons its limits from the real clock, which is behind by then.
#[test]
fn a_poll_in_vain_is_answered_after_its_time_and_no_later_than_a_minute() -> Result {
    for (wait, seconds) in [("0", 0), ("7", 7), ("60", 60), ("86400", 60)] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()?;
        runtime.block_on(async {
            let server = Server::start()?;
            let began = tokio::time::Instant::now();
            let request = format!(
                "GET /ready?wait={wait} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            let (head, body) = server.ask(&request).await?;
            assert!(head.starts_with("HTTP/1.1 503"), "{head}");
            assert_eq!(body["ready"], false);
            assert_eq!(began.elapsed().as_secs(), seconds, "{wait}");
            Ok::<_, Box<dyn StdError>>(())
        })?;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_gone_is_polled_for_no_less_time() -> Result {
    let server = Server::start()?;
    let Server {
        address, published, ..
    } = server;
    drop(published);
    let stream = TcpStream::connect(address).await?;
    let began = tokio::time::Instant::now();
    send(
        &stream,
        "GET /ready?wait=9 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await?;
    let (head, _) = answer(&stream).await?;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(began.elapsed().as_secs(), 9);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_oldest_that_dawdles_gives_way_but_not_at_once() {
    let slots = Slots::new(2);
    let (first, second) = (slots.take().await, slots.take().await);
    let began = tokio::time::Instant::now();
    let third = slots.take().await;
    assert_eq!(began.elapsed(), slots::AT_LEAST, "each has that long");
    first.given_away().await;
    // What is served stays, whatever its age.
    let served = second.serve();
    sleep(slots::AT_LEAST).await;
    let fourth = slots.take().await;
    third.given_away().await;
    drop(served);
    drop(fourth);
    let began = tokio::time::Instant::now();
    let _fifth = slots.take().await;
    assert_eq!(began.elapsed(), Duration::ZERO, "a free slot is free");
    assert!(timeout(slots::AT_LEAST, second.given_away()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn when_all_are_served_the_next_waits_for_one_of_them() {
    let slots = Slots::new(1);
    let only = slots.take().await;
    let served = only.serve();
    let next = slots.take();
    tokio::pin!(next);
    let long = Duration::from_secs(60);
    assert!(timeout(long, next.as_mut()).await.is_err());
    drop(served);
    next.await;
    only.given_away().await;
}
