"""`gpuboss simulate`: a trace in, a schedule and its figures out; and what is said of everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import Console

TRACE = """lease_id,submit_ms,vram_mib,hold_ms,service,priority,wait_ms,gpus,user
job-00003,2000,24576,10000,imajin,high,,1,eve
job-00001,0,24576,60000,imajin,normal,,1,bob
job-00002,1000,8192,5000,ollama,normal,,1,bob
job-00004,3000,8192,5000,ollama,low,1000,1,bob
job-00005,3000,8192,5000,ollama,low,,2,bob
"""
ONE = ("--devices", "cuda:0=24576")


@pytest.fixture
def nowhere() -> Console:
    """A shell in front of no server at all: none is needed."""
    return Console("redis://127.0.0.1:1")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The trace above as a file."""
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    return file


def test_the_schedule_in_the_order_of_the_trace(nowhere: Console, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    ended = nowhere.call("simulate", str(trace), *ONE, "--out", str(out))
    assert (ended.code, ended.err) == (0, f"gpuboss: ignored columns of {trace}: user\n")
    assert out.read_text().splitlines() == [
        "lease_id,granted_at_ms,ended_at_ms,devices,reason",
        "job-00003,60000,70000,cuda:0,released",
        "job-00001,0,60000,cuda:0,released",
        "job-00002,70000,75000,cuda:0,released",
        "job-00004,,4000,,timeout",
        "job-00005,,3000,,impossible",
    ]


def test_a_limit_of_the_policy_holds_in_virtual_time(nowhere: Console, tmp_path: Path) -> None:
    rows = ["job-00001,0,8192,60000,imajin", "job-00002,0,8192,60000,imajin", "job-00003,0,8193,60000,imajin"]
    rows += ["job-00004,0,8192,5000,ollama"]
    trace = "\n".join(["lease_id,submit_ms,vram_mib,hold_ms,service", *rows])
    policy, out = tmp_path / "policy.yaml", tmp_path / "out.csv"
    policy.write_text("services: {imajin: {limit_mib: 8192}}\n")
    given = ("-", *ONE, "--policy", str(policy), "--out", str(out))
    assert nowhere.call("simulate", *given, stdin=trace.encode()).code == 0
    assert out.read_text().splitlines()[1:] == [
        "job-00001,0,60000,cuda:0,released",
        "job-00002,60000,120000,cuda:0,released",
        "job-00003,,0,,quota",
        "job-00004,0,5000,cuda:0,released",
    ]


def test_the_figures_as_json(nowhere: Console, trace: Path) -> None:
    ended = nowhere.call("simulate", str(trace), *ONE, "--json")
    high = {"requests": 1, "mean": 58_000, "median": 58_000, "p99": 58_000, "longest": 58_000}
    normal = {"requests": 2, "mean": 34_500, "median": 0, "p99": 69_000, "longest": 69_000}
    small = {"requests": 1, "mean": 69_000, "median": 69_000, "p99": 69_000, "longest": 69_000}
    large = {"requests": 2, "mean": 29_000, "median": 0, "p99": 58_000, "longest": 58_000}
    none = dict.fromkeys(("mean", "median", "p99", "longest")) | {"requests": 0}
    assert ended.code == 0
    assert ended.document == {
        "requests": 5,
        "granted": 3,
        "denied": {"impossible": 1, "timeout": 1},
        "unanswered": 0,
        "ended": {"released": 3},
        "held": 0,
        "wait_ms": {
            "all": {"requests": 3, "mean": 42_333, "median": 58_000, "p99": 69_000, "longest": 69_000},
            "per_class": {"high": high, "normal": normal, "low": none},
            "per_size": {"8192": small, "16384": none, "24576": large},
        },
        "mean_bounded_slowdown": round((1 + 68 / 10 + 74 / 10) / 3, 3),
        "utilisation": round((60 * 24_576 + 10 * 24_576 + 5 * 8_192) / (75 * 24_576), 4),
        "began_at_ms": 0,
        "until_ms": 75_000,
    }


def test_the_figures_in_words(nowhere: Console, trace: Path) -> None:
    ended = nowhere.call("simulate", str(trace), *ONE)
    assert ended.out.splitlines()[:4] == [
        "5 requests, 3 granted, 2 denied (1 impossible, 1 timeout)",
        "leases ended: 3 released",
        "utilisation 95.6% of the VRAM over 1 min 15 s, mean bounded slowdown 5.07 (bound 10 s)",
        "",
    ]
    lines = [line.split() for line in ended.out.splitlines()[4:]]
    assert lines[0] == ["WAITED", "REQUESTS", "MEAN", "MEDIAN", "P99", "LONGEST"]
    assert lines[3] == ["normal", "2", "34", "s", "0", "ms", "1", "min", "9", "s", "1", "min", "9", "s"]
    assert lines[4] == ["low", "0", "-", "-", "-", "-"]
    assert [" ".join(line[:2]) for line in lines[5:]] == ["8 GiB", "16 GiB", "24 GiB"]


def test_many_sizes_are_shown_in_groups(nowhere: Console) -> None:
    rows = [f"job-{number:05},0,{number},1\n" for number in range(1, 12)]
    trace = "lease_id,submit_ms,vram_mib,hold_ms\n" + "".join(rows)
    ended = nowhere.call("simulate", "-", *ONE, stdin=trace.encode())
    groups = [line.split()[1:4] for line in ended.out.splitlines() if line.startswith("<=")]
    assert groups == [["1", "MiB", "1"], ["2", "MiB", "1"], ["4", "MiB", "2"], ["8", "MiB", "4"], ["16", "MiB", "3"]]


def test_a_second_device(nowhere: Console, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    nowhere.call("simulate", str(trace), "--devices", "cuda:0=24576,cuda:1=24GB", "--out", str(out))
    assert out.read_text().splitlines()[5] == "job-00005,60000,65000,cuda:0 cuda:1,released"


def test_a_policy_decides_who_comes_first(nowhere: Console, trace: Path, tmp_path: Path) -> None:
    policy, out = tmp_path / "policy.yaml", tmp_path / "out.csv"
    policy.write_text("head_start_ms: {high: 0, normal: 0}\nmargin_mib: 0\n")
    nowhere.call("simulate", str(trace), *ONE, "--policy", str(policy), "--out", str(out))
    assert out.read_text().splitlines()[1] == "job-00003,65000,75000,cuda:0,released"
    policy.write_text("margin_mib: 1\n")
    nowhere.call("simulate", str(trace), *ONE, "--policy", str(policy), "--out", str(out))
    assert out.read_text().splitlines()[1] == "job-00003,,2000,,impossible"


def test_stdin_is_read_as_the_file_is(nowhere: Console, trace: Path) -> None:
    from_file = nowhere.call("simulate", str(trace), *ONE, "--json")
    assert nowhere.call("simulate", "-", *ONE, "--json", stdin=trace.read_bytes()).out == from_file.out
    assert nowhere.run("simulate", "-", *ONE, "--json", stdin=trace.read_bytes()).out == from_file.out


def test_the_same_trace_gives_the_same_bytes_under_any_hash_seed(nowhere: Console, tmp_path: Path) -> None:
    classes = ("low", "normal", "high")
    rows = [
        f"job-{number:05},{number % 40 * 10},{number * 7919 % 24_000 + 1},{number % 13 * 50},{classes[number % 3]}\n"
        for number in range(300)
    ]
    trace = ("lease_id,submit_ms,vram_mib,hold_ms,priority\n" + "".join(rows)).encode()
    found = set()
    for hash_seed in ("0", "1", "2"):
        out = tmp_path / f"{hash_seed}.csv"
        arguments = ("simulate", "-", "--devices", "cuda:0=24576,cuda:1=24576", "--json", "--out", str(out))
        ended = nowhere.run(*arguments, stdin=trace, environ={"PYTHONHASHSEED": hash_seed})
        assert (ended.code, ended.document["granted"]) == (0, 300)
        found.add((ended.out, out.read_text()))
    assert len(found) == 1


def test_a_long_trace_shows_how_far_it_is(nowhere: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    def shown(order: Iterator[int], total: int, what: str) -> Iterator[int]:
        seen.append((total, what))
        return order

    monkeypatch.setattr("gpuboss.cli.progress.shown", shown)
    assert nowhere.call("simulate", "-", *ONE, stdin=TRACE.encode()).code == 0
    assert seen == [(5, "simulating")]


def test_an_empty_trace(nowhere: Console) -> None:
    header = TRACE.splitlines()[0].encode()
    ended = nowhere.call("simulate", "-", *ONE, "--json", stdin=header)
    assert (ended.code, ended.document["requests"], ended.document["utilisation"]) == (0, 0, None)
    assert nowhere.call("simulate", "-", *ONE, stdin=header).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-"], 2, "Missing option '--devices'"),
        (["-", "--devices", "gpu0"], 2, "'gpu0' in 'gpu0' is no device; expected cuda:INDEX=SIZE"),
        (["/no/such/file", *ONE], 2, "cannot read /no/such/file: No such file or directory"),
        (["-", *ONE, "--out", "/no/such/file"], 2, "cannot write /no/such/file: No such file or directory"),
        (["-", *ONE, "--out", "-"], 2, "expected a file: stdout has the report"),
        (["-", *ONE, "--policy", "/no/such/file"], 3, "cannot read '/no/such/file'"),
        (["-", *ONE, "--policy", "POLICY"], 3, "unknown key 'head_start'; did you mean 'head_start_ms'?"),
        (["-", *ONE, "--policy", "MUCH"], 3, "MUCH:2: the guarantee_mib of ollama brings their sum to 24577 MiB"),
        (["BAD", *ONE], 2, ":2: vram_mib: '8GB' does not fit; expected a whole number from 1 to 16777216"),
    ],
)
def test_a_mistake_is_one_line(nowhere: Console, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "POLICY").write_text("head_start: {high: 1}\n")
    (tmp_path / "MUCH").write_text("services:\n  ollama: {guarantee_mib: 24577}\n")
    (tmp_path / "BAD").write_text("lease_id,submit_ms,vram_mib,hold_ms\njob-00001,0,8GB,1\n")
    given = [str(tmp_path / each) if each.isupper() else each for each in arguments]
    ended = nowhere.call("simulate", *given, stdin=TRACE.encode())
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert len([line for line in ended.err.splitlines() if "ignored columns" not in line]) == 1


def test_a_full_disk_is_one_line_and_exits_1(nowhere: Console) -> None:
    ended = nowhere.call("simulate", "-", *ONE, "--out", "/dev/full", stdin=TRACE.encode())
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.endswith("gpuboss: cannot write the output: No space left on device\n")


def test_what_a_trace_holds_reaches_the_terminal_escaped(nowhere: Console) -> None:
    header = b"lease_id,submit_ms,vram_mib,hold_ms,\x1b[31m\n"
    for text in (header, header + b"\x1b[31m,1,1,1,1\n"):
        assert "\x1b" not in nowhere.call("simulate", "-", *ONE, stdin=text).err
