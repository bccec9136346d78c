//! GetContainerEvents: every change in order, to all who listen, and none lost because nobody listened for a while.

mod common;

use std::fs;
use std::time::Duration;

use common::{Client, Daemon, remove_pod, start_pod, until};
use proto::cri;
use proto::cri::ContainerEventType as Kind;

type Events = tonic::Streaming<cri::ContainerEventResponse>;

async fn listen(client: &mut Client) -> Events {
    client.get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner()
}

/// Reads until this has happened to this container; what was heard of it, and the last event.
async fn hear(events: &mut Events, id: &str, last: Kind) -> (Vec<Kind>, cri::ContainerEventResponse) {
    let mut heard = Vec::new();
    let hearing = async {
        loop {
            let event = events.message().await.unwrap().expect("the events end");
            if event.container_id == id {
                heard.push(event.container_event_type());
                if event.container_event_type() == last {
                    return event;
                }
            }
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(60), hearing).await;
    (heard.clone(), event.unwrap_or_else(|_| panic!("{last:?} is not told of {id}, only {heard:?}")))
}

const WHOLE: [Kind; 4] = [
    Kind::ContainerCreatedEvent,
    Kind::ContainerStartedEvent,
    Kind::ContainerStoppedEvent,
    Kind::ContainerDeletedEvent,
];

#[tokio::test(flavor = "multi_thread")]
async fn all_listeners_hear_lives_in_order_with_the_pods_state() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (mut first, mut second) = (listen(&mut client).await, listen(&mut daemon.client().await).await);
    // One that never reads holds nobody up.
    let mute = listen(&mut daemon.client().await).await;
    for round in 0..6 {
        // The end comes as soon as can be, now and then before the call that starts has answered.
        let (sandbox, id) = start_pod(&mut client, &format!("e{round}"), "exit 3").await.unwrap();
        let (_, ended) = hear(&mut first, &id, Kind::ContainerStoppedEvent).await;
        let status = ended.containers_statuses.iter().find(|c| c.id == id).unwrap();
        assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 3));
        assert_eq!(ended.pod_sandbox_status.unwrap().id, sandbox);
        remove_pod(&mut client, &sandbox).await.unwrap();
        assert_eq!(hear(&mut second, &id, Kind::ContainerDeletedEvent).await.0, WHOLE);
        // Its pod is told of in the same way, by its own id.
        hear(&mut first, &sandbox, Kind::ContainerDeletedEvent).await;
        let (heard, _) = hear(&mut second, &sandbox, Kind::ContainerDeletedEvent).await;
        assert!(WHOLE.ends_with(&heard), "{heard:?}");
    }
    drop(mute);
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_for_want_of_memory_says_so() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let mut events = listen(&mut client).await;
    let config = common::pod("hungry");
    let sandbox = common::run_pod(&mut client, &config, "").await.unwrap();
    let mut main = common::container("main", "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=200M count=1000");
    let limit = 24 << 20;
    main.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: limit,
        memory_swap_limit_in_bytes: limit,
        ..Default::default()
    });
    let id = common::create_and_start(&mut client, &sandbox, &config, main).await.unwrap();
    let (_, ended) = hear(&mut events, &id, Kind::ContainerStoppedEvent).await;
    let status = ended.containers_statuses.iter().find(|c| c.id == id).unwrap();
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137), "{status:?}");
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_no_daemon_runs_is_told_by_the_next_one() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let mut events = listen(&mut client).await;
    let script = "while [ ! -e /go ]; do /bin/busybox sleep 0.1; done; exit 5";
    let (sandbox, id) = start_pod(&mut client, "between", script).await.unwrap();
    hear(&mut events, &id, Kind::ContainerStartedEvent).await;
    daemon.kill();
    assert!(!matches!(events.message().await, Ok(Some(_))), "a dead daemon tells nothing");
    let go = until("the container's process", Duration::from_secs(20), || {
        fs::read_dir("/proc").ok()?.flatten().find_map(|e| {
            let line = fs::read_to_string(e.path().join("cmdline")).ok()?;
            line.contains("exit 5").then(|| e.path().join("root/go"))
        })
    });
    fs::write(&go, "").unwrap();
    until("the container's end", Duration::from_secs(20), || (!go.exists()).then_some(()));
    daemon.launch();
    // Nobody listened when the new daemon found out; and nobody heard of this whole life.
    let mut client = daemon.client().await;
    let (other, whole) = start_pod(&mut client, "unheard", "exec /bin/busybox sleep 1000").await.unwrap();
    let mut events = listen(&mut client).await;
    let (heard, ended) = hear(&mut events, &id, Kind::ContainerStoppedEvent).await;
    assert_eq!(heard, [Kind::ContainerStoppedEvent]);
    assert_eq!(ended.containers_statuses.iter().find(|c| c.id == id).unwrap().exit_code, 5);
    remove_pod(&mut client, &other).await.unwrap();
    assert_eq!(hear(&mut events, &whole, Kind::ContainerDeletedEvent).await.0, WHOLE);
    remove_pod(&mut client, &sandbox).await.unwrap();
    hear(&mut events, &id, Kind::ContainerDeletedEvent).await;
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_falls_too_far_behind_is_told_so_and_slows_nobody() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    // Little is on its way to it: what it does not read stays with the daemon.
    let address = format!("unix://{}", daemon.path("cri.sock").display());
    let narrow = tonic::transport::Endpoint::new(address).unwrap().initial_stream_window_size(1024);
    let mut slow = listen(&mut Client::new(narrow.connect_lazy())).await;
    let mut quick = listen(&mut daemon.client().await).await;
    let config = common::pod("many");
    let ask = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let sandbox = client.run_pod_sandbox(ask).await.unwrap().into_inner().pod_sandbox_id;
    // Made and removed without a start: three events each.
    let lives = tokio::spawn({
        let (mut client, sandbox) = (daemon.client().await, sandbox.clone());
        async move {
            let mut ids = Vec::new();
            for attempt in 0..420 {
                let mut container = common::container("main", "exit");
                container.metadata.as_mut().unwrap().attempt = attempt;
                let ask = cri::CreateContainerRequest {
                    pod_sandbox_id: sandbox.clone(),
                    config: Some(container),
                    sandbox_config: Some(config.clone()),
                };
                let id = client.create_container(ask).await.unwrap().into_inner().container_id;
                client.remove_container(cri::RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
                ids.push(id);
            }
            ids
        }
    });
    let mut deleted = Vec::new();
    while deleted.len() < 420 {
        let event = tokio::time::timeout(Duration::from_secs(60), quick.message()).await.expect("no event");
        let event = event.unwrap().expect("the events end");
        if event.container_event_type() == Kind::ContainerDeletedEvent {
            deleted.push(event.container_id);
        }
    }
    assert_eq!(lives.await.unwrap(), deleted, "who keeps up hears all, in order");
    // The other hears what was on its way, and then why there is no more: it has to list anew.
    let mut heard = 0;
    let why = loop {
        match tokio::time::timeout(Duration::from_secs(60), slow.message()).await.expect("no event") {
            Ok(Some(_)) => heard += 1,
            Ok(None) => panic!("the events end after {heard} as if there were no more"),
            Err(status) => break status,
        }
    };
    assert_eq!((why.code(), why.message()), (tonic::Code::DataLoss, "events were missed: list again"));
    assert!(heard < 420 * 3, "it missed nothing: {heard}");
    // Listening anew works at once.
    let mut again = listen(&mut client).await;
    remove_pod(&mut client, &sandbox).await.unwrap();
    hear(&mut again, &sandbox, Kind::ContainerDeletedEvent).await;
    daemon.assert_clean();
}
