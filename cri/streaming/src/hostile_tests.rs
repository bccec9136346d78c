//! Random and mutated bytes from clients: every session ends, without a panic, once its client is gone; and what a good
//! client sends comes out whole however it is cut into pieces.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::fuzzing::{Way, frame, talk};
use crate::spdy::{data, ping, syn_streams};

const BINARY: u8 = 0x82;

fn conversation(way: Way, text: &[u8]) -> Vec<u8> {
    let exec = || {
        let streams = [
            (1, &[("streamtype", "error")][..]),
            (3, &[("streamtype", "stdin")]),
            (5, &[("streamtype", "stdout")]),
            (7, &[("streamtype", "resize")]),
        ];
        [syn_streams(&streams), data(7, 0, b"{\"Width\":80,\"Height\":24}"), ping(2), data(3, 0, text), data(3, 1, b"")]
            .concat()
    };
    let forward = || {
        let streams = [
            (1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")][..]),
            (3, &[("streamtype", "data"), ("port", "80"), ("requestid", "0")]),
        ];
        [syn_streams(&streams), data(1, 1, b""), data(3, 0, text), data(3, 1, b"")].concat()
    };
    match way {
        Way::Exec => exec(),
        Way::Forward => forward(),
        Way::ForwardWebSocket => frame(BINARY, &forward()),
        Way::ExecWebSocket => {
            let channel = |number: u8, bytes: &[u8]| frame(BINARY, &[&[number][..], bytes].concat());
            let size = channel(4, b"{\"Width\":80,\"Height\":24}");
            [size, frame(0x89, b"ping"), channel(0, text), channel(255, &[0])].concat()
        }
    }
}

fn way() -> impl Strategy<Value = Way> {
    prop::sample::select(vec![Way::Exec, Way::ExecWebSocket, Way::Forward, Way::ForwardWebSocket])
}

#[test]
fn a_forward_without_a_port_is_told_so() {
    let streams = [(1, &[("streamtype", "error")][..]), (3, &[("streamtype", "data")])];
    let said = talk(Way::Forward, &[&syn_streams(&streams)]);
    let why = data(1, 0, b"no port in the stream's headers");
    assert!(said.windows(why.len()).any(|w| w == why), "{said:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_bytes_end(way in way(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        talk(way, &[&bytes]);
    }

    #[test]
    fn mutated_conversations_end(
        way in way(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..5),
        end in any::<Index>(),
    ) {
        let mut bytes = conversation(way, b"some text");
        for (at, by) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= by;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        talk(way, &[&bytes]);
    }

    #[test]
    fn a_conversation_means_the_same_in_any_pieces(
        exec in any::<bool>(),
        text in prop::collection::vec(any::<u8>(), 1..3000),
        cuts in prop::collection::vec(any::<Index>(), 0..6),
    ) {
        // Where nothing is compressed or masked, the echo is seen as it is.
        let way = if exec { Way::Exec } else { Way::Forward };
        let bytes = conversation(way, &text);
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        let said = talk(way, &pieces);
        let echo = data(if exec { 5 } else { 3 }, 0, &text);
        prop_assert!(said.windows(echo.len()).any(|w| w == echo), "{said:?}");
    }
}
