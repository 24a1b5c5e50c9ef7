"""Answers are evaluation's, a conversation goes on, and what cannot be answered is told."""

import pytest
import torch

from cpu_grpo.chat import speaker as chat_speaker
from cpu_grpo.chat.models import named
from cpu_grpo.chat.speaker import Manner, speakers
from cpu_grpo.engine.rollout import Sampling
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import candidate
from cpu_grpo.hardware import Setup
from cpu_grpo.models.loading import load_model
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.prompts import prompt, prompt_ids

GREEDY = Manner(Sampling(temperature=0), 24, 0)


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    """Without a measurement."""
    monkeypatch.setattr(chat_speaker, "setup", lambda config: Setup("fp32", 1, 0, 0, ()))


def loaded(*names, manner=GREEDY, **options):
    return speakers(named(list(names), **options), manner)


def read(answer):
    return "".join(answer.pieces())


@pytest.mark.parametrize("name", ["base", "first"])
def test_a_greedy_answer_is_evaluations(models, name):
    (speaker,) = loaded(name)
    model, tokenizer = load_model(models / name)
    evaluated = candidate(model, tokenizer, "fp32", 64)
    for question in ("What is 2 + 3?", "Say so.", "x" * 70):
        ids = prompt_ids(prompt(Problem("p", question, "5"), speaker.task, tokenizer), tokenizer)
        ((*wanted,),) = evaluated.greedy([ids], 24, 64, lambda done: None)
        answer = speaker.answer(question)
        read(answer)
        assert answer.ids == wanted
        assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)
        assert answer.cut_off == (wanted[-1] not in evaluated.ends)


def test_sampling_depends_on_the_seed_alone(models):
    texts = []
    for seed in (1, 1, 2):
        (speaker,) = loaded("base", manner=Manner(Sampling(temperature=1), 24, seed))
        texts.append(read(speaker.answer("Hello?")))
    assert texts[0] == texts[1] != texts[2]


def test_a_conversation_is_turns_as_they_were_asked_and_answered(models, monkeypatch):
    (speaker,) = loaded("first")
    first = speaker.answer("1 + 1?")
    read(first)
    speaker.remember("1 + 1?", first)
    asked = []
    monkeypatch.setattr(chat_speaker, "prompt_ids", lambda turns, tokenizer: asked.append(turns) or [5])
    speaker.answer("And 3?")
    speaker.forget()
    speaker.answer("Now?")
    system = {"role": "system", "content": "You add."}
    assert asked[0] == [
        system,
        {"role": "user", "content": "1 + 1?\nAnswer after ####."},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And 3?\nAnswer after ####."},
    ]
    assert asked[1] == [system, {"role": "user", "content": "Now?\nAnswer after ####."}]


def test_an_answer_stops_at_the_models_last_position_and_a_longer_conversation_is_refused(models):
    (speaker,) = loaded("base", manner=Manner(Sampling(temperature=0), 100, 0))
    speaker.ends.clear()
    length = len(prompt_ids(prompt(Problem("p", "x", "5"), speaker.task, speaker.tokenizer), speaker.tokenizer))
    near = speaker.answer("x" * (speaker.positions - length - 9))  # a token a character
    read(near)
    assert len(near.ids) == 10
    with pytest.raises(UserError, match=r"base takes 512: begin a new one \(/reset\)"):
        speaker.answer("x" * 600)


def test_weights_that_are_no_numbers_are_told(models):
    (speaker,) = loaded("base")
    with torch.no_grad():
        speaker.engine.decoder.norm.weight.fill_(float("nan"))
        speaker.engine.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="weights of base yield no numbers"):
        read(speaker.answer("Hello?"))


def test_a_model_that_the_engine_does_not_know_is_refused(models, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    with pytest.raises(UserError, match="gpt2 cannot be asked here"):
        loaded("gpt2")
