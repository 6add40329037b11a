"""Chat templates of language models made to take messages whose content is a list of parts, pictures and
texts, as processors of vision-language models are asked."""

from __future__ import annotations

_BEGINS = "{#- messages of parts as messages of text -#}\n"
_END = "{%- set messages = flat.messages -%}\n"
_FLAT = (
    _BEGINS
    + """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set said = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set said.text = said.text + 'IMAGE\\n' -%}
{%- else -%}{%- set said.text = said.text + part['text'] -%}{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': said.text}] -%}
{%- endif -%}
{%- endfor -%}
"""
    + _END
)


def in_parts(template: str | None, image_token: str) -> str | None:
    """A template for messages of text, which stay as they are, and of parts: `image` is written as
    `image_token` on a line of its own. One that takes them already is given back."""
    if template is None or template.startswith(_BEGINS):
        return template
    return _FLAT.replace("IMAGE", image_token) + template


def of_text(template: str | None) -> str | None:
    """What `in_parts` was given: what it does with messages of text."""
    if template is None or not template.startswith(_BEGINS):
        return template
    return template.partition(_END)[2]
