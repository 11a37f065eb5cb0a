"""Sizes, durations and device lists: exact, rounded the right way, and refused with a sentence that helps."""

import re
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuboss.config import gb_to_mib, parse_devices, parse_duration_ms, parse_size_mib
from gpuboss.errors import ConfigError
from gpuboss.fields import MS_MAX, VRAM_MIB_MAX

SIZES = {
    "8GB": 8192,
    "8 GiB": 8192,
    "8g": 8192,
    "8Gi": 8192,
    "8192MiB": 8192,
    "8192 mb": 8192,
    "1TB": 1024 * 1024,
    "0.1GB": 103,
    ".5GB": 512,
    "8.GB": 8192,
    " 8GB ": 8192,
    "1e1GB": 10240,
    "0": 0,
    "16TB": VRAM_MIB_MAX,
}
DURATIONS = {
    "30s": 30_000,
    "500ms": 500,
    "2m": 120_000,
    "1h": 3_600_000,
    "7d": 604_800_000,
    "2": 2000,
    "1.5 s": 1500,
    "0.1ms": 1,
    "0": 0,
    2: 2000,
    0.5: 500,
    Decimal("0.0001"): 1,
}
GARBAGE = ["", " ", "GB", "8XB", "8 G B", "1_000", "-1", "+1", "1:30", "0x10", "٣", "nan", "inf", "1e9999", "8\n8"]
NO_NUMBERS = [-1, -0.5, float("nan"), float("inf"), float("-inf"), Decimal("NaN"), Decimal("sNaN"), True, False]
NO_NUMBERS += [None, [], {}, b"8", 1j, 10**5000, -(10**5000), Decimal("1E-99999"), Decimal("1E+99999")]


@pytest.mark.parametrize(("text", "mib"), SIZES.items())
def test_a_size_is_read_in_the_unit_it_names(text, mib):
    assert parse_size_mib(text, bare_unit="MiB") == mib


def test_a_bare_number_is_in_the_unit_of_its_key():
    assert parse_size_mib(8, bare_unit="GB") == parse_size_mib("8", bare_unit="GiB") == 8192
    assert parse_size_mib(8, bare_unit="MiB") == parse_size_mib("8", bare_unit="MB") == 8


@pytest.mark.parametrize(("given", "ms"), DURATIONS.items())
def test_a_duration_is_read_in_the_unit_it_names(given, ms):
    assert parse_duration_ms(given) == ms


@pytest.mark.parametrize("value", [0.1, "0.1", Decimal("0.1"), "0.1GB"])
def test_a_tenth_of_a_gb_is_a_tenth_and_not_the_nearest_binary_fraction(value):
    assert gb_to_mib(value) == 103  # 102.4, up


@given(st.decimals(0, 16384, allow_nan=False, allow_infinity=False).map(abs))  # 0 has a sign in Decimal
@example(Decimal("0.0009765625000000000000000000000000000000001"))  # a hair above 1 MiB: 28 digits would lose it
@example(Decimal("1E-900"))
def test_gb_round_up_to_the_next_mib_exactly(gb):
    exact = Fraction(gb) * 1024
    assert gb_to_mib(gb) == gb_to_mib(str(gb)) == ceil(exact)
    assert parse_size_mib(gb, bare_unit="GB", round_down=True) == floor(exact)


@given(st.floats(min_value=0, max_value=16384, exclude_min=True))
def test_a_float_is_the_number_that_it_prints(gb):
    assert gb_to_mib(gb) == ceil(Fraction(repr(gb)) * 1024)


@given(st.integers(0, VRAM_MIB_MAX), st.sampled_from(["MiB", "MB", "M", "mib"]), st.sampled_from(["", " ", "  "]))
def test_whole_mib_come_back_as_they_are(mib, unit, gap):
    assert parse_size_mib(f"{mib}{gap}{unit}", bare_unit="GB") == mib


@given(st.fractions(0, 10_000, max_denominator=1000), st.sampled_from([("ms", 1), ("s", 1000), ("m", 60_000)]))
def test_durations_round_up_to_the_next_ms_exactly(amount, unit):
    name, ms = unit
    decimal = Decimal(amount.numerator) / Decimal(amount.denominator)
    assert parse_duration_ms(f"{decimal:f}{name}") == ceil(Fraction(decimal) * ms)


@given(st.text(max_size=40) | st.floats() | st.integers() | st.decimals() | st.none() | st.booleans())
@example("²")
@example("8ⅯB")
def test_whatever_is_given_is_a_number_within_bounds_or_a_config_error(value):
    for read, maximum in ((gb_to_mib, VRAM_MIB_MAX), (parse_duration_ms, MS_MAX)):
        try:
            result = read(value)
        except ConfigError as error:
            complaint = str(error)
        else:
            assert type(result) is int
            assert 0 <= result <= maximum
            continue
        assert re.search("expected .*, for example ", complaint)
        assert complaint.isprintable()


@pytest.mark.parametrize("value", [*GARBAGE, *NO_NUMBERS, "30s", 2**63], ids=lambda value: repr(type(value)))
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ConfigError, match=r"expected a number of MiB .* for example 8GB"):
        parse_size_mib(value, bare_unit="MiB")


@pytest.mark.parametrize("value", [*GARBAGE, *NO_NUMBERS, "8GB", 2**63], ids=lambda value: repr(type(value)))
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ConfigError, match=r"expected a number of seconds .* for example 30s"):
        parse_duration_ms(value)


def test_a_refusal_says_what_was_given():
    with pytest.raises(ConfigError, match=r"^'8XB' has an unknown unit; expected a number of GB or one with a unit"):
        gb_to_mib("8XB")
    with pytest.raises(ConfigError, match=r"^true \(a boolean\) is not a duration"):
        parse_duration_ms(True)
    with pytest.raises(ConfigError, match=r"^'17TB' is above 16777216 MiB"):
        gb_to_mib("17TB")
    with pytest.raises(ConfigError, match=r"^'9e9h' is too long"):
        parse_duration_ms("9e9h")


def test_devices_are_read_in_the_order_given():
    assert parse_devices("cuda:1=24576, cuda:0 = 24GB") == [(1, 24576), (0, 24576)]


def test_a_device_has_no_fraction_that_it_does_not_have():
    assert parse_devices("cuda:0=0.1GB") == [(0, 102)]


@given(st.dictionaries(st.integers(0, 9999), st.integers(1, VRAM_MIB_MAX), min_size=1, max_size=8))
def test_devices_come_back_as_they_were_written(devices):
    assert dict(parse_devices(",".join(f"cuda:{index}={mib}" for index, mib in devices.items()))) == devices


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cuda:0=1,cuda:0=2", "cuda:0 is there twice"),
        ("cuda:0=1,", "'' in 'cuda:0=1,' is no device"),
        ("", "'' in '' is no device"),
        ("24576", "is no device"),
        ("cuda:00=1", "is no device"),
        ("cuda:-1=1", "is no device"),
        ("cuda:10000=1", "is no device"),
        ("cuda:0", "is no device"),
        ("cuda:0=", "is no device"),
        ("cuda:0=0", "a device without memory"),
        ("cuda:0=0.5MiB", "a device without memory"),
        ("cuda:0=lots", "'lots' is not a size"),
        ("cuda:0=17TB", "'17TB' is above"),
        (24576, r"24576 \(a number\) is no list of devices"),
        (None, "null is no list of devices"),
    ],
)
def test_a_wrong_list_of_devices_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=f"{complaint}.*; expected .*, for example "):
        parse_devices(text)
