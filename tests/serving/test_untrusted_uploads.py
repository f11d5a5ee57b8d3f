"""Uploads that are made to do harm: to the disk, the memory, the machine, or the person at the browser."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sounds import MAX_MEGABYTES, MAX_SECONDS, noise, sound, wav

BOUNDARY = "xx"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch) -> None:
    """ffmpeg as if it were installed."""
    (tmp_path / "bin").mkdir()
    os.symlink(imageio_ffmpeg.get_ffmpeg_exe(), tmp_path / "bin" / "ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def refused(client, status: int, message: str, **request) -> None:
    """The answer to a request, and that nothing is left of it."""
    reply = client.post("/predict", **request)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json"), reply.text
    assert message in reply.json()["error"], reply.json()
    assert str(client.app.state.uploads) not in reply.text
    assert not list(client.app.state.uploads.iterdir())


def with_flac_frames(flac: bytes, frames: int) -> bytes:
    """The same file, whose header announces another number of samples; 0 stands for unknown."""
    content = bytearray(flac)
    word = int.from_bytes(content[18:26], "big")
    content[18:26] = (word >> 36 << 36 | frames).to_bytes(8, "big")
    return bytes(content)


def wav_header(*, rate: int = 16_000, channels: int = 1, bits: int = 16, data_bytes: int = 32_000) -> bytes:
    block = channels * bits // 8 & 0xFFFF
    form = struct.pack("<HHIIHH", 1, channels & 0xFFFF, rate, rate * block & 0xFFFFFFFF, block, bits)
    riff = struct.pack("<I", (36 + data_bytes) & 0xFFFFFFFF)
    sized = struct.pack("<I", 16) + form + b"data" + struct.pack("<I", data_bytes)
    return b"RIFF" + riff + b"WAVEfmt " + sized


def rf64_header(data_bytes: int) -> bytes:
    sizes = struct.pack("<QQQI", data_bytes + 72, data_bytes, data_bytes // 2, 0)
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    return (
        b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + sizes
        + b"fmt " + struct.pack("<I", 16) + form + b"data\xff\xff\xff\xff"
    )  # fmt: skip


PCM = (noise(1.0) * 32_768).astype("<i2").tobytes()


@pytest.mark.parametrize(
    ("body", "statuses", "message"),
    [
        (with_flac_frames(sound(noise(1.0), "FLAC"), 2**36 - 1), {413}, "too long: 4.29497e+06 s, above the limit of 20 s"),
        (with_flac_frames(sound(noise(1.0), "FLAC"), 16_000 * 19), {422}, "unreadable audio|truncated"),
        (with_flac_frames(sound(noise(1.0), "FLAC"), 0), {415}, "does not give a length"),
        (wav_header(data_bytes=2**32 - 1) + PCM, {200}, ""),
        (wav_header(data_bytes=2**31) + PCM, {200}, ""),
        (rf64_header(2**41) + PCM, {200, 413, 415, 422}, ""),
        (wav_header(channels=65_535, data_bytes=len(PCM)) + PCM, {415, 422}, ""),
        (wav_header(channels=0) + PCM, {415}, ""),
        (wav_header(rate=2**32 - 1) + PCM, {415}, ""),
        (wav_header(rate=1) + PCM, {415}, "a sampling rate of 1 Hz; audio has 1000 to 1000000 Hz"),
        (wav_header(bits=0) + PCM, {415}, ""),
        (wav_header(), {415, 422}, ""),
    ],
    ids=["flac-49-days", "flac-19-s", "flac-unknown", "wav-4-gb", "wav-2-gb", "rf64-2-tb", "wav-65535-channels",
         "wav-0-channels", "wav-4-ghz", "wav-1-hz", "wav-0-bits", "wav-no-samples"],
)  # fmt: skip
def test_a_header_that_lies_costs_no_memory(client, monkeypatch, body, statuses, message):
    monkeypatch.setenv("PATH", "")
    client.post("/predict", content=sound(noise(1.0)))  # what the first request imports and compiles does not count
    tracemalloc.start()
    try:
        reply = client.post("/predict?outline=50", content=body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.status_code in statuses, reply.text
    if reply.status_code == 200:
        assert reply.json()["seconds"] == pytest.approx(1.0, abs=0.01)
    else:
        assert any(part in reply.json()["error"] for part in message.split("|")), reply.json()
    assert peak < 40e6  # one read takes at most 16 MiB
    assert not list(client.app.state.uploads.iterdir())


def test_an_hour_of_silence_in_few_bytes_is_refused_by_its_header(client, monkeypatch):
    monkeypatch.setenv("PATH", "")
    body = sound(np.zeros(3600 * 16_000, np.int16), "FLAC")
    assert len(body) < MAX_MEGABYTES * 1e6
    refused(client, 413, "too long: 3600 s, above the limit of 20 s; send a shorter part", content=body)


def test_and_by_ffmpeg_where_the_header_does_not_say(client, ffmpeg, scratch, monkeypatch):
    body = with_flac_frames(sound(np.zeros(3600 * 16_000, np.int16), "FLAC"), 0)
    written = []
    real = os.stat

    def watch(path, *rest, **kind):
        if str(path).endswith("decoded.wav"):
            written.append(real(path, *rest, **kind).st_size)
        return real(path, *rest, **kind)

    monkeypatch.setattr(os, "stat", watch)
    refused(client, 413, "too long: more than the limit of 20 s of audio", content=body)
    assert written
    assert max(written) < 2 * 2 * 16_000 * MAX_SECONDS
    assert [path.name for path in scratch.iterdir()] == [client.app.state.uploads.name]


def test_what_needs_ffmpeg_is_answered_through_it(client, ffmpeg):
    said = client.post("/predict", content=with_flac_frames(sound(noise(2.0), "FLAC"), 0))
    assert said.status_code == 200
    assert said.json()["seconds"] == pytest.approx(2.0, abs=0.01)


def test_a_recording_of_the_longest_length_is_taken_and_a_longer_one_not(client):
    assert client.post("/predict", content=sound(noise(MAX_SECONDS))).json()["seconds"] == MAX_SECONDS
    longer = sound(noise(MAX_SECONDS + 0.001))
    refused(client, 413, "too long: 20.001 s, above the limit of 20 s", content=longer)


def test_a_large_upload_is_refused_as_it_is_announced_and_as_it_arrives(client):
    limit = round(MAX_MEGABYTES * 1e6)
    message = "too large: 1 MB, above the limit of 1 MB; send a shorter or compressed recording"
    refused(client, 413, message, content=bytes(limit + 1))
    refused(client, 413, "too large: 1.1 MB", content=bytes(limit + 100_000))
    refused(client, 413, "too large", files={"file": ("a.wav", bytes(limit + 1))})
    padding = {"data": {"note": "x" * 100_000}, "files": {"file": ("a.wav", wav(0.5))}}
    refused(client, 413, "the form has more than 65536 bytes beside its file", **padding)
    # A header that announces less is the server's to judge: uvicorn reads no further than it says.
    filled = sound(noise(1.0)) + bytes(limit - len(sound(noise(1.0))))
    assert client.post("/predict", content=filled).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["../../x.wav", "..\\..\\x.wav", "/etc/cron.d/x", "%2e%2e%2fx.wav", "a\x00.wav", "x" * 3000 + ".wav", "con", "",
     "-i concat:/etc/passwd", "żółć😀.wav", "$(touch x).wav", "|touch x"],
)  # fmt: skip
def test_the_name_of_an_upload_is_never_used(client, scratch, tmp_path, monkeypatch, name):
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    seen = []
    uploads = client.app.state.uploads
    real = Path.unlink

    def watch(path, *rest, **kind):
        if path.parent == uploads:
            seen.append(path.name)
        real(path, *rest, **kind)

    monkeypatch.setattr(Path, "unlink", watch)
    raw = name.encode()
    body = (
        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="' + raw + b'"\r\n'
        b"Content-Type: audio/wav\r\n\r\n" + wav(0.5) + b"\r\n--xx--\r\n"
    )
    before = {path for path in tmp_path.rglob("*") if "x.wav" in path.name or path.name == "x"}
    reply = client.post("/predict", content=body, headers=FORM)
    assert reply.status_code == 200 if raw.isascii() or name.startswith("ż") else 422
    assert all(own.startswith("upload_") and len(own) < 20 for own in seen)
    assert len(seen) == 1
    assert {path for path in tmp_path.rglob("*") if "x.wav" in path.name or path.name == "x"} == before
    assert not list(uploads.iterdir())


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_checkpoint_is_no_recording_and_runs_nothing(client, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    mark = tmp_path / "ran"
    plain = pickle.dumps(Payload(mark))
    pickle.loads(plain)
    assert mark.exists()  # the payload works
    mark.unlink()
    archive, array = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", plain)
    np.save(array, np.array([Payload(mark)]), allow_pickle=True)
    for body in (plain, archive.getvalue(), array.getvalue()):
        refused(client, 415, "unreadable audio", content=body)
        refused(client, 415, "unreadable audio", files={"file": ("model.wav", body, "audio/wav")})
    assert not mark.exists()


def test_a_playlist_reads_no_file_of_the_server(client, ffmpeg, tmp_path):
    (tmp_path / "secret.wav").write_bytes(wav(1.0))
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\na=control:file://{tmp_path}/secret.wav\n",
    ):
        refused(client, 415, "unreadable audio", content=text.encode())


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b""}, 422, "empty: the recording has 0 bytes"),
        ({"files": {"file": ("a.wav", b"")}}, 422, "empty: the recording has 0 bytes"),
        ({"content": b"<html>hello</html>" * 50}, 415, "unreadable audio"),
        ({"json": {"file": "/etc/passwd"}}, 415, "unreadable audio"),
        ({"content": b"\x89PNG\r\n\x1a\n" + bytes(500)}, 415, "send WAV, FLAC, MP3 or OGG"),
        ({"content": sound(np.zeros(16_000))}, 422, "silent: every sample is 0"),
        ({"content": wav(0.05)}, 422, "too short: 0.05 s, below the limit of 0.1 s"),
        ({"content": sound(np.full(16_000, np.nan), subtype="FLOAT")}, 422, "16000 of 16000 samples are NaN"),
        ({"content": sound(noise(2.0), "FLAC")[:30_000]}, 422, "u"),  # unreadable or truncated, by libsndfile's version
        ({"data": {"file": "text"}, "headers": FORM}, 422, "not a multipart form"),
        ({"content": b'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--xx--\r\n', "headers": FORM}, 422,
         "the form has no file; send the recording as a file field"),
        ({"content": b"--xx\r\nContent-Disposition: form-data; filename=a\r\n\r\nRIFF", "headers": FORM}, 422, "ends early"),
        ({"content": wav(0.5), "headers": {"content-type": "multipart/form-data"}}, 422, "has no boundary"),
        ({"content": wav(0.5), "headers": FORM}, 422, "not a multipart form"),
        ({"files": [("a", ("a.wav", wav(0.5))), ("b", ("b.wav", wav(0.5)))]}, 422, "more than one file"),
        ({"content": wav(0.5), "headers": {"content-encoding": "gzip"}}, 415, "content-encoding 'gzip' is not decoded"),
    ],
)  # fmt: skip
def test_wrong_bodies_are_answered_in_a_line(client, monkeypatch, request_, status, message):
    monkeypatch.setenv("PATH", "")
    refused(client, status, message, **request_)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), junk=st.binary(max_size=60), form=st.booleans())
def test_broken_bodies_are_never_a_crash(client, monkeypatch, cut, junk, form):
    monkeypatch.setenv("PATH", "")
    body = sound(noise(0.01), "FLAC")
    if form:
        body = b'--xx\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + body + b"\r\n--xx--\r\n"
    body = body[:cut] + junk + body[cut + len(junk) :]
    reply = client.post("/predict", content=body, headers=FORM if form else {})
    assert reply.status_code in (413, 415, 422)
    assert reply.json()["error"]
    assert not list(client.app.state.uploads.iterdir())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example:7860"}, 403),  # a name that was made to point here
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860", "sec-fetch-site": "same-origin"}, 403),
        ({"host": "["}, 403),
    ],
)
def test_other_sites_in_the_browser_may_not_ask(client, headers, status):
    reply = client.post("/predict", content=wav(0.5), headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers
    if "host" in headers:
        assert client.get("/about", headers=headers).status_code == status
