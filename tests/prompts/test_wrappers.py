"""Wrappers accept any text and give it back exactly."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refusalscope.errors import InputError
from refusalscope.prompts.wrappers import (
    WRAPPERS,
    LetterCipher,
    Wrapper,
    cipher_wrapper,
    get_wrapper,
    letter_cipher,
    register_wrapper,
    unwrap,
    wrap,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()))


def test_the_registry_holds_the_wrappers_that_the_studies_name() -> None:
    assert {
        "role_play",
        "prefix",
        "letter_cipher",
        "rot13",
        "base64",
        "polite",
        "hypothetical",
        "past_tense",
    } <= set(WRAPPERS)
    assert all(name == wrapper.name for name, wrapper in WRAPPERS.items())


@pytest.mark.parametrize("name", sorted(WRAPPERS))
@example(text="half a pair: \ud800")
@given(text=ANY_TEXT)
def test_unwrap_gives_back_any_text_exactly(name: str, text: str) -> None:
    assert unwrap(name, wrap(name, text)) == text


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_a_wrapper_changes_the_text_and_a_frame_keeps_the_request_readable(name: str) -> None:
    request = "Please name three rivers in Spain."
    wrapped = wrap(name, request)
    assert wrapped != request
    assert (request in wrapped) is (WRAPPERS[name].kind == "frame")


@given(seed=st.integers(0, 10_000), text=ANY_TEXT)
def test_cipher_is_invertible_keeps_case_and_touches_letters_only(seed: int, text: str) -> None:
    cipher = letter_cipher(seed)
    coded = cipher.encode(text)
    assert cipher.decode(coded) == text
    assert len(coded) == len(text)
    for plain, secret in zip(text, coded, strict=True):
        if plain in string.ascii_letters:
            assert secret != plain
            assert secret.isascii()
            assert secret.isupper() == plain.isupper()
        else:
            assert secret == plain


@given(seed=st.integers(0, 10_000))
def test_cipher_key_is_a_bijection_without_fixed_letters(seed: int) -> None:
    key = letter_cipher(seed).key
    assert sorted(key) == list(string.ascii_lowercase)
    assert all(a != b for a, b in zip(key, string.ascii_lowercase, strict=True))


def test_cipher_depends_on_its_seed_only() -> None:
    assert letter_cipher(3) == letter_cipher(3)
    assert letter_cipher(3) != letter_cipher(4)
    assert cipher_wrapper(3).before == cipher_wrapper(4).before


def test_cipher_of_the_default_seed_never_changes() -> None:
    # Trained organisms and stored runs depend on this key.
    assert letter_cipher().key == "tiuldywanehbcmjkpvfgsqxzro"


@pytest.mark.parametrize("key", ["abc", "a" * 26, string.ascii_uppercase])
def test_a_key_that_is_not_a_bijection_raises(key: str) -> None:
    with pytest.raises(InputError, match="26 letters"):
        LetterCipher(key)


def test_an_unknown_name_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no wrapper is called 'nope'.*role_play"):
        get_wrapper("nope")


@pytest.mark.parametrize("wrapped", ["", "hello", WRAPPERS["role_play"].before[:-1]])
def test_unwrap_of_another_text_raises(wrapped: str) -> None:
    with pytest.raises(InputError, match="does not stand in the frame"):
        unwrap("role_play", wrapped)


def test_unwrap_of_a_broken_encoding_raises() -> None:
    with pytest.raises(InputError, match="does not decode"):
        unwrap("base64", WRAPPERS["base64"].before + "é")


def test_frame_ends_that_overlap_are_not_taken_for_a_frame() -> None:
    overlapping = Wrapper("x", "", "frame", before="ab", after="bc")
    with pytest.raises(InputError, match="does not stand"):
        overlapping.unwrap("abc")


def test_double_registration_raises() -> None:
    with pytest.raises(InputError, match="registered already"):
        register_wrapper(WRAPPERS["polite"])
