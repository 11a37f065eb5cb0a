"""Names, URLs and other single values; above all: no password ever shows."""

import traceback

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from gpuboss.config import Config, GpuConfig, load_config, redact_url
from gpuboss.config.values import (
    read_boolean,
    read_http_address,
    read_name,
    read_namespace,
    read_path,
    read_redis_url,
    shown,
    whole_number,
)
from gpuboss.errors import ConfigError

CANARY = "hunter2"
# However a URL is spelt or misspelt, the canary is its password.
URLS_WITH_PASSWORD = [
    "redis://:hunter2@localhost:6379/0",
    "rediss://user:hunter2@localhost",
    "redis://user:a@hunter2@localhost",
    "redis://user:a/hunter2@localhost",
    "redis://user:a#hunter2@localhost",
    "redis://user:a?hunter2@localhost",
    "redis://:hunter2/b@localhost",
    "redis://:12/hunter2@localhost",
    "redis://:hunter2?db=0@localhost",
    "redis://localhost?password=hunter2",
    "redis://localhost?db=1&P%61ssword=hunter2#x",
    "redis://localhost?password=a@hunter2",
    "redis://localhost?password=hunter2@b",
    "redis://:hunter2",
    "redis://user:hunter2/0",
    "redis://[::1:hunter2@localhost",
    "redis://[::1:hunter2",
    "redis//:hunter2@localhost",
    "redis:/user:hunter2@localhost",
    "http://user:hunter2@localhost",
    "user:hunter2@localhost:6379",
    "user:hunter2@localhost://0",
    "redis://hunter2/a:b@localhost",
    "unix://user:hunter2@/run/redis.sock",
    "unix:///run/redis.sock?password=hunter2",
    "redis://a:hunter2@one,redis://b:hunter2@two",
    "redis_url:redis://user:hunter2@localhost",
    " redis://user:hunter2@local host",
    "redis://user:hunter2@localhost:port",
]


@pytest.mark.parametrize("url", URLS_WITH_PASSWORD)
def test_no_password_shows_wherever_the_url_is_shown(url):
    assert CANARY not in redact_url(url)
    assert CANARY not in shown(url)
    assert CANARY not in f"{GpuConfig(redis_url=url)!r} {GpuConfig(redis_url=url)}"
    assert CANARY not in repr(Config(gpu=GpuConfig(redis_url=url)))
    assert CANARY not in repr(list(GpuConfig(redis_url=url).__rich_repr__()))


@pytest.mark.parametrize("key", ["gpu.redis_url", "gpu.namespace", "gpu.ttl", "gpu.priority", "gpu.enabled"])
@pytest.mark.parametrize("url", URLS_WITH_PASSWORD)
def test_no_error_nor_its_traceback_shows_the_password(key, url, tmp_path):
    section, name = key.split(".")
    file = tmp_path / "config.yaml"
    for text in (f"{section}:\n  {name}: {msgspec.json.encode(url).decode()}", f"{section}: {{{name}:{url}: 1}}"):
        file.write_text(text)
        assert CANARY not in _outcome(lambda: load_config(file, environ={}))
    variable = f"GPUBOSS_{name.upper()}"
    assert CANARY not in _outcome(lambda: load_config(environ={variable: url}))
    assert CANARY not in _outcome(lambda: load_config(environ={}, arguments={key: url}))
    assert CANARY not in _outcome(lambda: load_config(environ={}, arguments={f"gpu.{url}": 1}))


@pytest.mark.parametrize("url", URLS_WITH_PASSWORD)
def test_the_reader_of_urls_hides_what_urllib_would_repeat(url):
    assert CANARY not in _outcome(lambda: GpuConfig(redis_url=read_redis_url(url)))


def test_broken_yaml_is_not_quoted(tmp_path, monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)  # only the slow parser quotes the line
    file = tmp_path / "config.yaml"
    file.write_text('gpu: {redis_url: "redis://:hunter2@localhost", ]')
    with pytest.raises(ConfigError, match="not YAML") as caught:
        load_config(file, environ={})
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def _outcome(load) -> str:
    try:
        return repr(load())
    except ConfigError as error:
        return "".join(traceback.format_exception(error))


_between = st.text(max_size=6)
_user = st.text("abcxyz019-_", max_size=8)
_host = st.text("abcxyz019.-", min_size=1, max_size=12)


@given(_user, _between, _between, _host, st.integers(0, 65535))
@example("", "@/?#:&=%", "://", "localhost", 6379)
def test_any_password_is_hidden_to_its_last_character(user, start, end, host, port):
    password = f"{CANARY}{start}{CANARY}{end}{CANARY}"
    assert CANARY not in redact_url(f"redis://{user}:{password}@{host}:{port}/0?db=1")
    assert CANARY not in redact_url(f"redis://{user}:{password}@{host}")


@given(_between.map(lambda text: text.replace("&", "")), _host, st.sampled_from(["", "&db=1"]))
@example("@/?#:=%", "localhost", "&db=1")
def test_any_password_in_the_query_is_hidden(between, host, more):
    assert CANARY not in redact_url(f"redis://{host}/0?password={CANARY}{between}{CANARY}{more}")


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://localhost", "redis://localhost"),
        ("redis://[::1]:6379?db=1", "redis://[::1]:6379?db=1"),
        ("redis://:6379", "redis://:6379"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis://user:pw@localhost:6379/0?db=1", "redis://user:***@localhost:6379/0?db=1"),
        ("redis://:pw@localhost", "redis://:***@localhost"),
        ("redis://pw@localhost", "redis://***@localhost"),
        ("redis://localhost:6379x/0", "redis://localhost:***"),
        ("redis://localhost?password=pw&db=1", "redis://localhost?password=***&db=1"),
    ],
)
def test_what_is_no_password_stays(url, redacted):
    assert redact_url(url) == redacted
    assert redact_url(redacted) == redacted


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379",
        "rediss://user:p%40ss@redis.example:6379/0?db=1",
        "redis://[::1]:6379/15",
        "redis://",
        "unix:///run/redis.sock",
        "unix://user:pw@/run/redis.sock?db=1",
    ],
)
def test_redis_urls_are_taken(url):
    assert read_redis_url(url) == url


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("localhost:6379", "'localhost:6379' is not a Redis URL"),
        ("http://localhost", "is not a Redis URL"),
        ("redis:localhost", "is not a Redis URL"),
        ("redis://local host", "is not a Redis URL"),
        ("redis://localhost\n", "is not a Redis URL"),
        ("redis://localhost:port", "has no valid host and port"),
        ("redis://localhost:66666", "has no valid host and port"),
        ("redis://[::1", "has no valid host and port"),
        ("redis://localhost/zero", "has no valid database number"),
        ("redis://:12/34@localhost", "has no valid database number"),
        ("redis://localhost#0", "has no valid database number"),
        ("unix://", "names no socket"),
        ("", "is not a Redis URL"),
        (6379, "is not a Redis URL"),
    ],
)
def test_what_is_no_redis_url_is_refused(url, complaint):
    with pytest.raises(ConfigError, match=f"{complaint}; expected one of redis://.*for example redis://localhost"):
        read_redis_url(url)


@pytest.mark.parametrize("name", ["a", "0", "imajin-diffusion", "a.b_c-d", "a" * 63])
def test_names_are_taken(name):
    assert read_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a" * 64, "a\n", "\na", "a b", "a:b", "é", "a\x1b[m", 7, None])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match="is not a name; expected 1 to 63 of"):
        read_name(name)


@pytest.mark.parametrize("namespace", ["gpuboss", "{gpuboss}", "a{b}c", "Prod.gpu_1", "a" * 63])
def test_namespaces_are_taken(namespace):
    assert read_namespace(namespace) == namespace


@pytest.mark.parametrize(
    "namespace", ["", "{}", "{a", "a}", "}a{", "{a}{b}", "{{a}}", "a:b", "a*", "-a", "a\n", "{a}\n", "a" * 64, 7, None]
)
def test_what_is_no_namespace_is_refused(namespace):
    with pytest.raises(ConfigError, match="is not a namespace; expected"):
        read_namespace(namespace)


@pytest.mark.parametrize("word", [True, "true", "Yes", "on", "1", " true "])
def test_words_for_true(word):
    assert read_boolean(word) is True


@pytest.mark.parametrize("word", [False, "false", "No", "OFF", "0"])
def test_words_for_false(word):
    assert read_boolean(word) is False


@pytest.mark.parametrize("word", [1, 0, None, "", "maybe", "2", []])
def test_other_words_are_no_booleans(word):
    with pytest.raises(ConfigError, match="is neither yes nor no; expected true or false"):
        read_boolean(word)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8003", ("127.0.0.1", 8003)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8003", ("::1", 8003)),
        ("off", None),
        (False, None),
    ],
)
def test_http_addresses_are_taken(text, address):
    assert read_http_address(text) == address


@pytest.mark.parametrize("text", ["8003", ":8003", "localhost", "a:65536", "::1:80", "a b:80", "a:80\n", 8003, True])
def test_what_is_no_http_address_is_refused(text):
    with pytest.raises(ConfigError, match="is no address; expected HOST:PORT or off"):
        read_http_address(text)


@pytest.mark.parametrize(
    "given",
    [0, 11, "11", "-1", 5.0, True, None, "5x", "", "9" * 5000, 10**5000],
    ids=lambda given: type(given).__name__,
)
def test_whole_numbers_have_bounds(given):
    read = whole_number(1, 10)
    assert read("5") == read(5) == 5
    with pytest.raises(ConfigError, match="does not fit; expected a whole number from 1 to 10, for example 1"):
        read(given)


def test_a_path_is_text_or_a_path(tmp_path):
    assert read_path(tmp_path) == read_path(str(tmp_path)) == str(tmp_path)
    for wrong in ("", "a\x1b[31m", 7, None):
        with pytest.raises(ConfigError, match="is not a path; expected text"):
            read_path(wrong)


@given(st.text() | st.integers() | st.floats() | st.decimals() | st.binary() | st.lists(st.text()))
def test_what_is_shown_is_short_and_printable(value):
    assert shown(value).isprintable()
    assert len(shown(value)) < 800  # 80 characters, each at most ten when escaped
