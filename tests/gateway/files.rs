//! Uploaded files: what goes in comes out, within bounds, for those whose they are, and whatever ends the process.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use onlooker::{
    config::{
        Config, Durability,
        key::{KeyDigest, KeyEntry, Scope},
    },
    engine::memory::MemoryEngine,
    files::{Files, FilesOptions, NotPromoted},
    gateway::bounds,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::*;

const BOUNDARY: &str = "----a-boundary";
const KIB: usize = 1024;
/// What a file is counted with beside its content.
const OVERHEAD: usize = 8 * KIB;

/// A part of a form: its field, its file's name if it is a file, its content.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, name, content) in parts {
        body.extend_from_slice(head_of(field, *name).as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn head_of(field: &str, name: Option<&str>) -> String {
    let name = name.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
    format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"{name}\r\n\r\n")
}

impl TestGateway {
    async fn upload(&self, key: Option<&str>, parts: &[Part<'_>]) -> (u16, Value) {
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        let request = self.http.post(format!("{}/files/upload", self.url)).header("content-type", content_type);
        self.request(with(key, request.body(form(parts)))).await
    }

    /// Uploads one file and returns its id.
    async fn upload_one(&self, key: Option<&str>, content: &[u8], environment: Option<&str>) -> String {
        let mut parts: Vec<Part<'_>> = vec![("files", Some("a.txt"), content)];
        parts.extend(environment.map(|environment| ("environmentId", None, environment.as_bytes())));
        let (status, answer) = self.upload(key, &parts).await;
        assert_eq!(status, 200, "{answer}");
        answer["files"][0]["fileId"].as_str().unwrap().to_owned()
    }

    async fn download(&self, key: Option<&str>, id: &str) -> reqwest::Response {
        with(key, self.http.get(format!("{}/files/{id}", self.url))).send().await.expect("the gateway answers")
    }

    async fn is_there(&self, key: Option<&str>, id: &str) -> bool {
        match self.download(key, id).await.status().as_u16() {
            200 => true,
            404 => false,
            other => panic!("{other}"),
        }
    }

    async fn files_of(&self, key: Option<&str>, environment: &str) -> Vec<Value> {
        let request = self.http.get(format!("{}/environments/{environment}/files", self.url));
        let (status, answer) = self.request(with(key, request)).await;
        assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
        answer["files"].as_array().unwrap().clone()
    }

    async fn delete_file(&self, environment: &str, id: &str) -> (u16, Value) {
        self.request(self.http.delete(format!("{}/environments/{environment}/files/{id}", self.url))).await
    }
}

fn with(key: Option<&str>, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    match key {
        Some(key) => request.bearer_auth(format!("key-{key}")),
        None => request,
    }
}

fn key(id: &str, project: &str, scopes: &[Scope], pool: bool) -> KeyEntry {
    KeyEntry {
        id: id.to_owned(),
        project: project.to_owned(),
        scopes: scopes.to_vec(),
        sha256: KeyDigest(Sha256::digest(format!("key-{id}").as_bytes()).into()),
        pool,
        account: Default::default(),
        balance: None,
    }
}

/// A gateway whose files are in a directory, and nothing else of it.
async fn on_directory(directory: &Path, change: impl FnOnce(&mut Config)) -> TestGateway {
    let mut config = quick();
    config.data.ephemeral = false;
    config.data.dir = Some(directory.to_owned());
    config.data.durability = Durability::Os;
    change(&mut config);
    let engine = Arc::new(MemoryEngine::new(bounds(&config)));
    TestGateway::on(config, engine).await
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory.join("files")).map(|entries| entries.collect::<Vec<_>>());
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.unwrap_or_default().into_iter().map(name).collect()
}

fn options(directory: &Path) -> FilesOptions {
    FilesOptions {
        directory: Some(directory.join("files")),
        durability: Durability::Os,
        file_bytes: 1 << 20,
        total_bytes: 1 << 20,
        orphan: Duration::from_secs(3600),
    }
}

/// A file without a gateway.
async fn stored(files: &Files, project: &str, environment: Option<&str>) -> String {
    let mut upload = files.begin("a.txt").await.unwrap();
    upload.write(b"content").await.unwrap();
    let upload = upload.finish().await.unwrap();
    let kept = files.keep(&project.into(), environment, vec![upload]).await.unwrap();
    kept[0].id.as_str().to_owned()
}

// --- in and out ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn several_files_come_back_as_they_were() {
    let gateway = TestGateway::start().await;
    // Longer than any buffer on its way, with everything in it that looks like a boundary but is none.
    let mut large: Vec<u8> = (0..700 * KIB).map(|n| (n % 251) as u8).collect();
    large.extend_from_slice(format!("\r\n--{}\r\n--\r\n\r", &BOUNDARY[..BOUNDARY.len() - 1]).as_bytes());
    let parts: [Part<'_>; 4] = [
        ("files", Some("large.bin"), &large),
        ("note", None, b"not asked for"),
        ("files", Some("empty.txt"), b""),
        ("files", Some("h\u{e9}llo w\u{f6}rld.txt"), b"hello"),
    ];
    let (status, answer) = gateway.upload(None, &parts).await;
    assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
    let files = answer["files"].as_array().unwrap();
    let shown: Vec<_> = files.iter().map(|file| (file["originalName"].as_str().unwrap(), &file["size"])).collect();
    let sizes = [json!(large.len()), json!(0), json!(5)];
    assert_eq!(shown, [("large.bin", &sizes[0]), ("empty.txt", &sizes[1]), ("héllo wörld.txt", &sizes[2])]);
    for (file, content) in files.iter().zip([&large[..], b"", b"hello"]) {
        let id = file["fileId"].as_str().unwrap();
        assert!(id.len() == 20 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
        let response = gateway.download(None, id).await;
        let headers = response.headers().clone();
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["content-length"], content.len().to_string());
        assert!(headers["content-disposition"].to_str().unwrap().starts_with("attachment; "));
        assert!(response.bytes().await.unwrap() == content);
    }
    let named =
        gateway.download(None, files[2]["fileId"].as_str().unwrap()).await.headers()["content-disposition"].clone();
    assert_eq!(named, "attachment; filename=\"h_llo w_rld.txt\"; filename*=UTF-8''h%C3%A9llo%20w%C3%B6rld.txt");
}

#[tokio::test]
async fn what_is_no_upload_is_refused_in_documented_words() {
    let keys = [key("a", "p", &[Scope::Control], false), key("w", "p", &[Scope::Watch], false)];
    let mut config = quick();
    config.keys = keys.to_vec();
    config.webrun.requests_per_minute = 100;
    let gateway = TestGateway::with(config).await;
    let file: [Part<'_>; 1] = [("files", Some("a.txt"), b"a")];
    let says = |answer: &Value| answer["message"].as_str().unwrap_or_default().to_owned();

    let (status, answer) = gateway.upload(None, &file).await;
    assert_eq!(status, 401);
    let words = "API key required. Provide Authorization: Bearer <api_key>";
    assert_eq!(answer, json!({ "success": false, "message": words, "error": words, "code": "UNAUTHORIZED" }));
    let (status, answer) = gateway.upload(Some("other"), &file).await;
    assert_eq!((status, &*says(&answer)), (401, "Invalid or revoked API key"));
    let (status, answer) = gateway.upload(Some("w"), &file).await;
    assert_eq!((status, &*says(&answer)), (403, "API key missing required permission: task:create"));
    assert_eq!(gateway.download(None, &"a".repeat(20)).await.status(), 401);
    let (status, answer) = gateway.get("/environments/e/files").await;
    assert_eq!((status, &*says(&answer)), (401, "API key required"));

    let nothing: [&[Part<'_>]; 4] = [
        &[],
        &[("environmentId", None, b"e")],
        &[("files", Some(""), b"")],
        &[("file", Some("a.txt"), b"in a field of another name")],
    ];
    for parts in nothing {
        let (status, answer) = gateway.upload(Some("a"), parts).await;
        assert_eq!((status, &*says(&answer)), (400, "No files provided"), "{parts:?}");
    }
    let bad: [Part<'_>; 2] = [("files", Some("a.txt"), b"a"), ("environmentId", None, b"../e")];
    let (status, answer) = gateway.upload(Some("a"), &bad).await;
    assert_eq!((status, &answer["details"]["parameter"]), (400, &json!("environmentId")));
    let long: [Part<'_>; 1] = [("file", Some("a.txt"), &[b'x'; 8 * KIB])];
    let (status, answer) = gateway.upload(Some("a"), &long).await;
    assert_eq!((status, &answer["code"]), (400, &json!("INVALID_PARAMS")));

    let url = format!("{}/files/upload", gateway.url);
    let post =
        |kind: &str, body: Vec<u8>| with(Some("a"), gateway.http.post(&url).header("content-type", kind).body(body));
    let (status, answer) = gateway.request(post("application/json", b"{}".to_vec())).await;
    assert_eq!((status, &*says(&answer)), (415, "Content-Type must be multipart/form-data"));
    let (status, _) = gateway.request(with(Some("a"), gateway.http.post(&url))).await;
    assert_eq!(status, 415);
    let (status, answer) = gateway.request(post("multipart/form-data", form(&file))).await;
    assert_eq!((status, &answer["code"]), (400, &json!("INVALID_PARAMS")));
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let whole = form(&file);
    for end in [0, 1, BOUNDARY.len() + 2, whole.len() / 2, whole.len() - 6] {
        let (status, answer) = gateway.request(post(&kind, whole[..end].to_vec())).await;
        assert_eq!((status, &answer["code"]), (400, &json!("INVALID_PARAMS")), "cut at {end}");
    }
}

#[tokio::test]
async fn hostile_names_become_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = on_directory(directory.path(), |_| ()).await;
    let long = format!("{}.pdf", "n".repeat(2000));
    let table = [
        ("../../../etc/passwd", "passwd"),
        ("..", "file"),
        ("/", "file"),
        ("C:\\\\dir\\\\x.exe", "x.exe"),
        ("a;b=c.txt", "a;b=c.txt"),
        ("\u{202e}txt.exe", "txt.exe"),
        (&long, &format!("{}.pdf", "n".repeat(251))),
        ("%2e%2e%2fx", "%2e%2e%2fx"),
    ];
    let mut ids = BTreeSet::new();
    for (given, wanted) in table {
        let (status, answer) = gateway.upload(None, &[("files", Some(given), b"content")]).await;
        assert_eq!((status, &answer["files"][0]["originalName"]), (200, &json!(wanted)), "{given}");
        let id = answer["files"][0]["fileId"].as_str().unwrap();
        let response = gateway.download(None, id).await;
        let disposition = response.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert_eq!(disposition.matches('"').count(), 2, "{disposition}");
        assert_eq!(disposition.matches(';').count(), 2, "{disposition}");
        ids.extend([id.to_owned(), format!("{id}.json")]);
    }
    assert_eq!(names_in(directory.path()), ids);
    for id in ["..%2ffiles%2fx", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "x%00", &"A".repeat(20), &"a".repeat(19)] {
        let (status, answer) = gateway.get(&format!("/files/{id}")).await;
        assert_eq!((status, &answer["message"]), (404, &json!("File not found")), "{id}");
    }
}

// --- whose they are --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_file_is_there_for_its_project_and_its_runtimes_only() {
    let mut config = quick();
    config.keys = vec![
        key("client", "p", &[Scope::Control], false),
        key("runtime", "p", &[Scope::Publish], false),
        key("watcher", "p", &[Scope::Watch, Scope::Answer], false),
        key("stranger", "q", &[Scope::Control, Scope::Publish], false),
        key("pool", "q", &[Scope::Publish], true),
    ];
    let gateway = TestGateway::with(config).await;
    let id = gateway.upload_one(Some("client"), b"a", Some("e")).await;
    for (who, status) in [("client", 200), ("runtime", 200), ("pool", 200), ("stranger", 404), ("watcher", 403)] {
        assert_eq!(gateway.download(Some(who), &id).await.status(), status, "{who}");
    }
    assert_eq!(gateway.files_of(Some("client"), "e").await.len(), 1);
    assert_eq!(gateway.files_of(Some("stranger"), "e").await, Vec::<Value>::new());
    let delete = gateway.http.delete(format!("{}/environments/e/files/{id}", gateway.url));
    let (status, answer) = gateway.request(with(Some("stranger"), delete)).await;
    assert_eq!((status, &answer["message"]), (404, &json!("File not found")));
    assert!(gateway.is_there(Some("client"), &id).await);
}

#[tokio::test]
async fn the_files_of_an_environment_are_listed_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = on_directory(directory.path(), |_| ()).await;
    let orphan = gateway.upload_one(None, b"orphan", None).await;
    let first = gateway.upload_one(None, b"first", Some("683a1f2e4b0c1d2e3f4a5b6c")).await;
    let second = gateway.upload_one(None, b"second!", Some("683a1f2e4b0c1d2e3f4a5b6c")).await;
    let other = gateway.upload_one(None, b"other", Some("other")).await;
    let listed = gateway.files_of(None, "683a1f2e4b0c1d2e3f4a5b6c").await;
    let ids: BTreeSet<_> = listed.iter().map(|file| file["fileId"].as_str().unwrap()).collect();
    assert_eq!(ids, BTreeSet::from([&*first, &*second]));
    let shown = listed.iter().find(|file| file["fileId"] == *second).unwrap();
    assert_eq!((&shown["originalName"], &shown["size"]), (&json!("a.txt"), &json!(7)));
    assert!(onlooker::clock::parse(shown["createdAt"].as_str().unwrap()).is_some());

    let missing = [("other", &*first), ("e", &*orphan), ("other", "x")];
    for (environment, id) in missing {
        let (status, answer) = gateway.delete_file(environment, id).await;
        assert_eq!((status, &answer["message"]), (404, &json!("File not found")));
    }
    let (status, answer) = gateway.delete_file("683a1f2e4b0c1d2e3f4a5b6c", &first).await;
    assert_eq!((status, answer), (200, json!({ "success": true, "message": "File deleted" })));
    assert_eq!(gateway.delete_file("683a1f2e4b0c1d2e3f4a5b6c", &first).await.0, 404);
    assert!(!gateway.is_there(None, &first).await);
    let left: BTreeSet<_> =
        [&orphan, &second, &other].iter().flat_map(|id| [(*id).clone(), format!("{id}.json")]).collect();
    assert_eq!(names_in(directory.path()), left);
}

// --- bounds ----------------------------------------------------------------------------------------------------------

/// Sends the beginning of a body and then pieces of it until the connection ends, for ever if it is let. Returns what
/// the gateway answered and how much it was sent until then.
async fn endless(gateway: &TestGateway, beginning: &str, piece: &[u8]) -> (String, usize) {
    let address = gateway.url.trim_start_matches("http://").to_owned();
    let (mut reader, mut writer) = TcpStream::connect(&address).await.unwrap().into_split();
    let head = format!(
        "POST /files/upload HTTP/1.1\r\nhost: {address}\r\ntransfer-encoding: chunked\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await.unwrap();
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    writer.write_all(&chunk(beginning.as_bytes())).await.unwrap();
    let piece = chunk(piece);
    let mut sent = 0;
    let mut answer = vec![0; 4 * KIB];
    let reading = async {
        let read = reader.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    let writing = async {
        loop {
            // What is refused may be cut off at any moment.
            if writer.write_all(&piece).await.is_err() {
                std::future::pending::<()>().await;
            }
            sent += piece.len();
        }
    };
    let answer = tokio::time::timeout(BOUND, async {
        tokio::select! {
            answer = reading => answer,
            () = writing => unreachable!("it writes for ever"),
        }
    });
    (answer.await.expect("it is refused while it is sent"), sent)
}

#[tokio::test]
async fn a_body_that_never_ends_is_refused_early_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let small = |config: &mut Config| config.webrun.file_bytes = 100 * KIB;
    let gateway = on_directory(directory.path(), small).await;
    let file = head_of("files", Some("endless.bin"));
    let (answer, sent) = endless(&gateway, &file, &[b'x'; 8 * KIB]).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("\"limit\":102400"), "{answer}");
    // What is in the kernel's buffers was sent too.
    assert!(sent < 16 << 20, "{sent}");
    wait_until("nothing is left", || async { names_in(directory.path()).is_empty() }).await;

    // Neither are boundaries, headers and texts collected without end.
    let text = head_of("environmentId", None);
    let headers = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"");
    for (beginning, piece) in [("", &b"no boundary "[..]), (&headers, b"name"), (&text, b"text")] {
        let (answer, sent) = endless(&gateway, beginning, &piece.repeat(100)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(sent < 16 << 20, "{sent}");
    }
    // A complete file next to one that is too large is not kept either.
    let large = vec![b'x'; 100 * KIB + 1];
    let parts: [Part<'_>; 2] = [("files", Some("a"), b"small"), ("files", Some("b"), &large)];
    assert_eq!(gateway.upload(None, &parts).await.0, 413);
    wait_until("nothing is left", || async { names_in(directory.path()).is_empty() }).await;
    gateway.upload_one(None, &large[1..], None).await;
}

#[tokio::test]
async fn parallel_uploads_stay_within_the_bound_of_all() {
    const FIT: usize = 5;
    let directory = tempfile::tempdir().unwrap();
    let small = |config: &mut Config| config.webrun.files_bytes_total = FIT * (100 * KIB + OVERHEAD) + 50 * KIB;
    let gateway = on_directory(directory.path(), small).await;
    let content = vec![b'x'; 100 * KIB];
    let parts: [Part<'_>; 2] = [("files", Some("a"), &content), ("environmentId", None, b"e")];
    let upload = |_| gateway.upload(None, &parts);
    let answers = futures::future::join_all((0..20).map(upload)).await;
    let (stored, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| *status == 200);
    assert!(stored.len() <= FIT, "{} of {FIT}", stored.len());
    for (status, answer) in refused {
        assert_eq!((status, &answer["code"]), (507, &json!("STORAGE_FULL")));
    }
    let listed = gateway.files_of(None, "e").await;
    assert_eq!(listed.len(), stored.len());
    // What was refused gave its room back, and so does what is deleted.
    for _ in stored.len()..FIT {
        gateway.upload_one(None, &content, Some("e")).await;
    }
    assert_eq!(gateway.upload(None, &parts).await.0, 507);
    let full = gateway.files_of(None, "e").await;
    assert_eq!(full.len(), FIT);
    for round in 0..3 {
        let oldest = gateway.files_of(None, "e").await[0]["fileId"].as_str().unwrap().to_owned();
        assert_eq!(gateway.delete_file("e", &oldest).await.0, 200);
        gateway.upload_one(None, &content, Some("e")).await;
        assert_eq!(gateway.upload(None, &parts).await.0, 507, "round {round}");
    }
}

// --- orphans ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_orphan_goes_when_its_time_is_over_also_while_no_gateway_runs() {
    let directory = tempfile::tempdir().unwrap();
    let soon = |config: &mut Config| config.webrun.orphan_file = Duration::from_millis(400);
    let gateway = on_directory(directory.path(), soon).await;
    let kept = gateway.upload_one(None, b"kept", Some("e")).await;
    let orphan = gateway.upload_one(None, b"orphan", None).await;
    wait_until("the orphan is gone", || async { !gateway.is_there(None, &orphan).await }).await;
    assert!(gateway.is_there(None, &kept).await);
    assert_eq!(names_in(directory.path()).len(), 2);

    let second = gateway.upload_one(None, b"second", None).await;
    gateway.stop().await;
    let gateway = on_directory(directory.path(), soon).await;
    wait_until("the second one is gone", || async { !gateway.is_there(None, &second).await }).await;
    gateway.stop().await;
    // As long as its time is not over it outlives the process.
    let gateway = on_directory(directory.path(), |_| ()).await;
    let third = gateway.upload_one(None, b"third", None).await;
    gateway.stop().await;
    let gateway = on_directory(directory.path(), |_| ()).await;
    assert!(gateway.is_there(None, &third).await && gateway.is_there(None, &kept).await);
}

#[tokio::test]
async fn a_promoted_file_stays_and_one_of_another_project_cannot_be_promoted() {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(options(directory.path())).await.unwrap();
    let (orphan, own) = (stored(&files, "p", None).await, stored(&files, "p", Some("first")).await);
    let foreign = stored(&files, "q", None).await;
    let ids = [orphan.clone(), own.clone()];
    assert_eq!(files.known("p", &ids), Ok(()));
    for missing in [foreign.clone(), "no-such-file".to_owned(), "../x".to_owned()] {
        let ids = [orphan.clone(), missing.clone()];
        assert_eq!(files.known("p", &ids), Err(missing.clone()));
        let refused = files.promote("p", &ids, "e").await;
        assert!(matches!(refused, Err(NotPromoted::Missing(id)) if id == missing));
    }
    assert_eq!(files.get(&orphan).unwrap().environment, None);
    for _ in 0..2 {
        files.promote("p", &ids, "e").await.unwrap();
        let environment_of = |id: &String| files.get(id).unwrap().environment;
        assert_eq!(environment_of(&orphan).as_deref(), Some("e"));
        assert_eq!(environment_of(&own).as_deref(), Some("first"), "a file stays where it belongs");
    }
    drop(files);
    // Every orphan's time is over.
    let files = Files::open(FilesOptions { orphan: Duration::ZERO, ..options(directory.path()) }).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let expiring = tokio::spawn(files.clone().expire(stop.clone()));
    wait_until("the orphan is gone", || async { files.get(&foreign).is_none() }).await;
    assert!(files.known("p", &ids).is_ok());
    stop.cancel();
    expiring.await.unwrap();
}

// --- the end of the process ------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_a_killed_process_left_half_done_is_gone_and_the_rest_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = on_directory(directory.path(), |_| ()).await;
    let whole = gateway.upload_one(None, b"whole", Some("e")).await;

    // An upload in the middle of its second file, as a killed process leaves it.
    let address = gateway.url.trim_start_matches("http://").to_owned();
    let mut sender = TcpStream::connect(&address).await.unwrap();
    let mut body = form(&[("files", Some("first"), b"first of two")]);
    body.truncate(body.len() - BOUNDARY.len() - 6);
    body.extend_from_slice(head_of("files", Some("second")).as_bytes());
    body.extend_from_slice(&vec![b'x'; 600 * KIB]);
    let head = format!(
        "POST /files/upload HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        body.len() + KIB
    );
    sender.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let files = directory.path().join("files");
    let arrived = || async {
        let sizes =
            std::fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().metadata().map_or(0, |data| data.len()));
        sizes.max() >= Some(400 * KIB as u64)
    };
    wait_until("most of it is on the disk", arrived).await;
    let killed = tempfile::tempdir().unwrap();
    std::fs::create_dir(killed.path().join("files")).unwrap();
    for name in names_in(directory.path()) {
        std::fs::copy(files.join(&name), killed.path().join("files").join(&name)).unwrap();
    }
    assert_eq!(names_in(killed.path()).len(), 4, "one file, and two contents");

    // What other moments leave: between two writes, and in the middle of one.
    let leave = |name: &str, content: &[u8]| std::fs::write(killed.path().join("files").join(name), content).unwrap();
    let metadata = std::fs::read(files.join(format!("{whole}.json"))).unwrap();
    leave(&format!("{}.json", "b".repeat(20)), &metadata);
    leave(&"c".repeat(20), b"whole");
    leave(&format!("{}.json.new", "c".repeat(20)), &metadata);
    leave(&"d".repeat(20), b"whole");
    leave(&format!("{}.json", "d".repeat(20)), &metadata[..metadata.len() / 2]);
    leave(&"e".repeat(20), b"who");
    leave(&format!("{}.json", "e".repeat(20)), &metadata);
    leave(&format!("{whole}.json.new"), b"{");
    leave("a note of the operator.txt", b"");

    let next = on_directory(killed.path(), |_| ()).await;
    let left = BTreeSet::from([whole.clone(), format!("{whole}.json"), "a note of the operator.txt".to_owned()]);
    assert_eq!(names_in(killed.path()), left);
    assert_eq!(next.download(None, &whole).await.bytes().await.unwrap(), "whole");
    assert_eq!(next.files_of(None, "e").await.len(), 1);

    // A sender that goes away leaves nothing either.
    drop(sender);
    wait_until("nothing is left of it", || async { names_in(directory.path()).len() == 2 }).await;
}

#[tokio::test]
async fn without_a_data_directory_files_go_with_the_gateway() {
    let gateway = TestGateway::start().await;
    let id = gateway.upload_one(None, b"content", Some("e")).await;
    let held = || {
        let places = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        places.filter(|place| place.path().join(&id).exists()).count()
    };
    assert_eq!(held(), 1);
    gateway.stop().await;
    wait_until("the directory is gone", || async { held() == 0 }).await;
}
