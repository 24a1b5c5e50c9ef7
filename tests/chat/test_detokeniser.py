"""Pieces of text are whole characters that are safe to show, and together all that the tokens say."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from cpu_grpo.chat.detokeniser import Detokeniser
from cpu_grpo.text import unprintable, visible

TOKENIZER = tiny_tokenizer()  # a token a byte


def pieces(ids):
    detokeniser = Detokeniser(TOKENIZER)
    return [*(detokeniser.add(token) for token in ids), detokeniser.end()]


def tokens(text):
    return TOKENIZER(text)["input_ids"]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_whatever_the_tokens_are_the_pieces_are_their_text_made_safe(ids):
    found = pieces(ids)
    assert "".join(found) == visible(TOKENIZER.decode(ids, skip_special_tokens=True))
    assert not any(unprintable(character) for piece in found for character in piece)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd\r"), max_size=40))
def test_no_piece_ends_within_a_character(text):
    found = pieces(tokens(text))
    assert "".join(found) == visible(text)
    assert [piece for piece in found if piece] == [visible(character) for character in text]


def test_a_character_of_four_bytes_comes_with_its_last():
    assert pieces(tokens("a😀b")) == ["a", "", "", "", "😀", "b", ""]


def test_half_a_character_at_the_end_is_shown_as_broken():
    assert pieces(tokens("a😀")[:-1])[-1] == "\ufffd"


def test_what_would_steer_a_terminal_does_not_and_a_lines_end_of_two_characters_is_one():
    assert "".join(pieces(tokens("\x1b[2Jhi\r\nyou\r"))) == "\ufffd[2Jhi\nyou\ufffd"


def test_special_tokens_are_not_shown():
    assert "".join(pieces([*tokens("yes"), TOKENIZER.eos_token_id])) == "yes"
