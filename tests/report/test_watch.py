"""`upscale watch`: what it serves, to whom, and that an open page follows a run that trains."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import pace
from tests.docs.test_security import calls
from tests.report import browser
from tests.report.made import lines_of, make_run, score_line, step_line
from upscale.cli import watch as watch_command
from upscale.errors import UserError
from upscale.report import page, watch


@contextmanager
def served(*paths: Path, seconds: float = 1.0) -> Iterator[watch.Server]:
    server = watch.Server(watch.Watcher(paths, seconds), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without pictures, which take seconds."""
    monkeypatch.setattr(watch, "draw", lambda runs, files: [])


def ask(server: watch.Server, path: str = "/", method: str = "GET", hosts: tuple[str, ...] = ("localhost",)):
    """Status, headers and text of the answer to a request with these Host headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_only_this_machine_is_served(tmp_path, undrawn):
    """The loopback address alone is bound; a request that names another host, as after DNS rebinding, gets nothing."""
    run = make_run(tmp_path / "secret-name")
    with served(run) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        for host in ("localhost", "127.0.0.1", f"127.0.0.1:{server.server_address[1]}", "localhost:9000"):
            assert ask(server, hosts=(host,))[0] == 200
        for hosts in (
            *((), ("evil.example",), ("localhost.evil.example",), ("127.0.0.1@evil.example",), ("127.0.0.2",)),
            *(("localhost", "evil.example"), ("localhost:80:80",), ("[::1]",), ("localhost\t x",)),
        ):
            for path in ("/", "/state"):
                status, _, text = ask(server, path, hosts=hosts)
                assert status == 403 and "secret-name" not in text, hosts


def test_only_get_and_two_addresses(tmp_path, undrawn):
    """Nothing of a request names a file: not the run's own, none beside it, none of the machine."""
    run = make_run(tmp_path / "run")
    with served(run) as server:
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
            assert ask(server, method=method)[0] == 501
        for path in (
            "/config.yaml",
            "/metrics.jsonl",
            "/../run/config.yaml",
            "//etc/passwd",
            "/%2e%2e/",
            "/?x",
            "/state/",
        ):
            status, _, text = ask(server, path)
            assert status == 404 and "<" not in text, path
    assert not {call for call in calls(Path(watch.__file__)) if "open" in call or "read_text" in call}


def test_a_page_may_run_its_own_script_and_ask_its_own_server_only(tmp_path, undrawn):
    with served(make_run(tmp_path / "<script>alert(1)</script>")) as server:
        _, headers, text = ask(server)
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert text.count("<script") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src &#39;none&#39;" in policy and policy.endswith("connect-src &#39;self&#39;")


def test_the_page_follows_what_the_runs_write(tmp_path, undrawn):
    """A new step, a run that begins, a line that is damaged and then whole again: each is another state and page."""
    study = tmp_path / "study"
    run = make_run(study / "a-0", scores=[score_line("dyck", 0.9)])
    with served(study) as server:
        states = [ask(server, "/state")[2]]
        assert f'data-state="{states[0]}"' in ask(server)[2] and ask(server, "/state")[2] == states[0]

        def after(change: str) -> str:
            states.append(ask(server, "/state")[2])
            assert states[-1] not in states[:-1], change
            return ask(server)[2]

        with open(run / "metrics.jsonl", "a") as file:
            file.write(lines_of([step_line(777)]))
        assert "<td class=number>777" in after("a new step")
        (study / "b-0").mkdir()
        (study / "b-0" / "config.yaml").write_text("{}")
        assert f"Not begun yet: {study / 'b-0'}." in after("a run without steps")
        (study / "b-0" / "metrics.jsonl").write_text(lines_of([step_line(1)]))
        assert "2 runs compared" in after("its first step")
        kept = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text("<b>\n" + kept)
        shown = after("a damaged line")
        assert "Nothing to show yet" in shown and "line 1 is not JSON" in shown and "&lt;b&gt;" in shown
        (run / "metrics.jsonl").write_text(kept)
        assert "2 runs compared" in after("the line is gone")


def test_an_open_page_renews_itself(tmp_path, undrawn, monkeypatch):
    """In a real browser: after the first page was served the run logs a step, which the same page then shows, with the
    reader's filter as it was."""
    words = browser.command(tmp_path, 800, 600)
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "other")
    build, built = page.build, []

    def once_more(runs, pictures, shown):
        built.append(runs)
        text = build(runs, pictures, shown)
        if len(built) == 1:
            with open(run / "metrics.jsonl", "a") as file:
                file.write(lines_of([step_line(777)]))
            text = text.replace("<input id=filter", "<input value=run id=filter")
        return text

    monkeypatch.setattr(page, "build", once_more)
    with served(run, tmp_path / "other") as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        done = pace.run([*words, "--dump-dom", address], browser.BROWSER_SECONDS)
    assert done.returncode == 0 and len(built) >= 2, done.stderr[-2000:]
    assert '<td class="number">777' in done.stdout and "looked at" in done.stdout
    assert re.search(r'<tr data-run="1" class="away">', done.stdout), "the filter still hides the other run"
    assert '<tr data-run="0">' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing is not a run directory: it is no directory"),
        (["run", "--port", "taken"], "cannot listen on port .*choose another with --port"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run")
    with served(run) as server:
        taken = str(server.server_address[1])
        with pytest.raises(UserError, match=said):
            watch_command.main([taken if word == "taken" else word for word in arguments])


@pytest.mark.parametrize("words", [["--port", "70000"], ["--port", "x"], ["--every", "0"], ["--every", "nan"], []])
def test_numbers_that_cannot_be(words, capsys):
    with pytest.raises(SystemExit):
        watch_command.main([*words, *(["run"] if words else [])])
    assert "must be a number from" in capsys.readouterr().err or not words
