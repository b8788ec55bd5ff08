"""Both views of a run that is really trained in another process, killed, resumed and replaced: all slow."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from report_runs import hostile_run

from zanalysis.runfile.reader import open_run
from zanalysis.watching.follower import FINISHED, GONE, TRAINING, WAITING, Follower

pytestmark = pytest.mark.slow
TRAINING_SCRIPT = Path(__file__).parent / "watched_training.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
# The size is the terminal's own: pytest's workers give theirs to whatever they start.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "LANG": "C.UTF-8",
    "COLORTERM": "truecolor",
}


@pytest.fixture
def start():
    """Start processes that are ended whatever happens in the test."""
    running = []

    def begin(*command, **settings):
        running.append(subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, **settings))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def train(start):
    """Start a training, and wait until it has taken a step."""

    def begin(path, steps, pause, *more):
        process = start(sys.executable, TRAINING_SCRIPT, path, steps, pause, *more, stdout=subprocess.PIPE)
        assert process.stdout.readline()
        return process

    return begin


def until(true, seconds=60):
    """Wait for something, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("nothing came")


def test_a_training_is_followed_through_a_kill_and_a_resumption(train, tmp_path):
    path = tmp_path / "run.h5"
    follower = Follower(path)
    assert follower.look().state == WAITING
    first = train(path, 100_000, 0.01)
    look = until(lambda: (look := follower.look()).history and len(look.history.steps) > 10 and look)
    assert look.state == TRAINING
    first.kill()
    first.wait()
    look = follower.look()
    assert look.state == GONE
    reached = look.history.steps.tolist()
    assert reached == list(range(0, len(reached) * 2, 2))
    second = train(path, 40, 0.01, "a", 10)
    seen = until(lambda: (look := follower.look()).state != GONE and look)
    assert seen.era == 2
    assert second.wait(timeout=60) == 0
    look = follower.look()
    assert look.state == FINISHED
    run = open_run(path)
    np.testing.assert_array_equal(look.history.steps, run.steps)
    np.testing.assert_array_equal(look.history.value, run.arrays()[1])
    assert look.history.logged["loss"][0] == run.logged()["step"].tolist()
    assert [event[2] for event in look.history.events] == run.events["kind"].tolist()


def test_a_watched_training_records_what_an_unwatched_one_does(train, tmp_path):
    alone, watched = tmp_path / "alone.h5", tmp_path / "watched.h5"
    assert train(alone, 60, 0.0).wait(timeout=60) == 0
    process = train(watched, 60, 0.01)
    follower = Follower(watched)
    while process.poll() is None:
        follower.look()  # without a pause
    np.testing.assert_array_equal(open_run(watched).arrays()[1], open_run(alone).arrays()[1])
    assert len(open_run(watched).events) == 0


class Terminal:
    """A tmux session of its own, with the screen in it."""

    def __init__(self, path, folder, width, height):
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", os.devnull]
        command = f"{sys.executable} -m zanalysis.cli watch {path}; echo left with $?; sleep 60"
        self._run("new-session", "-d", "-x", str(width), "-y", str(height), "-s", "watch", command)
        self._run("set", "-g", "status", "off")

    def _run(self, *arguments):
        done = subprocess.run([*self._tmux, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
        return done.stdout

    def shown(self):
        return self._run("capture-pane", "-p", "-t", "watch")

    def until(self, pattern, seconds=60):
        try:
            return until(lambda: re.search(pattern, self.shown()), seconds)
        except AssertionError:
            raise AssertionError(f"{pattern!r} did not come; there is:\n{self.shown()}") from None

    def press(self, *keys):
        self._run("send-keys", "-t", "watch", *keys)

    def resize(self, width, height):
        self._run("resize-window", "-t", "watch", "-x", str(width), "-y", str(height))

    def end(self):
        self._run("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_the_terminal_through_the_life_of_a_run(train, tmp_path):
    path = tmp_path / "run.h5"
    terminal = Terminal(path, tmp_path, 110, 34)
    try:
        terminal.until(r"run\.h5 +waiting\s+\(")  # a long path is wrapped
        training = train(path, 100_000, 0.01)
        terminal.until(
            r"run\.h5 +training\n *step [\d,]+ +records [\d,]+ +rate [\d.]+ steps/s +last record \d+ s ago"
        )
        terminal.until(r"0 · weight − init +12 +\+12 ▁▇▇▇")
        terminal.until(r"rank of 0, at most 12")
        terminal.until(r"loss, as logged")
        terminal.press("Right")
        terminal.until(r"stable_rank of 0, at most 12")
        terminal.resize(70, 24)
        terminal.until(r"\n.*stable_rank of 0, at most 12 ─+╮\n")
        terminal.press("l")
        terminal.until(r"lr, as logged")
        terminal.resize(40, 10)
        until(lambda: "╭" not in terminal.shown())
        terminal.resize(110, 34)
        training.kill()
        training.wait()
        terminal.until(r"writer gone \(its process ended")
        again = train(path, 30, 0.1, "a", 10)
        terminal.until(r"run\.h5 +training")
        terminal.until(r"step 10: resumed")
        assert again.wait(timeout=60) == 0
        terminal.until(r"run\.h5 +finished\n *step 30 ")
        assert train(path, 6, 0.0, "w").wait(timeout=60) == 0
        terminal.until(r"run\.h5 +finished\n *step 6 ")
        assert "resumed" not in terminal.shown()
        terminal.press("q")
        terminal.until(r"left with 0")
    finally:
        terminal.end()


def served(start, path, *more):
    process = start(
        sys.executable,
        "-m",
        "zanalysis.cli",
        "watch",
        path,
        "--web",
        *more,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
    return process, address[0], int(address[1])


def status(port, host, path="/"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    headers, _ = dict(response.getheaders()), response.read()
    connection.close()
    return response.status, headers


def upgrade(port, host, origin):
    """Return the status of a try to open the page's socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {
        "Host": host, "Origin": origin, "Connection": "Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip
    connection.request("GET", "/ws", headers=headers)
    found = connection.getresponse().status
    connection.close()
    return found


def test_the_page_is_for_this_machine_only(start, tmp_path):
    pytest.importorskip("bokeh", reason="the package bokeh is not installed")
    process, _, port = served(start, tmp_path / "run.h5")
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        code, headers = status(port, host)
        assert code == 200, host
        assert "default-src 'self'" in headers["Content-Security-Policy"]
    for host in ("example.org", f"example.org:{port}", "127.0.0.1", "", f"127.0.0.1.example.org:{port}"):
        for path in ("/", "/static/js/bokeh.min.js", "/ws"):
            assert status(port, host, path)[0] in (400, 403), (host, path)
    assert upgrade(port, f"127.0.0.1:{port}", "http://example.org") == 403
    assert upgrade(port, "example.org", f"http://127.0.0.1:{port}") == 403
    # No other address of this machine answers.
    bound = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    listening = [line.split()[1] for line in bound.splitlines()[1:] if line.split()[3] == "0A"]
    assert [one for one in listening if one.endswith(f":{port:04X}")] in ([], [f"0100007F:{port:04X}"])
    taken = start(
        sys.executable, "-m", "zanalysis.cli", "watch", tmp_path / "run.h5", "--web", "--port", port,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert taken.wait(timeout=60) == 2
    assert f"port {port} cannot be used" in taken.stderr.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


ROWS = """() => {
  const found = [];
  const walk = (node) => node.querySelectorAll("*").forEach((element) => {
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.classList.contains("slick-row"))
      found.push([...element.children].map((cell) => cell.innerText.trim()));
  });
  walk(document);
  return found;
}"""
TEXT = """() => {
  const found = [];
  const walk = (node) => node.querySelectorAll("*").forEach((element) => {
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.classList.contains("bk-clearfix")) found.push(element.innerText);
  });
  walk(document);
  return found.join("\\n");
}"""


@pytest.fixture
def faults():
    return []


@pytest.fixture
def page(faults):
    """A page of a real browser; at the end it may have complained of nothing and asked nobody else."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if BROWSER is None:
        pytest.skip(f"none of these browsers is installed: {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda r: None if re.match(r"(http|ws)://127\.0\.0\.1:", r.url) else faults.append(r.url),
        )
        yield page
        browser.close()
    assert faults == []


def test_the_page_through_the_life_of_a_run(start, train, page, faults, tmp_path):
    pytest.importorskip("bokeh", reason="the package bokeh is not installed")
    path = tmp_path / "run.h5"
    process, address, _ = served(start, path)

    def read(pattern):
        return until(lambda: re.search(pattern, page.evaluate(TEXT)))

    page.goto(address)
    assert "cannot be reached" not in page.evaluate(TEXT)
    read(r"run\.h5 waiting \(.* is not there yet\)")
    training = train(path, 100_000, 0.01)
    read(r"run\.h5 training")
    # At step 0 nothing has moved yet.
    rows = until(lambda: len(found := page.evaluate(ROWS)) == 6 and found[1][1] != "0" and found)
    assert rows[1][:2] == ["0 · weight − init", "12"]
    before = rows[0][4]
    until(lambda: page.evaluate(ROWS)[0][4] != before)  # without reloading
    step = int(read(r"step ([\d,]+)")[1].replace(",", ""))
    until(lambda: int(read(r"step ([\d,]+)")[1].replace(",", "")) > step)
    training.kill()
    training.wait()
    read(r"writer gone \(its process ended")
    titles = "() => Bokeh.documents[0].roots()[0] && [...Bokeh.documents[0]._all_models.values()]"
    titles += ".filter((m) => m.type == 'Title').map((m) => m.text.text ?? m.text)"
    assert sorted(page.evaluate(titles)) == ["loss, as logged", "rank of 0, at most 12"]
    page.locator(".slick-row").nth(3).click()
    until(lambda: "rank of 2 − init" in page.evaluate(titles))
    page.locator("select").nth(0).select_option("stable_rank")
    until(lambda: "stable_rank of 2 − init" in page.evaluate(titles))
    page.locator("select").nth(1).select_option("lr")
    until(lambda: "lr, as logged" in page.evaluate(titles))
    assert train(path, 30, 0.0, "a", 10).wait(timeout=60) == 0
    read(r"run\.h5 finished")
    read(r"step 10: resumed")
    until(lambda: "stable_rank of 2 − init" in page.evaluate(titles))  # what was chosen stays
    assert train(path, 6, 0.0, "w").wait(timeout=60) == 0
    read(r"step 6\b")
    assert faults == []
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    read(r"zanalysis watch has ended, or cannot be reached")
    page.close()
    faults.clear()  # that there is nobody to talk to any more


def test_names_from_a_file_do_not_act_on_the_page(start, page, tmp_path):
    pytest.importorskip("bokeh", reason="the package bokeh is not installed")
    _, address, _ = served(start, hostile_run(tmp_path / "run.h5"))
    page.goto(address)
    rows = until(lambda: page.evaluate(ROWS))
    assert rows[0][0] == "<script>alert(1)</script>"
    until(lambda: "<b>kind</b>" in page.evaluate(TEXT))
    for row in (2, 4):
        page.locator(".slick-row").nth(row).click()
    page.locator("select").nth(1).select_option(index=1)
    page.wait_for_timeout(1500)
    assert page.locator("img").count() == 0
