"""What every verb has in common: help that teaches, a start that costs little, and how a run ends."""

from __future__ import annotations

import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from gpuboss import __version__
from gpuboss.events import LeaseRequested
from tests.cli.console import DEADLINE_S, GPUBOSS, Console, environment, store
from tests.core.scenario import Scenario
from tests.real.servers import RealServer, available_servers

VERBS = (
    *("status", "leases", "queue", "devices", "events", "why"),
    *("release", "revoke", "replay", "simulate", "export", "schema", "config"),
)
NEEDS_ID = ("why", "release", "revoke")
OF_REDIS = tuple(verb for verb in VERBS if verb not in ("simulate", "schema", "config"))
NOBODY = "redis://127.0.0.1:1"

HELP_CPU_S = 0.150
# A busy or slow machine needs more for everything; typer alone is then the measure.
HELP_CPU_OVER_TYPER = 2.0


@pytest.fixture
def nowhere() -> Console:
    """A shell in front of no server at all."""
    return Console(NOBODY)


def arguments_of(verb: str) -> list[str]:
    return [verb, "lease-0001"] if verb in NEEDS_ID else [verb]


def cpu_s(command: Sequence[str]) -> float:
    """The CPU time of a child, the median of five."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return statistics.median(once() for _ in range(5))


def test_help_costs_little() -> None:
    typer_alone = cpu_s([sys.executable, "-c", "import typer"])
    allowed = max(HELP_CPU_S, HELP_CPU_OVER_TYPER * typer_alone)
    assert cpu_s([*GPUBOSS, "--help"]) < allowed


def test_help_loads_nothing_that_only_the_verbs_need() -> None:
    code = (
        "import sys; from gpuboss.cli import main; code = main(['--help']);"
        "sys.exit(code or str(sorted({'redis', 'rich', 'msgspec', 'gpuboss.core', 'pydantic'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_help_names_every_verb(nowhere: Console) -> None:
    ended = nowhere.call("--help")
    assert (ended.code, ended.err) == (0, "")
    for verb in VERBS:
        assert f"\n  {verb} " in ended.out


def test_the_list_of_verbs_is_the_whole_list(nowhere: Console) -> None:
    listed = nowhere.call("--help").out.split("Commands:\n")[1].split("\n\n")[0]
    assert tuple(line.split()[0] for line in listed.splitlines()) == VERBS
    assert "..." not in listed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["why", "no-such-lease"], 1),
        (["stauts"], 2),
        (["status", "--redis-url", "x"], 3),
        (["queue"], 69),
    ],
)
def test_the_process_ends_with_the_same_code(
    nowhere: Console, server: RealServer, arguments: list[str], code: int
) -> None:
    console = nowhere if code != 1 else Console(server.url)
    assert console.run(*arguments).code == code


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_ends_with_examples(nowhere: Console, verb: str) -> None:
    ended = nowhere.call(verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    examples = [line.strip() for line in ended.out.split("Examples:\n")[1].splitlines()]
    assert 2 <= len(examples) <= 4
    assert all("gpuboss " in line for line in examples)
    assert any(f"gpuboss {verb}" in line for line in examples)
    assert "--json" in ended.out


def test_without_a_verb_the_help_is_a_complaint(nowhere: Console) -> None:
    ended = nowhere.call()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: gpuboss")


def test_the_version(nowhere: Console) -> None:
    assert nowhere.call("--version") == (0, f"gpuboss {__version__}\n", "")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "gpuboss", "--version"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == f"gpuboss {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stauts"], "Did you mean 'status'?"),
        (["why"], "Missing argument 'LEASE_ID' (see gpuboss why --help)"),
        (["events", "--last", "-1"], "--last"),
        (["events", "--last", "many"], "--last"),
        (["events", "--since", "yesterday"], "'yesterday' is no id of the log; expected one such as 1700000000000-0"),
        (["events", "--since", "99999999999999999999"], "is no id of the log"),
        (["replay", "--until", "1-2-3"], "is no id of the log"),
        (["replay", "/no/such/file"], "cannot read /no/such/file: No such file or directory"),
        (["replay", "/"], "cannot read /: it is no file, and no archive either"),
        (["export", "--format", "csv"], "csv"),
        (["schema", "--type", "LeaseGrantd"], "did you mean LeaseGranted?"),
        (["release", "lease-0001", "--wait", "soon"], "--wait"),
        (["revoke", "lease-0001", "--grace", "soon"], "--grace"),
        (["revoke", "lease-0001", "--reason", "x" * 513], "513 characters; at most 512"),
        (["revoke", "lease-0001", "--by", "a\nb"], "expected one line of text"),
        (["status", "--colour"], "--colour"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(nowhere: Console, arguments: list[str], said: str) -> None:
    ended = nowhere.call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.startswith("gpuboss: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("verb", OF_REDIS)
def test_without_redis_it_is_one_line_and_exits_69(nowhere: Console, verb: str) -> None:
    ended = nowhere.call(*arguments_of(verb))
    assert (ended.code, ended.out) == (69, "")
    assert ended.err.startswith("gpuboss: Redis at redis://127.0.0.1:1 does not answer")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("verb", [*OF_REDIS, "config"])
def test_a_wrong_setting_is_one_line_and_exits_3(nowhere: Console, verb: str) -> None:
    ended = nowhere.call(*arguments_of(verb), "--redis-url", "http://example")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("gpuboss: argument gpu.redis_url: 'http://example' is not a Redis URL")
    assert ended.err.count("\n") == 1


def test_passwords_are_not_shown(nowhere: Console) -> None:
    ended = nowhere.call("status", "--redis-url", "redis://user:secret@127.0.0.1:1/0")
    assert ended.code == 69
    assert "secret" not in ended.err
    assert "redis://user:***@127.0.0.1:1/0" in ended.err


def test_what_was_typed_reaches_the_terminal_escaped(nowhere: Console) -> None:
    for arguments in (["why", "\x1b[31mred"], ["\x1b[31m"], ["schema", "--type", "\x9b"], ["replay", "\u202e"]):
        ended = nowhere.call(*arguments)
        assert ended.code in (1, 2)
        assert not set(ended.err) & {"\x1b", "\x9b", "\u202e"}


def test_options_win_over_the_environment_and_it_over_the_file(server: RealServer, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"gpu: {{redis_url: '{NOBODY}', namespace: from-file}}\n")
    console = Console(server.url)
    assert console.call("leases", "--config", str(file)).code == 0
    assert console.call("leases", "--config", str(file), "--redis-url", NOBODY).code == 69
    without = Console("", GPUBOSS_CONFIG=str(file))
    assert without.call("leases").code == 69
    assert without.call("leases", "--redis-url", server.url).code == 0


def test_a_namespace_is_a_world_of_its_own(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 8_192)
    store(client, given, namespace="{other}")
    assert console.call("leases", "--json").document == {}
    assert list(console.call("leases", "--json", "--namespace", "{other}").document) == ["holder__"]
    assert list(console.call("leases", "--json", environ={"GPUBOSS_NAMESPACE": "{other}"}).document) == ["holder__"]


def test_a_key_of_another_type_is_said_and_exits_69(console: Console, client: redis.Redis) -> None:
    client.set("gpuboss:events", "nonsense")
    for verb in ("status", "events", "replay", "export"):
        ended = console.call(verb)
        assert (ended.code, ended.out) == (69, "")
        assert "WRONGTYPE" in ended.err
        assert ended.err.count("\n") == 1


def long_log() -> Scenario:
    """Enough to fill a pipe."""
    given = Scenario(24_576)
    for number in range(1_000):
        given.write(LeaseRequested(f"lease{number:05d}", "imajin", 1))
    return given


@pytest.mark.parametrize("verb", ["events", "export"])
def test_a_reader_that_goes_away_ends_it_quietly(console: Console, client: redis.Redis, verb: str) -> None:
    store(client, long_log())
    with console.start(verb) as running:
        assert running.line()
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.stderr is not None
        assert running.process.stderr.read() == b""
        assert running.process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("arguments", [["schema"], ["config"], ["status"], ["events"], ["export"], ["--version"]])
def test_a_closed_stdout_is_one_line_and_exits_1(console: Console, client: redis.Redis, arguments: list[str]) -> None:
    store(client, Scenario(24_576))
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *GPUBOSS, *arguments]
    done = subprocess.run(command, env=console.environ, stderr=subprocess.PIPE, check=False, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (1, b"gpuboss: cannot write the output: stdout is closed\n")


def test_a_closed_stderr_puts_no_talk_among_the_data(console: Console) -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *GPUBOSS, "why", "unheard-of", "--json"]
    done = subprocess.run(command, env=console.environ, stdout=subprocess.PIPE, check=False, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_full_disk_is_one_line_and_exits_1() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*GPUBOSS, "schema"], env=environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"gpuboss: cannot write the output: No space left on device\n")


def test_a_wrong_password_is_said_and_exits_69(tmp_path: Path) -> None:
    with RealServer(tmp_path, available_servers()[0]) as server, server.client() as client:
        client.config_set("requirepass", "right")
        url = server.url.replace("unix://", "unix://:wrong@")
        for given in (url, server.url):
            ended = Console(given).call("status")
            assert (ended.code, ended.out) == (69, "")
            assert "refuses the login" in ended.err
            assert "wrong@" not in ended.err


def test_ctrl_c_ends_it_quietly(console: Console, client: redis.Redis) -> None:
    store(client, Scenario(24_576))
    with console.start("events", "-f") as running:
        assert running.line()
        ended = running.end(signal.SIGINT)
    assert (ended.code, ended.err) == (128 + signal.SIGINT, "")


def test_a_locale_without_umlauts_does_not_stop_it(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.writes(b"Gr\xc3\xb6\xc3\x9fe", b'{"name":"gr\xc3\xb6\xc3\x9fer"}')
    store(client, given)
    ended = console.run("events", environ={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (ended.code, ended.err) == (0, "")
    assert "Gr\\xf6\\xdfe" in ended.out


def test_nothing_is_coloured(console: Console, client: redis.Redis) -> None:
    store(client, Scenario(24_576))
    for environ in ({"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {}):
        for verb in ("status", "events", "--help"):
            assert "\x1b" not in console.call(verb, environ=environ).out
