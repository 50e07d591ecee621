"""The page in a real browser, and the Space in a process of its own; both are watched for calls to other machines."""

import os
import queue
import re
import signal
import struct
import subprocess
import sys
import threading
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor
from vit_hf.checkpoints.load import load_model
from vit_hf.evaluation.scoring import classify

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
NAMES = ["tench", "goldfish", "great white shark", "hammerhead", "electric ray", "stingray"]

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed (extra demo)")

# Runs in the server before anything else: notes each look-up and connection that leaves the machine, lets vit_hf come
# from one folder only, and lets Ctrl-C end the process also where a shell began the tests in the background.
WATCH = """
import importlib.machinery, os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

def watch(event, arguments):
    host = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    if host not in (None, "127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost", ""):
        with open(os.environ["WATCH_LOG"], "a") as log:
            print(event, host, file=log)

class OnlyThere:
    def find_spec(self, name, path=None, target=None):
        if name == "vit_hf":
            found = importlib.machinery.PathFinder.find_spec(name, [os.environ["WATCH_PACKAGE"]])
            if found is None:
                raise ImportError("vit_hf is not in " + os.environ["WATCH_PACKAGE"])
            return found

sys.addaudithook(watch)
sys.meta_path.insert(0, OnlyThere())
"""


class Server:
    """A page served by a process of its own."""

    def __init__(self, folder: Path, command: list, *, package: Path, cwd: Path):
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(WATCH)
        self.calls_out, self.uploads = folder / "calls", folder / "uploads"
        environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "WATCH_LOG": str(self.calls_out),
            "OMP_NUM_THREADS": "1",
        }
        environment |= {"WATCH_PACKAGE": str(package), "GRADIO_TEMP_DIR": str(self.uploads), "HF_HUB_OFFLINE": "1"}
        environment["HF_HOME"] = str(folder / "home")
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.printed: list[str] = []
        self._urls: queue.Queue = queue.Queue()
        self._url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.printed.append(line)
            if found := re.search(r"page: (http://127\.0\.0\.1:\d+/)", line):
                self._urls.put(found.group(1))
        self._urls.put(None)

    def url(self) -> str:
        """Wait until it serves."""
        self._url = self._url or self._urls.get(timeout=120)
        assert self._url, "".join(self.printed)
        return self._url

    def stop(self) -> int:
        """Press Ctrl-C if it runs; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()
            self._reader.join(timeout=10)
            self.process.stdout.close()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A saved classifier with random weights, whose classes are apart."""
    folder = tmp_path_factory.mktemp("demo") / "fishes"
    config = VitHfConfig(image_size=[32, 48], patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=64, id2label=dict(enumerate(NAMES)))  # fmt: skip
    torch.manual_seed(0)
    network = VitHfForImageClassification(config)
    with torch.no_grad():
        network.classifier.weight.normal_()
    network.save_pretrained(folder)
    VitHfImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    (folder / "examples").mkdir()
    noise(seed=7).save(folder / "examples" / "first.png")
    (folder / ".env").write_text("SECRET=1")
    (folder / "checkpoints").mkdir()
    return folder


def noise(height: int = 60, width: int = 90, seed: int = 0) -> PIL.Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def likeliest(model_folder: Path, path: Path) -> list[tuple[str, float]]:
    model, processor = load_model(model_folder)
    with PIL.Image.open(path) as picture:
        return classify(model, processor, [picture])[0]


@pytest.fixture(scope="module")
def page(model_folder, tmp_path_factory):
    """The page as `vit-hf demo` serves it."""
    folder = tmp_path_factory.mktemp("page")
    server = Server(folder / "server", ["-m", "vit_hf.cli", "demo", model_folder], package=ROOT, cwd=folder)
    yield server
    server.stop()


# ------------------------------------------------------------------------------------------- the browser
class Visitor:
    """A browser tab on the page, which notes what goes wrong in it and where it calls."""

    def __init__(self, tab, url: str):
        self.tab, self.url = tab, url
        self.errors: list[str] = []
        self.requests: list[str] = []
        tab.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self) -> None:
        self.tab.goto(self.url)
        self.tab.wait_for_selector("#classify")
        self.errors.clear()  # leaving the page before aborts what it had open

    def give(self, path: Path) -> None:
        """Put a file into the picture field and wait until the server has it."""
        if remove := self.tab.query_selector("#picture button[aria-label='Remove Image']"):
            remove.click()
        with self.tab.expect_response(lambda response: "/upload" in response.url and response.ok):
            self.tab.set_input_files("#picture input[type=file]", path)
        self.tab.wait_for_selector("#picture img", state="attached")

    def classify(self, path: Path) -> str:
        """Upload a good picture, click, and read the likeliest class."""
        self.give(path)
        self.tab.click("#classify")
        self.tab.wait_for_selector("#attention img")
        return self.tab.inner_text("#classes [data-testid=label-output-value]").strip()

    def complaint(self, path: Path) -> str:
        """Upload a bad picture, click, and read what the page says."""
        self.give(path)
        self.tab.click("#classify")
        return self.tab.wait_for_selector("#problem").inner_text()


@pytest.fixture(scope="module")
def visitor(page, tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"there is no {CHROMIUM}")
    url = page.url()
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, args=["--headless=new", *FLAGS],
            viewport={"width": 1280, "height": 900},
        )  # fmt: skip
        context.set_default_timeout(30_000)
        yield Visitor(context.new_page(), url)
        context.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory, shared_data) -> Path:
    """A JPEG of ImageNet where there is one, else a generated picture."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    try:
        from pyarrow.parquet import ParquetFile

        [table] = (shared_data("imagenet-1k-sample") / "data").glob("validation-*.parquet")
        [row] = next(ParquetFile(table).iter_batches(batch_size=1, columns=["image"])).to_pylist()
        path.write_bytes(row["image"]["bytes"])
    except pytest.skip.Exception:
        noise(300, 400).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds a few."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_a_picture_is_classified_as_by_the_package_and_its_attention_appears(visitor, photo, model_folder, tmp_path):
    assert not visitor.tab.is_visible("#attention")
    top1 = visitor.classify(photo)
    expected = likeliest(model_folder, photo)
    assert top1 == expected[0][0]
    shown = visitor.tab.inner_text("#classes").split("\n")
    assert [name for name in shown if name in NAMES][1:] == [name for name, _ in expected]
    assert f"{expected[0][1]:.0%}" in shown
    for name in ("#view", "#attention"):
        width = visitor.tab.evaluate(f"document.querySelector('{name} img').naturalWidth")
        assert width == 48 * 9  # 48 pixels of the model, each drawn nine wide
    assert "resized to 32 x 48 pixels" in visitor.tab.inner_text("#preprocessing")
    visitor.tab.screenshot(path=tmp_path / "answer.png", full_page=True)
    assert (tmp_path / "answer.png").stat().st_size > 20_000
    assert visitor.errors == []


def test_the_other_attention_map_is_another_picture(visitor, photo):
    visitor.classify(photo)
    source = "document.querySelector('#attention img').src"
    before = visitor.tab.evaluate(source)
    visitor.tab.click("#method label:has-text('all blocks')")
    visitor.tab.wait_for_function(f"{source} !== {before!r}")
    visitor.tab.click("#method label:has-text('last step')")
    assert visitor.errors == []


def test_an_example_is_a_click_away_and_a_new_picture_takes_the_old_answer_away(visitor, model_folder, photo):
    visitor.open()
    visitor.tab.click(".gallery button, .gallery-item")
    visitor.tab.wait_for_selector("#picture img")
    visitor.tab.click("#classify")
    visitor.tab.wait_for_selector("#attention img")
    example = model_folder / "examples" / "first.png"
    assert visitor.tab.inner_text("#classes [data-testid=label-output-value]") == likeliest(model_folder, example)[0][0]
    visitor.give(photo)
    visitor.tab.wait_for_selector("#attention", state="hidden")
    assert visitor.errors == []


def test_a_click_without_a_picture_asks_for_one(visitor):
    visitor.open()
    visitor.tab.click("#classify")
    assert "Choose a picture first" in visitor.tab.wait_for_selector("#problem").inner_text()


def test_bad_files_are_refused_in_words_and_the_page_goes_on(visitor, photo, model_folder, tmp_path):
    bad = {
        "text.png": (b"this is no picture", "text.png: not an image of an admitted format"),
        "cut.jpg": (photo.read_bytes()[:3000], "cut.jpg: the image cannot be decoded"),
        "bomb.png": (png_header(60_000, 60_000), "refused before decoding, too large"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of an admitted format"),
        "<b>bold.png": (b"", "empty image"),
    }
    visitor.open()
    for name, (content, words) in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        said = visitor.complaint(path)
        assert said.startswith("This picture cannot be used."), said
        assert words in said
        assert "Traceback" not in said
        assert str(visitor.url) not in said
        assert "/" not in said.replace("b'<svg xmlns='", "").replace("http://", ""), said  # no path of the server
        assert not visitor.tab.is_visible("#attention")
    upright = tmp_path / "turned.jpg"
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    noise(80, 50).save(upright, exif=turned, quality=95)
    assert visitor.classify(upright) == likeliest(model_folder, upright)[0][0]
    assert "50 x 80 pixels" in visitor.tab.inner_text("#preprocessing")


def test_a_file_too_large_is_refused_in_words_and_the_page_goes_on(visitor, photo, model_folder, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(8, 8) + bytes(21_000_000))
    visitor.open()
    visitor.tab.set_input_files("#picture input[type=file]", path)
    said = visitor.tab.wait_for_selector("[data-testid=toast-body]").inner_text()
    assert "20" in said
    assert "size" in said
    visitor.open()
    assert visitor.classify(photo) == likeliest(model_folder, photo)[0][0]


def test_nothing_leaves_the_machine_and_the_server_met_nothing_unforeseen(visitor, page):
    outside = [url for url in visitor.requests if not url.startswith((visitor.url, "data:", "blob:"))]
    assert outside == []
    assert len(visitor.requests) > 10
    assert not page.calls_out.exists(), page.calls_out.read_text()
    assert "Traceback" not in "".join(page.printed)


def test_a_caller_cannot_have_a_file_of_the_server_classified(page, model_folder):
    import httpx

    address = page.url() + "gradio_api/call/classify"
    file = {"path": str(model_folder / "examples" / "first.png"), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(address, json={"data": [file, "last"]}).json()["event_id"]
    said = httpx.get(f"{address}/{event}").text
    assert "event: error" in said
    assert "confidences" not in said


def test_the_server_ends_at_ctrl_c_and_leaves_no_picture(page):
    page.url()
    assert page.stop() in (0, 130)
    left = {path.name for path in page.uploads.rglob("*") if path.is_file()}
    assert left <= {"first.png"}  # the example, which is not the visitor's


# ------------------------------------------------------------------------------------------- the Space
@pytest.mark.slow
def test_the_space_runs_on_its_own_copy_and_gives_the_same_classes(model_folder, photo, tmp_path):
    from gradio_client import Client, handle_file

    from vit_hf.sharing.space import write_space

    folder = write_space(model_folder, tmp_path / "space")
    assert {path.name for path in folder.iterdir()} == {"README.md", "app.py", "model", "requirements.txt", "vit_hf"}
    model = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "examples"} <= model
    assert not {".env", "checkpoints"} & model
    server = Server(tmp_path / "server", ["app.py"], package=folder, cwd=folder)
    try:
        client = Client(server.url(), verbose=False, analytics_enabled=False)
        label, *_ = client.predict(handle_file(str(photo)), "last", api_name="/classify")
    finally:
        server.stop()
    found = [(entry["label"], entry["confidence"]) for entry in label["confidences"]]
    expected = likeliest(model_folder, photo)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=1e-5)
    assert not server.calls_out.exists(), server.calls_out.read_text()
