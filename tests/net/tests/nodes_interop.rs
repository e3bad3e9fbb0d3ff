//! Nodes and other implementations of QUIC: aioquic as a node, on either end, and ngtcp2 with GnuTLS.
//!
//! Neither has X25519MLKEM768, so nodes talk to them only where they are told to. ngtcp2's programs speak
//! HTTP/3: their ALPN cannot be set, whatever their keys and certificates. So all they can show is that
//! they are refused, and that the reason is right on both ends.

use std::net::SocketAddr;

use futures::executor::block_on;
use towpath::{
    CloseReason, ConnectError, Node, NodeBuilder, PeerAddr, PeerId, SecurityLevel, SecurityPolicy,
};
use towpath_net::{Aioquic, Host, Lab, Process, address, echo, node_on, pattern};
use towpath_proto::pool::{DialError, GetError};

const LISTEN: &str = "10.77.2.1";
const PORT: u16 = 4433;
const BYTES: usize = 200_000;
/// TLS's alert where there is no common key exchange (RFC 8446 §6.2).
const HANDSHAKE_FAILURE: u8 = 40;
/// And that where there is no common protocol (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;

fn hosts(lab: &Lab) -> (Host, Host) {
    (
        lab.host("callee", &["10.77.2.1/24"]),
        lab.host("caller", &["10.77.2.2/24"]),
    )
}

fn listen() -> SocketAddr {
    SocketAddr::new(address(LISTEN), PORT)
}

fn builder(policy: SecurityPolicy) -> NodeBuilder {
    Node::builder().security(policy)
}

/// A node that sends back what it gets.
fn serving(host: &Host, policy: SecurityPolicy) -> Node {
    let node = node_on(host, builder(policy).listen(listen()));
    node.serve(echo);
    node
}

/// How the handshake ended.
fn reason(error: &ConnectError) -> CloseReason {
    match error {
        ConnectError::Pool(GetError::Failed {
            error: DialError::Ended(reason),
            ..
        }) => reason.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn aioquic_calls_a_node() {
    let (Some(lab), Some(aioquic)) = (Lab::new(), Aioquic::find()) else {
        return;
    };
    let (callee, caller) = hosts(&lab);
    let node = serving(&callee, SecurityPolicy::AllowClassical);
    let mut events = node.events();
    let said = aioquic.call(&caller, listen(), BYTES);
    for line in [
        format!("peer {}", node.id()),
        format!("stream {BYTES} same"),
        "datagram same".to_owned(),
    ] {
        assert!(said.contains(&line), "no {line:?} in {said}");
    }
    let key = said.lines().find_map(|line| line.strip_prefix("calling "));
    let caller: PeerId = key.expect("it says who it is").parse().expect("a peer id");
    // How the peer is doing may be told first.
    let connected = block_on(async {
        loop {
            let event = events.next().await.expect("the node is open");
            if let towpath::Event::Connected { peer, security, .. } = event {
                return (peer, security);
            }
        }
    });
    assert_eq!(connected, (caller, SecurityLevel::Classical));
    block_on(node.close());
}

#[test]
fn a_node_calls_aioquic() {
    let (Some(lab), Some(aioquic)) = (Lab::new(), Aioquic::find()) else {
        return;
    };
    let (callee, caller) = hosts(&lab);
    let (process, peer) = aioquic.listen(&callee, listen());
    let node = node_on(&caller, builder(SecurityPolicy::AllowClassical));
    let to = PeerAddr::new(peer, [listen()]).expect("one address is not too many");
    block_on(async {
        let connection = node.connect(&to).await.expect("aioquic is there");
        assert_eq!(connection.peer(), peer);
        assert_eq!(connection.security(), SecurityLevel::Classical);
        let (mut send, mut receive) = connection.open_bi().await.expect("streams are allowed");
        let message = pattern(BYTES);
        let sent = async {
            send.write_all(&message).await?;
            send.finish().await
        };
        let (sent, received) = futures::join!(sent, receive.read_to_end(BYTES));
        sent.expect("all of it could be sent");
        assert!(received.expect("all of it comes back") == message);
        let datagram = &b"a datagram"[..];
        connection
            .send_datagram(datagram)
            .await
            .expect("they are taken");
        let echo = connection.receive_datagram().await;
        assert_eq!(echo.as_deref(), Ok(datagram));
        node.close().await;
    });
    let said = process.output();
    assert!(said.contains(&format!("peer {}", node.id())), "{said}");
}

#[test]
fn a_node_that_insists_on_post_quantum_keys_refuses_aioquic_and_says_why() {
    let (Some(lab), Some(aioquic)) = (Lab::new(), Aioquic::find()) else {
        return;
    };
    let (callee, caller) = hosts(&lab);
    let node = serving(&callee, SecurityPolicy::RequirePostQuantum);
    let said = aioquic.call(&caller, listen(), BYTES);
    // RFC 9001 §4.8: CRYPTO_ERROR with TLS's alert, here handshake_failure.
    assert!(
        said.contains("closed 0x128") && said.contains("no connection"),
        "{said}"
    );
    block_on(node.close());
    callee.wait_until_free(listen());
    let (_process, peer) = aioquic.listen(&callee, listen());
    let node = node_on(&caller, builder(SecurityPolicy::RequirePostQuantum));
    let to = PeerAddr::new(peer, [listen()]).expect("one address is not too many");
    let refused = block_on(node.connect(&to)).expect_err("there is no common key exchange");
    assert_eq!(reason(&refused), CloseReason::Refused(HANDSHAKE_FAILURE));
}

#[test]
fn ngtcp2s_client_is_refused_for_its_keys_and_for_its_protocol() {
    let Some(lab) = Lab::with(&["gtlsclient", "timeout"]) else {
        return;
    };
    let (callee, caller) = hosts(&lab);
    for (policy, alert) in [
        (SecurityPolicy::RequirePostQuantum, HANDSHAKE_FAILURE),
        (SecurityPolicy::AllowClassical, NO_APPLICATION_PROTOCOL),
    ] {
        // RFC 9001 §4.8: CRYPTO_ERROR with TLS's alert.
        let alert = format!("0x1{alert:02x}");
        let node = serving(&callee, policy);
        let output = caller
            .command("timeout")
            .args([
                "20",
                "gtlsclient",
                "--no-quic-dump",
                "--exit-on-all-streams-close",
            ])
            .args([LISTEN, &PORT.to_string(), "https://peer/"])
            .output()
            .expect("timeout can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&alert), "no {alert} in {said}");
        block_on(node.close());
        callee.wait_until_free(listen());
    }
}

#[test]
fn a_node_that_calls_ngtcp2s_server_hears_that_it_speaks_another_protocol() {
    let Some(lab) = Lab::with(&["gtlsserver", "openssl"]) else {
        return;
    };
    let (callee, caller) = hosts(&lab);
    let [key, certificate] = ["key.pem", "certificate.pem"]
        .map(|name| lab.directory().join(name).to_string_lossy().into_owned());
    callee.run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ed25519",
            "-nodes",
            "-subj",
            "/CN=peer",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    );
    let mut command = callee.command("gtlsserver");
    command.args([
        "-q",
        "--verify-client",
        LISTEN,
        &PORT.to_string(),
        &key,
        &certificate,
    ]);
    let _server = Process::start("gtlsserver", command, lab.directory());
    // It looks at the protocol first.
    for policy in [
        SecurityPolicy::AllowClassical,
        SecurityPolicy::RequirePostQuantum,
    ] {
        let node = node_on(&caller, builder(policy));
        let nobody = PeerId::from_bytes([7; 32]);
        let to = PeerAddr::new(nobody, [listen()]).expect("one address is not too many");
        let refused = block_on(node.connect(&to)).expect_err("it speaks HTTP/3");
        let expected = CloseReason::Refused(NO_APPLICATION_PROTOCOL);
        assert_eq!(reason(&refused), expected);
        block_on(node.close());
    }
}
