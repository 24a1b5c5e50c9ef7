"""Chat templates as turns, and as Ollama's: what Ollama would make of them is what the tokenizer makes."""

import re

import jinja2
import pytest
from tiny import TEMPLATE

from cpu_grpo.export.gguf_file import plan_gguf
from cpu_grpo.export.modelfile import NO_TEMPLATE, modelfile
from cpu_grpo.export.source import find_source
from cpu_grpo.export.turns import go_template, turns_of
from cpu_grpo.models.loading import load_tokenizer

DEFAULT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}}' }}{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant}}' }}{% endif %}"
)
SHOUTS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | upper }}</s>{% endfor %}"
NUMBERS = "{% for m in messages %}<{{ m['role'] }} {{ loop.index }}>{{ m['content'] }}</s>{% endfor %}"
SYSTEM_IN_USER = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% else %}[INST]"
    "{% if loop.index == 2 and messages[0]['role'] == 'system' %}<<SYS>>{{ messages[0]['content'] }}<</SYS>>"
    "{% endif %}{{ m['content'] }}[/INST]{% endif %}{% endfor %}"
)
TALKS = [
    [{"role": "user", "content": "What is\n7 + {{5}}?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7?"}],
    [{"role": r, "content": f'{n} "x"'} for n, r in enumerate(("system", "user", "assistant", "user"))],
]


def ollama(template, messages, system=""):
    """What Go's text/template makes of the constructs that are used, by way of jinja; SYSTEM goes in front."""
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    text = template.replace('{{ "{{" }}', "\0")
    text = text.replace("{{ range .Messages }}", "{% for m in messages %}").replace("{{ .Content }}", "{{ m.content }}")
    text = re.sub(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', _branch, text)
    text = text.replace("{{ end }}{{ end }}", "{% endif %}{% endfor %}")
    assert set(re.findall(r"\{\{.*?\}\}", text)) == {"{{ m.content }}"}  # nothing is left that was not understood
    text = text.replace("\0", "{{ '{{' }}")
    return jinja2.Environment(keep_trailing_newline=True).from_string(text).render(messages=messages)


def _branch(found):
    return f'{{% {"elif" if "else" in found[0] else "if"} m.role == "{found[1]}" %}}'


@pytest.mark.parametrize("template", [TEMPLATE, DEFAULT, LLAMA, BRACES])
@pytest.mark.parametrize("bos", [None, "<|endoftext|>", "<|im_start|>"])
def test_ollama_makes_the_prompt_that_the_tokenizer_makes(merging, template, bos):
    merging.chat_template, merging.bos_token = template, bos
    turns = turns_of(merging)
    assert turns.system == ("Be kind." if template == DEFAULT else "")
    for talk in TALKS:
        expected = merging.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert ollama(go_template(turns, add_bos=False), talk, turns.system) == expected


def test_the_token_that_the_engine_begins_with_is_left_to_it(merging):
    merging.chat_template, merging.bos_token = LLAMA, "<|endoftext|>"
    turns = turns_of(merging)
    assert go_template(turns, add_bos=False) == "<|endoftext|>" + go_template(turns, add_bos=True)


@pytest.mark.parametrize("template", [SHOUTS, NUMBERS, SYSTEM_IN_USER, "{{ raise_exception('no') }}", "{% if %}", None])
def test_templates_that_do_more_than_write_turns_are_not_understood(merging, template):
    merging.chat_template = template
    assert turns_of(merging) is None


def test_a_modelfile_names_file_template_and_stop(place):
    plan = plan_gguf(find_source("tiny"), "q8_0")
    text, missing = modelfile(plan, load_tokenizer(place / "models" / "tiny"), "tiny.gguf")
    lines = text.splitlines()
    assert lines[0] == "FROM ./tiny.gguf" and lines[-1] == 'PARAMETER stop "<|im_end|>"' and not missing
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert ollama(template, TALKS[2]).startswith('<|im_start|>system\n0 "x"<|im_end|>\n<|im_start|>user\n1')


def test_a_modelfile_says_so_where_the_template_was_not_understood(place):
    (place / "models" / "tiny" / "chat_template.jinja").write_text(SHOUTS)
    plan = plan_gguf(find_source("tiny"), "q8_0")
    text, missing = modelfile(plan, load_tokenizer(place / "models" / "tiny"), "tiny.gguf")
    assert missing == NO_TEMPLATE and f"# {NO_TEMPLATE}" in text and "\nTEMPLATE" not in text
