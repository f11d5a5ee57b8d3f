"""What programs get from POST /predict, and from the routes beside it."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sounds import noise, sound, wav

from jax_mtlser.inference.hearing import Windows
from jax_mtlser.serving import app as app_module
from jax_mtlser.serving import uploads
from jax_mtlser.serving.answering import MOST_WINDOWS


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_body_is_judged_as_predict_judges_the_file(client, recognizer, tmp_path, form):
    body = sound(noise(2.0), form)
    (tmp_path / "a").write_bytes(body)
    expected = recognizer(tmp_path / "a", transcript=True)
    said = client.post("/predict", content=body)
    assert said.status_code == 200
    told = said.json()
    assert told["seconds"] == pytest.approx(2.0, abs=0.06)
    assert told["emotion"] == expected.emotion
    assert told["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-6)
    assert told["confidence"] == max(told["probabilities"].values())
    assert told["gender_probabilities"] == pytest.approx(dict(expected.gender_probabilities), abs=1e-6)
    assert told["transcript"] == expected.transcript
    assert told["parts"] == expected.parts == 2
    assert "timeline" not in told
    assert "outline" not in told


def test_a_form_gives_the_same_answer(client):
    body = wav(1.0)
    plain = client.post("/predict", content=body).json()
    form = client.post("/predict", files={"file": ("call.wav", body, "audio/wav")}, data={"note": "x" * 500})
    assert form.json() == plain
    assert client.put("/predict", content=body).json() == plain


def test_a_timeline_and_an_outline(client, recognizer):
    body = sound(noise(4.0), "FLAC")
    told = client.post("/predict?window=1&hop=0.5&smooth=1&outline=50", content=body).json()
    expected = recognizer.timeline((noise(4.0), 16_000), Windows(seconds=1, hop=0.5, smooth=1))
    assert [(w["start"], w["end"]) for w in told["timeline"]] == [(e.piece.start, e.piece.end) for e in expected]
    assert [w["emotion"] for w in told["timeline"]] == [e.recognition.emotion for e in expected]
    assert len(told["outline"]) == 50
    assert 0.2 < min(told["outline"]) <= max(told["outline"]) < 0.6
    assert client.post("/predict?window=1.2", content=body).json()["hop"] == pytest.approx(0.4)


def test_a_silent_window_says_so(client):
    samples = noise(4.0)
    samples[16_000:40_000] = 0
    windows = client.post("/predict?window=0.5&hop=0.5", content=sound(samples)).json()["timeline"]
    assert [("error" in window) for window in windows] == [False, False, True, True, True, False, False, False]
    assert windows[2]["error"].startswith("silent")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("window=0", "window is '0'; it must be seconds, greater than 0"),
        ("window=nan", "window is 'nan'"),
        ("window=1e999", "window is '1e999'"),
        ("window=5", r"window is 5 s; the model was trained on 0.1 to 1.5 s"),
        ("window=1&hop=2", "hop is 2 s; it must be greater than 0 and at most the window's 1 s"),
        ("hop=1", r"hop and smooth belong to a timeline; add window=SECONDS"),
        ("window=1&smooth=2", "smooth is 2; it must be an odd number"),
        ("window=1&smooth=-1", "smooth is '-1'; it must be a whole number"),
        ("outline=3", "outline is 3; it must be 0 or 50 to 4000 points"),
        ("outline=5000000", "outline is 5000000"),
        ("windw=1", "there is no parameter 'windw'; there are window, hop, smooth, outline"),
        ("window=0.1&hop=0.001", rf"more than {MOST_WINDOWS} windows in 4 s; use a hop of at least 0.002 s"),
    ],
)
def test_a_wrong_question_is_answered_in_a_line(client, query, message):
    reply = client.post(f"/predict?{query}", content=wav(4.0))
    assert reply.status_code == 422
    assert re.search(message, reply.json()["error"]), reply.json()


def test_parallel_requests_get_their_own_answers(client, scratch):
    bodies = [wav(0.4 + 0.1 * number) for number in range(10)]
    alone = [client.post("/predict?window=0.3", content=body).json() for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as threads:
        together = list(threads.map(lambda body: client.post("/predict?window=0.3", content=body).json(), bodies))
    assert together == alone
    assert len({str(said["probabilities"]) for said in alone}) == len(bodies)
    assert not list(client.app.state.uploads.iterdir())


def test_the_model_answers_one_request_at_a_time(client, monkeypatch):
    inside, most = 0, 0
    lock = threading.Lock()
    real = app_module.answer

    def watched(*arguments):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return real(*arguments)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(app_module, "answer", watched)
    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda _: client.post("/predict", content=wav(0.5)).status_code, range(6)))
    assert replies == [200] * 6
    assert most == 1


def test_too_many_at_once_are_sent_away(client, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_AT_ONCE", 0)
    reply = client.post("/predict", content=wav(0.5))
    assert reply.status_code == 503
    assert "the most at once; try again soon" in reply.json()["error"]


def test_a_mistake_of_ours_tells_nothing_of_the_inside(app, scratch, monkeypatch):
    from starlette.testclient import TestClient

    def broken(*_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(app_module, "answer", broken)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        reply = client.post("/predict", content=wav(0.5))
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert not list(app.state.uploads.iterdir())


def test_health_about_and_examples(client):
    assert client.get("/health").json() == {"status": "ok"}
    about = client.get("/about").json()
    assert about["emotions"] == ["angry", "sad"]
    assert (about["title"], about["members"], about["transcript"]) == ("tiny", ["r0_f0"], True)
    assert (about["max_seconds"], about["max_megabytes"]) == (20.0, 1.0)
    assert about["examples"] == [{"name": "one", "reference": "sad"}]
    example = client.get("/examples/0")
    assert (example.headers["content-type"], example.content) == ("audio/wav", wav(0.5))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("GET", "/examples/1", 404),
        ("GET", "/examples/-1", 404),
        ("GET", "/examples/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/..%2fapp.py", 404),
        ("GET", "/app.py", 404),
        ("GET", "/page.html", 404),
        ("GET", "/docs", 404),
        ("POST", "/", 405),
    ],
)
def test_there_is_nothing_else(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"].startswith(f"there is no {method} /")


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    for path in ("/", "/page.js", "/page.css"):
        addresses = set(re.findall(r"https?://[^\s\"'<)]+", client.get(path).text))
        assert addresses <= {"http://www.w3.org/2000/svg"}  # a name of XML, not a place
    assert "Art. 5(1)(f)" in page.text


def test_the_uploads_folder_is_private_and_goes_with_the_server(app, scratch):
    from starlette.testclient import TestClient

    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.app.state.uploads.parent == scratch
        assert client.app.state.uploads.stat().st_mode & 0o077 == 0
    assert not list(scratch.iterdir())


def test_a_slow_upload_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(uploads, "_MOST_SECONDS_OF_UPLOAD", 0.3)
    reply = server.raw(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nRIFF")
    assert reply.startswith(b"HTTP/1.1 408")
    assert b"took more than 0.3 s" in reply
    assert not list(server.uploads.iterdir())


def test_an_upload_without_end_is_cut_off_at_the_limit(server):
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    reply, sent = server.flood(head, piece)
    assert sent < 30e6  # what sockets hold on the way comes on top of the limit of 1 MB
    assert reply.startswith(b"HTTP/1.1 413") or not reply
    assert not list(server.uploads.iterdir())


def test_a_sender_who_leaves_leaves_nothing_behind(server):
    server.leave(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nRIFF")
    assert server.raw(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    assert not list(server.uploads.iterdir())
